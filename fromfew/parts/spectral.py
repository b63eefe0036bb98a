"""Spectral: each weight's singular values shifted, its singular vectors as they are (SVDiff)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fromfew.parts._over import Over, weights_of
from fromfew.ports.linear import flat

__all__ = ["Spectral", "spectrum"]

_KEPT = WeakTensorKeyDictionary()


def spectrum(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``U [out, n]``, ``σ [n]`` and ``Vᵀ [n, in·h·w]`` of a weight, computed once while the weight lives and stays."""
    mark = (weight._version, weight.data_ptr(), weight.dtype, weight.device)
    kept = _KEPT.get(weight)
    if kept is None or kept[0] != mark:
        with torch.no_grad(), torch.inference_mode(False):
            kept = (mark, torch.linalg.svd(weight.detach().float().flatten(1), full_matrices=False))
        _KEPT[weight] = kept
    return kept[1]


class Spectral(Over):
    """``W' = W + U (diag(ReLU(σ + δ)) - diag(σ)) Vᵀ`` with ``δ = 0`` at the start (SVDiff, arXiv:2303.11305).

    What rounding loses of ``W`` in ``U diag(σ) Vᵀ`` stays in ``W``, so that no shift is the base, bit for bit.
    Convolutions are taken as ``[out, in·h·w]``. The decomposition is computed where it is needed and not saved.

    Args:
        shapes: Path of each weight to its shape.
    """

    kind = "spectral"

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__(shapes)
        self.shifts = nn.ParameterDict(
            {flat(path): torch.zeros(min(shape[0], prod(shape[1:]))) for path, shape in self._shapes.items()}
        )

    @classmethod
    def of(cls, maps: Mapping[str, nn.Module]) -> Spectral:
        """Over these linear maps and convolutions."""
        return cls(weights_of(maps))

    def delta_of(self, path: str, base: Tensor) -> Tensor:
        """``U (diag(ReLU(σ + δ)) - diag(σ)) Vᵀ``."""
        u, values, v = spectrum(base)
        moved = (values + self.shifts[flat(path)].to(values.device)).relu() - values
        return ((u * moved) @ v).view(base.shape)
