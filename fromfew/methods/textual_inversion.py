"""Textual Inversion: one new word for a frozen model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal

from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

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
class TextualInversion(WordTuned):
    """Learn a subject or style as a word; nothing else of the model changes.

    Minimises ``E ‖f(x_t, t, c(v)) - target‖²`` over the photos for the vectors ``v`` that stand where the
    word stands.

    With ``begin="cross"`` the vectors begin as what the text encoder makes of the noun (Cross Initialization,
    arXiv:2312.15905), which is nearer to where they end; that paper adds ``anchor=1e-5`` with ``anchor_by="distance"``
    and learns 320 steps.

    Departs from the paper: every text encoder of the base learns vectors, the vectors are never part of the
    vocabulary (so nothing else in it can move), and "a <v> cat" keeps the noun unless ``noun`` is off.

    >>> TextualInversion(vectors=2, begin="cross").vectors
    2
    """

    vectors: int | None = None
    """Vectors per text encoder; more are more faithful and less obedient. Chosen for the base if left open."""
    begin: Literal["noun", "rare", "random", "cross"] = "noun"
    """What the vectors begin as: the noun (or text), a rare token, chance, or the encoder's output for the noun."""
    progressive: bool = False
    """Whether vectors come one by one, each after an equal share of the steps, instead of all at once."""
    anchor: float = 0.0
    """Pull of the vectors towards where they began, as a weight of their distance."""
    anchor_by: Literal["squared", "distance"] = "squared"
    """Which distance pulls: the squared one, or the plain one, mean over vectors."""

    def __post_init__(self) -> None:
        """Also refuse counts and weights that cannot be."""
        super().__post_init__()
        self.within(vectors=(1, 16), anchor=(0, inf))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, beginning as the settings say."""
        from fromfew.ports.part import Parts

        start = "" if self.begin == "rare" else refs.noun or ""
        word = self.word(bb, refs, rng, count=self.vectors or 1, start=start)
        if self.begin == "random":
            word.randomised(bb, rng)
        return Parts(word=word.crossed(bb) if self.begin == "cross" else word)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage, or one a vector; the word alone learns."""
        from fromfew.losses import anchored

        pull = [(self.anchor, anchored(parts.word, squared=self.anchor_by == "squared"))] if self.anchor else []
        vectors, steps = self.vectors or 1, self.steps or 1
        count = vectors if self.progressive else 1
        for nth in range(1, count + 1):
            parts.word.shown = nth if self.progressive else vectors
            share = steps * nth // count - steps * (nth - 1) // count
            name = f"learn {nth} of {count}" if count > 1 else "learn"
            yield self.stage(bb, refs, {parts.word: self.lr}, seed=seed, more=pull, steps=share, name=name)
