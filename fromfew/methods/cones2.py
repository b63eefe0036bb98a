"""Cones 2: a subject as one vector added to what the text encoder says of its noun."""

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
    from fromfew.data import Batch
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Cones 2: Customizable Image Synthesis with Multiple Subjects",
    "arxiv": "2305.19327",
    "year": 2023,
    "learns": ("subject", "face"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text",),
    "backbones": ("sd15", "sd21", "sdxl"),
    "noun": True,
    "adds": "one vector as wide as the encoded text: a few kilobytes",
}


@dataclass(frozen=True, kw_only=True)
class Cones2(WordTuned):
    """Tune the text encoder on the bare noun while every other token is held still; keep what its state has gained.

    Minimises ``E ‖f(x_t, t, h) - target‖² + hold_first ‖h[0] - h0[0]‖ + hold_rest ‖h[n+1:] - h0[n+1:]‖`` over the
    encoder, with ``h`` the tuned and ``h0`` the untouched states of the noun alone and ``n`` its tokens. Kept is ``Δ =
    mean over sentences of h - h0`` at the noun, which "a <v> cat" adds to its cat. Subjects learned apart are drawn
    together as they are; ``region_method="layout"`` is the paper's guidance of where each goes.

    Departs from the paper: of several encoders (SDXL) all are tuned, pooled vectors stay the noun's, and steps are not
    repeated with new noise while drawing.

    >>> Cones2(hold_first=0.01).hold_first
    0.01
    """

    hold_first: float = 1e-2
    """Weight of holding the state of the text's first token."""
    hold_rest: float | None = None
    """Weight of holding the states behind the noun; chosen for the base if left open."""

    def __post_init__(self) -> None:
        """Also refuse prompts without the noun, and weights below 0."""
        super().__post_init__()
        if not self.noun:
            raise FromfewError("cones2 adds to the noun: leave noun on.")
        self.within(hold_first=(0, inf), hold_rest=(0, inf))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """What is added, nothing yet, and the encoders' change, which is not kept."""
        from fromfew.parts.full import FullDelta
        from fromfew.parts.residual import Residual
        from fromfew.ports.part import Parts

        word = Residual.of(bb, refs.placeholder, str(refs.noun))
        return Parts(word=word, encoder=FullDelta.of(bb, *bb.encoder_paths))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; the encoders learn to say more of the bare noun."""
        from fromfew.losses import held_first, held_rest

        batches = self.photos(bb, refs)

        def bare_noun(rng: Generator) -> Batch:
            batch = batches(rng)
            return replace(batch, captions=[refs.words] * len(batch))

        held = [(self.hold_first, held_first(bb, parts.word)), (self.hold_rest or 0.0, held_rest(bb, parts.word))]
        terms = [*replace(self, prior=0.0).terms(), *((weight, term) for weight, term in held if weight)]
        rates = {parts.encoder: self.lr} if "encoder" in parts else {}
        yield self.stage(bb, refs, rates, seed=seed, batches=bare_noun, terms=terms)

    def keep(self, bb: Backbone, parts: Parts) -> Parts:
        """What the noun's state has gained, mean over sentences."""
        from fromfew.ports.part import Parts

        return Parts(word=parts.word.gained(bb, parts.encoder))
