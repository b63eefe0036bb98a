"""The stages of pre-training do what they say, on a handful of scenes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from fromfew.errors import FromfewError
from fromfew.pretrain import data, stages
from fromfew.pretrain.adapter import PairSource, pair
from fromfew.pretrain.autoencoder import Autoencoder, components, psnr, write_encoder
from fromfew.pretrain.data import NOTHING, OBJECTS, SHARD, Scenes, half, to_labels, to_tensor
from fromfew.pretrain.evaluators import one_side
from fromfew.pretrain.loop import Run, generator
from fromfew.pretrain.report import judged, pairs, real, scenes
from fromfew.pretrain.ship import WEIGHTS
from fromfew.pretrain.stages import BASE, STAGES, autoencoder, denoiser, find_stage, finished
from fromfew.pretrain.text import EyeStage, Text, short, tokens
from fromfew.pretrain.tokens import LENGTH, train_tokenizer
from fromfew.world.evaluators import side_views
from fromfew.world.scenes import CATEGORY, Item, Scene, caption, draw
from fromfew.world.vocabulary import CORE, names
from fromfew.world.vocabulary import said as said_of


@pytest.fixture
def few(monkeypatch):
    """Shards of 16 scenes, so that a test draws few of them."""
    monkeypatch.setattr(data, "SHARD", 16)


def test_the_encoder_is_the_components_of_patches():
    pictures = np.random.default_rng(0).integers(0, 255, (6, 128, 128, 3), dtype=np.uint8)
    mean, rows = components(pictures, 12)
    model = AutoencoderTiny(
        latent_channels=12, encoder_block_out_channels=(48,) * 4, decoder_block_out_channels=(48,) * 4,
        num_encoder_blocks=(0,) * 4, num_decoder_blocks=(1,) * 4,
    )  # fmt: skip
    write_encoder(model.encoder, rows, -rows @ mean)
    x = to_tensor(pictures[:2])
    cells = (x.permute(0, 2, 3, 1) / 2 + 0.5).reshape(2, 16, 8, 16, 8, 3)
    patches = cells.permute(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, 192)
    wanted = ((patches - mean) @ rows.T).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert torch.allclose(model.encoder(x), wanted, atol=1e-5)


def test_components_are_half_whitened_and_uncorrelated(few, tmp_path):
    pictures = Scenes(tmp_path, 11, 1).shard(0).pictures
    mean, rows = components(pictures, 6)
    patches = pictures.reshape(16, 16, 8, 16, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 192) / 255
    latents = (torch.from_numpy(patches[::7]).float() - mean) @ rows.T
    spread = latents.T.cov()
    off = spread - spread.diag().diag()
    assert float(off.abs().max()) < 1e-3 * float(spread.diag().max())
    assert (spread.diag().diff() <= 1e-6).all()  # the first component varies most


def test_an_autoencoder_begun_from_the_shipped_one_keeps_encoder_and_scale(few, tmp_path):
    stage = Autoencoder(tmp_path, shards=1, start=BASE / "vae")
    stage.steps = 2
    run = Run(stage, tmp_path)
    run.train()
    trained, scale = autoencoder(tmp_path)
    shipped = AutoencoderTiny.from_pretrained(BASE / "vae", torch_dtype=torch.float32)
    assert scale == shipped.config.scaling_factor
    old, new = shipped.state_dict(), trained.state_dict()
    moved = {key.split(".")[0] for key in old if not torch.equal(old[key], new[key])}
    assert moved == {"decoder"}


@pytest.mark.parametrize("relation", ["left", "right", "above", "and"])
def test_the_judge_is_told_what_stands_on_the_side_it_sees(relation):
    names_ = ("red-apple", "owl")
    scene = Scene(tuple(Item(name) for name in names_), "snow", relation=relation)
    scene = replace(scene, caption=caption(scene))
    drawn = draw(scene, np.random.default_rng(0))
    across = 1 if relation == "above" else 0
    order = sorted((0, 1), key=lambda i: drawn.boxes[i][across])  # which thing stands on which side
    seen = set()
    for step in range(12):
        picture = to_tensor(np.asarray(drawn.picture)[None])
        whole = picture.clone()
        labels = to_labels(np.array([[OBJECTS.index(n) for n in names_] + [0, 0, NOTHING, NOTHING]]))
        one_side(picture, labels, [scene.caption], step)
        sides = side_views(whole[0], relation)
        kept = next((k for k in (0, 1) if torch.equal(picture[0], sides[k])), None)
        seen.add(kept)
        if kept is None:
            assert torch.equal(picture, whole)
            assert [int(labels.object), int(labels.second)] == [OBJECTS.index(n) for n in names_]
        else:
            assert (int(labels.object), int(labels.second)) == (OBJECTS.index(names_[order[kept]]), NOTHING)
    assert seen == {None, 0, 1}


def test_psnr_has_its_closed_form():
    assert float(psnr(torch.full((2, 3, 4, 4), 0.2))) == pytest.approx(-10 * math.log10(0.04 / 4))


def test_every_pass_shows_every_scene_once(few, tmp_path):
    stream = Scenes(tmp_path, 11, 2)
    seen = [(number, int(r)) for step in range(8) for number, rows in [stream.place(step, 4)] for r in rows]
    assert sorted(seen) == [(n, r) for n in range(2) for r in range(16)]
    again = [(number, int(r)) for step in range(8, 16) for number, rows in [stream.place(step, 4)] for r in rows]
    assert sorted(again) == sorted(seen)
    assert again != seen


def test_shards_are_kept_and_equal_what_is_drawn_afresh(few, tmp_path):
    first, again = (Scenes(tmp_path / where, 11, 1).shard(0) for where in ("a", "b"))
    assert np.array_equal(first.pictures, again.pictures)
    assert first.captions == again.captions
    assert len(list((tmp_path / "a").glob("*.npz"))) == 1


def test_shards_drawn_by_several_processes_are_the_same(tmp_path):
    many, one = Scenes(tmp_path / "many", 11, 2), Scenes(tmp_path / "one", 11, 2)
    many.prepare(2)
    assert len(list((tmp_path / "many").glob("*.npz"))) == 2
    assert np.array_equal(many.shard(1).pictures[:8], np.stack([draw_one(one, SHARD + k) for k in range(8)]))


def draw_one(stream, number):
    scene, rng = stream.scene(number)
    return np.asarray(draw(scene, rng).picture)


def test_labels_name_what_is_there(few, tmp_path):
    stream = Scenes(tmp_path, 101, 1, held_out=0.5)
    labels = to_labels(stream.shard(0).labels)
    for k in range(16):
        scene, _ = stream.scene(k)
        name = scene.items[0].name
        assert int(labels.object[k]) == (OBJECTS.index(name) if name in CATEGORY else NOTHING)


def test_evaluators_see_half_the_size():
    assert half(torch.zeros(2, 3, 128, 128)).shape == (2, 3, 64, 64)


def test_the_tokenizer_writes_any_prompt(tmp_path):
    tokenizer = train_tokenizer(tmp_path, captions=300, size=700)
    ids = tokenizer("a <rex> cat, ünïcödé!").input_ids
    assert tokenizer.decode(ids[1:-1]).replace(" ", "") == "a<rex>cat,ünïcödé!"
    assert tokenizer.model_max_length == LENGTH
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_an_autoencoder_learns_on_its_own_scenes(few, tmp_path):
    stage = Autoencoder(tmp_path, shards=1)
    from fromfew.pretrain.loop import Run

    run = Run(stage, tmp_path)
    encoder = [p.clone() for p in run.model.encoder.parameters()]
    losses = [run.advance()[0] for _ in range(25)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(torch.equal(a, b) for a, b in zip(encoder, run.model.encoder.parameters(), strict=True))


def test_pairs_show_one_thing_in_two_places_and_name_only_its_category():
    shown, target, caption, noun = pair(np.random.default_rng(4))
    assert noun in caption
    assert shown.shape == target.shape == (128, 128, 3)
    assert not np.array_equal(shown, target)
    assert any(f" {category}" in f" {caption}" for category in set(CATEGORY.values()))
    first, again = (PairSource()(generator(1, 2)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions


def test_the_report_asks_every_style_and_context():
    asked = scenes(70)
    assert len({s.style for s in asked}) == 5
    assert len({s.context for s in asked}) == 14
    assert all(len(s.items) == 2 for s in pairs(5))
    assert real(asked[:3]).shape == (3, 3, 128, 128)


def test_the_judge_knows_real_scenes_and_not_noise():
    asked = scenes(60)
    told = judged(real(asked), asked)
    assert told["context"] > 80
    assert told["object"] > 50
    noise = torch.rand(60, 3, 128, 128, generator=generator(5)) * 2 - 1
    assert judged(noise, asked)["object"] < 10


def test_masks_of_a_shard_cover_the_things(few, tmp_path):
    stream = Scenes(tmp_path, 11, 1)
    masks = stream.shard(0).masks
    assert masks.shape == (16, 16, 16)
    scene, rng = stream.scene(3)
    alpha = np.max(draw(scene, rng).alphas, axis=0)
    assert abs(float(masks[3].mean()) - float(alpha.mean())) < 1
    assert masks[3, 0, 0] == 0 or alpha[:8, :8].any()


def test_a_text_batch_has_two_ways_to_say_each_thing_and_hard_negatives(tmp_path):
    train_tokenizer(tmp_path / "tokenizer", captions=300, size=700)
    stage = Text(tmp_path)
    stage.batch_size = 16
    first, second, same = stage.batch(0)
    said = [stage.tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (first, second)]
    assert not torch.equal(first, second) if first.shape == second.shape else True
    assert bool(same.diag().all())
    assert torch.equal(same, same.T)
    # Rows of a group say the same place, and all but chance twins another thing.
    ends = [" ".join(line.split()[-2:]) for line in said[0][:4]]
    assert len(set(said[0][:4])) > 1 or bool(same[:4, :4].all())
    assert len(set(ends)) <= 3


def test_the_tower_learns_to_tell_captions_apart(tmp_path):
    from fromfew.pretrain.loop import Run

    train_tokenizer(tmp_path / "tokenizer", captions=300, size=700)
    stage = Text(tmp_path)
    stage.batch_size, stage.warmup = 16, 2
    run = Run(stage, tmp_path)
    losses = [run.advance()[0] for _ in range(12)]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_padding_to_the_longest_changes_no_state_before_it(tmp_path):
    tokenizer = train_tokenizer(tmp_path / "tokenizer", captions=300, size=700)
    tower = Text(tmp_path).build().eval()
    said = ["a cat", "a red balloon in the snow"]
    long, few_ids = tokens(tokenizer, said), short(tokenizer, said)
    assert few_ids.shape[1] < long.shape[1] == LENGTH
    with torch.no_grad():
        whole, part = (tower(ids).last_hidden_state for ids in (long, few_ids))
    assert torch.allclose(whole[:, : few_ids.shape[1]], part, atol=1e-5)


def test_the_eye_learns_what_the_locked_tower_says(few, tmp_path):
    from fromfew.pretrain.loop import Run

    train_tokenizer(tmp_path / "tokenizer", captions=300, size=700)
    tower = Text(tmp_path).build().requires_grad_(False)
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    stage = EyeStage(tmp_path, tower, shards=1)
    stage.batch_size, stage.warmup = 8, 2
    run = Run(stage, tmp_path)
    losses = [run.advance()[0] for _ in range(20)]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert all(torch.equal(before[k], v) for k, v in tower.state_dict().items())


def test_things_weigh_more_in_the_denoisers_loss(tmp_path):
    stage = denoiser(tmp_path)

    class Off(torch.nn.Module):
        """Wrong by one in the left half, right elsewhere."""

        def __init__(self):
            super().__init__()
            self.none = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t, states):
            wrong = torch.zeros_like(x)
            wrong[..., :8] = 1
            return type("Out", (), {"sample": self.target + wrong})

    model = Off()
    x0 = torch.randn(2, 12, 16, 16, generator=generator(1))
    things = torch.zeros(2, 1, 16, 16)
    things[..., :8] = 1
    with torch.no_grad():
        stage.signal = torch.zeros_like(stage.signal)  # no signal: v is -x0
        model.target = -x0
        loss, figures = stage.loss(model, (x0, things, ["a cat", "a dog"]), generator(3))
    assert float(loss) == pytest.approx(4 / 5, abs=1e-5)
    assert figures["plain"] == pytest.approx(0.5, abs=1e-4)


def test_the_first_steps_of_a_denoiser_show_what_they_should(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 128)
    monkeypatch.setattr(stages, "BASE_SHARDS", 2)
    stage = denoiser(tmp_path)
    stage.plain_first, stage.named_first = 3, 6
    styles, pairs = [f"in {name} style" for name in ("sketch", "pixel art", "neon", "poster")], (" above ", " left of ")
    said = {said_of(name) for name in names(CORE)}
    for step in range(6):
        captions = stage.batch(step)[2]
        assert captions == stage.batch(step)[2]
        assert all(any(call in caption for call in said) for caption in captions)
        styled = sum(any(style in caption for style in styles) for caption in captions)
        assert styled == (0 if step < 3 else 3)
    firsts = [caption for step in range(3) for caption in stage.batch(step)[2]]
    assert not any(word in caption for word in pairs for caption in firsts)


def test_a_denoiser_may_begin_from_the_shipped_base(tmp_path):
    fresh, from_world = denoiser(tmp_path).build(), denoiser(tmp_path, start="world").build()
    assert from_world.training
    shipped = load_file(WEIGHTS / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    key = "mid_block.resnets.0.conv1.weight"
    assert torch.equal(from_world.state_dict()[key], shipped[key].float())
    assert not torch.equal(fresh.state_dict()[key], shipped[key].float())


def test_stages_that_have_not_run_are_named(tmp_path):
    assert list(STAGES)[:4] == ["autoencoder", "text", "eye", "denoiser"]
    with pytest.raises(FromfewError, match="denoiser"):
        find_stage("denoisr", tmp_path, "cpu")
    with pytest.raises(FromfewError, match="fromfew pretrain autoencoder"):
        finished(Autoencoder(tmp_path), tmp_path)
