"""A method of two stages, for tests of what lies between them: first the word learns, then thin changes beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromfew.method import Tuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Two stages",
    "learns": ("subject",),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "a few kilobytes",
}


@dataclass(frozen=True, kw_only=True)
class TwoStages(Tuned):
    """A word, then low-rank changes of the maps that read it, learned one after the other."""

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word and the maps."""
        from fromfew.parts.low_rank import LowRank
        from fromfew.ports.part import Parts

        maps = bb.select("text.key", "text.value")
        return Parts(word=self.word(bb, refs, rng, start=refs.noun or ""), maps=LowRank.of(maps, 2, 2.0, rng))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """The word alone, then the maps alone."""
        from fromfew.stage import Stage

        for part in parts:
            yield Stage(
                steps=self.steps or 1,
                batches=self.photos(bb, refs),
                terms=self.terms(),
                train={part: self.lr or 0.0},
                schedule=self.schedule or "constant",
                name=part.kind,
            )
