from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fromfew.cli import main
from fromfew.concept import load
from fromfew.errors import FromfewError
from fromfew.fit import fit, generator
from fromfew.losses import aligned
from fromfew.method import find
from fromfew.references import References
from fromfew.stage import Stage
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 6, "batch": 2, "lr": 2e-3, "word_lr": 2e-2, "views": 2, "prior": 0.0}


def scene(folder):
    """One picture with a red square on the left and a blue one on the right, each with a mask."""
    pixels = np.full((48, 48, 3), 200, np.uint8)
    left, right = np.zeros((48, 48), np.uint8), np.zeros((48, 48), np.uint8)
    left[12:36, 2:22], right[12:36, 26:46] = 255, 255
    pixels[left > 0], pixels[right > 0] = (220, 30, 30), (30, 30, 220)
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "scene.png")
    Image.fromarray(left).save(folder / "scene.rex=cat.mask.png")
    Image.fromarray(right).save(folder / "scene.lamp.mask.png")
    return folder


@pytest.fixture
def refs(tmp_path):
    return References.read(scene(tmp_path / "scene"))


def test_masks_beside_a_picture_name_its_things(refs):
    assert [(one.placeholder, one.noun) for one in refs.subjects] == [("<lamp>", "lamp"), ("<rex>", "cat")]
    lamp, rex = (np.array(one.photos[0].mask) for one in refs.subjects)
    assert lamp[24, 36] == rex[24, 10] == 255
    assert not (np.minimum(lamp, rex)).any()
    assert "learned together" in refs.notes[-1]


def test_one_thing_can_be_picked_and_learned_by_any_method(tmp_path):
    folder = scene(tmp_path / "scene")
    alone = References.read(folder, placeholder="<rex>")
    assert (alone.noun, alone.also) == ("cat", ())
    assert np.array(alone.photos[0].mask)[24, 10] == 255
    concept = find("lora")(steps=1, batch=1, lr=1e-3, encoder_lr=0.0).learn(tiny("sd15"), alone)
    assert concept.answers == {"<rex>": "cat"}
    with pytest.raises(FromfewError, match="one thing at a time"):
        find("vico")().learn(tiny("sd15"), References.read(folder))


def test_wrong_names_are_refused_with_what_there_is(tmp_path):
    folder = scene(tmp_path / "scene")
    with pytest.raises(FromfewError, match=r"<tom>.*<lamp> \(lamp\), <rex> \(cat\)"):
        References.read(folder, placeholder="<tom>")
    with pytest.raises(FromfewError, match="noun"):
        References.read(folder, noun="dog")
    (folder / "scene.lamp.mask.png").rename(folder / "scene.my lamp.mask.png")
    with pytest.raises(FromfewError, match="names no thing"):
        References.read(folder)


def test_masks_of_the_picture_itself_and_of_its_neighbours_name_nothing(tmp_path):
    for name in ("a.jpg", "a.2.jpg", "b.png"):
        Image.new("RGB", (32, 32), (len(name), 9, 9)).save(tmp_path / name)
    for name in ("a.jpg.mask.png", "a.2.mask.png", "b.mask.png"):
        Image.new("L", (32, 32), 255).save(tmp_path / name)
    refs = References.read(tmp_path, noun="cat")
    assert refs.also == ()
    assert refs.placeholder == "<v>"
    assert all(photo.mask is not None for photo in refs.photos)


def test_without_a_mask_it_is_refused_before_any_work():
    with pytest.raises(FromfewError, match="mask"):
        find("break-a-scene")(**QUICK).learn(tiny("sd15"), few_photos())


def states(bb, refs, **settings):
    """Parts before, after the first stage, and after all."""
    method = find("break-a-scene")(**{**QUICK, "encoder": True, **settings})
    parts = method.parts(bb, refs, generator(0))
    seen = [{name: value.clone() for name, value in parts.state_dict().items()}]
    stages = list(method.stages(bb, refs, parts))
    for stage in stages:
        fit(bb, parts, stage, rng=generator(1))
        seen.append({name: value.clone() for name, value in parts.state_dict().items()})
    return stages, seen


@pytest.mark.parametrize("low_rank", [0, 2])
def test_words_learn_alone_first_and_then_everything_with_another_rate(refs, low_rank):
    stages, (began, words, ended) = states(tiny("sd15"), refs, low_rank=low_rank)
    moved = {name for name in began if not torch.equal(began[name], words[name])}
    assert moved == {"word.vectors.one", "word2.vectors.one"}
    rates = [set(stage.train.values()) for stage in stages]
    assert rates == [{2e-2}, {2e-3}]
    assert [stage.steps for stage in stages] == [3, 3]
    also = {name for name in began if not torch.equal(words[name], ended[name])}
    assert moved < also
    assert any(name.startswith("encoder") for name in also)
    assert len(also) > 0.8 * len(began)


