"""Distances of two sets against closed forms and against the reference implementations."""

import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.metrics.distances import cmmd, fid, inception_score, kid


def features(seed: int, n: int, d: int = 8, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


class Named(torch.nn.Module):
    """A "network" that hands its features on, in the reference implementations' place for Inception."""

    num_features = 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :8].float()


def test_fid_of_equal_sets_is_zero():
    a = features(0, 500)
    assert fid(a, a) == pytest.approx(0, abs=1e-6)


def test_fid_of_two_normals_a_unit_apart_is_the_squared_gap_of_their_means():
    a, b = features(1, 50_000, 4), features(2, 50_000, 4, shift=1.0)
    assert fid(a, b) == pytest.approx(4.0, rel=0.02)


def test_fid_of_two_known_covariances_is_the_closed_form():
    # Sets whose sample covariances are exactly diagonal: FID is the sum of (s1 - s2)^2.
    q, _ = torch.linalg.qr(features(3, 100, 4).double() - features(3, 100, 4).double().mean(0))
    a = q * torch.tensor([1.0, 2.0, 3.0, 0.5])
    b = q * torch.tensor([2.0, 2.0, 1.0, 1.5])
    assert fid(a, b) == pytest.approx((1 + 0 + 4 + 1) / 99, rel=1e-6)


def test_fid_does_not_depend_on_the_order_of_the_pictures():
    a, b = features(4, 60), features(5, 70)
    assert fid(a[torch.randperm(60, generator=torch.Generator().manual_seed(1))], b) == pytest.approx(fid(a, b))


def test_fid_equals_the_reference_implementation():
    reference = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(Named(), normalize=False)
    a, b = features(6, 90), features(7, 80, shift=0.3)
    reference.update(a, real=True)
    reference.update(b, real=False)
    assert fid(a, b) == pytest.approx(float(reference.compute()), rel=1e-4)


def test_fid_is_the_published_formula_with_the_matrix_root_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = features(6, 90).double(), features(7, 80, shift=0.3).double() * 1.5
    c1, c2 = a.T.cov().numpy(), b.T.cov().numpy()
    root = linalg.sqrtm(c1 @ c2).real.trace()
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + c1.trace() + c2.trace() - 2 * root
    assert fid(a, b) == pytest.approx(expected, rel=1e-6)


def test_kid_equals_the_reference_implementation():
    module = pytest.importorskip("torchmetrics.image.kid")
    reference = module.KernelInceptionDistance(Named(), subsets=1, subset_size=64, normalize=False)
    a, b = features(8, 64), features(9, 64, shift=0.5)
    reference.update(a, real=True)
    reference.update(b, real=False)
    assert kid(a, b) == pytest.approx(float(reference.compute()[0]), rel=1e-4)


def test_kid_over_subsets_is_near_the_kid_of_all_and_the_same_every_time():
    a, b = features(10, 600), features(11, 600, shift=0.5)
    once = kid(a, b, subsets=20, size=200)
    assert once == kid(a, b, subsets=20, size=200)
    assert once == pytest.approx(kid(a, b), rel=0.1)


def test_inception_score_equals_the_reference_implementation():
    module = pytest.importorskip("torchmetrics.image.inception")
    reference = module.InceptionScore(Named(), normalize=False, splits=1)
    logits = features(12, 50)
    reference.update(logits)
    assert inception_score(logits.softmax(-1), splits=1)[0] == pytest.approx(float(reference.compute()[0]), rel=1e-4)


def test_inception_score_is_one_for_equal_and_the_number_of_classes_for_certain_answers():
    assert inception_score(torch.full((20, 5), 0.2), splits=1)[0] == pytest.approx(1)
    assert inception_score(torch.eye(5).repeat(4, 1), splits=1)[0] == pytest.approx(5, rel=1e-6)


def test_cmmd_is_zero_for_equal_sets_and_for_their_permutation():
    a = features(13, 40)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)
    assert cmmd(a, a.flip(0)) == pytest.approx(0, abs=1e-9)


def test_cmmd_is_the_biased_mmd_of_unit_vectors():
    # One vector a set: 2 - 2 k(a, b), with |a - b|^2 = 2 for orthogonal unit vectors.
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    expected = 1000 * (2 - 2 * torch.exp(torch.tensor(-2 / 200.0)).item())
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-6)


def test_cmmd_does_not_change_when_every_picture_is_doubled():
    a, b = features(14, 30), features(15, 30, shift=0.2)
    assert cmmd(a.repeat(2, 1), b.repeat(2, 1)) == pytest.approx(cmmd(a, b), rel=1e-9)


def test_more_noise_is_farther_for_every_distance():
    real = features(16, 400)
    for distance in (fid, kid, cmmd):
        gaps = [distance(real, real + strength * features(17, 400)) for strength in (0.3, 1.0, 3.0)]
        assert gaps == sorted(gaps)
        assert gaps[0] < gaps[2]


def test_a_single_picture_has_no_frechet_distance():
    with pytest.raises(FromfewError, match="at least two"):
        fid(features(18, 1), features(19, 9))
