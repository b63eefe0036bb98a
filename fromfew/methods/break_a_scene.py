"""Break-A-Scene: several things out of one picture, each with a mask and a word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.data import Source
    from fromfew.ports.part import Part, Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Break-A-Scene: Extracting Multiple Concepts from a Single Image",
    "arxiv": "2305.16311",
    "year": 2023,
    "learns": ("subject",),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "as much as the denoiser and text encoders themselves, or with low_rank a few megabytes",
    "joint": True,
    "masks": True,
}


@dataclass(frozen=True, kw_only=True)
class BreakAScene(WordTuned):
    """Learn every masked thing of a picture as a word: first the words alone, then the model as well.

    Every step names a random subset ``s`` of the things and minimises ``Σ m_s e² / Σ m_s + attention · Σ_{i ∈ s}
    mean (A_i / max A_i - m_i)²``, where ``m_s`` is the union of their masks and ``A_i`` where word ``i`` is read;
    in the second stage also, weighted by ``prior``, ``E e²`` over pictures of the plain nouns.

    Departs from the paper: the masked error is a mean over the mask, not over the whole picture; what lies outside
    all masks counts a little (``outside``); words begin as their nouns; the change may be kept thin (``low_rank``).

    >>> BreakAScene(low_rank=16).low_rank
    16
    """

    prior: float = 1.0
    """Weight of pictures of the plain nouns, which keep their meaning; 0 leaves them out."""
    attention: float = 0.01
    """Weight of keeping every word's attention on its mask; 0 lets words mix."""
    words_first: float = 0.5
    """Share of the steps in which the words learn alone, 0 to 0.95."""
    word_lr: float | None = None
    """Learning rate of the words in the first stage; chosen for the base if left open."""
    encoder: bool | None = None
    """Whether the text encoders learn in the second stage too; chosen for the base if left open."""
    low_rank: int | None = None
    """Width of a low-rank change instead of a full one; 0 is full (the paper); chosen for the base if open."""

    def __post_init__(self) -> None:
        """Also refuse shares that leave nothing."""
        super().__post_init__()
        self.within(words_first=(0, 0.95), low_rank=(0, 1024), attention=(0, inf))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """A word for every thing, beginning as its noun, and a change of the weights that all share."""
        from fromfew.parts.full import FullDelta
        from fromfew.parts.low_rank import LowRank
        from fromfew.ports.part import Parts

        def change(what: str, *paths: str) -> Part:
            rank = self.low_rank
            return LowRank.of(bb.select(what), rank, float(rank), rng) if rank else FullDelta.of(bb, *paths)

        encoder = change("encoder.attention", *bb.encoder_paths) if self.encoder else None
        words = self.words(bb, refs, rng, nouns=True)
        return Parts(**words, denoiser=change("attention", "denoiser"), encoder=encoder)

    def photos(self, bb: Backbone, refs: References) -> Source:
        """Unions of the photos' things."""
        from fromfew.data import union_batches

        size, lines, rows = bb.default_size, bb.defaults.templates, self.batch or 1
        return union_batches(refs, size=size, batch=rows, noun=self.noun, zoom=self.zoom, templates=lines,
                             flip=self.flip, variants=self.views)  # fmt: skip

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """Words alone; then all, with a new optimiser."""
        from fromfew.losses import aligned, only
        from fromfew.stage import Stage

        steps = self.steps or 1
        first = min(int(steps * self.words_first), steps - 1)
        on_masks = (self.attention, only("photo", aligned))
        stage = Stage(
            steps=first,
            batches=self.photos(bb, refs),
            terms=[self.terms()[0], on_masks],
            train={part: self.word_lr or 0.0 for name, part in parts.items() if name.startswith("word")},
            record=tuple(one.placeholder for one in refs.subjects),
            record_side=16,
            name="words",
        )
        if first:
            yield stage
        yield replace(
            stage, steps=steps - first, batches=self.with_prior(bb, refs, seed=seed), terms=[*self.terms(), on_masks],
            train=dict.fromkeys(parts, self.lr or 0.0), schedule=self.schedule or "constant", name="all",
        )  # fmt: skip
