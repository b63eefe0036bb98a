"""ProSpect: a word for every stage of denoising, from layout to material."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "ProSpect: Prompt Spectrum for Attribute-Aware Personalization of Diffusion Models",
    "arxiv": "2305.16225",
    "year": 2023,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text",),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "the word's vectors, once for every stage",
}


@dataclass(frozen=True, kw_only=True)
class ProSpect(WordTuned):
    """Learn a subject or style as one word per stage of denoising; nothing else of the model changes.

    Minimises ``E ‖f(x_t, t, c(v_s)) - target‖²`` with ``s = ⌊stages · t⌋`` for the vectors ``v_s``. Early stages
    (much noise) hold layout and content, late ones material and style.

    Departs from the paper: vectors learn directly instead of as the output of a network with a constant input, and
    from several photos.

    >>> ProSpect(spans=5).spans
    5
    """

    spans: int = 10
    """Equal spans of time that each have a word."""
    vectors: int = 1
    """Vectors per stage and text encoder; more are more faithful and less obedient."""

    def __post_init__(self) -> None:
        """Also refuse more vectors or stages than there can be."""
        super().__post_init__()
        self.within(vectors=(1, 16), spans=(1, 100))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, beginning as the noun in every stage."""
        from fromfew.parts.word_table import WordTable
        from fromfew.ports.part import Parts

        word = self.word(bb, refs, rng, count=self.vectors, start=refs.noun or "")
        return Parts(word=WordTable.of(bb, word, "stage", self.spans))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage of learning; the word alone learns."""
        yield self.stage(bb, refs, {parts.word: self.lr}, seed=seed)
