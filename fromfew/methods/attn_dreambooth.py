"""AttnDreamBooth: first the word, then where it is looked for, then what it looks like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "AttnDreamBooth: Towards Text-Aligned Personalized Text-to-Image Generation",
    "arxiv": "2406.05000",
    "year": 2024,
    "learns": ("subject", "face"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "noun": True,
    "adds": "as much as the denoiser itself",
}


@dataclass(frozen=True, kw_only=True)
class AttnDreamBooth(WordTuned):
    """Learn a word briefly, then the attention that reads text, then the whole denoiser, one after the other.

    Minimises ``E ‖f(x_t, t, "a photo of a <v> cat") - target‖² + λ_μ (μ_v - μ_c)² + λ_s (σ²_v - σ²_c)²`` in all
    three stages, with mean and variance of the attention to the word and to the noun behind it.

    Departs from the paper: both are taken of one map a word, the mean over heads and layers, instead of layer by
    layer; the authors' code adds rows of a batch up, here they are averaged, so the weights are the code's for
    a batch of four.

    >>> AttnDreamBooth(mean=1.0).mean
    1.0
    """

    word_steps: int | None = None
    """Steps of the word alone; few, so that it does not take in the whole picture; chosen if left open."""
    word_lr: float | None = None
    """Learning rate of the word; chosen for the base if left open."""
    attention_steps: int | None = None
    """Steps of the attention that reads text; chosen for the base if left open."""
    attention_lr: float | None = None
    """Learning rate of the attention that reads text; chosen for the base if left open."""
    mean: float = 8.0
    """Weight of equal means in the second and third stage; a twentieth of it in the first."""
    variance: float = 20.0
    """Weight of equal variances in the second and third stage; none in the first."""

    def __post_init__(self) -> None:
        """Also refuse weights below 0.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        self.within(mean=(0, inf), variance=(0, inf))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, beginning as the noun, and a difference of every parameter, text attention apart."""
        from fromfew.parts.full import FullDelta
        from fromfew.ports.part import Parts

        whole = FullDelta.of(bb, "denoiser").shapes()
        reads = set(FullDelta.of(bb, *bb.select("text")).shapes())
        return Parts(
            word=self.word(bb, refs, rng, start=refs.noun or ""),
            attention=FullDelta({path: shape for path, shape in whole.items() if path in reads}),
            rest=FullDelta({path: shape for path, shape in whole.items() if path not in reads}),
        )

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """The three, each with the attention term."""
        from fromfew.losses import alike, only

        me = replace(self, captions=False)
        words = (refs.placeholder, str(refs.noun).split()[0])
        batches = me.with_prior(bb, refs, seed=seed)
        for name, steps, train, share in (
            ("word", self.word_steps, {parts.word: self.word_lr}, (0.05, 0.0)),
            ("attention", self.attention_steps, {parts.attention: self.attention_lr}, (1.0, 1.0)),
            ("whole", self.steps, {parts.attention: self.lr, parts.rest: self.lr}, (1.0, 1.0)),
        ):
            pull = alike(*words, mean=share[0] * self.mean, variance=share[1] * self.variance)
            yield self.stage(
                bb, refs, train, seed=seed, more=[(1.0, only("photo", pull))], steps=steps or 1, batches=batches,
                record=words, name=name,
            )  # fmt: skip
