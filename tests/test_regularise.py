"""Options that every tuned method shares, each over several methods."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from fromfew.class_images import class_images
from fromfew.data import named, photo_batches, union_batches
from fromfew.errors import FromfewError
from fromfew.fit import fit, generator
from fromfew.losses import classed, denoise, focused, masked, only
from fromfew.method import find
from fromfew.ports.part import Parts, bare
from fromfew.regularise import state_of
from fromfew.stage import Stage
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.part_checks import lone
from fromfew.testing.part_checks import state_of as state_of_base
from fromfew.testing.tiny import tiny

QUICK = {"steps": 12, "batch": 2, "lr": 2e-2, "views": 2}
MANY = ("lora", "textual-inversion", "custom-diffusion")


def learned(name: str, bb, refs, **settings):
    how = {**QUICK, **settings}
    if name == "custom-diffusion":
        how = {"prior": 0.0, "word_lr": 2e-2, **how}
    return find(name)(modifier="word", **how).learn(bb, refs)


def drift(bb, concept) -> float:
    """How far a prediction for the plain noun moved."""
    plain = predict(bb, prompt="a cat")
    with bb.attach(concept):
        return float((predict(bb, prompt="a cat") - plain).norm())


@pytest.mark.parametrize("name", ["lora", "custom-diffusion", "dreambooth"])
def test_the_base_as_teacher_keeps_the_plain_noun_without_any_class_picture(name, monkeypatch, tmp_path):
    monkeypatch.setenv("FROMFEW_CACHE", str(tmp_path))
    bb, refs = tiny("sd15"), few_photos(2)
    quick = {"lr": 2e-3, "encoder_lr": 2e-3} if name == "dreambooth" else {}
    free = learned(name, bb, refs, **{"prior": 0.0, **quick})
    held = learned(name, bb, refs, **{"prior": 5.0, "prior_from": "base", **quick})
    assert drift(bb, held) < drift(bb, free)
    assert not list(tmp_path.iterdir()), "pictures were drawn"


@pytest.mark.parametrize("base", ["sd15", "sd21", "flux"])
def test_taught_rows_are_to_say_what_the_base_says_and_nothing_is_left_behind(base):
    bb, seen = tiny(base), []
    photos = photo_batches(few_photos(), size=bb.default_size, batch=2)
    parts = Parts(thin=lone(bb).requires_grad_(True))

    def watch(step):
        with torch.no_grad(), bare(bb):
            said = bb.predict(step.xt, step.t, bb.embed(step.batch.captions))
        seen.append((step.batch.captions, torch.equal(said, step.target), step.pred.detach(), step.target))
        return denoise(step)

    predict(bb)
    before = state_of_base(bb)
    fit(bb, parts, Stage(1, named(photos, "cat"), [(1.0, watch)], {parts.thin: 1e-3}), rng=generator(0))
    ((captions, same, pred, target),) = seen
    assert set(captions) == {"a cat"}
    assert same
    assert not torch.allclose(pred, target), "the parts act on what is learned, not on what is taught"
    after = state_of_base(bb)
    assert all(before[what] == after[what] for what in before)


def test_bare_shows_the_base_inside_and_what_was_attached_outside():
    bb = tiny("sd3")
    plain = predict(bb, prompt="a cat")
    concept = learned("custom-diffusion", bb, few_photos(1), steps=2)
    with bb.attach(concept), bb.attach(lone(bb)):
        shown = predict(bb)
        with bare(bb):
            assert torch.equal(predict(bb, prompt="a cat"), plain)
        assert torch.equal(predict(bb), shown)
    assert torch.equal(predict(bb, prompt="a cat"), plain)


@pytest.mark.parametrize("name", MANY)
def test_a_class_anchor_keeps_the_words_state_nearer_to_the_nouns(name):
    bb, refs = tiny("sd15"), few_photos(2)
    near, noun = [], state_of(bb, "cat")
    for weight in (0.0, 20.0):
        concept = learned(name, bb, refs, class_anchor=weight, text="lamp")
        with bb.attach(concept):
            text = bb.embed(["a <v> cat"])
            near.append(float(torch.cosine_similarity(text.states[0, text.where(0, "<v>")].mean(0), noun, dim=0)))
    assert near[1] > near[0]


@pytest.mark.parametrize("name", ["lora", "custom-diffusion", "dreambooth"])
def test_weight_decay_shrinks_what_is_added_to_weights_and_no_word(name):
    bb, refs = tiny("sd15"), few_photos(2)
    quick = {"lr": 2e-3, "encoder_lr": 2e-3, "prior": 0.0} if name == "dreambooth" else {}
    free, held = (learned(name, bb, refs, weight_decay=w, steps=8, **quick) for w in (0.0, 20.0))

    def size(concept):
        part = next(part for part in concept.parts if part.port == "linear")
        return float(torch.stack([value.norm() for value in part.parameters()]).norm())

    assert size(held) < size(free)
    # One step decays a zero difference by nothing, and a word not at all.
    one, two = (learned(name, bb, refs, weight_decay=w, **{**quick, "steps": 1}) for w in (0.0, 20.0))
    assert torch.equal(one.parts.word.vectors["one"], two.parts.word.vectors["one"])


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("masks", [True, False])
def test_attention_sparsity_narrows_where_the_word_is_read(name, masks):
    bb, refs = tiny("sd15"), few_photos(1, masks=masks)
    spread = []
    for weight in (0.0, 20.0):
        concept = learned(name, bb, refs, attention_sparsity=weight, zoom=(1.0, 1.0), steps=15)
        batches = photo_batches(refs, size=bb.default_size, batch=2, zoom=(1.0, 1.0), flip=False)
        values = []

        def look(step, values=values):
            values.append(float(focused("<v>")(step).mean()))
            return denoise(step)

        fit(bb, concept.parts, Stage(3, batches, [(1.0, look)], {}, record=("<v>",)), rng=generator(1))
        spread.append(sum(values))
    assert spread[1] < spread[0]


def test_a_rare_token_is_kept_narrow_by_its_own_name():
    bb = tiny("sd15")
    made = {w: find("lora")(**QUICK, encoder_lr=0.0, attention_sparsity=w).learn(bb, few_photos(1)) for w in (0.0, 5.0)}
    one, two = (concept.parts.denoiser.state_dict() for concept in made.values())
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("textual-inversion", {"weight_decay": 0.1}, "weight_decay"),
        ("dreambooth", {"class_anchor": 0.1}, "class_anchor"),
        ("lora", {"modifier": "text", "text": "cat", "class_anchor": 0.1}, "class_anchor"),
        ("lora", {"outside": 1.5}, "outside"),
        ("lora", {"outside": -0.1}, "outside"),
        ("lora", {"weight_decay": -1.0}, "weight_decay"),
        ("lora", {"prior_from": "hearsay"}, "prior_from"),
    ],
)
def test_options_with_nothing_to_act_on_are_refused_by_name(name, settings, reason):
    with pytest.raises(FromfewError, match=reason):
        find(name)(**{**QUICK, "prior": 0.0, **settings}).learn(tiny("sd15"), few_photos())


def step_of(bb, batches):
    seen = []

    def term(step):
        seen.append(step)
        return denoise(step)

    fit(bb, Parts(), Stage(1, batches, [(1.0, term)], {}), rng=generator(0))
    return seen[0]


def test_outside_weighs_the_means_of_subject_and_rest_whatever_their_areas():
    bb = tiny("sd15")
    step = step_of(bb, photo_batches(few_photos(masks=True), size=bb.default_size, batch=3, zoom=(1.0, 1.0)))
    error = (step.pred - step.target).square().mean(1)
    m = torch.nn.functional.adaptive_avg_pool2d(step.batch.masks, error.shape[-2:])[:, 0]
    inside, rest = ((error * w).sum((1, 2)) / w.sum((1, 2)) for w in (m, 1 - m))
    assert torch.allclose(masked(step), inside)
    assert torch.allclose(masked(step, outside=1.0), (inside + rest) / 2)
    assert torch.allclose(masked(step, outside=0.25), (inside + 0.25 * rest) / 1.25)


def test_the_grey_beside_a_small_view_counts_neither_inside_nor_outside():
    bb = tiny("sd15")
    for masks in (True, False):
        refs = few_photos(masks=masks)
        step = step_of(bb, photo_batches(refs, size=bb.default_size, batch=2, zoom=(0.5, 0.5)))
        frames = torch.nn.functional.adaptive_avg_pool2d(step.batch.frames, step.pred.shape[-2:])
        other = replace(step, pred=torch.where(frames > 0, step.pred, step.pred + 100))
        assert torch.allclose(masked(other, outside=0.5), masked(step, outside=0.5))
        assert not torch.allclose(denoise(other), denoise(step))


@pytest.mark.parametrize("name", MANY)
def test_every_method_learns_the_surroundings_only_as_far_as_outside_says(name):
    bb, refs = tiny("sd15"), few_photos(1, masks=True)
    none, some = (learned(name, bb, refs, outside=w, steps=2) for w in (0.0, 0.5))
    one, two = none.parts.state_dict(), some.parts.state_dict()
    assert any(not torch.equal(one[key], two[key]) for key in one)
    terms = find(name)(**QUICK, prior=0.0, outside=0.5).terms()
    assert isinstance(terms[0][1], partial)
    assert terms[0][1].keywords == {"outside": 0.5}


def test_class_pictures_are_drawn_once_for_all_methods_and_runs(monkeypatch, tmp_path):
    import sys

    monkeypatch.setenv("FROMFEW_CACHE", str(tmp_path))
    bb, refs = tiny("sd15"), few_photos(1)
    learned("lora", bb, refs, prior=1.0, class_images=2, steps=1)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert kept
    monkeypatch.setattr(sys.modules["fromfew.make"], "make", lambda *_, **__: pytest.fail("drawn again"))
    learned("custom-diffusion", tiny("sd15"), refs, prior=1.0, class_images=2, steps=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == kept
    assert len(class_images(bb, "cat", 2, seed=0)) == 2


def scene():
    one = few_photos(1, masks=True)
    photo = one.photos[0]
    other = photo.mask.point(lambda a: 255 - a)
    second = replace(one, photos=(replace(photo, mask=other),), noun="lamp", placeholder="<lamp>")
    return replace(one, placeholder="<cat>", also=(second,))


def test_unions_are_of_every_size_alike_and_prompts_name_what_the_masks_show():
    source = union_batches(scene(), size=32, batch=1, templates="plain", zoom=(1.0, 1.0), flip=False)
    counts = {1: 0, 2: 0}
    for step in range(400):
        batch = source(generator(0, step))
        named_ = {word for word in ("<cat>", "<lamp>") if word in batch.captions[0]}
        assert set(batch.regions[0]) == named_
        counts[len(named_)] += 1
        union = torch.stack(list(batch.regions[0].values())).amax(0)
        assert torch.equal(batch.masks[0], union)
        assert torch.equal(batch.frames[0], union), "what is not named lies outside the frame"
    assert abs(counts[1] - 200) < 40


def test_in_a_wide_picture_every_view_shows_something_that_its_prompt_names():
    from PIL import Image

    from fromfew.references import Reference, References

    image, masks = Image.new("RGB", (240, 40), (90, 90, 90)), []
    for left in (0, 220):
        masks.append(Image.new("L", (240, 40), 0))
        masks[-1].paste(255, (left, 10, left + 20, 30))
    one, two = (
        References((Reference(image, mask, sha256="same"),), noun, placeholder=f"<{noun}>")
        for noun, mask in zip(("cat", "lamp"), masks, strict=True)
    )
    source, named_ = union_batches(replace(one, also=(two,)), size=32, batch=1, zoom=(1.0, 1.2)), set()
    for step in range(60):
        batch = source(generator(0, step))
        assert all(bool(mask.any()) for mask in batch.regions[0].values())
        assert batch.regions[0]
        named_ |= set(batch.regions[0])
    assert named_ == {"<cat>", "<lamp>"}


def test_only_photo_rows_are_anchored_and_words_that_are_missing_pull_nothing():
    bb = tiny("sd15")
    step = step_of(bb, photo_batches(few_photos(), size=bb.default_size, batch=2, word="dog"))
    values = only("photo", classed("<v>", state_of(bb, "cat")))(step)
    assert torch.equal(values, torch.zeros(2))
    assert float(classed("cat", state_of(bb, "cat"))(step).max()) < 0.5
