"""Offsets: each weight multiplied, entry by entry, by one plus a matrix of low rank (E4T)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fromfew.parts._over import Over, weights_of
from fromfew.ports.linear import flat

__all__ = ["Offsets"]


class Offsets(Over):
    """``W' = W ∘ (1 + Σ_k a_k b_kᵀ)`` with ``b = 0`` at the start (E4T, arXiv:2302.12228).

    The paper's offsets come from one number through a column, a row, and one linear map on either side, each with a
    bias: a matrix of rank 3 at most, which is what is learned here.

    Args:
        shapes: Path of each weight to its ``(out, in)``.
        rank: Terms of the sum.
    """

    kind = "offsets"

    def __init__(self, shapes: Mapping[str, Sequence[int]], rank: int = 3) -> None:
        super().__init__(shapes)
        self.rank = rank
        sizes = {flat(path): shape for path, shape in self._shapes.items()}
        self.rows = nn.ParameterDict({name: torch.zeros(rank, shape[0]) for name, shape in sizes.items()})
        self.columns = nn.ParameterDict({name: torch.zeros(rank, shape[1]) for name, shape in sizes.items()})

    @classmethod
    def of(cls, maps: Mapping[str, nn.Linear], rank: int = 3) -> Offsets:
        """Over these linear maps; ``a`` is drawn from N(0, 1) by torch's own chance."""
        part = cls(weights_of(maps), rank)
        with torch.no_grad():
            for value in part.rows.values():
                value.copy_(torch.randn(value.shape))
        return part

    def delta_of(self, path: str, base: Tensor) -> Tensor:
        """``W ∘ Σ_k a_k b_kᵀ``."""
        name = flat(path)
        return base.detach().float() * (self.rows[name].T @ self.columns[name])

    def settings(self) -> dict[str, Any]:
        """Rank."""
        return {"rank": self.rank}
