"""Metrics of pictures: networks with seeded weights, cases with known answers."""

from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fromfew.metrics.base import Case, Want, plain_prompt, score
from fromfew.metrics.networks import Reader, Sight, WorldFace, WorldJudge, WorldPair
from fromfew.metrics.subject import ClipI, CopyRate, DinoI, Diversity, HeldOut, MaskedSubject, lpips
from fromfew.metrics.suites import world_of
from fromfew.metrics.text import ClipT, PenalisedClipT
from fromfew.world.evaluators import FaceId, Judge, Pair


class Flat(Reader):
    """Sees a picture as its pixels averaged to 2 x 2; reads three texts it knows."""

    name = "flat"
    texts: ClassVar = {"a dog": [1.0] * 12, "a cat": [-1.0] * 12, "a half": [1.0] * 6 + [-1.0] * 6}

    def see(self, images):
        return F.normalize(F.adaptive_avg_pool2d(images, 2).flatten(1), dim=-1)

    def read(self, texts):
        return F.normalize(torch.tensor([self.texts[t] for t in texts]), dim=-1)

    def grid(self, images):
        return F.adaptive_avg_pool2d(images, 4)


def noise(seed: int, n: int = 1, side: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def case(images: torch.Tensor, photos: torch.Tensor, **more) -> Case:
    more.setdefault("prompts", ("a dog",) * len(images))
    return Case(images, photos=photos, **more)


@pytest.fixture(scope="module")
def suite():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = Pair(["a", "cat", "dog"]).eval(), Judge().eval(), FaceId().eval()
        for net in nets:
            net.requires_grad_(False)
    return world_of(WorldPair(nets[0]), WorldJudge(nets[1]), WorldFace(nets[2]))


@pytest.mark.parametrize("prompt", ["a sks dog", "a <new1> dog", "a * dog", "a  dog", "a <v> dog", "a dog"])
def test_text_metrics_drop_the_placeholder_and_keep_the_noun(prompt):
    assert plain_prompt(prompt) == "a dog"


def test_a_placeholder_without_a_noun_becomes_the_noun_with_its_article():
    assert plain_prompt("a <v> in the snow", "animal") == "an animal in the snow"
    assert plain_prompt("a <v> animal in the snow", "animal") == "an animal in the snow"


def test_text_alignment_is_the_cosine_one_for_the_same_and_minus_one_for_the_opposite():
    bright = torch.ones(2, 3, 8, 8)
    found = ClipT(Flat())(case(bright, bright, prompts=("a dog", "a cat")))
    assert found.tolist() == pytest.approx([1, -1])


def test_text_alignment_of_a_picture_does_not_depend_on_its_neighbours():
    images = noise(0, 5)
    prompts = ("a dog", "a cat", "a half", "a dog", "a cat")
    whole = ClipT(Flat())(case(images, images, prompts=prompts))
    order = [3, 1, 4, 0, 2]
    shuffled = ClipT(Flat())(case(images[order], images, prompts=tuple(prompts[i] for i in order)))
    assert torch.allclose(whole[order], shuffled, atol=1e-6)
    alone = ClipT(Flat())(case(images[2:3], images, prompts=("a half",)))
    assert float(alone[0]) == pytest.approx(float(whole[2]), abs=1e-6)


def test_fidelity_of_the_only_photo_is_one_and_of_several_the_mean():
    photos = noise(1, 3)
    assert ClipI(Flat())(case(photos[:1], photos[:1])).tolist() == pytest.approx([1], abs=1e-6)
    eye = Flat()
    expected = (eye.see(photos[:1]) @ eye.see(photos).T).mean()
    assert float(DinoI(eye)(case(photos[:1], photos))[0]) == pytest.approx(float(expected), abs=1e-6)


def test_a_photo_given_twice_counts_twice():
    photos = noise(2, 2)
    doubled = torch.cat([photos[:1], photos[:1], photos[1:]])
    eye = Flat()
    like = (eye.see(photos[:1]) @ eye.see(photos).T)[0]
    found = ClipI(eye)(case(photos[:1], doubled))
    assert float(found[0]) == pytest.approx(float(2 * like[0] + like[1]) / 3, abs=1e-6)


def test_held_out_fidelity_has_no_answer_without_held_out_photos():
    images = noise(3, 2)
    assert HeldOut(Flat())(case(images, images)).isnan().all()
    assert HeldOut(Flat())(case(images, images, held=images[:1]))[0] == pytest.approx(1, abs=1e-6)


def test_masked_fidelity_ignores_the_background_of_the_photos():
    photo = noise(4)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    other = torch.where(mask.bool(), photo, noise(5))
    masked = MaskedSubject(Flat())
    assert float(masked(case(photo, other, masks=mask))[0]) == pytest.approx(1, abs=1e-5)
    assert float(masked(case(photo, other, masks=1 - mask))[0]) < 0.99


def test_masked_fidelity_finds_the_subject_wherever_it_went():
    photo = noise(6)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32, :32] = 1
    moved = noise(7)
    moved[..., 32:, 32:] = photo[..., :32, :32]
    assert float(MaskedSubject(Flat())(case(moved, photo, masks=mask))[0]) == pytest.approx(1, abs=1e-5)


