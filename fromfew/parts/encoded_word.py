"""EncodedWord: a word that a small network says from what an image encoder saw, anew at every time."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fromfew.ports.place import Place, PlacedWord
from fromfew.ports.text import first_ids

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.stage import Step, Term

__all__ = ["EncodedWord", "loudness"]

_TIMES = 32


class EncodedWord(PlacedWord):
    """``v = v_start + scale · E(f, t)`` for every text encoder (E4T, arXiv:2302.12228).

    ``v_start`` is the vector of the word's carrier, ``f`` what an image encoder saw of the photos, t the time.

    Args:
        placeholder: What stands for it in prompts.
        start: The plain word whose first token holds its place.
        widths: Encoder name to width of its token vectors.
        seen: Width of ``f``.
        hidden: Units of the network.
        scale: Factor of what it says.
    """

    kind = "encoded_word"
    count = 1

    def __init__(
        self, placeholder: str, start: str, widths: Mapping[str, int], seen: int, hidden: int = 256, scale: float = 0.1
    ) -> None:
        super().__init__()
        self.placeholder, self.start, self.scale = placeholder, start, scale
        self._widths, self.seen, self.hidden = dict(widths), seen, hidden
        self.net = nn.Sequential(
            nn.LayerNorm(seen + 2 * _TIMES), nn.Linear(seen + 2 * _TIMES, hidden), nn.GELU(),
            nn.Linear(hidden, sum(widths.values())),
        )  # fmt: skip
        self.features: Tensor
        self.register_buffer("features", torch.zeros(seen))

    @classmethod
    def of(cls, bb: Backbone, seen: int, hidden: int = 256) -> EncodedWord:
        """A word for this backbone that has seen nothing yet."""
        widths = {key: encoder.width for key, encoder in bb.text_encoders.items()}
        return cls("<v>", "object", widths, seen, hidden)

    def holding(self, features: Tensor, placeholder: str, start: str, *, share: bool = False) -> EncodedWord:
        """The word of what was seen, with a network of its own or, to train many at once, this one's."""
        with torch.device("meta"):  # a new network would draw from torch's own chance
            word = EncodedWord(placeholder, start, self._widths, self.seen, self.hidden, self.scale)
        word.net = self.net if share else copy.deepcopy(self.net)
        word.features = features.detach().float()
        return word

    def each(self, seen: Tensor, nouns: Sequence[str | None]) -> list[EncodedWord]:
        """A word for every row of ``seen`` ``[B, seen]``, called ``<row0>`` and so on, all of this one's network."""
        rows = enumerate(zip(seen, nouns, strict=True))
        return [self.holding(one, f"<row{i}>", noun or self.start, share=True) for i, (one, noun) in rows]

    def offset(self, times: Tensor) -> Tensor:
        """``E(f, t)``: ``[P, widths of all encoders]`` at times ``[P]``."""
        speed = torch.exp(-9.2 * torch.arange(_TIMES, device=times.device) / _TIMES) * 1000
        angles = times.float()[:, None] * speed
        # A picture's features are brought to the size of the sines beside them.
        seen = nn.functional.normalize(self.features, dim=0) * self.seen**0.5
        seen = seen.to(times.device).expand(len(times), -1)
        return self.net(torch.cat([seen, angles.sin(), angles.cos()], 1))

    def carriers(self, tokenizer: Any) -> list[int]:
        """The first token of ``start``."""
        return first_ids(tokenizer, self.start, 1, self.placeholder)

    def key(self, place: Place) -> Hashable:
        """The time."""
        return place.t

    def at(self, key: str, places: Sequence[Place]) -> Tensor:
        """What is added to the carrier's vector, ``[P, 1, width]``, for encoder ``key``."""
        times = torch.tensor([0.5 if place.t is None else place.t for place in places], device=self.features.device)
        parts = dict(zip(self._widths, self.offset(times).split(list(self._widths.values()), 1), strict=True))
        return self.scale * parts[key][:, None]

    def write(self, key: str, bases: Sequence[Tensor], strength: float, places: Sequence[Place]) -> list[Tensor | None]:
        """``base + strength · scale · E(f, t)`` for every occurrence; nothing at strength 0."""
        if strength == 0:
            return [None] * len(bases)
        more = self.at(key, places)
        return [base + strength * one.to(base) for base, one in zip(bases, more, strict=True)]

    def check(self, bb: Backbone) -> None:
        """The backbone must have the same text encoders, of the same widths."""
        self.same_encoders(bb, self._widths)

    def config(self) -> dict[str, Any]:
        """Everything but the numbers."""
        return {
            "placeholder": self.placeholder, "start": self.start, "widths": self._widths, "seen": self.seen,
            "hidden": self.hidden, "scale": self.scale,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"EncodedWord({self.placeholder!r}, from {self.seen} features, scale={self.scale:g})"


def loudness(words: Sequence[EncodedWord]) -> Term:
    """``‖E(f, t)‖²`` of one word for all rows, or of a word a row: ``[B]``; ``words`` may be filled later."""

    def loud(step: Step) -> Tensor:
        if len(words) == 1:
            return words[0].offset(step.t).square().sum(1)
        return torch.cat([word.offset(t[None]).square().sum(1) for word, t in zip(words, step.t, strict=True)])

    return loud
