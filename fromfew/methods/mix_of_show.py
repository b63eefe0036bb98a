"""Mix-of-Show: a pair of words for every layer, and thin changes of attention (ED-LoRA)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.data import Batch
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage, Term

CARD = {
    "title": "Mix-of-Show: Decentralized Low-Rank Adaptation for Multi-Concept Customization of Diffusion Models",
    "arxiv": "2305.18292",
    "year": 2023,
    "learns": ("subject", "face", "style"),
    "photos": (1, 30),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl"),
    "adds": "the words of every layer, and rank · (in + out) numbers a map of attention: a few megabytes",
}


@dataclass(frozen=True, kw_only=True)
class MixOfShow(WordTuned):
    """Learn a subject as two words per cross-attention layer and thin changes of all attention and the text encoders.

    Minimises ``E Σ m e² / Σ m + attention Σ_places (1 - m) A / Σ A`` for the words' vectors, one of which begins as the
    noun and the others at random, and for ``B A`` beside every map of attention: the words hold what a thing looks like
    within the base's own domain, the maps what lies outside it, so that concepts learned apart can be fused
    (`gradient-fusion`) and kept in regions.

    Departs from the paper: the noun follows the words unless ``noun`` is off, captions are templates where photos have
    none, and attention outside the mask is one share for both words.

    >>> MixOfShow(rank=8).rank
    8
    """

    vectors: int = 2
    """Words per layer; the last begins as the noun, those before it at random."""
    rank: int | None = None
    """Width of the thin changes; chosen for the base if left open."""
    word_lr: float | None = None
    """Learning rate of the words; chosen for the base if left open."""
    encoder_lr: float | None = None
    """Learning rate of the text encoders' thin changes; chosen for the base if left open."""
    norm_stop: float | None = None
    """The words stop learning once they are so many times as long as the base's own; 0 never; chosen if left open."""
    attention: float = 0.01
    """Weight of keeping attention to the words inside the masks of photos that have one."""
    noise_offset: float = 0.01
    """Strength of a noise that is the same all over a picture."""

    def __post_init__(self) -> None:
        """Also refuse what cannot be meant."""
        super().__post_init__()
        self.within(vectors=(1, 16), rank=(1, 1024), attention=(0, inf), noise_offset=(0, inf), norm_stop=(0, inf))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The words of every layer, and thin changes of the denoiser's and the encoders' attention."""
        from fromfew.parts.low_rank import LowRank
        from fromfew.parts.word_table import WordTable
        from fromfew.ports.part import Parts

        word = self.word(bb, refs, rng, count=self.vectors, start=refs.noun or "")
        word = word.randomised(bb, rng, last=word.start)
        rank = self.rank or 4
        return Parts(
            word=WordTable.of(bb, word, "layer"),
            denoiser=LowRank.of(bb.select("attention"), rank, float(rank), rng),
            encoder=LowRank.of(bb.select("encoder.attention"), rank, float(rank), rng),
        )

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; words, denoiser and encoders at rates of their own."""
        from fromfew.losses import focused, only
        from fromfew.parts.word_table import outgrown
        from fromfew.ports.part import Parts

        seen = self.attention > 0 and self.masked and any(photo.mask is not None for photo in refs.photos)
        maps: list[tuple[float, Term]] = [(self.attention, only("photo", focused(refs.placeholder)))] if seen else []
        long = outgrown(parts.word, bb, self.norm_stop or 0.0)

        def attach(batch: Batch, rng: Generator) -> Parts:
            # Asked before every step, from the numbers alone: a resumed run stops where an uninterrupted one does.
            parts.word.requires_grad_(not long())
            return Parts()

        yield self.stage(
            bb,
            refs,
            {parts.word: self.word_lr, parts.denoiser: self.lr, parts.encoder: self.encoder_lr},
            seed=seed,
            more=maps,
            record=(refs.placeholder,) if seen else (),
            attach=attach if self.norm_stop else None,
            offset=self.noise_offset,
        )
