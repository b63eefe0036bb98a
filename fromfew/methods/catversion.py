"""CatVersion: learned keys and values in front of the prompt, inside the text encoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "CatVersion: Concatenating Embeddings for Diffusion-Based Text-to-Image Personalization",
    "arxiv": "2311.14631",
    "year": 2023,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text",),
    "backbones": ("sd15", "sd21", "sdxl"),
    "adds": "a key and a value for every layer of the text encoder",
}


@dataclass(frozen=True, kw_only=True)
class CatVersion(WordTuned):
    """Learn what the noun means here as one more key and value in every layer of the text encoder.

    Minimises ``E ‖f(x_t, t, c(noun; K', V')) - target‖²`` for ``K'``, ``V'``: every token of the prompt reads
    ``softmax([q K'ᵀ + bias; q Kᵀ]) [V'; V]``.

    Departs from the paper: the prefix acts only in prompts that hold the placeholder, which itself takes no place in
    them, so "a <v> cat" is read as "a cat" with the prefix; the size of the first numbers is our choice.

    >>> CatVersion(bias=0.0).bias
    0.0
    """

    length: int | None = None
    """Keys and values in every layer; chosen for the base if left open."""
    last: int | None = None
    """Only so many last layers of each text encoder; all if left open."""
    bias: float = 1.0
    """Added to the scores of the prefix: 1 as in the authors' code, 0 for none."""
    spread: float = 0.1
    """Standard deviation of the first keys and values."""

    def __post_init__(self) -> None:
        """Also refuse a prefix that cannot be."""
        super().__post_init__()
        self.within(length=(1, 64), last=(1, inf), spread=(0, inf))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The prefix, which the placeholder calls."""
        from fromfew.parts.text_prefix import TextPrefix
        from fromfew.ports.part import Parts

        count, last, bias, spread = self.length or 1, self.last, self.bias, self.spread
        prefix = TextPrefix.learned(bb, refs.placeholder, rng, count=count, last=last, bias=bias, spread=spread)
        return Parts(word=prefix)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; the prefix alone learns."""
        yield self.stage(bb, refs, {parts.word: self.lr}, seed=seed)
