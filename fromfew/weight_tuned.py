"""What methods share that learn a subject by changing weights beside a rare word, as DreamBooth does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fromfew.method import Tuned

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Part, Parts
    from fromfew.references import References
    from fromfew.stage import Stage

__all__ = ["RankTuned", "WeightTuned"]


@dataclass(frozen=True, kw_only=True)
class WeightTuned(Tuned):
    """A word, and one change of the denoiser's chosen maps; if asked, the same of the text encoders' attention."""

    modifier: Literal["word", "rare", "text"] = "rare"
    """What stands for the subject in prompts: a learned word, a rare token, or plain text (see text)."""
    flip: bool = False
    """Whether half the views are mirrored; faces never are. It costs a thing that always faces one way its shape."""
    targets: tuple[str, ...] | None = None
    """Which maps of the denoiser: attention, mlp, all, conv, or roles such as text.key; chosen for the base if open."""
    encoder: bool = False
    """Whether the text encoders' attention learns as well."""
    encoder_lr: float | None = None
    """Learning rate of the text encoders and of a learned word; chosen for the base if left open."""

    @abstractmethod
    def change(self, maps: Mapping[str, nn.Module], rng: Generator) -> Part:
        """The part that changes these maps (linear ones, and convolutions where ``targets`` names them)."""

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """A word for every subject, and the changes of the targets, which all share."""
        from fromfew.ports.part import Parts

        return Parts(
            **self.words(bb, refs, rng),
            denoiser=self.change(bb.select(*(self.targets or ("attention",))), rng),
            encoder=self.change(bb.select("encoder.attention"), rng) if self.encoder else None,
        )

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; a learned word, the maps and the encoders learn together."""
        slow = ("word", "encoder")
        rates = {part: self.encoder_lr if name.startswith(slow) else self.lr for name, part in parts.items()}
        yield self.stage(bb, refs, rates, seed=seed)


@dataclass(frozen=True, kw_only=True)
class RankTuned(WeightTuned):
    """A change made of thin matrices."""

    rank: int | None = None
    """Width of the bottleneck; chosen for the base if left open."""
    alpha: float | None = None
    """Scale of the change, divided by the rank; the rank itself if left open."""

    def __post_init__(self) -> None:
        """Also refuse a rank below 1.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        self.within(rank=(1, 1024))

    @property
    def thin(self) -> tuple[int, float]:
        """Rank and alpha."""
        rank = self.rank or 4
        return rank, float(rank) if self.alpha is None else self.alpha
