"""Part: one thing a concept adds to a model, and how it is put on and taken off again, bit for bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["Attached", "Entry", "Handle", "Part", "Parts", "attached", "bare"]


class Handle:
    """What undoes one attachment; removing twice does nothing."""

    def __init__(self, *undo: Callable[[], Any]) -> None:
        self._undo = list(undo)

    def also(self, undo: Callable[[], Any]) -> None:
        """Remember one more thing to undo."""
        self._undo.append(undo)

    def remove(self) -> None:
        """Undo everything, last first."""
        while self._undo:
            self._undo.pop()()


class Part(nn.Module, ABC):
    """One thing a concept adds; its parameters are exactly what is saved and exactly what is trained.

    A part holds no state of a drawing in progress: that lives in `Attached` and dies with it.
    """

    kind: ClassVar[str]
    """Name of the file in ``fromfew/parts`` that defines the part."""
    port: ClassVar[str]
    """Where it touches the model: text, linear, attention, feature or sampler."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `build` needs, as plain JSON."""

    @classmethod
    def build(cls, config: dict[str, Any]) -> Self:
        """An empty part of this configuration, to be filled by ``load_state_dict``."""
        return cls(**config)

    @abstractmethod
    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Put the part on a backbone (``strength`` is never 0); removing the handle restores it exactly."""

    def check(self, bb: Backbone) -> None:
        """Raise `FromfewError` if this part does not fit the backbone; nothing is touched."""

    @property
    def touches_text(self) -> bool:
        """Whether this part changes encoded prompts, so that they may not be kept while it is attached."""
        return self.port == "text"


class Parts(nn.Module):
    """An ordered, named set of parts; ``None`` is left out.

    >>> Parts(word=None)
    Parts()
    """

    def __init__(self, **parts: Part | None) -> None:
        super().__init__()
        for name, part in parts.items():
            if part is not None:
                self.add_module(name, part)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def items(self) -> Iterator[tuple[str, Part]]:
        """Name and part, in order."""
        for name, part in self._modules.items():
            assert isinstance(part, Part)
            yield name, part

    def __iter__(self) -> Iterator[Part]:
        return (part for _, part in self.items())

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def count(self) -> int:
        """How many numbers were learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def __repr__(self) -> str:
        return f"Parts({', '.join(f'{name}={part!r}' for name, part in self.items())})"


@dataclass(eq=False)
class Entry:
    """One part as it is attached: how strongly, for which concept, and its state while drawing."""

    part: Part
    strength: float
    concept: str | None
    state: dict[str, Any] = field(default_factory=dict)
    handle: Handle = field(default_factory=Handle)


class Attached:
    """Parts on a backbone, as a context manager; leaving it restores the backbone bit for bit, in any order.

    Args:
        bb: The backbone.
        what: Parts, sets of parts or concepts.
        strength: How much of each; 0 is the base itself.

    Raises:
        FromfewError: If a part does not fit, two words share a placeholder, or two parts claim one stage
            alone.
    """

    def __init__(self, bb: Backbone, what: Iterable[Any], strength: float = 1.0) -> None:
        self.bb = bb
        self.entries = [entry for thing in what for entry in _entries(thing, strength)]

    @property
    def parts(self) -> list[Part]:
        """The parts, in the order of attaching."""
        return [entry.part for entry in self.entries]

    def __enter__(self) -> Attached:
        for entry in self.entries:
            entry.part.check(self.bb)
        _refuse_conflicts([*attached(self.bb), *self.entries])
        self.bb.attached.append(self)
        try:
            for entry in self.entries:
                if entry.strength != 0:
                    entry.part.to(self.bb.device)
                    entry.handle = entry.part.attach(self.bb, entry.strength)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take everything off."""
        for entry in reversed(self.entries):
            entry.handle.remove()
            entry.state.clear()
        if any(one is self for one in self.bb.attached):
            self.bb.attached[:] = [one for one in self.bb.attached if one is not self]

    def explain(self) -> str:
        """Who acts where, and in which order, one line a part."""
        lines = []
        for entry in self.entries:
            places = sorted(entry.part.config().get("sites", ())) if entry.part.port == "attention" else ()
            where = f" at {len(places)} sites" if places else ""
            lines.append(f"{entry.part.port:9} {entry.part!r} x {entry.strength:g}{where}")
        return "\n".join(lines)


def attached(bb: Backbone) -> list[Entry]:
    """Every part now on the backbone, in the order of attaching."""
    return [entry for one in bb.attached for entry in one.entries]


@contextmanager
def bare(bb: Backbone) -> Iterator[None]:
    """For a ``with`` block the base itself, whatever is attached; afterwards all is on again, in the same order."""
    entries, kept = attached(bb), list(bb.attached)
    for entry in reversed(entries):
        entry.handle.remove()
    bb.attached.clear()
    try:
        yield
    finally:
        bb.attached[:] = kept
        for entry in entries:
            if entry.strength != 0:
                entry.handle = entry.part.attach(bb, entry.strength)


def entry_of(bb: Backbone, part: Part) -> Entry:
    """The newest entry of this part; used by parts while they attach.

    Raises:
        FromfewError: If it is not attached.
    """
    for entry in reversed(attached(bb)):
        if entry.part is part:
            return entry
    raise FromfewError(f"{part!r} is not attached to {bb.name}.")


def _entries(thing: Any, strength: float) -> Iterator[Entry]:
    if isinstance(thing, Part):
        yield Entry(thing, strength, None)
    elif isinstance(thing, Parts):
        for part in thing:
            yield Entry(part, strength, None)
    elif isinstance(getattr(thing, "parts", None), Parts):
        factor = float(getattr(thing, "strength", 1.0))
        for part in thing.parts:
            yield Entry(part, strength * factor, getattr(thing, "placeholder", None))
    else:
        raise FromfewError(f"Only concepts and parts can be attached, not {type(thing).__name__}.")


def _refuse_conflicts(entries: list[Entry]) -> None:
    alone: dict[str, Part] = {}
    words: dict[str, Part] = {}
    for entry in entries:
        for stage in getattr(entry.part, "exclusive", ()):
            if stage in alone:
                raise FromfewError(f"{alone[stage]!r} and {entry.part!r} both need the stage '{stage}' for themselves.")
            alone[stage] = entry.part
        placeholder = getattr(entry.part, "placeholder", None)
        if placeholder is not None:
            if placeholder in words and words[placeholder] is not entry.part:
                raise FromfewError(
                    f"Two concepts answer to '{placeholder}'. Give one of them another placeholder, such as '<w>'."
                )
            words[placeholder] = entry.part


def numbers(part: nn.Module) -> dict[str, Tensor]:
    """Name and value of everything a part has learned, detached."""
    return {name: value.detach() for name, value in part.state_dict().items()}
