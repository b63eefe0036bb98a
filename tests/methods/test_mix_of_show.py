"""Mix-of-Show's ED-LoRA: two words a layer and thin changes; fused and kept in regions."""

from dataclasses import replace

import pytest
import torch

from fromfew.combine import combine
from fromfew.errors import FromfewError
from fromfew.fit import fit, generator
from fromfew.make import make
from fromfew.method import find
from fromfew.ports.part import Parts
from fromfew.ports.place import layers_of
from fromfew.stage import Stage
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny


@pytest.fixture(scope="module")
def bb():
    return tiny("sd15")


def quick(**how):
    given = {"steps": 3, "batch": 2, "lr": 2e-2, "word_lr": 2e-2, "encoder_lr": 2e-2, "prior": 0.0, "norm_stop": 0.0}
    return find("mix-of-show")(**{**given, **how})


@pytest.fixture(scope="module")
def two(bb):
    other = replace(few_photos(2, noun="dog"), placeholder="<w>")
    return [quick().learn(bb, few_photos(2)), quick().learn(bb, other, seed=1)]


def test_one_word_begins_at_random_and_the_other_as_the_noun_in_every_layer(bb):
    parts = quick().resolved(bb).parts(bb, few_photos(1), generator(0))
    for key, encoder in bb.text_encoders.items():
        table = encoder.embedding.weight
        noun = table[encoder.tokenizer("cat", add_special_tokens=False).input_ids[0]]
        vectors = parts.word.vectors[key]
        assert vectors.shape == (2, len(layers_of(bb)), encoder.width)
        assert torch.equal(vectors[1], noun.expand_as(vectors[1]))
        assert not torch.allclose(vectors[0][0], noun)
        assert 0.5 < float(vectors[0][0].std() / table.std()) < 2
        assert torch.equal(vectors[0][0], vectors[0][-1])


def test_the_words_of_two_layers_exchanged_change_the_picture(bb, two):
    """Card 10: a stub that feeds one text to all layers would not notice."""
    concept = two[0]
    other = Parts(**{name: type(part).build(part.config()) for name, part in concept.parts.items()})
    other.load_state_dict(concept.parts.state_dict())
    with torch.no_grad():
        for vectors in other.word.vectors.values():
            vectors[:, [0, -1]] = vectors[:, [-1, 0]].clone() + 0.3 * torch.tensor([[[1.0], [-1.0]]])
    with bb.attach(concept):
        one = predict(bb)
    with bb.attach(other.requires_grad_(False)):
        two_ = predict(bb)
    assert not torch.allclose(one, two_, atol=1e-5)


def test_maps_of_the_denoiser_and_the_encoders_are_thin_and_all_are_attention(bb):
    parts = quick(rank=3).resolved(bb).parts(bb, few_photos(1), generator(0))
    assert set(parts.denoiser.targets()) == set(bb.select("attention"))
    assert set(parts.encoder.targets()) == set(bb.select("encoder.attention"))
    assert parts.denoiser.rank == parts.encoder.rank == 3
    assert parts.denoiser.scale == 1.0


def test_words_stop_once_they_are_long_and_maps_go_on(bb):
    began = quick().resolved(bb).parts(bb, few_photos(2), generator(0))
    for stop, moves in ((0.1, False), (50.0, True), (0.0, True)):
        ended = quick(norm_stop=stop).learn(bb, few_photos(2)).parts
        for key, vectors in ended.word.vectors.items():
            assert torch.equal(vectors, began.word.vectors[key]) is not moves
        up = ended.denoiser.state_dict()
        assert any(not torch.equal(value, began.denoiser.state_dict()[name]) for name, value in up.items())


