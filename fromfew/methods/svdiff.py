"""SVDiff: the singular values of every weight move; of several subjects, in halves of one picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal

from fromfew.method import Tuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.data import Source
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "SVDiff: Compact Parameter Space for Diffusion Fine-Tuning",
    "arxiv": "2303.11305",
    "year": 2023,
    "learns": ("subject", "style", "face"),
    "photos": (1, 30),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "one number per singular value: about a megabyte",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class SVDiff(Tuned):
    """Learn a subject, or several together, by shifting the singular values of the denoiser's weights.

    ``W' = U diag(ReLU(σ + δ)) Vᵀ`` for linear maps and convolutions, and plain shifts of norms' weights at a rate of
    their own; biases stay. DreamBooth's loss with ``prior``. Several subjects are also learned in pictures of
    two halves (``cut_mix``) while each one's attention is kept off the other's half (``unmix``).

    Departs from the paper: a picture's middle half, or that around its mask, is what joins, not its left or right
    one; the unmix term takes every map divided by its peak, and the paper's weight of it is not known to us.

    >>> SVDiff(cut_mix=0.5).cut_mix
    0.5
    """

    modifier: Literal["word", "rare", "text"] = "rare"
    """What stands for the subject in prompts: a learned word, a rare token, or plain text (see text)."""
    prior: float = 1.0
    """Weight of pictures of the plain noun, which keep its meaning; 0 leaves them out."""
    flip: bool = False
    """Whether half the views are mirrored; faces never are. It costs a thing that always faces one way its shape."""
    thin_lr: float | None = None
    """Learning rate of the norms' weights; chosen for the base if left open."""
    encoder_lr: float | None = None
    """Learning rate of the text encoders' weights and of a learned word; chosen for the base if left open."""
    encoder: bool = False
    """Whether the text encoders' weights learn as well."""
    cut_mix: float = 0.6
    """Of several subjects: share of pictures that are joined from two halves; 0 keeps them apart."""
    unmix: float = 0.1
    """Of several subjects: weight of keeping each one's attention off the other's half; 0 leaves it out."""

    def __post_init__(self) -> None:
        """Also refuse a share or weight that is none.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        self.within(cut_mix=(0, 1), unmix=(0, inf))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """A word for every subject; shifts of spectra, and of weights of one dimension, which are the norms'."""
        from fromfew.parts.full import FullDelta
        from fromfew.parts.spectral import Spectral
        from fromfew.ports.part import Parts

        named = [(f"denoiser.{path}", value) for path, value in bb.denoiser.named_parameters()]
        rows = {path: tuple(value.shape) for path, value in named if value.dim() == 1 and path.endswith(".weight")}
        return Parts(
            **self.words(bb, refs, rng),
            denoiser=Spectral({path: tuple(value.shape) for path, value in named if value.dim() > 1}),
            thin=FullDelta(rows) if rows else None,
            encoder=Spectral.of(bb.select("encoder.all")) if self.encoder else None,
        )

    def photos(self, bb: Backbone, refs: References) -> Source:
        """The photos; of several subjects, some in halves."""
        from fromfew.cut_mix import Thing, cut_mix

        if not refs.also or not self.cut_mix:
            return super().photos(bb, refs)
        each = [(self._photos(bb, one, self._share(refs)), one) for one in refs.subjects]
        return cut_mix([Thing(source, one.words, one.placeholder) for source, one in each], share=self.cut_mix)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage with two rates; of several subjects, with the unmix term."""
        from fromfew.losses import only, unmixed
        from fromfew.ports.text import WordPart

        named = {"denoiser": self.lr, "thin": self.thin_lr}
        rates = {part: named.get(name, self.encoder_lr) for name, part in parts.items()}
        words = {p.placeholder: (p.alias or p.placeholder).split()[0] for p in parts if isinstance(p, WordPart)}
        apart = bool(refs.also and self.cut_mix and self.unmix)
        more = [(self.unmix, only("photo", unmixed(words)))] if apart else []
        record = tuple(words.values()) if apart else ()
        yield self.stage(bb, refs, rates, seed=seed, more=more, record=record)
