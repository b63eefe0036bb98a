"""The sampler port: alter latents or guidance between the steps of a drawing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fromfew.noise import NoisePath
from fromfew.ports.part import Entry, Handle, Part, attached
from fromfew.rows import Rows

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone, Text

__all__ = ["Moment", "SamplerPart", "attached_samplers"]


@dataclass(eq=False)
class Moment:
    """Where a drawing stands.

    Args:
        step: 0 to ``steps`` - 1.
        steps: How many there are.
        t: Time now, in (0, 1).
        next: Time after this step; 0 at the end.
        x: ``[I, C, h, w]`` latents, one a picture.
        noise: ``[I, C, h, w]`` the noise the pictures began from.
        image: ``[I]`` long, index of each picture; a lead picture has -1.
        path: The model's noise path.
        predict: Latents to the prediction of every guidance branch.
        maps: Latents, words and a grid's shorter side to where on that grid each picture's own prompt is read from,
            ``[I, h, w]`` a word; gradients pass to the latents where they are asked for.
        text: What is read, branch after branch.
        rows: What every row of a prediction is.
        state: Whatever the part wants to keep until the drawing ends.
    """

    step: int
    steps: int
    t: float
    next: float
    x: Tensor
    noise: Tensor
    image: Tensor
    path: NoisePath
    predict: Callable[..., Mapping[str, Tensor]]
    maps: Callable[[Tensor, Sequence[str], int | None], Mapping[str, Tensor]]
    text: Text
    rows: Rows
    state: dict[str, Any] = field(default_factory=dict)


class SamplerPart(Part):
    """Override only what is needed; every method returns what takes the place of what it was given."""

    port = "sampler"
    lead: str | None = None
    """A prompt to draw first in every batch and to leave out of the result."""

    def start(self, moment: Moment) -> Tensor:
        """Latents to begin from."""
        return moment.x

    def before(self, moment: Moment) -> Tensor:
        """Latents before the model sees them."""
        return moment.x

    def guide(self, moment: Moment, pred: Tensor) -> Tensor:
        """The guided prediction, ``[I, C, h, w]``."""
        return pred

    def after(self, moment: Moment) -> Tensor:
        """Latents after the step."""
        return moment.x

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Nothing to install: the drawing loop asks who is attached."""
        return Handle()


def attached_samplers(bb: Backbone) -> list[tuple[SamplerPart, float, dict[str, Any]]]:
    """Sampler parts now attached, with strength and state, in the order of attaching; without strength 0."""

    def acts(entry: Entry) -> bool:
        return isinstance(entry.part, SamplerPart) and entry.strength != 0

    return [(e.part, e.strength, e.state) for e in attached(bb) if acts(e)]  # type: ignore[misc]
