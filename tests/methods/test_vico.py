from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.losses import mapped_as
from fromfew.method import find
from fromfew.parts.reference_blocks import ReferenceBlocks, otsu
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 2, "lr": 1e-2, "word_lr": 2e-2, "views": 2}
SD15 = {f"{8 + 2 * i}": width for i, width in enumerate((1280, 640, 640, 320))}


def stirred(bb, refs=None):
    parts = find("vico")(**QUICK).parts(bb, refs or few_photos(), generator(0))
    with torch.no_grad():
        for value in parts.reader.parameters():
            value.add_(torch.randn(value.shape, generator=generator(3)) * 0.1)
    return parts.requires_grad_(False)


def test_the_blocks_of_stable_diffusion_have_51_million_numbers():
    with torch.device("meta"):
        part = ReferenceBlocks(SD15, dict.fromkeys(SD15, 8), "<v>", [4, 64, 64])
    count = sum(value.numel() for value in part.parameters())
    assert abs(count / 51.2e6 - 1) < 0.01


def test_every_second_block_from_the_middle_on_is_chosen_in_order_of_execution():
    class Like:
        name = "like sd15"
        sites: ClassVar[dict] = {}

    from fromfew.ports.attention import Site

    for i in range(32):
        kind = "cross" if i % 2 else "self"
        Like.sites[str(i)] = Site(f"{i // 2}", nn.Identity(), kind, i / 31, 2, 8, i, "cross" if i % 2 else "image")
    part = ReferenceBlocks.of(Like, "<v>", torch.zeros(1, 4, 8, 8), generator(0))
    assert list(part.config()["sites"]) == ["8", "10", "12", "14"]


def test_at_the_start_the_blocks_change_nothing():
    bb = tiny("sd15")
    parts = find("vico")(**QUICK).parts(bb, few_photos(), generator(0))
    plain = predict(bb, prompt="a cat")
    with bb.attach(parts.reader):
        assert torch.allclose(predict(bb, prompt="a cat"), plain, atol=1e-6)


def test_otsu_parts_two_heaps_and_turns_with_the_picture():
    rng = generator(1)
    field = torch.rand(8, 8, generator=rng) * 0.2
    field[2:6, 1:4] += 0.7
    mask = otsu(field.flatten()).view(8, 8)
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[2:6, 1:4] = True
    assert torch.equal(mask, wanted)
    assert torch.equal(otsu(field.flip(1).flatten()).view(8, 8), mask.flip(1))
    assert otsu(torch.full((5,), 0.3)).all(), "nothing to part: everything is kept, so that no softmax is empty"


def masks(bb, parts, prompts):
    """The photo's masks at every site, while these prompts are read."""
    seen, part = {}, parts.reader
    real = part.mask

    def spy(maps, now):
        seen.setdefault(len(seen), real(maps, now))
        return seen[len(seen) - 1]

    part.mask = spy
    try:
        with bb.attach(parts), torch.no_grad():
            n = len(prompts)
            from fromfew.rows import Rows

            t = torch.full((n,), 0.5)
            rows = Rows(tuple("cond" if "<v>" in p else "uncond" for p in prompts), torch.zeros(n, dtype=torch.long), t)
            bb.predict(torch.randn(n, *bb.latent_shape(), generator=generator(2)), t, bb.embed(prompts), rows)
    finally:
        del part.mask
    return list(seen.values())


def test_masks_are_binary_and_hold_some_of_the_photo_and_branches_of_a_picture_share_them():
    bb = tiny("sd15")
    parts = stirred(bb)
    found = masks(bb, parts, ["a <v> cat", ""])
    assert len(found) == len(parts.reader.config()["sites"])
    for keep in found:
        assert keep.dtype == torch.bool
        assert 0.0 < float(keep[0].float().mean()) < 1.0
        assert torch.equal(keep[0], keep[1]), "the unconditional branch reads the photo under the same mask"
    assert all(bool(keep.all()) for keep in masks(bb, parts, ["", ""]))


