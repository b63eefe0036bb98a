"""Cones: a few entries of the maps that read the text are shut, and the subject comes out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fromfew.errors import FromfewError
from fromfew.method import Tuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Cones: Concept Neurons in Diffusion Models for Customized Generation",
    "arxiv": "2303.05125",
    "year": 2023,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "one whole number per entry that is shut: under a megabyte",
}


@dataclass(frozen=True, kw_only=True)
class Cones(Tuned):
    """Find the entries of the text's keys and values whose shutting lowers the loss on the photos, and shut them.

    An entry θ is scored by ``s = Σ θ · ∂L/∂θ`` over many steps; the highest ``density`` of every map are shut: set to
    0, at the end and already while scores are added up, so that each is scored beside those shut so far. Scores are
    the gradient of a gate ``1 - m`` on every entry, added up by plain gradient descent from ``m = 0``.

    Departs from the paper: it is rebuilt from the abstract, since the paper names no threshold and no code was
    published. A share of every map is shut instead; and where the paper lets entries shrink a little as they score,
    they are shut at once, since one by one they promise what thousands together do not keep (docs/methods/cones.md).
    With modifier "word", a word is learned first.

    >>> Cones(density=0.02).density
    0.02
    """

    modifier: Literal["word", "rare", "text"] = "rare"
    """What stands for the subject in prompts: a learned word, a rare token, or plain text (see text)."""
    prior: float = 1.0
    """Weight of pictures of the plain noun, which keep its meaning; 0 leaves them out."""
    density: float | None = None
    """Share of entries of every map that are shut, above 0 and at most 0.5; chosen for the base if left open."""
    word_steps: int | None = None
    """Steps in which a learned word comes first; chosen for the base if left open."""
    word_lr: float | None = None
    """Learning rate of a learned word; chosen for the base if left open."""

    def __post_init__(self) -> None:
        """Also refuse a density that is none.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        if self.density is not None and not 0 < self.density <= 0.5:
            raise FromfewError(f"density is above 0 and at most 0.5, not {self.density}.")

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, and a gate on every entry."""
        from fromfew.parts.neurons import Search
        from fromfew.ports.part import Parts

        maps = bb.select("text.key", "text.value")
        return Parts(word=self.word(bb, refs, rng), neurons=Search.of(maps, self.density or 0.01))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """A learned word, if there is one; then scoring, by plain descent and without a limit on the gradient."""
        from fromfew.stage import Stage

        batches = self.with_prior(bb, refs, seed=seed)
        if any(True for _ in parts.word.parameters()):
            yield Stage(
                self.word_steps or 1, batches, self.terms(), {parts.word: self.word_lr or 0.0},
                schedule=self.schedule or "constant", name="word",
            )  # fmt: skip
        yield Stage(
            self.steps or 1, batches, self.terms(), {parts.neurons: self.lr or 0.0},
            optimiser="sgd", clip=float("inf"), name="score",
        )  # fmt: skip

    def keep(self, bb: Backbone, parts: Parts) -> Parts:
        """The word, and the places of the entries with the highest scores."""
        from fromfew.parts.neurons import Neurons
        from fromfew.ports.part import Parts

        return Parts(word=parts.word, neurons=Neurons.found(parts.neurons))
