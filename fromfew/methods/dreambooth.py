"""DreamBooth: the whole denoiser learns what a rare word in front of the noun means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fromfew.errors import FromfewError
from fromfew.method import Tuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.data import Source
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation",
    "arxiv": "2208.12242",
    "year": 2022,
    "learns": ("subject", "style", "face"),
    "photos": (1, 30),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "as much as the denoiser itself",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class DreamBooth(Tuned):
    """Learn a subject by changing the whole denoiser, and keep the noun's meaning by its own pictures.

    Minimises ``E ‖f(x_t, t, "a ktn cat") - target‖² + prior · E ‖f(x'_t, t, "a cat") - target‖²`` where
    ``x'`` are pictures of the plain noun, drawn once by the untouched base.

    With ``described`` the photos' prompts say what the subject is like instead of its bare noun, as InstructBooth
    (arXiv:2312.03011) asks of rare subjects; its second stage, learning from a reward, is not here.

    Departs from the paper: the change is kept as a difference from the base, which is never written.

    >>> DreamBooth(prior=0.5).prior
    0.5
    """

    modifier: Literal["word", "rare", "text"] = "rare"
    """What stands for the subject in prompts: a learned word, a rare token, or plain text (see text)."""
    prior: float = 1.0
    """Weight of pictures of the plain noun, which keep its meaning; 0 leaves them out."""
    flip: bool = False
    """Whether half the views are mirrored; faces never are. It costs a thing that always faces one way its shape."""
    encoder: bool = False
    """Whether the text encoders learn as well: better for faces, worse for obedience."""
    encoder_lr: float | None = None
    """Learning rate of the text encoders and of a learned word; chosen for the base if left open."""
    described: str | None = None
    """A description that takes the noun's place in the photos' prompts, as in "clay bear in a red scarf"."""

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """A word for every subject, and a difference of every parameter."""
        from fromfew.parts.full import FullDelta
        from fromfew.ports.part import Parts

        return Parts(
            **self.words(bb, refs, rng),
            denoiser=FullDelta.of(bb, "denoiser"),
            encoder=FullDelta.of(bb, *bb.encoder_paths) if self.encoder else None,
        )

    def refuse(self, bb: Backbone, refs: References | None) -> None:
        """Also refuse one description for several subjects.

        Raises:
            FromfewError: With the reason.
        """
        super().refuse(bb, refs)
        if self.described and refs is not None and refs.also:
            raise FromfewError("One description cannot be that of several subjects: leave 'described' open.")

    def photos(self, bb: Backbone, refs: References) -> Source:
        """The photos; with a description, under prompts in which it stands for the noun."""
        from fromfew.naming import described

        return super().photos(bb, described(refs, self.described) if self.described else refs)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; photos and pictures of the plain noun in every batch."""
        rates = {part: self.lr if part is parts.denoiser else self.encoder_lr for part in parts}
        yield self.stage(bb, refs, rates, seed=seed)
