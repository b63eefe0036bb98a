"""Compositional Inversion: a word held near real words, whose place in the picture is kept as well."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Compositional Inversion for Stable Diffusion Models",
    "arxiv": "2312.08048",
    "year": 2023,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text", "sampler"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "a few kilobytes: the word's vectors; drawing takes longer",
}


@dataclass(frozen=True, kw_only=True)
class CompositionalInversion(WordTuned):
    """Learn a word that stays beside the words it stands for, so that it can be put together with others.

    Semantic part: minimises ``(1 - attract) E ‖f(x_t, t, c(v)) - target‖² + attract · E ‖e(v) - e(noun)‖²`` over the
    photos, the second mean being over all input embeddings of a prompt. Spatial part: the first steps of a drawing
    are moved until the word is read from inside ``box``.

    Departs from the paper: the noun alone attracts (as in the authors' code), not a sparse set of anchors; boxes are
    told, not predicted; and the reconstruction counts inside masks.

    >>> CompositionalInversion(attract=0.5).attract
    0.5
    """

    vectors: int = 3
    """Vectors per text encoder."""
    attract: float = 0.95
    """Share of the loss that draws the word towards the noun, 0 to 1."""
    begin: Literal["noun", "rare", "random"] = "noun"
    """What the vectors begin as."""
    box: tuple[float, float, float, float] | None = (0.1, 0.1, 0.9, 0.9)
    """Where the word is read from when drawing: left, top, right, bottom, 0 to 1."""
    scale: float = 30.0
    """Size of the moves that bring it there; 0 switches them off."""
    until: float = 0.2
    """Share of the steps of a drawing in which they are made."""

    def __post_init__(self) -> None:
        """Also refuse what cannot be meant."""
        from fromfew.parts.box import Box

        super().__post_init__()
        self.within(vectors=(1, 16), attract=(0, 1))
        if self.box is not None:
            Box("<v>", self.box, scale=self.scale, until=self.until)

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, and its box."""
        from fromfew.parts.box import Box
        from fromfew.ports.part import Parts

        word = self.word(bb, refs, rng, count=self.vectors, start="" if self.begin == "rare" else refs.noun or "")
        box = None if self.box is None else Box(refs.placeholder, self.box, scale=self.scale, until=self.until)
        return Parts(word=word.randomised(bb, rng) if self.begin == "random" else word, box=box)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; the word alone learns, drawn towards the noun."""
        from fromfew.fit import generator
        from fromfew.losses import anchored
        from fromfew.parts.word import Word, rare

        noun = Word.learned(bb, refs.placeholder, refs.noun or self.text or rare(bb), self.vectors, generator(seed))
        numbers = sum(encoder.width * encoder.length for encoder in bb.text_encoders.values())
        terms = [(weight * (1 - self.attract), term) for weight, term in self.terms()]
        terms.append((self.attract / numbers, anchored(parts.word, to=noun)))
        yield self.stage(bb, refs, {parts.word: self.lr}, seed=seed, terms=terms)