def test_all_steps_may_be_of_the_second_stage(refs):
    stages, _ = states(tiny("sd15"), refs, words_first=0.0, low_rank=2, steps=2)
    assert [stage.name for stage in stages] == ["all"]


def test_the_attention_loss_draws_each_words_map_to_its_mask(refs):
    bb, far = tiny("sd15"), []
    settings = {**QUICK, "steps": 50, "lr": 4e-3, "low_rank": 0, "zoom": (1.0, 1.0), "words_first": 0.0}
    for weight in (10.0, 0.0):
        method = find("break-a-scene")(**settings, attention=weight)
        concept, values = method.learn(bb, refs), []

        def look(step, values=values):
            values.append(float(aligned(step).mean()))
            return step.pred.mean((1, 2, 3))

        words = tuple(one.placeholder for one in refs.subjects)
        stage = Stage(8, method.photos(bb, refs), [(1.0, look)], {}, record=words, record_side=16)
        fit(bb, concept.parts, stage, rng=generator(5))
        far.append(sum(values) / len(values))
    assert far[0] < 0.9 * far[1]


def test_each_word_acts_alone_and_both_together(refs):
    bb = tiny("sd15")
    concept = find("break-a-scene")(**QUICK, low_rank=2).learn(bb, refs)
    assert concept.answers == {"<lamp>": "lamp", "<rex>": "cat"}
    with bb.attach(concept):
        one, two = predict(bb, prompt="a <lamp> lamp"), predict(bb, prompt="a <rex> cat")
        both = predict(bb, prompt="a <lamp> lamp and a <rex> cat")
    assert not torch.equal(one, two)
    assert not torch.equal(both, one)


def test_one_mask_alone_is_one_subject():
    concept = find("break-a-scene")(**QUICK, low_rank=2).learn(tiny("sd15"), few_photos(2, masks=True))
    assert concept.answers == {"<v>": "cat"}


def test_the_command_line_learns_a_scene_and_draws_its_things(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = scene(tmp_path / "scene")
    quick = ["--steps", "2", "--batch", "1", "--lr", "1e-3", "--word-lr", "1e-3", "--prior", "0", "--low-rank", "2"]
    learn = ["learn", str(folder), "--method", "break-a-scene", "--base", "tiny-sd15", "--no-preview", *quick]
    assert main(learn) == 0
    said = capsys.readouterr()
    assert "<lamp> lamp" in said.out
    assert "<rex> cat" in said.out
    assert load(tmp_path / "concepts" / "lamp-rex").answers == {"<lamp>": "lamp", "<rex>": "cat"}
    make = ["make", "a <rex> cat and a <lamp> lamp", "--with", "concepts/lamp-rex", "--base", "tiny-sd15"]
    assert main([*make, "--steps", "1", "--no-sheet"]) == 0
    assert main(["learn", str(folder), "--method", "vico", "--base", "tiny-sd15", "--out", "x"]) == 2
    assert "--as: <lamp>, <rex>" in capsys.readouterr().err
    (folder / "scene.lamp.mask.png").unlink()
    (folder / "scene.rex=cat.mask.png").unlink()
    bare = ["learn", str(folder), "--method", "break-a-scene", "--base", "tiny-sd15", "--noun", "cat", "--out", "y"]
    assert main(bare) == 2
    assert "scene.rex=cat.mask.png" in capsys.readouterr().err


WRONG = [{"modifier": "rare"}, {"words_first": 1.0}, {"low_rank": -1}, {"attention": -1.0}]


@pytest.mark.parametrize("settings", WRONG)
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(FromfewError, match=next(iter(settings))):
        find("break-a-scene")(**settings)


def test_the_same_picture_under_two_subjects_is_one_scene(refs):
    source = find("break-a-scene")(**{**QUICK, "batch": 1}).photos(tiny("sd15"), refs)
    keys = {source(generator(0, step)).keys[0][0] for step in range(20)}
    assert keys == {refs.photos[0].sha256[:16]}
    swapped = replace(refs.also[0], also=(replace(refs, also=()),))
    assert source(generator(0, 3)).keys[0][0] == swapped.photos[0].sha256[:16]