def test_another_photo_is_another_picture_and_the_photo_is_kept_in_the_file(tmp_path):
    bb, refs = tiny("sd15"), few_photos()
    parts = stirred(bb)
    with bb.attach(parts):
        one = predict(bb)
        parts.reader.photo.add_(torch.randn(parts.reader.photo.shape, generator=generator(4)))
        assert not torch.allclose(predict(bb), one)
    first, second = (find("vico")(**QUICK, reference=i).parts(bb, refs, generator(0)).reader for i in (0, 1))
    assert not torch.equal(first.photo, second.photo)
    assert "photo" in first.state_dict()


def test_looking_is_without_gradient_and_at_the_pictures_own_time():
    bb = tiny("sd15")
    parts, calls = stirred(bb).requires_grad_(True), []
    hook = bb.denoiser.register_forward_pre_hook(
        lambda m, args: calls.append((args[0].requires_grad, torch.is_grad_enabled(), args[1].tolist()))
    )
    try:
        with bb.attach(parts):
            text = bb.embed(["a <v> cat", "a <v> dog"])
            bb.predict(torch.randn(2, *bb.latent_shape()), torch.tensor([0.2, 0.8]), text).mean().backward()
    finally:
        hook.remove()
    assert [grad for _, grad, _ in calls] == [True, False]
    assert calls[0][2] == calls[1][2]


def test_while_learning_each_row_looks_at_another_photo_than_its_own():
    bb, refs = tiny("sd15"), few_photos(2)
    batch = find("vico")(**{**QUICK, "zoom": (1.0, 1.0)}).photos(bb, refs)(generator(0))
    assert batch.shown.shape == batch.images.shape
    ground = [image[:, 0, 0] for image in batch.images]
    shown = [image[:, 0, 0] for image in batch.shown]
    assert sorted(batch.numbers) == [0, 1]
    assert not torch.allclose(ground[0], shown[0], atol=0.05)


def test_nothing_of_learning_stays_behind():
    concept = find("vico")(**QUICK).learn(tiny("sd15"), few_photos())
    assert concept.parts.reader.shown is None
    assert concept.answers == {"<v>": "cat"}


def test_the_words_map_is_pulled_to_that_of_the_texts_end():
    bb, refs = tiny("sd15"), few_photos(1)
    from fromfew.fit import fit
    from fromfew.ports.text import END
    from fromfew.stage import Stage

    far = []
    for weight in (0.0, 50.0):
        method = find("vico")(**{**QUICK, "steps": 15}, attention=weight)
        concept, values = method.learn(bb, refs), []

        def look(step, values=values):
            values.append(float(mapped_as("<v>", END)(step).mean()))
            return step.pred.mean((1, 2, 3))

        stage = Stage(4, method.photos(bb, refs), [(1.0, look)], {}, record=("<v>", END))
        fit(bb, concept.parts, stage, rng=generator(1))
        far.append(sum(values))
    assert far[1] < far[0]


@pytest.mark.parametrize("settings", [{"modifier": "rare"}, {"prior": 1.0}, {"attention": -1.0}])
def test_what_does_not_go_with_it_is_refused_by_name(settings):
    with pytest.raises(FromfewError, match=next(iter(settings))):
        find("vico")(**settings)


def test_a_photo_that_is_not_there_and_a_base_without_such_blocks_are_refused():
    with pytest.raises(FromfewError, match="reference"):
        find("vico")(**QUICK, reference=3).learn(tiny("sd15"), few_photos())
    with pytest.raises(FromfewError, match="has none"):
        find("vico")(**QUICK).learn(tiny("flux"), few_photos(1))
    bb = tiny("sd15")
    concept = replace(find("vico")(**QUICK).learn(bb, few_photos(1)))
    with pytest.raises(FromfewError, match="does not fit"):
        concept.check(tiny("sd3"))