def test_equal_pictures_have_no_diversity_and_a_lone_picture_has_no_answer(suite):
    judge = suite.features
    same = noise(8).repeat(4, 1, 1, 1)
    assert Diversity(judge)(case(same, same, group=(0, 0, 0, 0))).tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert Diversity(judge)(case(same, same, group=(0, 1, 2, 3))).isnan().all()


def test_mean_diversity_of_a_group_is_the_mean_of_its_six_pairs(suite):
    judge, images = suite.features, noise(9, 4)
    layers = judge.layers(images)
    pairs = [
        lpips([x[i : i + 1] for x in layers], [x[j : j + 1] for x in layers]).item() for i in range(4) for j in range(i)
    ]
    found = Diversity(judge)(case(images, images, group=(7, 7, 7, 7)))
    assert float(found.mean()) == pytest.approx(sum(pairs) / 6, rel=1e-4)


def test_lpips_is_the_published_sum_over_layers():
    a, b = [noise(10, 2, 4)], [noise(11, 2, 4)]
    w = [torch.tensor([0.5, 1.0, 2.0])]
    unit = [x[0] / x[0].norm(dim=1, keepdim=True) for x in (a, b)]
    expected = ((unit[0] - unit[1]) ** 2 * w[0].view(1, 3, 1, 1)).sum(1).mean((1, 2))
    assert torch.allclose(lpips(a, b, w), expected, atol=1e-5)


def test_a_pasted_photo_is_all_copy_and_noise_is_none():
    photos = noise(12, 3, 128)
    assert CopyRate()(case(photos[1:2], photos))[0] == 1
    assert CopyRate()(case(photos[1:2].flip(-1), photos))[0] == 1
    assert CopyRate()(case(noise(13, 1, 128), photos))[0] == 0


def test_half_a_pasted_photo_is_about_half_a_copy_even_when_moved_and_brightened():
    photo = F.interpolate(noise(14, 1, 32), size=(128, 128))
    image = F.interpolate(noise(15, 1, 32), size=(128, 128))
    image[..., 64:] = photo[..., 32:96] * 0.8 + 0.1
    assert 0.3 < float(CopyRate()(case(image, photo))[0]) < 0.55


def test_a_flat_picture_copies_nothing():
    assert CopyRate()(case(torch.zeros(1, 3, 64, 64), noise(16)))[0] == 0


def test_the_penalised_text_score_of_a_pasted_photo_is_zero():
    photos = noise(17, 1, 128).abs()
    assert float(ClipT(Flat())(case(photos, photos))[0]) > 0.9
    assert float(PenalisedClipT(Flat())(case(photos, photos))[0]) == 0


def test_another_view_of_the_same_thing_is_no_copy():
    from fromfew.pretrain.data import to_tensor
    from fromfew.world.reference import views

    def drawn(seed):
        return to_tensor(np.stack([np.asarray(v.picture) for v in views("raccoon", n=6, seed=seed)]))

    # A thing stands on a grid, at few sizes: some of its patches are the same in every view of it.
    assert np.mean([float(CopyRate()(case(drawn(seed), drawn(0))).mean()) for seed in (1, 2, 3)]) < 0.35
    assert float(CopyRate()(case(drawn(0), drawn(0))).mean()) == 1


def test_every_metric_gives_one_number_per_picture_and_says_where_it_is_defined(suite):
    images = noise(18, 3, 128)
    masks = torch.ones(3, 1, 128, 128)
    wants = (Want("raccoon", context="snow"), Want("raccoon", "cat-face", relation="left"), Want(style="sketch"))
    one = case(images, images, masks=masks, wants=wants, role="face", prompts=("a dog", "a cat", "a cat"))
    found = score(one, suite.metrics)
    assert all(len(values) == 3 for values in found.values())
    assert set(found) <= set(suite.about())
    assert all("v1" in text for text in suite.about().values())
    assert found["context-drawn"][0] in (0, 1)
    assert found["context-drawn"][1:] == [None, None]
    assert found["relation-drawn"][0] is None
    assert found["relation-drawn"][1] in (0, 1)
    assert 0 <= found["rfs"][1] <= 1


def test_scores_of_a_batch_are_those_of_its_pictures_alone(suite):
    images = noise(19, 3, 128)
    wants = tuple(Want("raccoon", context=c) for c in ("snow", "beach", "city"))
    whole = score(case(images, images, wants=wants, prompts=("a dog",) * 3), suite.metrics)
    for i in range(3):
        alone = score(case(images[i : i + 1], images, wants=wants[i : i + 1], prompts=("a dog",)), suite.metrics)
        for name, values in alone.items():
            assert values[0] == pytest.approx(whole[name][i], abs=2e-4), name


def test_prior_drift_is_the_mean_likeness_of_plain_pictures_to_the_photos(suite):
    plain, photos = noise(20, 2), noise(21, 3)
    expected = (suite.features.see(plain) @ suite.features.see(photos).T).mean(1)
    assert suite.prior_drift(plain, photos) == pytest.approx(expected.tolist(), abs=1e-4)


def test_distances_of_a_set_to_itself_are_zero(suite):
    images = noise(22, 6)
    found = suite.between(images, images)
    assert found["fid"] == pytest.approx(0, abs=1e-4)
    assert found["cmmd"] == pytest.approx(0, abs=1e-4)


def test_sights_without_places_say_so():
    class Blind(Sight):
        name = "blind"

        def see(self, images):
            return images

    with pytest.raises(ValueError, match="no features of places"):
        Blind().grid(noise(23))
