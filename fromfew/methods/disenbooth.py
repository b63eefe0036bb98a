"""DisenBooth: the subject in the words, everything else of a photo in an image branch that is thrown away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Literal

from fromfew.method import Tuned

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fromfew.backbones.base import Backbone
    from fromfew.parts.image_states import ImageStates
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage, Step

CARD = {
    "title": "DisenBooth: Identity-Preserving Disentangled Tuning for Subject-Driven Text-to-Image Generation",
    "arxiv": "2305.03374",
    "year": 2023,
    "learns": ("subject",),
    "photos": (1, 30),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "rank · (in + out) numbers a map: a few megabytes; with leftovers about twice that",
}


@dataclass(frozen=True, kw_only=True)
class DisenBooth(Tuned):
    """Learn a subject as low-rank changes while an image branch explains pose, background and the rest of each photo.

    With ``c`` the encoded prompt and ``f'`` the masked features of the photo itself, minimises ``‖ε(z_t, c + f') -
    ε‖² + weak · ‖ε(z_t, c) - ε‖² + contrast · cos(mean c, f')`` at one noise: the second keeps the subject in the
    words, the third keeps what the words say out of the image branch.

    Departs from the paper: where the image encoder's width is not that of the states, a linear map joins them.

    >>> DisenBooth(weak=0.02).weak
    0.02
    """

    modifier: Literal["word", "rare", "text"] = "rare"
    """What stands for the subject in prompts: a learned word, a rare token, or plain text (see text)."""
    rank: int | None = None
    """Width of the bottleneck; chosen for the base if left open."""
    weak: float = 0.01
    """Weight of denoising by the words alone."""
    contrast: float = 0.001
    """Weight of the cosine between words and image branch, which is pushed down."""
    leftovers: float = 0.0
    """How much of what the photos show besides the subject is kept and drawn; 0 throws the image branch away."""
    eye: str | None = None
    """Frozen image encoder: world, a folder or a hub id; chosen for the base if left open."""
    word_lr: float | None = None
    """Learning rate of a learned word; chosen for the base if left open."""
    image_lr: float | None = None
    """Learning rate of the image branch; chosen for the base if left open."""

    def __post_init__(self) -> None:
        """Also refuse a rank below 1, and weights below 0."""
        super().__post_init__()
        self.within(rank=(1, 1024), weak=(0, inf), contrast=(0, inf), leftovers=(0, inf))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word and thin changes beside attention; the image branch if anything of it is to stay."""
        from fromfew.parts.low_rank import LowRank
        from fromfew.ports.part import Parts

        thin = LowRank.of(bb.select("attention"), self.rank or 4, float(self.rank or 4), rng)
        kept = self._image(bb, refs, rng) if self.leftovers else None
        return Parts(word=self.word(bb, refs, rng), denoiser=thin, image=kept)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; a branch that is not kept learns beside the parts."""
        from fromfew.fit import generator
        from fromfew.losses import apart, besides, only

        image = parts.image if "image" in parts else self._image(bb, refs, generator(seed, 1))
        seen = self._eye(bb)
        (_, photo), *prior = self.terms()

        def beside(step: Step) -> Tensor:
            return image.besides(seen(step.batch.images))

        cosine = only("photo", apart(beside))
        rates = {parts.word: self.word_lr, parts.denoiser: self.lr, image: self.image_lr}
        terms = [(1.0, besides(bb, beside, photo)), (self.weak, photo), (self.contrast, cosine), *prior]
        yield self.stage(bb, refs, rates, seed=seed, terms=terms)

    def _image(self, bb: Backbone, refs: References, rng: Generator) -> ImageStates:
        from fromfew.encoders import squares
        from fromfew.parts.image_states import ImageStates

        plain = replace(refs, photos=tuple(replace(photo, mask=None) for photo in refs.photos))
        seen, wide = self._eye(bb)(squares(plain, bb.default_size)), bb.embed([""]).states.shape[-1]
        said = (self.word(bb, refs, rng).alias or refs.placeholder).split()[0]
        return ImageStates.of(seen, wide, said, self.leftovers, rng)

    def _eye(self, bb: Backbone) -> Callable[[Tensor], Tensor]:
        """What sees pictures ``[B, 3, H, W]``, one vector each."""
        from fromfew.encoders import open_eye

        see = open_eye(self.eye, device=str(bb.device)).pooled
        return lru_cache(maxsize=1)(lambda images: see(images.to(bb.device)).detach())
