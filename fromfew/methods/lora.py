"""LoRA: a thin change beside every chosen linear map, trained as DreamBooth is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fromfew.errors import FromfewError
from fromfew.method import Tuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.fit import Stage
    from fromfew.ports.part import Parts
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
}


@dataclass(frozen=True, kw_only=True)
class LoRA(Tuned):
    """Learn a subject, style or face as low-rank changes of attention maps (or of all linear maps).

    ``y = W x + alpha/rank · B A x`` with ``B = 0`` at the start; ``A`` and ``B`` minimise DreamBooth's loss.

    Departs from common practice: a learned word may stand in front of the noun, and ``prior`` is off by
    default, since a thin change drifts less.

    >>> LoRA(rank=16).rank
    16
    """

    modifier: Literal["word", "rare", "text"] = "rare"
    """What stands for the subject in prompts: a learned word, a rare token, or plain text (see text)."""
    rank: int | None = None
    """Width of the bottleneck; chosen for the base if left open."""
    alpha: float | None = None
    """Scale of the change, divided by the rank; the rank itself if left open."""
    targets: tuple[str, ...] | None = None
    """Which maps of the denoiser: attention, mlp, all, or roles such as text.key; chosen for the base if left open."""
    encoder: bool = False
    """Whether the text encoders' attention learns as well."""
    encoder_lr: float | None = None
    """Learning rate of the text encoders and of a learned word; chosen for the base if left open."""

    def __post_init__(self) -> None:
        """Also refuse a rank below 1."""
        super().__post_init__()
        if self.rank is not None and not 1 <= self.rank <= 1024:
            raise FromfewError(f"rank is 1 to 1024, not {self.rank}.")

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, and thin changes beside the targets."""
        from fromfew.parts.low_rank import LowRank
        from fromfew.ports.part import Parts

        rank = self.rank or 4
        alpha = float(rank) if self.alpha is None else self.alpha
        text = bb.select("encoder.attention") if self.encoder else None
        return Parts(
            word=self.word(bb, refs, rng),
            denoiser=LowRank.of(bb.select(*(self.targets or ("attention",))), rank, alpha, rng),
            encoder=LowRank.of(text, rank, alpha, rng) if text else None,
        )

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; a learned word, the maps and the encoders learn together."""
        from fromfew.fit import Stage

        slow = self.encoder_lr or 0.0
        yield Stage(
            steps=self.steps or 1,
            batches=self.with_prior(bb, refs, seed=seed),
            terms=self.terms(),
            train={part: self.lr or 0.0 if part is parts.denoiser else slow for part in parts},
            schedule=self.schedule or "constant",
        )
