"""LowRank: the product of two thin matrices beside each linear map (LoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from fromfew.ports.linear import LinearPart, flat

__all__ = ["LowRank"]


class LowRank(LinearPart):
    """``y + alpha/rank · B A x`` at every target, with ``B = 0`` at the start (Hu et al., arXiv:2106.09685).

    Args:
        shapes: Path of each linear map to its ``(out, in)``.
        rank: Width of the bottleneck, at least 1; never more than the map's own smaller side.
        alpha: Scale; ``alpha = rank`` means 1.
    """

    kind = "low_rank"

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], rank: int = 4, alpha: float = 4.0) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        self._shapes = {path: (int(shape[0]), int(shape[1])) for path, shape in shapes.items()}
        inner = {path: min(rank, *shape) for path, shape in self._shapes.items()}
        self.down = nn.ParameterDict({flat(p): torch.zeros(inner[p], s[1]) for p, s in self._shapes.items()})
        self.up = nn.ParameterDict({flat(p): torch.zeros(s[0], inner[p]) for p, s in self._shapes.items()})

    @classmethod
    def of(cls, maps: Mapping[str, nn.Linear], rank: int, alpha: float, rng: Generator) -> LowRank:
        """Beside these linear maps, with ``A`` drawn from N(0, 1/rank²)."""
        part = cls({path: tuple(m.weight.shape) for path, m in maps.items()}, rank, alpha)
        with torch.no_grad():
            for a in part.down.values():
                a.copy_(torch.randn(a.shape, generator=rng) / rank)
        return part

    @property
    def scale(self) -> float:
        """Factor of the product at strength 1."""
        return self.alpha / self.rank

    def targets(self) -> Mapping[str, tuple[int, ...]]:
        """Path to ``(out, in)``."""
        return self._shapes

    def apply_to(self, path: str, x: Tensor) -> Tensor:
        """``scale · B A x``."""
        name = flat(path)
        a, b = self.down[name], self.up[name]
        return self.scale * linear(linear(x.to(a.dtype), a), b)

    def delta(self, path: str) -> Tensor:
        """``scale · B A``."""
        return self.scale * self.up[flat(path)] @ self.down[flat(path)]

    def config(self) -> dict[str, Any]:
        """Shapes, rank and alpha."""
        return {
            "shapes": {p: list(s) for p, s in self._shapes.items()},
            "rank": self.rank,
            "alpha": self.alpha,
        }

    def __repr__(self) -> str:
        return f"LowRank({len(self._shapes)} maps, rank={self.rank})"
