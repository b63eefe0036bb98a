"""LoKr: a Kronecker product with one thin factor over every chosen map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromfew.errors import FromfewError
from fromfew.weight_tuned import RankTuned

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.ports.part import Part

CARD = {
    "title": "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
    "arxiv": "2309.14859",
    "year": 2023,
    "learns": ("subject", "style", "face"),
    "photos": (1, 100),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "a small first factor and a thin second one a map: less than LoRA of the same rank",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class LoKr(RankTuned):
    """Learn as LoRA does, with changes that repeat one thin block in many sizes: the smallest of the family.

    ``ΔW = alpha/rank · C ⊗ (B A)`` with ``B = 0`` at the start; where the rank is at least half of the block's
    longer side, the block is learned whole and the scale is 1.

    Departs from the paper: photos are learned with DreamBooth's sentences unless they have captions.

    >>> LoKr(factor=8).factor
    8
    """

    factor: int = -1
    """Greatest side of the first factor; -1 for the divisor nearest to the root of the map's side."""

    def __post_init__(self) -> None:
        """Also refuse a factor that is none.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        if self.factor != -1 and self.factor < 1:
            raise FromfewError(f"factor is -1 or at least 1, not {self.factor}.")

    def change(self, maps: Mapping[str, nn.Module], rng: Generator) -> Part:
        """Kronecker products over every map."""
        from fromfew.parts.kronecker import Kronecker

        return Kronecker.of(maps, *self.thin, rng, self.factor)
