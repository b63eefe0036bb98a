"""StyleAligned: pictures drawn together share the style of the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromfew.method import Free

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.parts.lead import Lead
    from fromfew.ports.part import Parts
    from fromfew.references import References

CARD = {
    "title": "Style Aligned Image Generation via Shared Attention",
    "arxiv": "2312.02133",
    "year": 2023,
    "learns": ("style",),
    "photos": (0, 1),
    "kind": "free",
    "ports": ("text", "attention", "feature", "sampler"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "nothing; with a photo, its latents",
    "couples_images": True,
}


@dataclass(frozen=True, kw_only=True)
class StyleAligned(Free):
    """In self-attention every picture also reads the first one, after taking on its statistics.

    ``y_i = softmax(AdaIN(Q_i, Q_1) [AdaIN(K_i, K_1); scale · K_1]ᵀ + [0; shift]) [V_i; V_1]``. With a photo
    the first picture is the photo, and it is left out of the result; without one it is the first prompt's.

    Departs from the paper: the photo is mixed with one noise for the time of every step, instead of being
    inverted.

    >>> StyleAligned(scale=0.8).scale
    0.8
    """

    scale: float = 1.0
    """Factor of the first picture's keys."""
    shift: float | None = None
    """Added to the scores of the first picture's keys; 0.69 (log 2) doubles its weight; by default as the base
    likes it (0 but on the small world), as are the next two."""
    norms: bool | None = None
    """Whether group norms see the first picture too."""
    from_depth: float | None = None
    """Only attention at least this deep in the model shares, 0 (all) to 1."""
    match: bool = True
    """Whether queries and keys take the first picture's statistics."""
    prompt: str | None = None
    """What the first picture is asked for; the noun alone if left open: by its caption it would share content too."""

    def parts(self, bb: Backbone, refs: References | None) -> Parts:
        """Sharing; with a photo or a prompt of its own, also the first picture."""
        from fromfew.parts.lead import Lead
        from fromfew.parts.share import ShareFirst
        from fromfew.parts.shared_norm import SharedNorm
        from fromfew.parts.word import Word
        from fromfew.ports.part import Parts

        lead = self._photo(bb, refs) if refs else (Lead(self.prompt) if self.prompt else None)
        return Parts(
            word=Word.plain(refs.placeholder, "") if refs else None,
            share=ShareFirst(self.scale, self.shift or 0.0, self.match, self.from_depth or 0.0),
            norms=SharedNorm() if self.norms else None,
            lead=lead,
        )

    def _photo(self, bb: Backbone, refs: References) -> Lead:
        from fromfew.encoders import squares
        from fromfew.parts.lead import Lead
        from fromfew.templates import with_article

        latents = bb.encode(squares(refs, bb.default_size)[:1])
        return Lead.showing(self.prompt or (with_article(refs.noun) if refs.noun else ""), latents)
