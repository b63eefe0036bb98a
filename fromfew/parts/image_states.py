"""ImageStates: what a photo shows besides the subject, added to the encoded prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from fromfew.errors import FromfewError
from fromfew.ports.text import StatesPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone, Text

__all__ = ["ImageStates"]


class ImageStates(StatesPart):
    """``f' = MLP(σ(m) ⊙ f) + σ(m) ⊙ f``, added to every state of a prompt (DisenBooth, arXiv:2305.03374).

    ``f`` are a frozen image encoder's features and ``m`` is 0 at the start. Where features and states differ in width
    a linear map follows. While it learns it adds nothing by itself: each row has its own picture then.

    Args:
        width: Width of the features.
        states: Width of the states.
        word: What stands for the subject in encoded prompts; those without it are left as they are.
        count: How many photos' features are kept.
        weight: How much of their mean ``f'`` is added when pictures are drawn.
    """

    kind = "image_states"

    def __init__(self, width: int, states: int, word: str, count: int = 1, weight: float = 1.0) -> None:
        super().__init__()
        self.width, self.states, self.word, self.count, self.weight = width, states, word, count, weight
        shapes: dict[str, tuple[int, ...]] = {
            "first": (width, width), "first_bias": (width,), "second": (width, width), "second_bias": (width,),
        }  # fmt: skip
        if states != width:
            shapes["lift"] = (states, width)
        self.mask = nn.Parameter(torch.zeros(width))
        self.maps = nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes.items()})
        self.learning = False
        self.features: Tensor
        self.register_buffer("features", torch.zeros(count, width))

    @classmethod
    def of(cls, features: Tensor, states: int, word: str, weight: float, rng: Generator) -> Self:
        """With maps drawn from N(0, 1/width), keeping these photos' features ``[n, width]``."""
        count, width = features.shape
        part = cls(width, states, word, count, weight)
        part.features.copy_(features.detach().cpu())
        with torch.no_grad():
            for value in part.maps.values():
                if value.dim() == 2:
                    value.copy_(torch.randn(value.shape, generator=rng) * width**-0.5)
        return part

    def besides(self, features: Tensor) -> Tensor:
        """``f'`` of features ``[B, width]``: ``[B, states]``."""
        maps: Any = self.maps
        kept = self.mask.sigmoid() * features.to(self.mask)
        hidden = linear(kept, maps["first"], maps["first_bias"]).relu()
        found = linear(hidden, maps["second"], maps["second_bias"]) + kept
        return linear(found, maps["lift"]) if "lift" in maps else found

    def edit(self, text: Text, strength: float) -> Text:
        """The kept photos' mean ``f'`` on prompts that name the subject."""
        if self.learning:
            return text
        on = torch.tensor([bool(text.where(i, self.word)) for i in range(len(text))], device=text.states.device)
        more = strength * self.weight * self.besides(self.features).mean(0)
        return replace(text, states=text.states + on.view(-1, 1, 1) * more.to(text.states))

    def train(self, mode: bool = True) -> Self:
        """Say nothing while learning, until that ends."""
        self.learning = mode
        return super().train(mode)

    def check(self, bb: Backbone) -> None:
        """The base's states must have the width that was learned."""
        with torch.no_grad():
            wide = bb.embed([""]).states.shape[-1]
        if wide != self.states:
            raise FromfewError(f"{self!r} does not fit {bb.name}: its states are {wide} wide, not {self.states}.")

    def config(self) -> dict[str, Any]:
        """Widths, word, number of photos and weight."""
        return {
            "width": self.width, "states": self.states, "word": self.word, "count": self.count, "weight": self.weight,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"ImageStates({self.count} photos, weight={self.weight:g})"
