"""Custom Diffusion: a new word, and new key and value maps where the text enters the picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromfew.method import Tuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Multi-Concept Customization of Text-to-Image Diffusion",
    "arxiv": "2212.04488",
    "year": 2022,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "about 2 % of the denoiser",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion(Tuned):
    """Learn a subject, or several together, as a word each and a change of the maps that read the text.

    Minimises ``E Σ m e² / Σ m`` with ``e = f(x_t, t, c) - target`` over the photos, from near and far, and,
    weighted by ``prior``, ``E e²`` over pictures of the plain noun, for the word's vector and for ΔK, ΔV of
    every layer that attends to the text. The first token of the text gives no gradient to ΔK and ΔV.

    Departs from the paper: class pictures are drawn by the base instead of retrieved, and the masked loss is
    a mean over channels, so that photos and class pictures weigh the same.

    >>> CustomDiffusion().zoom
    (0.5, 1.4)
    """

    prior: float = 1.0
    """Weight of pictures of the plain noun, which keep its meaning; 0 leaves them out."""
    word_lr: float | None = None
    """Learning rate of the word; chosen for the base if left open."""
    zoom: tuple[float, float] = (0.5, 1.4)
    """Least and greatest zoom of the views taken of every photo; prompts tell the far and the close ones."""

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """A word for every subject, beginning as a rare one, and the maps, which all share."""
        from fromfew.parts.full import FullDelta
        from fromfew.ports.part import Parts

        maps = bb.select("text.key", "text.value")
        return Parts(**self.words(bb, refs, rng), maps=FullDelta.of(bb, *maps))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; photos and pictures of the plain noun in every batch."""
        from fromfew.parts.still_first import StillFirst
        from fromfew.ports.part import Parts

        still = Parts(first=StillFirst())
        rates = {part: self.lr if part is parts.maps else self.word_lr for part in parts}
        yield self.stage(bb, refs, rates, seed=seed, attach=lambda batch, chance: still)
