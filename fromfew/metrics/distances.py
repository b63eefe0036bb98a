"""Distances between two sets of features, and the score of one set; functions of tensors, nothing else."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fromfew.errors import FromfewError

__all__ = ["SOURCES", "cmmd", "fid", "inception_score", "kid"]

SOURCES: dict[str, str] = {
    "fid": "v1 | arXiv 1706.08500",
    "kid": "v1 | arXiv 1801.01401, 100 subsets of at most 1000, cubic kernel, unbiased",
    "cmmd": "v1 | arXiv 2401.09603, sigma 10, biased, x 1000",
    "inception-score": "v1 | arXiv 1606.03498, up to 10 splits",
}
"""Version and definition of every distance."""


def fid(first: Tensor, second: Tensor) -> float:
    """Frechet distance ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of two sets (arXiv 1706.08500).

    Args:
        first: [N, D] features, N at least 2.
        second: [M, D] features.

    Raises:
        FromfewError: A set has fewer than two features, or another width.
    """
    a, b = _pair(first, second)
    gap = (a.mean(0) - b.mean(0)).square().sum()
    c1, c2 = (_covariance(x) for x in (a, b))
    # tr((C1 C2)^(1/2)) is the sum of the roots of C1 C2's eigenvalues, real and not negative but for rounding.
    roots = torch.linalg.eigvals(c1 @ c2).real.clamp(min=0).sqrt().sum()
    return max(0.0, float(gap + c1.trace() + c2.trace() - 2 * roots))


def kid(first: Tensor, second: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 2020) -> float:
    """Kernel distance (arXiv 1801.01401): unbiased MMD^2, ``k(x, y) = (x.y / D + 1)^3``, mean over subsets.

    With sets no larger than ``size`` all features are one subset, so nothing is drawn.

    Args:
        first: [N, D] features, N at least 2.
        second: [M, D] features.
        subsets: how many subsets.
        size: features a subset.
        seed: of the choice of subsets.

    Raises:
        FromfewError: A set has fewer than two features, or another width.
    """
    a, b = _pair(first, second)
    if max(len(a), len(b)) <= size:
        return _unbiased(a, b)
    rng = Generator().manual_seed(seed)
    n = min(size, len(a), len(b))
    values = [
        _unbiased(a[torch.randperm(len(a), generator=rng)[:n]], b[torch.randperm(len(b), generator=rng)[:n]])
        for _ in range(subsets)
    ]
    return sum(values) / len(values)


def cmmd(first: Tensor, second: Tensor, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """MMD^2 of unit vectors under a Gaussian kernel, the biased estimate, times ``scale`` (arXiv 2401.09603).

    Args:
        first: [N, D]; brought to unit length here.
        second: [M, D].
        sigma: width of the kernel.
        scale: factor of the printed value.
    """
    a, b = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (first, second))

    def mean(x: Tensor, y: Tensor) -> Tensor:
        square = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
        return torch.exp(-square / (2 * sigma**2)).mean()

    return float(scale * (mean(a, a) + mean(b, b) - 2 * mean(a, b)))


def inception_score(probabilities: Tensor, *, splits: int = 10) -> tuple[float, float]:
    """``exp(E KL(p(y|x) || p(y)))`` (arXiv 1606.03498): mean and standard deviation over splits.

    Args:
        probabilities: [N, classes], each row sums to 1.
        splits: consecutive parts; as many as there are pictures if there are fewer.
    """
    parts = probabilities.double().clamp(min=1e-12).chunk(min(splits, len(probabilities)))
    values = torch.stack([(p * (p.log() - p.mean(0).log())).sum(1).mean().exp() for p in parts])
    return float(values.mean()), float(values.std(unbiased=False))


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise FromfewError(f"Features must be [N, D] of one width, not {tuple(first.shape)} and {tuple(second.shape)}.")
    if min(len(first), len(second)) < 2:
        raise FromfewError("A distance of two sets needs at least two pictures in each.")
    return first.double(), second.double()


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _unbiased(a: Tensor, b: Tensor) -> float:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(a, a), kernel(b, b))]
    return float(within[0] + within[1] - 2 * kernel(a, b).mean())