def test_words_that_stopped_stay_stopped_through_a_kill(bb, tmp_path):
    method = quick(steps=6, norm_stop=1.02, word_lr=0.05)

    def stop(done, total, note=""):
        if done == 4:
            raise KeyboardInterrupt

    straight = method.learn(bb, few_photos(2))
    with pytest.raises(KeyboardInterrupt):
        method.learn(bb, few_photos(2), watch=stop, work=tmp_path)
    again = method.learn(bb, few_photos(2), work=tmp_path)
    for name, value in straight.parts.state_dict().items():
        assert torch.equal(value, again.parts.state_dict()[name])


def test_attention_is_kept_inside_masks_where_there_are_any(bb):
    for masks, records in ((True, ("<v>",)), (False, ())):
        refs = few_photos(2, masks=masks)
        method = quick().resolved(bb)
        [stage] = method.stages(bb, refs, method.parts(bb, refs, generator(0)))
        assert stage.record == records
        assert len(stage.terms) == 1 + masks
        assert stage.offset == 0.01
    [off] = quick(attention=0.0).resolved(bb).stages(bb, refs, method.parts(bb, refs, generator(0)))
    assert off.record == ()


def test_offset_noise_is_the_same_all_over_a_picture(bb):
    seen = {}

    def look(step):
        seen.setdefault("noise", []).append(step.noise)
        return step.noise.new_zeros(len(step.noise))

    batches = quick().photos(bb, few_photos(1))
    for offset in (0.0, 2.0):
        seen.clear()
        stage = Stage(steps=6, batches=batches, terms=[(1.0, look)], train={}, offset=offset)
        fit(bb, Parts(), stage, rng=generator(0))
        means = torch.cat(seen["noise"]).mean((2, 3))
        assert (float(means.std()) > 1) is (offset > 0)
    flat = torch.cat(seen["noise"])
    assert 0.8 < float((flat - flat.mean((2, 3), keepdim=True)).std()) < 1.2


def test_two_are_fused_into_one_that_does_more_alike_than_their_mean(bb, two):
    prompt = "a <v> cat and a <w> dog"
    fused = combine(two, method="gradient-fusion", base=bb, drawing=2)
    assert fused.answers == {"<v>": "cat", "<w>": "dog"}
    mean = combine(two, method="weighted", base=bb, mean=True)
    assert bool(torch.isfinite(make(bb, prompt, fused, steps=2).latents).all())
    gaps = {}
    for name, joined in (("fused", fused), ("mean", mean)):
        gap = 0.0
        for one in two:
            said = f"photo of a {one.placeholder} {one.noun}"
            with bb.attach(one):
                wanted = predict(bb, prompt=said)
            with bb.attach(joined):
                gap += float((predict(bb, prompt=said) - wanted).square().mean())
        gaps[name] = gap
    assert gaps["fused"] < gaps["mean"]


@pytest.mark.parametrize("method", ["attention", "layout", "noise"])
def test_words_of_layers_are_kept_in_regions(bb, two, method):
    prompt = "a <v> cat and a <w> dog"
    how = {"steps": 2, "region_method": method}
    one = make(bb, prompt, two, regions={"<v>": (0, 0, 0.5, 1), "<w>": (0.5, 0, 1, 1)}, **how).latents
    other = make(bb, prompt, two, regions={"<w>": (0, 0, 0.5, 1), "<v>": (0.5, 0, 1, 1)}, **how).latents
    assert not torch.allclose(one, other, atol=1e-3)
    if method != "layout":
        whole = make(bb, prompt, two[:1], regions={"a <v> cat": (0, 0, 1, 1)}, **how).latents
        assert torch.allclose(whole, make(bb, "a <v> cat", two[:1], steps=2).latents, atol=5e-4)


def test_settings_that_cannot_be_meant_are_refused():
    for how, why in (({"modifier": "rare"}, "modifier"), ({"vectors": 0}, "1 to 16"), ({"rank": 0}, "rank"),
                     ({"norm_stop": -1.0}, "0 or more")):  # fmt: skip
        with pytest.raises(FromfewError, match=why):
            find("mix-of-show")(**how)
