"""Gradient-free textual inversion: a word found by evolution, from predictions alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fromfew.errors import FromfewError
from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Gradient-Free Textual Inversion",
    "arxiv": "2304.05818",
    "year": 2023,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text",),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "a few kilobytes: the word's vectors",
}


@dataclass(frozen=True, kw_only=True)
class GradientFree(WordTuned):
    """Learn a subject or style as a word without a single gradient: no more memory than drawing takes.

    Minimises textual inversion's ``E ‖f(x_t, t, c(v)) - target‖²`` over ``v = v₀ + D z`` by CMA-ES: every step tries
    ``population`` points ``z`` on the same photos, noise and times, and moves the distribution they come from. ``D``
    is random with the spread of the encoder's table, or its principal axes.

    Departs from the paper: the word begins as the noun, not as a mixture of words chosen by an image encoder; noise
    and times are the same for a whole population; the distribution's mean is kept, not the best of the last points.

    >>> GradientFree(subspace="pca").dims
    256
    """

    vectors: int = 1
    """Vectors per text encoder."""
    dims: int = 256
    """Coordinates that are searched."""
    subspace: Literal["prior", "pca"] = "prior"
    """Directions: random ones of the table's own spread, or the table's principal axes."""
    population: int = 20
    """Points tried a step."""
    spread: float | None = None
    """Standard deviation of the first points; chosen for the base if left open."""

    def __post_init__(self) -> None:
        """Also refuse a search that cannot be."""
        super().__post_init__()
        self.within(vectors=(1, 16), dims=(1, 4096), population=(4, 1000))
        if self.spread is not None and not self.spread > 0:
            raise FromfewError(f"spread must be above 0, not {self.spread:g}.")

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, beginning as the noun."""
        from fromfew.ports.part import Parts

        return Parts(word=self.word(bb, refs, rng, count=self.vectors, start=refs.noun or ""))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage, whose steps are generations."""
        import torch

        from fromfew.fit import generator
        from fromfew.search import Search, principal_directions, random_directions

        rng, directions, done = generator(seed, 1), {}, 0
        each = max(1, self.dims // len(bb.text_encoders))
        dims = each * len(bb.text_encoders) if self.subspace == "pca" else self.dims
        for key, value in parts.word.vectors.items():
            table = bb.text_encoders[key].table
            if self.subspace == "prior":
                directions[value] = random_directions(value.shape, dims, float(table.std()), rng)
                continue
            directions[value] = torch.zeros(*value.shape, dims)
            directions[value][..., done : done + each] = principal_directions(table, value.shape, each)
            done += each
        search = Search(directions, self.population, self.spread or 1.0)
        yield self.stage(bb, refs, {parts.word: 1.0}, seed=seed, search=search)
