"""NeTI: a word as a small network of time and layer, with a bypass around the text encoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.data import Batch
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "A Neural Space-Time Representation for Text-to-Image Personalization",
    "arxiv": "2305.15391",
    "year": 2023,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text",),
    "backbones": ("sd15", "sd21", "sdxl"),
    "adds": "a network of about two megabytes",
}


@dataclass(frozen=True, kw_only=True)
class NeTI(WordTuned):
    """Learn a subject or style as a network that says, for every layer and time, what the word is.

    Minimises ``E ‖f(x_t, t, c(M(t, 1) … M(t, L))) - target‖²`` for the network ``M``, whose output is brought to the
    norm of the noun's vector. Half of it is the word's vector; the other half bypasses the text encoder and shifts
    its last states at the word's place by ``bypass`` of their norm, for values only. With probability ``dropout``
    only the first units of the last hidden layer, a random number of them, speak in a step: so they hold the coarse,
    and ``units`` trades likeness for obedience afterwards.

    Departs from the paper: the network begins as the noun. At bases that read the second-to-last states (SDXL) those
    are shifted, and pooled vectors read the middle layer and time.

    >>> NeTI(units=64).units
    64
    """

    bypass: float = 0.2
    """Size of the shift past the text encoder, relative to the states; 0 switches it off."""
    dropout: float = 0.5
    """Share of steps in which only the first few hidden units speak."""
    hidden: int = 128
    """Units of the two hidden layers."""
    frequencies: int = 1024
    """Pairs of frequencies that time and layer are encoded with."""
    units: int | None = None
    """How many hidden units speak when drawing; all if left open, fewer for more obedience."""

    def __post_init__(self) -> None:
        """Also refuse what the network cannot be."""
        super().__post_init__()
        self.within(dropout=(0, 1), bypass=(0, 10), hidden=(1, 4096), frequencies=(1, 65536), units=(0, self.hidden))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The network, beginning as the noun everywhere."""
        from fromfew.parts.word import rare
        from fromfew.parts.word_mapper import WordMapper
        from fromfew.ports.part import Parts

        how = {"hidden": self.hidden, "frequencies": self.frequencies, "past": self.bypass, "units": self.units}
        start = self.text or refs.noun or rare(bb)
        return Parts(word=WordMapper.learned(bb, refs.placeholder, start, rng, **how))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; the network alone learns, in some steps only as far as a random unit."""
        import torch

        from fromfew.ports.part import Parts as NoParts

        def drop(batch: Batch, rng: Generator) -> Parts:
            chance, unit = torch.rand(2, generator=rng).tolist()
            parts.word.drop = int(unit * self.hidden) if chance < self.dropout else None
            return NoParts()

        yield self.stage(bb, refs, {parts.word: self.lr}, seed=seed, decay=0.01, attach=drop)
