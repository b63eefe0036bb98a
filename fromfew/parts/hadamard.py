"""Hadamard: the entry-wise product of two low-rank matrices over each weight (LoHa)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fromfew.parts._over import Over, weights_of
from fromfew.ports.linear import flat

__all__ = ["Hadamard"]


class Hadamard(Over):
    """``ΔW = alpha/rank · (B1 A1) ∘ (B2 A2)``, of rank up to ``rank²`` (LyCORIS, arXiv:2309.14859).

    ``B2 = 0`` at the start. Convolutions are taken as ``[out, in·h·w]``. The scale is applied once.

    Args:
        shapes: Path of each weight to its shape.
        rank: Width of both bottlenecks.
        alpha: Scale; ``alpha = rank`` means 1.
    """

    kind = "hadamard"

    def __init__(self, shapes: Mapping[str, Sequence[int]], rank: int = 4, alpha: float = 4.0) -> None:
        super().__init__(shapes)
        self.rank, self.alpha = rank, alpha
        wide = {flat(path): (shape[0], prod(shape[1:])) for path, shape in self._shapes.items()}
        self.up1 = nn.ParameterDict({name: torch.zeros(out, rank) for name, (out, _) in wide.items()})
        self.down1 = nn.ParameterDict({name: torch.zeros(rank, into) for name, (_, into) in wide.items()})
        self.up2 = nn.ParameterDict({name: torch.zeros(out, rank) for name, (out, _) in wide.items()})
        self.down2 = nn.ParameterDict({name: torch.zeros(rank, into) for name, (_, into) in wide.items()})

    @classmethod
    def of(cls, maps: Mapping[str, nn.Module], rank: int, alpha: float, rng: Generator) -> Hadamard:
        """Over these maps; ``A1`` and ``A2`` are drawn from N(0, 1), ``B1`` from N(0, 0.1²)."""
        part = cls(weights_of(maps), rank, alpha)
        with torch.no_grad():
            for found, spread in ((part.down1, 1.0), (part.down2, 1.0), (part.up1, 0.1)):
                for value in found.values():
                    value.copy_(torch.randn(value.shape, generator=rng) * spread)
        return part

    def delta(self, path: str) -> Tensor:
        """``alpha/rank · (B1 A1) ∘ (B2 A2)``."""
        name = flat(path)
        whole = (self.up1[name] @ self.down1[name]) * (self.up2[name] @ self.down2[name])
        return (self.alpha / self.rank * whole).view(self._shapes[path])

    def settings(self) -> dict[str, Any]:
        """Rank and alpha."""
        return {"rank": self.rank, "alpha": self.alpha}
