"""The text port where it depends on place: words whose vectors differ by layer, by time, for keys and for values.

The denoiser reads one text in many places: every cross-attention layer asks for it anew, at every time. A
`PlacedWord` answers each of them with vectors of its own. Prompts are then encoded once for every place that
makes a difference, whatever words stand in them, and remembered with the `Text`: a word per layer costs one
encoding a layer and prompt, a word per stage one a stage. While learning, `foreseen` does all of a step's at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.ports.attention import Site, read_contexts
from fromfew.ports.part import Handle
from fromfew.ports.text import WordPart, attached_words

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.backbones.text import Text
    from fromfew.ports.text import Spliced

__all__ = ["NOWHERE", "Place", "PlacedWord", "bypassed", "foreseen", "layers_of", "placed"]

_AT_ONCE = 32  # prompts encoded together where no gradient is taken
_KEPT = 256  # encodings a text remembers besides those in use


@dataclass(frozen=True)
class Place:
    """Who reads a text.

    Args:
        layer: Number of the cross-attention layer, in order of execution; None where it is not a layer that asks,
            as with pooled vectors and with attention that reads text and picture together.
        t: Time in (0, 1), or None where it is not known.
    """

    layer: int | None = None
    t: float | None = None


NOWHERE = Place()


class PlacedWord(WordPart):
    """A word whose vectors depend on the place.

    At strength s it writes ``base + s (vectors - base)``, with ``base`` its carriers' own vectors.
    """

    alias = None
    layers: int | None = None
    """How many cross-attention layers it was learned for, if it differs by layer or between keys and values."""

    @abstractmethod
    def key(self, place: Place) -> Hashable:
        """Places of equal keys are written the same vectors; cheap, and constant where the place does not matter."""

    @abstractmethod
    def at(self, key: str, places: Sequence[Place]) -> Tensor:
        """Vectors ``[P, n, width]`` for encoder ``key`` at every place."""

    def bypass(self, key: str, places: Sequence[Place]) -> Tensor | None:
        """Shifts ``[P, n, width]``, relative to each state's norm, of the states values are projected from."""
        return None

    def write(self, key: str, bases: Sequence[Tensor], strength: float, places: Sequence[Place]) -> list[Tensor | None]:
        """Vectors for every occurrence in every row; nothing at strength 0."""
        if strength == 0:
            return [None] * len(bases)
        new = self.at(key, places)
        found: list[Tensor | None] = []
        for base, vectors in zip(bases, new, strict=True):
            whole = vectors.to(base.device).repeat(len(base) // len(vectors), 1)
            found.append(whole if strength == 1 else base + strength * (whole - base))
        return found

    def written(self, key: str, base: Tensor, strength: float) -> Tensor | None:
        """The vectors where the place is not known."""
        return self.write(key, [base], strength, [NOWHERE])[0]

    def check(self, bb: Backbone) -> None:
        """The backbone must have as many cross-attention layers as the word was learned for."""
        there = len(layers_of(bb))
        if self.layers is not None and there != self.layers:
            raise FromfewError(
                f"{self!r} does not fit {bb.name}: it has {there} layers that read text apart from the picture, "
                f"not {self.layers}."
            )

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Let every layer that reads text ask for its own; a word that differs by time only installs nothing."""
        return read_contexts(bb, layers_of(bb)) if self.layers is not None else Handle()


def layers_of(bb: Backbone) -> list[Site]:
    """The cross-attention layers, in order of execution."""
    return [site for site in bb.sites.values() if site.kind == "cross"]


def placed(bb: Backbone, text: Text, t: Tensor) -> tuple[Text, Mapping[str, tuple[Tensor, Tensor]]]:
    """What is read at times ``t`` ``[B]``: the text, and for each site by name what keys and values are made from.

    Without attached words that depend on the place, the text itself; and, if its values differ from its states, those
    for every cross site.
    """
    here = _words_in(bb, text.prompts)
    if not any(here):
        values = text.values
        return text, {} if values is None else {site.name: (text.states, values) for site in layers_of(bb)}
    sites = _sites_for(bb, here)
    # Where every reader is a layer that asks for itself, nobody sees the text as a whole.
    whole = not sites or text.pooled is not None
    reading = _Reading(bb, text, here, t.tolist())
    reading.encode([*([None] if whole else []), *range(len(sites))])
    contexts = {site.name: reading.context(layer) for layer, site in enumerate(sites)}
    return (reading.whole() if whole else text), contexts


def foreseen(bb: Backbone, prompts: Sequence[str | None], t: Tensor) -> Text | None:
    """Prompts as read at times ``t`` ``[B]``, and in ``seen`` all that `placed` will look for then, in one encoding.

    What is the same is encoded once, be it asked for by several rows or several layers. None where no attached word
    depends on the place: then there is nothing to foresee.
    """
    here = _words_in(bb, prompts)
    if not any(here):
        return None
    times = t.tolist()
    layers = [None, *range(len(_sites_for(bb, here)))]
    wanted: dict[Hashable, tuple[str | None, Place]] = {}
    rows: list[list[Hashable]] = []
    for prompt, words, time in zip(prompts, here, times, strict=True):
        places = [Place(layer, time) for layer in layers]
        rows.append([(prompt, tuple(word.key(place) for word in words)) for place in places])
        for key, place in zip(rows[-1], places, strict=True):
            wanted.setdefault(key, (prompt, place))
    asked, readers = zip(*wanted.values(), strict=True)
    found = bb.compose(asked, readers)
    at = {key: i for i, key in enumerate(wanted)}
    # Not the encoding's own memory, which every row of it holds: that would be a circle.
    seen: dict[Any, Text] = {key: found.select([i]) for key, i in at.items()}
    return replace(found.select([at[row[0]] for row in rows]), values=None, seen=seen)


def _words_in(bb: Backbone, prompts: Sequence[str | None]) -> list[list[PlacedWord]]:
    """The attached words that depend on the place, by prompt."""
    words = [word for word, strength in attached_words(bb) if isinstance(word, PlacedWord) and strength != 0]
    return [[word for word in words if prompt and word.placeholder in prompt] for prompt in prompts]


def _sites_for(bb: Backbone, here: Sequence[Sequence[PlacedWord]]) -> list[Site]:
    """The layers that ask for themselves, if a word differs by layer."""
    return layers_of(bb) if any(word.layers is not None for row in here for word in row) else []


class _Reading:
    """One look at a text: which places make a difference, and the texts found there."""

    def __init__(self, bb: Backbone, text: Text, here: list[list[PlacedWord]], times: list[float]) -> None:
        self.bb, self.text, self.here, self.times = bb, text, here, times

    def _key(self, row: int, layer: int | None) -> Hashable | None:
        """What tells a row's text at this layer apart; None if it is the text as it stands."""
        place = Place(layer, self.times[row])
        keys = tuple(word.key(place) for word in self.here[row])
        if not keys or (layer is None and keys == tuple(word.key(NOWHERE) for word in self.here[row])):
            return None
        return self.text.prompts[row], keys

    def encode(self, layers: Sequence[int | None]) -> None:
        """Encode what was not encoded before; with gradients all of it together, otherwise prompt by prompt."""
        missing: dict[Hashable, tuple[str | None, Place]] = {}
        for row, prompt in enumerate(self.text.prompts):
            for layer in layers:
                key = self._key(row, layer)
                if key is not None and key not in self.text.seen:
                    missing[key] = (prompt, Place(layer, self.times[row]))
        for keys in _groups(missing):
            prompts, places = zip(*(missing[key] for key in keys), strict=True)
            found = self.bb.compose(prompts, places)
            self.text.seen.update({key: found.select([i]) for i, key in enumerate(keys)})
        wanted = {self._key(row, layer) for row in range(len(self.here)) for layer in layers}
        spare = [key for key in self.text.seen if key not in wanted]
        for key in spare[: max(0, len(spare) - _KEPT)]:
            del self.text.seen[key]

    def _rows(self, layer: int | None) -> list[Text | None]:
        keys = [self._key(row, layer) for row in range(len(self.here))]
        return [None if key is None else self.text.seen[key] for key in keys]

    def whole(self) -> Text:
        """The text as a whole at these times."""
        rows = self._rows(None)
        if not any(row is not None for row in rows):
            return self.text
        states = torch.cat([self.text.states[i : i + 1] if r is None else r.states for i, r in enumerate(rows)])
        pooled = self.text.pooled
        if pooled is not None:
            pooled = torch.cat([pooled[i : i + 1] if r is None else r.pooled for i, r in enumerate(rows)])  # type: ignore[misc]
        return replace(self.text, states=states, pooled=pooled)

    def context(self, layer: int) -> tuple[Tensor, Tensor]:
        """What keys and what values are projected from at one layer; one tensor where they do not differ."""
        rows = self._rows(layer)
        keys = torch.cat([self.text.states[i : i + 1] if r is None else r.states for i, r in enumerate(rows)])
        if all(row is None or row.values is None for row in rows):
            return keys, keys
        own = [keys[i : i + 1] if r is None or r.values is None else r.values for i, r in enumerate(rows)]
        return keys, torch.cat(own)


def _groups(missing: Mapping[Hashable, tuple[str | None, Place]]) -> Iterator[list[Hashable]]:
    """Keys to be encoded together: a prompt's bits must not depend on what else is asked for."""
    if torch.is_grad_enabled():
        if missing:
            yield list(missing)
        return
    for prompt in dict.fromkeys(prompt for prompt, _ in missing.values()):
        keys = [key for key, (other, _) in missing.items() if other == prompt]
        for start in range(0, len(keys), _AT_ONCE):
            yield keys[start : start + _AT_ONCE]


@contextmanager
def reading(bb: Backbone, places: Sequence[Place]) -> Iterator[None]:
    """While active, prompts are encoded as these places, one a prompt, read them."""
    before, bb.places = bb.places, tuple(places)
    try:
        yield
    finally:
        bb.places = before


def bypassed(bb: Backbone, key: str, states: Tensor, spliced: Spliced) -> Tensor | None:
    """States ``[B, L, width]`` of encoder ``key`` with what words carry past it, or None where none does.

    ``h + s · ‖h‖ · b`` at a word's places, with ``b`` its bypass and ``s`` its strength.
    """
    new: Tensor | None = None
    for word, strength in attached_words(bb):
        if not isinstance(word, PlacedWord) or strength == 0:
            continue
        rows = [row for row, where in enumerate(spliced.where) if where.get(word.placeholder)]
        shift = word.bypass(key, [bb.places[row] if bb.places else NOWHERE for row in rows]) if rows else None
        if shift is None:
            continue
        new = _shifted(states if new is None else new, rows, [spliced.where[r][word.placeholder] for r in rows],
                       shift, strength)  # fmt: skip
    return new


def _shifted(states: Tensor, rows: Sequence[int], at: Sequence[list[int]], shift: Tensor, strength: float) -> Tensor:
    """The states with every row's shift ``[R, n, width]`` at its positions, all of them written at once."""
    more = torch.cat([one.repeat(len(where) // len(one), 1) for one, where in zip(shift.to(states), at, strict=True)])
    index = (
        torch.tensor([row for row, where in zip(rows, at, strict=True) for _ in where], device=states.device),
        torch.tensor([i for where in at for i in where], device=states.device),
    )
    h = states[index]
    return states.index_put(index, h + strength * h.norm(dim=-1, keepdim=True) * more)
