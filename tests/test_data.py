"""Batches: views and words are functions of the generator alone."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from fromfew.data import class_batches, joined, photo_batches
from fromfew.errors import FromfewError
from fromfew.references import References
from fromfew.templates import class_prompt, worded


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def half(width: int = 90, height: int = 60) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "red")
    ImageDraw.Draw(image).rectangle((width // 2, 0, width, height), fill="blue")
    return image


def references(count: int = 3, **how) -> References:
    noise = [torch.randint(0, 256, (60 + 8 * i, 80, 3), generator=rng(i), dtype=torch.uint8) for i in range(count)]
    images = [Image.fromarray(values.numpy()) for values in noise]
    return References.of(*images, noun="cat", placeholder="<rex>", **how)


def test_a_batch_depends_on_the_generator_and_on_nothing_before_it():
    source = photo_batches(references(), size=32, batch=4)
    other = photo_batches(references(), size=32, batch=4)
    for seed in (0, 1, 7):
        other(rng(seed + 100))  # whatever was drawn earlier
        a, b = source(rng(seed)), other(rng(seed))
        assert torch.equal(a.images, b.images)
        assert a.captions == b.captions
    assert not torch.equal(source(rng(0)).images, source(rng(1)).images)


def test_images_are_floats_from_minus_one_to_one_of_the_asked_size():
    batch = photo_batches(references(), size=(32, 48), batch=5)(rng())
    assert batch.images.shape == (5, 3, 32, 48)
    assert batch.images.dtype == torch.float32
    assert batch.images.min() >= -1
    assert batch.images.max() <= 1
    assert batch.images.std() > 0.05
    assert batch.of == ["photo"] * 5
    assert bool(batch.is_("photo").all())


def test_every_prompt_names_placeholder_and_noun():
    for role in ("subject", "face"):
        source = photo_batches(references(role=role), size=16, batch=3)
        captions = [c for seed in range(20) for c in source(rng(seed)).captions]
        assert all("<rex> cat" in caption for caption in captions)
        assert len(set(captions)) >= 4
    styles = photo_batches(references(role="style"), size=16, batch=3)(rng()).captions
    assert all(caption.endswith("in <rex> style") for caption in styles)
    words = photo_batches(references(), size=16, noun=False, templates="plain")(rng()).captions
    assert words[0] in ("a <rex>", "<rex>", "a photo of a <rex>", "a picture of a <rex>")


def test_photos_of_a_batch_differ_while_there_are_others():
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    source = photo_batches(References.of(red, blue, noun="cat"), size=8, batch=2)
    for seed in range(10):
        images = source(rng(seed)).images
        assert images[0].mean((1, 2)).argmax() != images[1].mean((1, 2)).argmax()


def test_a_photo_that_repeats_is_seen_more_often():
    from dataclasses import replace

    refs = References.of(Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue"), noun="cat")
    refs = replace(refs, photos=(replace(refs.photos[0], repeats=9), refs.photos[1]))
    source = photo_batches(refs, size=8)
    red = sum(int(source(rng(seed)).images[0, 0].mean() > 0) for seed in range(200))
    assert 160 <= red <= 197


def test_mask_and_picture_are_cropped_and_mirrored_alike():
    image = half()
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (45, 0, 90, 60))  # the blue half
    source = photo_batches(References.of(image, noun="cat", masks=[mask]), size=32, batch=1, zoom=(0.5, 1.6))
    for seed in range(40):
        batch = source(rng(seed))
        blue = (batch.images[:, 2:] > 0.5) & (batch.images[:, :1] < -0.5)
        assert batch.masks is not None
        assert (blue.float() - batch.masks).abs().mean() < 0.06
        assert batch.masks.sum() > 0, "the subject stays in sight"


def test_without_masks_and_shrinking_there_is_no_mask_and_with_shrinking_the_grey_is_masked_out():
    assert photo_batches(references(), size=16)(rng()).masks is None
    batch = photo_batches(references(), size=64, zoom=(0.5, 0.5))(rng())
    assert batch.masks is not None
    assert batch.masks.mean() == pytest.approx(0.25)
    assert re.match("a far away view of |a very small picture of ", batch.captions[0])


def test_faces_are_not_mirrored_and_subjects_are():
    for role, kinds in (("face", 1), ("subject", 2)):
        source = photo_batches(References.of(half(60, 60), noun="man", role=role), size=16, zoom=(1, 1))
        seen = {bool(source(rng(seed)).images[0, 0, 0, 0] > 0) for seed in range(20)}
        assert len(seen) == kinds


def test_fixed_views_have_keys_that_determine_the_picture():
    source = photo_batches(references(), size=16, batch=2, variants=3)
    seen: dict = {}
    for seed in range(40):
        batch = source(rng(seed))
        for key, image in zip(batch.keys, batch.images, strict=True):
            assert torch.equal(seen.setdefault(key, image), image)
    assert 6 <= len(seen) <= 9


def test_class_pictures_are_named_without_the_word_and_joined_behind_the_photos():
    plain = class_batches([half(), half()], noun="apple", size=16, batch=2)
    batch = joined(photo_batches(references(), size=16, zoom=(0.5, 0.5)), plain)(rng())
    assert batch.of == ["photo", "class", "class"]
    assert batch.captions[1:] == ["an apple", "an apple"]
    assert batch.masks is not None
    assert batch.masks[1:].min() == 1
    assert class_prompt("a {} in {word} style", "apple") == "an apple"


def test_what_an_adapter_looks_at_is_joined_too():
    from dataclasses import replace

    plain = class_batches([half()], noun="apple", size=16)

    def showing(generator: torch.Generator):
        batch = photo_batches(references(), size=16)(generator)
        return replace(batch, shown=torch.zeros(1, 3, 16, 16))

    batch = joined(showing, plain)(rng())
    assert batch.shown is not None
    assert batch.shown[0].abs().max() == 0
    assert torch.equal(batch.shown[1], batch.images[1])


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("a cat on a sofa", "a <rex> cat on a sofa"),
        ("A Cat, sleeping", "A <rex> Cat, sleeping"),
        ("two cats and a cat", "two cats and a <rex> cat"),
        ("sleeping on a sofa", "<rex> cat, sleeping on a sofa"),
        ("my <rex> cat", "my <rex> cat"),
        ("a bobcat", "<rex> cat, a bobcat"),
    ],
)
def test_a_photos_own_caption_gets_the_word_before_its_noun(caption, said):
    assert worded(caption, "<rex>", "cat") == said


@settings(max_examples=200, deadline=None)
@given(caption=st.text(max_size=60), noun=st.sampled_from(["cat", "tea pot", "été"]))
def test_whatever_the_caption_the_word_stands_in_it_once_and_nothing_is_lost(caption, noun):
    said = worded(caption, "<rex>", noun)
    if "<rex>" in caption:
        assert said == caption
    else:
        assert said.count("<rex>") == 1
        assert said.replace("<rex> ", "", 1).endswith(caption)


def test_wrong_zooms_and_templates_are_refused():
    with pytest.raises(FromfewError, match="The zoom must rise"):
        photo_batches(references(), size=16, zoom=(2, 1))
    with pytest.raises(FromfewError, match="Unknown set of templates 'foto'"):
        photo_batches(references(), size=16, templates="foto")
    with pytest.raises(FromfewError, match="where the thing is named"):
        photo_batches(references(), size=16, templates=["a photo"])
