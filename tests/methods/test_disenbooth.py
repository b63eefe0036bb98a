from dataclasses import replace

import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import fit, generator
from fromfew.losses import besides, denoise
from fromfew.method import find
from fromfew.parts.image_states import ImageStates
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.eye import tiny_eye
from fromfew.testing.tiny import tiny


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    eye = tiny_eye(tmp_path_factory.mktemp("eye") / "eye")
    return {"steps": 4, "batch": 2, "lr": 1e-2, "word_lr": 1e-2, "image_lr": 1e-2, "rank": 4, "views": 2, "eye": eye}


def test_the_image_branch_has_two_million_numbers_at_1024():
    part = ImageStates(1024, 1024, "ktn")
    assert abs(sum(value.numel() for value in part.parameters()) / 2.1e6 - 1) < 0.01


def test_the_mask_begins_at_one_half_gets_a_gradient_and_the_map_is_residual():
    rng = generator(0)
    f = torch.randn(3, 8, generator=rng)
    part = ImageStates.of(f, 8, "ktn", 1.0, rng)
    assert torch.equal(part.mask.sigmoid(), torch.full((8,), 0.5))
    found = part.besides(f)
    found.square().sum().backward()
    assert bool(part.mask.grad.any())
    with torch.no_grad():
        part.maps["second"].zero_()
    assert torch.allclose(part.besides(f), 0.5 * f)
    assert not torch.allclose(found[0], found[1])
    assert ImageStates.of(f, 12, "ktn", 1.0, rng).besides(f).shape == (3, 12)


def test_a_photos_own_leftovers_explain_it_better_than_anothers_or_none(quick):
    bb, refs = tiny("sd15"), few_photos(3)
    method = find("disenbooth")(**{**quick, "steps": 80, "batch": 3, "zoom": (1.0, 1.0)})
    parts = method.parts(bb, refs, generator(0))
    (stage,) = method.stages(bb, refs, parts)
    fit(bb, parts, stage, rng=generator(0))
    image = next(module for module in stage.train if isinstance(module, ImageStates))
    seen, losses = method._eye(bb), {"own": 0.0, "other": 0.0, "none": 0.0}
    ways = {
        "own": lambda step: image.besides(seen(step.batch.images)),
        "other": lambda step: image.besides(seen(step.batch.images)).roll(1, 0),
        "none": lambda step: torch.zeros_like(image.besides(seen(step.batch.images))),
    }

    def look(step):
        assert len(set(step.batch.numbers)) == 3
        for name, way in ways.items():
            losses[name] += float(besides(bb, way, denoise)(step).mean())
        return denoise(step)

    fit(bb, parts, replace(stage, steps=10, terms=[(1.0, look)], train={}), rng=generator(5))
    assert losses["own"] < losses["other"] < losses["none"]


def test_the_image_branch_is_thrown_away_unless_leftovers_are_wanted(quick):
    bb, refs = tiny("sd15"), few_photos()
    gone = find("disenbooth")(**quick).learn(bb, refs)
    kept = find("disenbooth")(**quick, leftovers=0.5).learn(bb, refs)
    assert [name for name, _ in gone.parts.items()] == ["word", "denoiser"]
    assert [name for name, _ in kept.parts.items()] == ["word", "denoiser", "image"]
    assert kept.parts.image.features.shape[0] == 3
    said = f"a {kept.parts.word.alias} cat"
    with bb.attach(kept.parts.image):
        plain, shown = bb.embed(["a cat"]).states, bb.embed([said]).states
    assert torch.equal(plain, bb.embed(["a cat"]).states), "prompts without the subject are left alone"
    more = 0.5 * kept.parts.image.besides(kept.parts.image.features).mean(0)
    assert torch.allclose(shown - bb.embed([said]).states, more.expand_as(shown), atol=1e-5)


def test_leftovers_act_on_pictures_of_the_subject_and_on_no_others(quick):
    bb, refs = tiny("sd15"), few_photos(2)
    concept = find("disenbooth")(**quick, leftovers=1.0).learn(bb, refs)
    said = f"a {concept.parts.word.alias} cat"
    one, two = predict(bb, prompt="a cat"), predict(bb, prompt=said)
    with bb.attach(concept.parts.image):
        assert torch.equal(predict(bb, prompt="a cat"), one)
        assert not torch.equal(predict(bb, prompt=said), two)


def test_every_term_counts(quick):
    bb, refs, seen = tiny("sd15"), few_photos(), []
    for settings in ({}, {"weak": 5.0}, {"contrast": 5.0}):
        concept = find("disenbooth")(**quick, **settings).learn(bb, refs)
        seen.append(torch.cat([value.flatten() for value in concept.parts.denoiser.parameters()]))
    # The cosine trains the image branch, and by it the changes beside it.
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_words_alone_denoise_better_the_more_weak_denoising_weighs(quick):
    bb, refs, losses = tiny("sd15"), few_photos(2), []
    for weak in (0.0, 1.0):
        method = find("disenbooth")(**{**quick, "steps": 25}, weak=weak)
        concept = method.learn(bb, refs)
        found = []
        (stage,) = method.stages(bb, refs, concept.parts)

        def look(step, found=found):
            found.append(float(denoise(step).mean()))
            return denoise(step)

        fit(bb, concept.parts, replace(stage, steps=8, terms=[(1.0, look)], train={}), rng=generator(3))
        losses.append(sum(found))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("settings", [{"rank": 0}, {"weak": -1.0}, {"contrast": -1.0}, {"leftovers": -1.0}])
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(FromfewError, match=next(iter(settings))):
        find("disenbooth")(**settings)
