"""WeightDecomposed: each weight as sizes and directions; a low-rank change of the directions (DoRA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fromfew.parts._over import Over, weights_of
from fromfew.ports.linear import flat

__all__ = ["WeightDecomposed"]


class WeightDecomposed(Over):
    """``W' = m · (W + alpha/rank · B A) / ‖W + alpha/rank · B A‖`` row by row (DoRA, arXiv:2402.09353).

    ``B = 0`` and ``m = ‖W‖`` at the start. The norm gives no gradient, as in the paper. Convolutions are taken as
    ``[out, in·h·w]``.

    Args:
        shapes: Path of each weight to its shape.
        rank: Width of the bottleneck; never more than the map's own smaller side.
        alpha: Scale; ``alpha = rank`` means 1.
    """

    kind = "weight_decomposed"

    def __init__(self, shapes: Mapping[str, Sequence[int]], rank: int = 4, alpha: float = 4.0) -> None:
        super().__init__(shapes)
        self.rank, self.alpha = rank, alpha
        wide = {flat(path): (shape[0], prod(shape[1:])) for path, shape in self._shapes.items()}
        self.up = nn.ParameterDict({n: torch.zeros(out, min(rank, out, into)) for n, (out, into) in wide.items()})
        self.down = nn.ParameterDict({n: torch.zeros(min(rank, out, into), into) for n, (out, into) in wide.items()})
        self.sizes = nn.ParameterDict({name: torch.zeros(out) for name, (out, _) in wide.items()})

    @classmethod
    def of(cls, maps: Mapping[str, nn.Module], rank: int, alpha: float, rng: Generator) -> WeightDecomposed:
        """Over these maps, with ``A`` drawn from N(0, 1/rank²)."""
        part = cls(weights_of(maps), rank, alpha)
        with torch.no_grad():
            for path, module in maps.items():
                name, weight = flat(f"{path}.weight"), module.weight
                part.down[name].copy_(torch.randn(part.down[name].shape, generator=rng) / rank)
                part.sizes[name].copy_(_norms(weight.detach().float()))  # type: ignore[operator, union-attr]
        return part

    def delta_of(self, path: str, base: Tensor) -> Tensor:
        """``W' - W``."""
        name, weight = flat(path), base.detach().float()
        new = weight + (self.alpha / self.rank * self.up[name] @ self.down[name]).view(weight.shape)
        factor = self.sizes[name] / _norms(new.detach())
        return new * factor.view(-1, *[1] * (weight.dim() - 1)) - weight

    def settings(self) -> dict[str, Any]:
        """Rank and alpha."""
        return {"rank": self.rank, "alpha": self.alpha}


def _norms(weight: Tensor) -> Tensor:
    return weight.flatten(1).norm(dim=1)
