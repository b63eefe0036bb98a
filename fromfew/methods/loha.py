"""LoHa: the entry-wise product of two thin changes over every chosen map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    "adds": "2 · rank · (in + out) numbers a map: a few megabytes",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class LoHa(RankTuned):
    """Learn as LoRA does, with changes of rank up to rank² from twice as many numbers.

    ``ΔW = alpha/rank · (B1 A1) ∘ (B2 A2)``, entry by entry, with ``B2 = 0`` at the start.

    Departs from the paper: photos are learned with DreamBooth's sentences unless they have captions.

    >>> LoHa(rank=4).rank
    4
    """

    def change(self, maps: Mapping[str, nn.Module], rng: Generator) -> Part:
        """Both products over every map."""
        from fromfew.parts.hadamard import Hadamard

        return Hadamard.of(maps, *self.thin, rng)
