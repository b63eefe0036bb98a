"""DoRA: sizes and directions of every row apart; a thin change of the directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromfew.weight_tuned import RankTuned

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.ports.part import Part

CARD = {
    "title": "DoRA: Weight-Decomposed Low-Rank Adaptation",
    "arxiv": "2402.09353",
    "year": 2024,
    "learns": ("subject", "style", "face"),
    "photos": (1, 100),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "LoRA's numbers and one more per output",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class DoRA(RankTuned):
    """Learn as LoRA does, with the length of every row of a weight learned apart from its direction.

    ``W' = m · (W + alpha/rank · B A) / ‖W + alpha/rank · B A‖`` row by row, with ``B = 0`` and ``m = ‖W‖`` at
    the start; the norm below the line gives no gradient.

    Departs from the paper: strength s draws with ``W + s (W' - W)``.

    >>> DoRA(rank=4).rank
    4
    """

    def change(self, maps: Mapping[str, nn.Module], rng: Generator) -> Part:
        """Sizes and thin changes of every map."""
        from fromfew.parts.weight_decomposed import WeightDecomposed

        return WeightDecomposed.of(maps, *self.thin, rng)
