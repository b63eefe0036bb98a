"""BOFT: every weight turned by a product of sparse rotations, as a butterfly joins them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from fromfew.errors import FromfewError
from fromfew.weight_tuned import WeightTuned

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.ports.part import Part

CARD = {
    "title": "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
    "arxiv": "2311.06243",
    "year": 2023,
    "learns": ("subject", "style", "face"),
    "photos": (1, 100),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "factors · in · (side - 1) / 2 numbers a map: a few megabytes",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class BOFT(WeightTuned):
    """Learn a subject by turning weights, with small blocks whose product still reaches every input.

    ``W' = (1 + s) · W Rᵀ`` with ``R = B_m … B_1``, each ``B_i`` block-diagonal behind a butterfly order and each
    block the exact Cayley transform of a skew-symmetric matrix, 0 at the start; ``s`` is one factor per output.

    Departs from the paper: only the triangle of the skew matrices is learned; where a map's width does not allow so
    many factors, it has fewer.

    >>> BOFT(factors=3).factors
    3
    """

    side: int = 8
    """Width of a block, as near as a map's width allows; an even number."""
    factors: int = 2
    """How many rotations are multiplied; more join more inputs."""
    scaled: bool = True
    """Whether a factor per output is learned as well."""

    def __post_init__(self) -> None:
        """Also refuse blocks that no butterfly joins.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        self.within(side=(2, inf), factors=(1, 8))
        if self.side % 2:
            raise FromfewError(f"side is an even number, not {self.side}.")

    def change(self, maps: Mapping[str, nn.Module], rng: Generator) -> Part:
        """A butterfly of rotations of every map's inputs."""
        from fromfew.parts.rotation import Rotation

        return Rotation.of(maps, side=self.side, factors=self.factors, scaled=self.scaled)
