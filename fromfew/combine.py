"""combine: several concepts, learned apart, as one concept that answers to all their placeholders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from fromfew.errors import FromfewError
from fromfew.registry import COMBINERS, Named

if TYPE_CHECKING:
    from torch import Tensor

    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.fit import Watch
    from fromfew.ports.part import Part

__all__ = ["Combiner", "combine", "delta_at", "deltas", "kept", "listening", "whole_parts"]


@dataclass(frozen=True, kw_only=True)
class Combiner(Named, ABC):
    """Frozen settings of one way of joining; words and all that is no change of weights are taken over as they are."""

    @abstractmethod
    def join(
        self, bb: Backbone, concepts: Sequence[Concept], *, seed: int, watch: Watch | None, work: Path | None
    ) -> Mapping[str, Part]:
        """The parts, by name, that take the place of every change of weights."""

    def needs(self, bb: Backbone, concepts: Sequence[Concept]) -> list[str]:
        """Why these concepts cannot be joined so; empty if they can."""
        return []

    def combine(
        self,
        bb: Backbone,
        concepts: Sequence[Concept],
        *,
        seed: int = 0,
        watch: Watch | None = None,
        work: Path | None = None,
    ) -> Concept:
        """One concept that answers to all placeholders.

        Args:
            bb: The base that all were learned on.
            concepts: Concepts; their strengths weigh their changes of weights, words stay whole.
            seed: All chance follows from it.
            watch: Called as ``watch(done, total, note)``.
            work: Folder that keeps the state of those that learn; the same call goes on from there after a kill.

        Raises:
            FromfewError: If the concepts do not fit the base or each other, or this way of joining.
        """
        from fromfew.concept import Card, Concept
        from fromfew.ports.part import Parts

        began = monotonic()
        _check(bb, concepts)
        reasons = self.needs(bb, concepts)
        if reasons:
            raise FromfewError(f"{self.name()} cannot join these concepts: {'; '.join(reasons)}.")
        parts = Parts(**kept(concepts), **self.join(bb, concepts, seed=seed, watch=watch, work=work))
        parts.requires_grad_(False)
        parts.eval()
        answers = {word: noun for one in concepts for word, noun in one.answers.items()}
        first = next(iter(answers), None)
        card = Card.of(
            bb,
            parts,
            method=f"combine {self.name()}",
            settings={**self.settings(), "concepts": [_told(one) for one in concepts]},
            photos=tuple(photo for one in concepts for photo in one.card.photos),
            seed=seed,
            seconds=round(monotonic() - began, 3),
        )
        noun = answers.pop(first) if first is not None else None
        return Concept("-".join(one.name for one in concepts), first, noun, parts, card, also=answers)


def combine(
    concepts: Any,
    *,
    method: str | Combiner = "weighted",
    base: Backbone | str | None = None,
    seed: int = 0,
    watch: Watch | None = None,
    work: Path | str | None = None,
    **settings: Any,
) -> Concept:
    """Join concepts that were learned apart; the result is ready for `make` and for ``concept.save(folder)``.

    Args:
        concepts: Concepts, or pairs ``(concept, strength)``.
        method: A combiner, or its name.
        base: A backbone, or what to open; by default the base that the first was learned on, by its name.
        seed: All chance follows from it.
        watch: Called as ``watch(done, total, note)``.
        work: Folder that keeps the state of combiners that learn.
        **settings: Settings of the combiner, when it is given by name.

    Raises:
        FromfewError: If concepts, combiner, base or settings do not suit.
    """
    from fromfew.backbones.open import open_backbone

    chosen = COMBINERS.find(method).of(settings) if isinstance(method, str) else method
    if settings and not isinstance(method, str):
        raise FromfewError("Give settings to the combiner itself, or name it and give them here.")
    each = [one[0].scaled(one[1]) if isinstance(one, tuple) else one for one in concepts]
    if not each:
        raise FromfewError("There are no concepts to combine.")
    base = str(each[0].card.base.get("name")) if base is None else base
    bb = open_backbone(base) if isinstance(base, str) else base
    return chosen.combine(bb, each, seed=seed, watch=watch, work=Path(work) if work is not None else None)


def _told(concept: Concept) -> dict[str, Any]:
    return {"name": concept.name, "method": concept.card.method, "strength": concept.strength}


def _check(bb: Backbone, concepts: Sequence[Concept]) -> None:
    """Refuse concepts of another base, or of one placeholder."""
    seen: dict[str, str] = {}
    for one in concepts:
        one.check(bb)
        if not one.same_base(bb):
            raise FromfewError(
                f"'{one.name}' was learned on another base than '{bb.name}' (or on one that has changed since): what "
                "concepts change can only be joined on the base they share."
            )
        for word in one.answers:
            if word in seen:
                raise FromfewError(
                    f"'{seen[word]}' and '{one.name}' both answer to {word}. Learn one of them again with another --as."
                )
            seen[word] = one.name


def _changes(part: Part) -> bool:
    """Whether a part is a change of weights."""
    from fromfew.ports.linear import DeltaPart, LinearPart

    return isinstance(part, DeltaPart | LinearPart)


def kept(concepts: Sequence[Concept]) -> dict[str, Part]:
    """All parts that are no change of weights, copied; the second "word" is called "word2".

    Raises:
        FromfewError: If a part other than a word belongs to a concept of a strength other than 1.
    """
    from fromfew.ports.text import WordPart

    found: dict[str, Part] = {}
    for one in concepts:
        for name, part in one.parts.items():
            if _changes(part):
                continue
            if one.strength != 1 and not isinstance(part, WordPart):
                raise FromfewError(
                    f"'{one.name}' cannot be joined at strength {one.strength:g}: {part!r} has no strength of its own. "
                    "Join it at strength 1, or give both concepts to make."
                )
            found[_free(name, found)] = _copy(part)
    return found


def _free(name: str, taken: Mapping[str, Any]) -> str:
    return next(one for one in (name, *(f"{name}{i}" for i in range(2, 1000))) if one not in taken)


def _copy(part: Part) -> Part:
    import torch

    with torch.device("meta"):
        new = type(part).build(part.config())
    new.load_state_dict({name: value.detach().clone() for name, value in part.state_dict().items()}, assign=True)
    return new


def deltas(concepts: Sequence[Concept]) -> list[str]:
    """Paths of every parameter that any of the concepts changes, in order."""
    from fromfew.ports.linear import DeltaPart, LinearPart

    found: dict[str, None] = {}
    for one in concepts:
        for part in one.parts:
            if isinstance(part, LinearPart):
                found.update({f"{path}.weight": None for path in part.targets()})
            elif isinstance(part, DeltaPart):
                found.update(dict.fromkeys(part.shapes()))
    return list(found)


def delta_at(bb: Backbone, concept: Concept, path: str) -> Tensor | None:
    """The concept's whole change of one parameter, at its strength; None if it does not change it."""
    from fromfew.ports.linear import DeltaPart, LinearPart

    total: Tensor | None = None
    module = path.rpartition(".")[0]
    for part in concept.parts:
        new = None
        if isinstance(part, LinearPart) and path.endswith(".weight") and module in part.targets():
            new = part.delta(module)
        elif isinstance(part, DeltaPart) and path in part.shapes():
            new = part.delta_of(path, bb.parameter(path))
        if new is not None:
            new = new.detach().float() * concept.strength
            total = new if total is None else total + new
    return total


@contextmanager
def listening(bb: Backbone, modules: Sequence[str], take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While active, ``take(path, x)`` is told what every module at these paths is given."""
    handles = [
        bb.module(path).register_forward_pre_hook(lambda module, args, path=path: take(path, args[0].detach()))
        for path in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def whole_parts(found: Mapping[str, Tensor]) -> dict[str, Part]:
    """Differences of parameters as one part called "maps"; nothing if there are none."""
    from fromfew.parts.full import FullDelta
    from fromfew.ports.linear import flat

    if not found:
        return {}
    part = FullDelta({path: tuple(value.shape) for path, value in found.items()})
    part.load_state_dict({f"deltas.{flat(path)}": value.float() for path, value in found.items()}, assign=True)
    return {"maps": part}
