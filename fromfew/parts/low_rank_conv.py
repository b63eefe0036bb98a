"""LowRankConv: a thin change of convolutions (LoCon)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fromfew.parts._over import Over, weights_of
from fromfew.ports.linear import flat

__all__ = ["LowRankConv"]


class LowRankConv(Over):
    """``ΔW = alpha/rank · B A``: a convolution of few outputs, then one of 1x1 (LoCon, arXiv:2309.14859).

    ``B = 0`` at the start.

    Args:
        shapes: Path of each weight to its shape ``(out, in, h, w)``.
        rank: Width of the bottleneck; never more than the convolution's own outputs.
        alpha: Scale; ``alpha = rank`` means 1.
    """

    kind = "low_rank_conv"

    def __init__(self, shapes: Mapping[str, Sequence[int]], rank: int = 4, alpha: float = 4.0) -> None:
        super().__init__(shapes)
        self.rank, self.alpha = rank, alpha
        inner = {path: min(rank, shape[0]) for path, shape in self._shapes.items()}
        self.down = nn.ParameterDict({flat(p): torch.zeros(inner[p], *s[1:]) for p, s in self._shapes.items()})
        self.up = nn.ParameterDict({flat(p): torch.zeros(s[0], inner[p], 1, 1) for p, s in self._shapes.items()})

    @classmethod
    def of(cls, maps: Mapping[str, nn.Module], rank: int, alpha: float, rng: Generator) -> LowRankConv:
        """Over these convolutions, with ``A`` drawn from N(0, 1/rank²)."""
        part = cls(weights_of(maps), rank, alpha)
        with torch.no_grad():
            for value in part.down.values():
                value.copy_(torch.randn(value.shape, generator=rng) / rank)
        return part

    @property
    def scale(self) -> float:
        """Factor of the product at strength 1."""
        return self.alpha / self.rank

    def delta(self, path: str) -> Tensor:
        """``scale · B A``."""
        up, down = self.up[flat(path)], self.down[flat(path)]
        return (self.scale * up.flatten(1) @ down.flatten(1)).view(self._shapes[path])

    def settings(self) -> dict[str, Any]:
        """Rank and alpha."""
        return {"rank": self.rank, "alpha": self.alpha}
