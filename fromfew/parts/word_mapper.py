"""WordMapper: a small network that says what a word is, for every layer and every time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import layer_norm, leaky_relu, linear, normalize

from fromfew.errors import FromfewError
from fromfew.ports.place import Place, PlacedWord, layers_of
from fromfew.ports.text import first_ids

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["WordMapper"]

_ANCHORS = 10  # times per layer that the first map knows by heart
_SPREADS = (0.03, 2.0)  # of the code's frequencies over times 0 to 1000 and over layers


class WordMapper(PlacedWord):
    """Vector and bypass as a function of (time, layer) (NeTI, arXiv:2305.15391).

    ``code = normalise([sin(F p), cos(F p)])`` with ``p = (1000 t, layer)`` and fixed random frequencies ``F``; then a
    map to ten anchors a layer, two layers of ``hidden`` units, and per text encoder ``[vector | bypass]``, brought
    together to the norm of the word it began as. Keys are projected from the prompt with the vector in it, values
    from the same states shifted by ``past · ‖h‖ · bypass / ‖bypass‖`` at the word's place.

    Args:
        placeholder: What stands for it in prompts.
        start: The plain word whose first token holds the place.
        norms: Encoder name to the norm of that token's vector.
        widths: Encoder name to width of its token vectors.
        layers: Cross-attention layers of the base.
        frequencies: Pairs of frequencies in the code.
        hidden: Units of the two hidden layers.
        past: Size of the bypass relative to the state; 0 switches it off.
        units: How many hidden units speak; fewer are more obedient and less faithful. All if None.

    Raises:
        FromfewError: If a number is out of range.
    """

    kind = "word_mapper"
    count = 1

    def __init__(
        self,
        placeholder: str,
        start: str,
        norms: Mapping[str, float],
        widths: Mapping[str, int],
        layers: int,
        frequencies: int = 1024,
        hidden: int = 128,
        past: float = 0.2,
        units: int | None = None,
    ) -> None:
        super().__init__()
        if min(layers, frequencies, hidden) < 1 or not 0 <= past <= 10:
            raise FromfewError("A word mapper needs layers, frequencies and units, and a bypass of 0 to 10.")
        self.placeholder, self.start, self.layers, self.past = placeholder, start, layers, past
        self._norms, self._widths = dict(norms), dict(widths)
        self.frequencies, self.hidden, self.units = frequencies, hidden, self._kept(units, hidden)
        self.drop: int | None = None
        inner, outer = _ANCHORS * layers, 2 * sum(widths.values())
        shapes = {
            "first.weight": (inner, 2 * frequencies), "first.bias": (inner,),
            "one.weight": (hidden, inner), "one.bias": (hidden,), "one.scale": (hidden,), "one.shift": (hidden,),
            "two.weight": (hidden, hidden), "two.bias": (hidden,), "two.scale": (hidden,), "two.shift": (hidden,),
            "last.weight": (outer, hidden), "last.bias": (outer,),
        }  # fmt: skip
        self.net = nn.ParameterDict({name.replace(".", "_"): torch.zeros(shape) for name, shape in shapes.items()})
        self.code: Tensor
        self.register_buffer("code", torch.zeros(frequencies, 2))

    @staticmethod
    def _kept(units: int | None, hidden: int) -> int | None:
        if units is not None and not 0 <= units <= hidden:
            raise FromfewError(f"units is 0 to {hidden}, the hidden units, not {units}.")
        return units

    @classmethod
    def learned(cls, bb: Backbone, placeholder: str, start: str, rng: Generator, **how: Any) -> WordMapper:
        """A mapper to be learned on this backbone, near the first token of ``start`` at every place.

        Raises:
            FromfewError: If no layer of the backbone reads text apart from the picture.
        """
        layers, vectors = len(layers_of(bb)), {}
        if not layers:
            raise FromfewError(f"No layer of {bb.name} reads text apart from the picture: nothing to map a layer to.")
        for key, encoder in bb.text_encoders.items():
            vectors[key] = encoder.table[first_ids(encoder.tokenizer, start, 1, placeholder)[0]]
        norms = {key: float(vector.norm()) for key, vector in vectors.items()}
        widths = {key: len(vector) for key, vector in vectors.items()}
        word = cls(placeholder, start, norms, widths, layers, **how)
        word._begin(vectors, rng)
        return word

    @torch.no_grad()
    def _begin(self, vectors: Mapping[str, Tensor], rng: Generator) -> None:
        """Random maps; anchors in the first one; the plain word, at the scale of the maps, in the last bias."""
        self.code.copy_(torch.randn(self.code.shape, generator=rng) * torch.tensor(_SPREADS))
        for name in ("first_bias", "one_weight", "one_bias", "two_weight", "two_bias", "last_weight"):
            value = self.net[name]
            width = self.net[name.replace("bias", "weight")].shape[1]
            value.copy_((torch.rand(value.shape, generator=rng) * 2 - 1) * width**-0.5)
        for name in ("one_scale", "two_scale"):
            self.net[name].fill_(1.0)
        times = (torch.arange(_ANCHORS) + 0.5) / _ANCHORS
        anchors = [Place(layer, float(t)) for t in times for layer in range(self.layers or 1)]
        self.net["first_weight"].copy_(self._code(anchors))
        plain = [torch.cat([normalize(v, dim=0) * len(v) ** 0.5, torch.zeros_like(v)]) for v in vectors.values()]
        self.net["last_bias"].copy_(torch.cat(plain))

    def _code(self, places: Sequence[Place]) -> Tensor:
        middle = ((self.layers or 1) - 1) / 2
        points = [
            (1000 * (0.5 if place.t is None else place.t), middle if place.layer is None else place.layer)
            for place in places
        ]
        angles = torch.tensor(points, device=self.code.device) @ self.code.T
        return normalize(torch.cat([angles.sin(), angles.cos()], -1), dim=-1)

    def outputs(self, places: Sequence[Place]) -> dict[str, tuple[Tensor, Tensor]]:
        """Encoder name to vector and bypass, ``[P, width]`` each, as they leave the network, brought to norm."""
        net = self.net
        h = linear(self._code(places), net["first_weight"], net["first_bias"])
        for name in ("one", "two"):
            h = linear(h, net[f"{name}_weight"], net[f"{name}_bias"])
            h = leaky_relu(layer_norm(h, (self.hidden,), net[f"{name}_scale"], net[f"{name}_shift"]))
        units = self.drop if self.training and self.drop is not None else self.units
        if units is not None:
            h = h * (torch.arange(self.hidden, device=h.device) < units)
        both = linear(h, net["last_weight"], net["last_bias"]).split([2 * width for width in self._widths.values()], -1)
        found = {}
        for (key, width), value in zip(self._widths.items(), both, strict=True):
            scaled = normalize(value, dim=-1) * self._norms[key]
            found[key] = (scaled[:, :width], scaled[:, width:])
        return found

    def key(self, place: Place) -> Hashable:
        """Layer and time; where no layer asks, one word for all times."""
        return None if place.layer is None else (place.layer, place.t)

    def at(self, key: str, places: Sequence[Place]) -> Tensor:
        """The vectors; where no layer asks, those of the middle layer and time."""
        asked = [place if place.layer is not None else Place() for place in places]
        return self.outputs(asked)[key][0][:, None]

    def bypass(self, key: str, places: Sequence[Place]) -> Tensor | None:
        """``past · bypass / ‖bypass‖``; None where it is switched off or no layer asks."""
        if not self.past or all(place.layer is None for place in places):
            return None
        return self.past * normalize(self.outputs(places)[key][1], dim=-1)[:, None]

    def carriers(self, tokenizer: Any) -> list[int]:
        """The first token of ``start``."""
        return first_ids(tokenizer, self.start, 1, self.placeholder)

    def truncated(self, units: int | None) -> WordMapper:
        """The same network (shared, not copied) with only the first ``units`` units speaking."""
        with torch.device("meta"):
            part = WordMapper.build({**self.config(), "units": units})
        part.net, part.code = self.net, self.code
        return part.eval()

    def check(self, bb: Backbone) -> None:
        """The same text encoders, of the same widths, and as many layers."""
        self.same_encoders(bb, self._widths)
        super().check(bb)

    def config(self) -> dict[str, Any]:
        """Everything but the numbers."""
        return {
            "placeholder": self.placeholder, "start": self.start, "norms": self._norms, "widths": self._widths,
            "layers": self.layers, "frequencies": self.frequencies, "hidden": self.hidden, "past": self.past,
            "units": self.units,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"WordMapper({self.placeholder!r}, {self.layers} layers, hidden={self.hidden})"
