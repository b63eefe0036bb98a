"""Rotation: each weight's input axis turned by an orthogonal matrix of blocks (OFT), or of butterflies (BOFT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.parts._over import Over, weights_of
from fromfew.ports.linear import flat

__all__ = ["Rotation", "butterfly", "cayley", "neumann", "skew"]


def cayley(turn: Tensor) -> Tensor:
    """``(I - S)(I + S)⁻¹`` of skew-symmetric ``[..., n, n]``: orthogonal, exact, and I for S = 0."""
    eye = torch.eye(turn.shape[-1], device=turn.device, dtype=turn.dtype).expand_as(turn)
    return torch.linalg.solve(eye + turn, eye - turn)


def neumann(turn: Tensor, terms: int) -> Tensor:
    """``I + 2S + 2S² + … + S^k``, PEFT's series of the inverse transform: nearly orthogonal while S is small.

    Args:
        turn: Skew-symmetric, ``[..., n, n]``.
        terms: 1 is I, 2 is I + 2S; from 3 on, the last power is ``max(3, terms - 1)`` and counts once.
    """
    total = torch.eye(turn.shape[-1], device=turn.device, dtype=turn.dtype).expand_as(turn)
    power, last = turn, 1 if terms == 2 else max(3, terms - 1)
    for number in range(1, last + 1 if terms > 1 else 1):
        total = total + (1 if number == last > 1 else 2) * power
        power = power @ turn
    return total


def butterfly(size: int, block: int, level: int) -> Tensor:
    """``[size]`` order of the inputs for the butterfly of one level (BOFT, arXiv:2311.06243); level 0 keeps them.

    Within each stretch of ``block · 2^level`` inputs, those half blocks of even number come first.
    """
    half, groups = block // 2, 2 ** (level + 1)
    order = torch.arange(size)
    if level == 0:
        return order
    pieces = order.view(-1, groups, half)
    return torch.cat([pieces[:, 0::2], pieces[:, 1::2]], 1).flatten()


class Rotation(Over):
    """``W' = (1 + s) · W Rᵀ`` with ``R`` a product of block-diagonal rotations (OFT, arXiv:2306.07280).

    Each block is the exact Cayley transform of a skew-symmetric matrix, whose upper triangle is what is learned, 0
    at the start. With one factor this is OFT; with more, each behind another butterfly order, it is BOFT
    (arXiv:2311.06243). Convolutions are taken as ``[out, in·h·w]``.

    Args:
        shapes: Path of each weight to its shape.
        blocks: Path of each weight to (factors, blocks, side of a block).
        scaled: Whether a factor per output is learned as well.
        series: Terms of PEFT's series (`neumann`) in the place of the exact transform, for files learned with it; 0
            for none.
    """

    kind = "rotation"

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], blocks: Mapping[str, Sequence[int]], scaled: bool = False,
        series: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(shapes)
        if not 0 <= series <= 64:
            raise FromfewError(f"A rotation's series has 0 to 64 terms, not {series}.")
        self.series = series
        self.blocks = {path: (int(m), int(n), int(side)) for path, (m, n, side) in blocks.items()}
        self.scaled = scaled
        self.angles = nn.ParameterDict(
            {flat(p): torch.zeros(m, n, side * (side - 1) // 2) for p, (m, n, side) in self.blocks.items()}
        )
        rows = {flat(path): shape[0] for path, shape in self._shapes.items()} if scaled else {}
        self.sizes = nn.ParameterDict({name: torch.zeros(out) for name, out in rows.items()})

    @classmethod
    def of(
        cls, maps: Mapping[str, nn.Module], *, blocks: int = 0, side: int = 0, factors: int = 1, scaled: bool = False
    ) -> Rotation:
        """Over these maps.

        Args:
            maps: Module path to linear map or convolution.
            blocks: Blocks a map, as near as its width allows; or
            side: the side of a block, likewise (an even number if there are several factors).
            factors: Butterfly factors; fewer where the width does not allow so many.
            scaled: Whether a factor per output is learned as well.

        Raises:
            FromfewError: If neither or both of ``blocks`` and ``side`` are given.
        """
        if (blocks > 0) == (side > 0):
            raise FromfewError("Say either how many blocks a rotation has, or how wide each is.")
        shapes = weights_of(maps)
        found = {path: _blocks(prod(shape[1:]), blocks, side, factors) for path, shape in shapes.items()}
        return cls(shapes, found, scaled)

    def turns(self, path: str) -> Tensor:
        """The rotations' blocks ``[factors, blocks, side, side]``."""
        found = skew(self.angles[flat(path)], self.blocks[path][2])
        return neumann(found, self.series) if self.series else cayley(found)

    def delta_of(self, path: str, base: Tensor) -> Tensor:
        """``(1 + s) W Rᵀ - W``."""
        _, n, side = self.blocks[path]
        rows = base.detach().float().flatten(1)
        new = rows
        for level, turn in enumerate(self.turns(path)):
            order = butterfly(n * side, side, level).to(rows.device)
            mixed = new[:, order.argsort()].view(-1, n, side)
            new = torch.einsum("ons,nts->ont", mixed, turn).flatten(1)[:, order]
        if self.scaled:
            new = new * (1 + self.sizes[flat(path)][:, None])
        return (new - rows).view(base.shape)

    @torch.no_grad()
    def confine(self, radius: float) -> None:
        """Bring every block's skew matrix into the ball ``‖S‖ ≤ radius · side² / √blocks`` (COFT)."""
        for path, (_, n, side) in self.blocks.items():
            angles = self.angles[flat(path)]
            # A skew matrix holds every number of its triangle twice.
            far = angles.norm(dim=-1, keepdim=True) * 2**0.5
            angles.mul_((radius * side**2 / n**0.5 / far.clamp_min(1e-30)).clamp_max(1.0))

    def settings(self) -> dict[str, Any]:
        """Blocks, whether outputs are scaled, and the series if there is one."""
        told = {"blocks": {path: list(one) for path, one in self.blocks.items()}, "scaled": self.scaled}
        return told | ({"series": self.series} if self.series else {})


def skew(triangle: Tensor, side: int) -> Tensor:
    """Skew-symmetric ``[..., side, side]`` of its upper triangle, row by row."""
    rows, columns = torch.triu_indices(side, side, 1, device=triangle.device)
    upper = triangle.new_zeros(*triangle.shape[:-1], side, side)
    upper[..., rows, columns] = triangle
    return upper - upper.transpose(-1, -2)


def _blocks(width: int, blocks: int, side: int, factors: int) -> tuple[int, int, int]:
    """(factors, blocks, side) for a map of this many inputs."""
    step = 2 if factors > 1 and width % 2 == 0 else 1
    sides = [one for one in range(step, width + 1, step) if width % one == 0] or [width]
    wanted = side or max(1, width // blocks)
    side = min(sides, key=lambda one: (abs(one - wanted), one))
    while factors > 1 and (side % 2 or width % (side * 2 ** (factors - 1))):
        factors -= 1
    return factors, width // side, side
