"""Kronecker: the Kronecker product of a small matrix and a low-rank one over each weight (LoKr)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fromfew.errors import FromfewError
from fromfew.parts._over import Over, weights_of
from fromfew.ports.linear import flat

__all__ = ["Kronecker", "factors"]


def factors(size: int, most: int = -1) -> tuple[int, int]:
    """``size`` as a product of two whole numbers, the first at most ``most`` and at most the root of ``size``.

    >>> factors(128, 4), factors(128), factors(127)
    ((4, 32), (8, 16), (1, 127))
    """
    if most > 0 and size % most == 0:
        return most, size // most
    limit = int(size**0.5) if most < 0 else min(most, int(size**0.5))
    first = next(one for one in range(limit, 0, -1) if size % one == 0)
    return first, size // first


class Kronecker(Over):
    """``ΔW = alpha/rank · C ⊗ (B A)`` (LyCORIS, arXiv:2309.14859).

    ``B = 0`` at the start. Where the rank is at least half of the larger side of the second factor, that factor is
    learned whole and the scale is 1. Convolutions keep their kernel in the second factor.

    Args:
        shapes: Path of each weight to its shape.
        rank: Width of the second factor's bottleneck.
        alpha: Scale; ``alpha = rank`` means 1.
        factor: Greatest side of the first factor; -1 for the nearest to a square root.
        odd: Paths that follow another rule, as files of other tools may have them: the two sides of the first factor,
            and whether the second is whole.

    Raises:
        FromfewError: If sides do not divide those of the weight.
    """

    kind = "kronecker"

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], rank: int = 4, alpha: float = 4.0, factor: int = -1,
        odd: Mapping[str, Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(shapes)
        self.rank, self.alpha, self.factor = rank, alpha, factor
        self.odd = {path: (int(u), int(p), bool(whole)) for path, (u, p, whole) in (odd or {}).items()}
        self.small, self.whole, self.up, self.down = (nn.ParameterDict() for _ in range(4))
        for path, shape in self._shapes.items():
            u, p, whole = self.odd.get(path) or self.usual(shape, rank, factor)
            if min(u, p) < 1 or shape[0] % u or shape[1] % p:
                raise FromfewError(f"'{path}' is {shape}: a first factor of {u} x {p} does not divide it.")
            name, kernel, v, q = flat(path), prod(shape[2:]), shape[0] // u, shape[1] // p
            self.small[name] = torch.zeros(u, p)
            if whole:
                self.whole[name] = torch.zeros(v, q * kernel)
            else:
                self.up[name], self.down[name] = torch.zeros(v, rank), torch.zeros(rank, q * kernel)

    @staticmethod
    def usual(shape: Sequence[int], rank: int, factor: int) -> tuple[int, int, bool]:
        """Sides of the first factor, and whether the second is whole, by the rule."""
        (u, v), (p, q) = factors(shape[0], factor), factors(shape[1], factor)
        return u, p, rank >= max(v, q) / 2

    @classmethod
    def of(cls, maps: Mapping[str, nn.Module], rank: int, alpha: float, rng: Generator, factor: int = -1) -> Kronecker:
        """Over these maps; ``C`` and ``A`` are drawn evenly from ±1/√(columns)."""
        part = cls(weights_of(maps), rank, alpha, factor)
        with torch.no_grad():
            for found in (part.small, part.down):
                for value in found.values():
                    value.copy_((2 * torch.rand(value.shape, generator=rng) - 1) * value.shape[1] ** -0.5)
        return part

    def scale(self, path: str) -> float:
        """Factor of the product."""
        return 1.0 if flat(path) in self.whole else self.alpha / self.rank

    def second(self, path: str) -> Tensor:
        """The second factor, ``[v, q, …kernel]``."""
        name, shape = flat(path), self._shapes[path]
        found = self.whole[name] if name in self.whole else self.up[name] @ self.down[name]
        return found.view(found.shape[0], -1, *shape[2:])

    def delta(self, path: str) -> Tensor:
        """``scale · C ⊗ (B A)``."""
        small, second = self.small[flat(path)], self.second(path)
        small = small.view(*small.shape, *[1] * (second.dim() - 2))
        return self.scale(path) * torch.kron(small, second)

    def settings(self) -> dict[str, Any]:
        """Rank, alpha and factor, and what follows another rule."""
        odd = {path: list(one) for path, one in self.odd.items()}
        return {"rank": self.rank, "alpha": self.alpha, "factor": self.factor, **({"odd": odd} if odd else {})}
