"""Textual Inversion: one new word for a frozen model."""

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
    "title": "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion",
    "arxiv": "2208.01618",
    "year": 2022,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text",),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "a few kilobytes: the word's vectors",
}


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Tuned):
    """Learn a subject or style as a word; nothing else of the model changes.

    Minimises ``E ‖f(x_t, t, c(v)) - target‖²`` over the photos for the vectors ``v`` that stand where the
    word stands.

    Departs from the paper: every text encoder of the base learns vectors, the vectors are never part of the
    vocabulary (so nothing else in it can move), and "a <v> cat" keeps the noun unless ``noun`` is off.

    >>> TextualInversion(vectors=2).vectors
    2
    """

    vectors: int = 1
    """Vectors per text encoder; more are more faithful and less obedient."""
    modifier: Literal["word", "rare", "text"] = "word"
    """Always a learned word: it is all that this method learns."""
    anchor: float = 0.0
    """Pull of the vectors towards where they began, as a weight of their squared distance."""

    def __post_init__(self) -> None:
        """Also refuse a modifier with nothing to learn."""
        super().__post_init__()
        if self.modifier != "word":
            raise FromfewError("textual-inversion learns a word and nothing else: leave modifier at 'word'.")
        if not 1 <= self.vectors <= 16:
            raise FromfewError(f"vectors is 1 to 16, not {self.vectors}.")

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, beginning as the noun."""
        from fromfew.ports.part import Parts

        return Parts(word=self.word(bb, refs, rng, count=self.vectors, start=refs.noun or ""))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; the word alone learns."""
        from fromfew.fit import Stage
        from fromfew.losses import anchored

        pull = [(self.anchor, anchored(parts.word))] if self.anchor else []
        yield Stage(
            steps=self.steps or 1,
            batches=self.with_prior(bb, refs, seed=seed),
            terms=[*self.terms(), *pull],
            train={parts.word: self.lr or 0.0},
            schedule=self.schedule or "constant",
        )
