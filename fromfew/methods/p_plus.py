"""P+: a word for every cross-attention layer (extended textual inversion)."""

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
    "title": "P+: Extended Textual Conditioning in Text-to-Image Generation",
    "arxiv": "2303.09522",
    "year": 2023,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text",),
    "backbones": ("sd15", "sd21", "sdxl"),
    "adds": "the word's vectors, once for every cross-attention layer",
}


@dataclass(frozen=True, kw_only=True)
class PPlus(WordTuned):
    """Learn a subject or style as one word per cross-attention layer; nothing else of the model changes.

    Minimises ``E ‖f(x_t, t, [c(v_1) … c(v_L)]) - target‖²`` for the vectors ``v_l``: layer ``l``, in order of
    execution, takes keys and values from the prompt with ``v_l`` in it.

    Departs from the paper: several vectors a layer are possible, and a pooled vector (SDXL) is that of the mean of
    all layers.

    >>> PPlus(vectors=2).vectors
    2
    """

    vectors: int = 1
    """Vectors per layer and text encoder; more are more faithful and less obedient."""

    def __post_init__(self) -> None:
        """Also refuse more vectors than a prompt can hold."""
        super().__post_init__()
        self.within(vectors=(1, 16))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, beginning as the noun in every layer."""
        from fromfew.parts.word_table import WordTable
        from fromfew.ports.part import Parts

        word = self.word(bb, refs, rng, count=self.vectors, start=refs.noun or "")
        return Parts(word=WordTable.of(bb, word, "layer"))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; the word alone learns."""
        yield self.stage(bb, refs, {parts.word: self.lr}, seed=seed)
