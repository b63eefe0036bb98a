"""ViCo: a word, and blocks that look at a photo while the picture is drawn; the model itself stays as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from fromfew.errors import FromfewError
from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.data import Batch, Source
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "ViCo: Plug-and-play Visual Condition for Personalized Text-to-image Generation",
    "arxiv": "2306.00971",
    "year": 2023,
    "learns": ("subject",),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text", "attention"),
    "backbones": ("sd15", "sd21", "sdxl"),
    "adds": "four transformer blocks (about 6 % of the denoiser), the word, and one photo's latents",
}


@dataclass(frozen=True, kw_only=True)
class ViCo(WordTuned):
    """Learn a subject as a word and blocks that attend, patch to patch, to the model's own features of a photo.

    Behind some blocks ``x ← ICA(x, x_r, M)``: attention to the photo's features ``x_r`` where ``M``, Otsu's cut of
    the attention to the word, shows the subject. Minimises ``E e² + attention · mean (A_v / max A_v - A_e / max
    A_e)²``, which pulls the word's map to the (constant) map of the text's end; other photos are looked at.

    Departs from the paper: the blocks begin as nothing instead of at random; the mask limits what is read of the
    photo, but not self-attention; the photo's features send no gradient; the maps are means over all sites.

    >>> ViCo(reference=2).reference
    2
    """

    attention: float = 5e-3
    """Weight of the likeness of the word's attention to that of the text's end, which covers the foreground."""
    reference: int = 0
    """Number of the photo that is kept and looked at when pictures are drawn, from 0."""
    word_lr: float | None = None
    """Learning rate of the word; chosen for the base if left open."""

    def __post_init__(self) -> None:
        """Also refuse what does not go with it."""
        super().__post_init__()
        if self.prior:
            raise FromfewError("vico leaves the base's weights alone, so nothing drifts: leave prior at 0.")
        self.within(attention=(0, inf), reference=(0, inf))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, beginning as the noun, and the blocks with the photo that is kept."""
        import torch

        from fromfew.encoders import squares
        from fromfew.parts.reference_blocks import ReferenceBlocks
        from fromfew.ports.part import Parts

        if self.reference >= len(refs):
            raise FromfewError(f"reference is 0 to {len(refs) - 1}, the number of a photo, not {self.reference}.")
        photo = replace(refs.photos[self.reference], mask=None)
        with torch.no_grad():
            latents = bb.encode(squares(replace(refs, photos=(photo,)), bb.default_size))
        word = self.word(bb, refs, rng, start=refs.noun or "")
        return Parts(word=word, reader=ReferenceBlocks.of(bb, refs.placeholder, latents.float(), rng))

    def photos(self, bb: Backbone, refs: References) -> Source:
        """Every row with a view of another photo."""
        return self._photos(bb, refs, self.batch or 1, pairs=True)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; word and blocks learn together."""
        import torch

        from fromfew.losses import mapped_as
        from fromfew.ports.part import Parts as Set
        from fromfew.ports.text import END

        def show(batch: Batch, rng: Generator) -> Set:
            assert batch.shown is not None
            with torch.no_grad():
                parts.reader.show(torch.cat([bb.encode(one) for one in batch.shown.split(1)]))
            return Set()

        yield self.stage(
            bb,
            refs,
            {parts.word: self.word_lr, parts.reader: self.lr},
            seed=seed,
            more=[(self.attention, mapped_as(refs.placeholder, END))],
            attach=show,
            record=(refs.placeholder, END),
        )
