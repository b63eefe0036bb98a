"""LoRA: a thin change beside every chosen map, trained as DreamBooth is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromfew.weight_tuned import RankTuned

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Part, Parts
    from fromfew.references import References

CARD = {
    "title": "LoRA: Low-Rank Adaptation of Large Language Models",
    "arxiv": "2106.09685",
    "year": 2021,
    "learns": ("subject", "style", "face"),
    "photos": (1, 100),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "rank · (in + out) numbers a map: a few megabytes",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class LoRA(RankTuned):
    """Learn a subject, style or face as low-rank changes of attention maps (or of all maps, or convolutions).

    ``y = W x + alpha/rank · B A x`` with ``B = 0`` at the start; ``A`` and ``B`` minimise DreamBooth's loss. With
    convolutions among the targets this is LoCon.

    Departs from common practice: a learned word may stand in front of the noun, and ``prior`` is off by
    default, since a thin change drifts less.

    >>> LoRA(rank=16).rank
    16
    """

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, and thin changes beside the targets; those of convolutions apart."""
        from fromfew.ports.part import Parts

        targets = self.targets or ("attention",)
        linear = {path: m for path, m in bb.select(*targets).items() if m.weight.dim() == 2}
        convs = {path: m for path, m in bb.select(*targets).items() if path not in linear}
        return Parts(
            **self.words(bb, refs, rng),
            denoiser=self.change(linear, rng) if linear else None,
            convolutions=self.change(convs, rng) if convs else None,
            encoder=self.change(bb.select("encoder.attention"), rng) if self.encoder else None,
        )

    def change(self, maps: Mapping[str, nn.Module], rng: Generator) -> Part:
        """``B A`` beside linear maps, or over convolutions."""
        from fromfew.parts.low_rank import LowRank
        from fromfew.parts.low_rank_conv import LowRankConv

        thin = all(module.weight.dim() == 2 for module in maps.values())  # type: ignore[union-attr, operator]
        return (LowRank if thin else LowRankConv).of(maps, *self.thin, rng)  # type: ignore[arg-type]
