"""Registries are folders: ``fromfew/methods`` for learning, ``fromfew/combiners`` for joining what was learned.

Other packages add theirs by an entry point. Finding and listing imports neither torch nor a model library; a file is
imported when it is used.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args, get_origin, get_type_hints

from fromfew.errors import FromfewError, unknown

if TYPE_CHECKING:
    from fromfew.method import Learner

__all__ = ["COMBINERS", "METHODS", "Named", "Shelf", "cards", "find", "names"]


class Named:
    """Frozen settings in a file of their own, with a literal ``CARD`` at its head."""

    def __post_init__(self) -> None:
        """Refuse settings that are none of the choices their ``Literal`` names; subclasses refuse more.

        Raises:
            FromfewError: Naming the setting and the nearest choice.
        """
        for name, hint in get_type_hints(type(self)).items():
            literals = [one for one in (hint, *get_args(hint)) if get_origin(one) is Literal]
            choices = [choice for one in literals for choice in get_args(one)]
            value = getattr(self, name, None)
            if choices and value is not None and value not in choices:
                raise unknown(name, str(value), choices)

    @classmethod
    def name(cls) -> str:
        """The name: that of the file."""
        return cls.__module__.rpartition(".")[2].replace("_", "-")

    @classmethod
    def card(cls) -> Mapping[str, Any]:
        """The literal at the head of the file."""
        card = vars(import_module(cls.__module__))["CARD"]
        return dict(card)

    def settings(self) -> dict[str, Any]:
        """All settings as plain JSON."""
        return json.loads(json.dumps(asdict(cast(Any, self))))

    def within(self, **ranges: tuple[float, float]) -> None:
        """Refuse settings outside their ranges, both ends of which are allowed; one that is None is left open.

        Raises:
            FromfewError: Naming the setting and its range.
        """
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                right = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
                raise FromfewError(f"{name} is {right}, not {value:g}.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The same with other settings, given as plain values.

        Raises:
            FromfewError: If a setting is unknown.
        """
        known = [one.name for one in fields(cast(Any, cls))]
        for name in settings:
            if name not in known:
                raise unknown(f"setting of {cls.name()}", name, known)
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})


@dataclass(frozen=True)
class Shelf:
    """One registry.

    Args:
        what: What lies on it, for messages.
        folder: Its folder in fromfew; the entry point's group is ``fromfew.`` and this name.
        base: Module and class of what its files define.
    """

    what: str
    folder: str
    base: tuple[str, str]

    def own(self) -> dict[str, Path]:
        """Name to file of what comes with fromfew."""
        files = sorted(Path(__file__).with_name(self.folder).glob("*.py"))
        return {file.stem.replace("_", "-"): file for file in files if not file.stem.startswith("_")}

    def others(self) -> dict[str, EntryPoint]:
        """Name to entry point of other packages' files; a name of ours is never replaced."""
        own = self.own()
        return {point.name: point for point in entry_points(group=f"fromfew.{self.folder}") if point.name not in own}

    def names(self) -> list[str]:
        """All names, those of other packages included."""
        return sorted({*self.own(), *self.others()})

    def find(self, name: str) -> type[Any]:
        """The class of that name.

        Raises:
            FromfewError: If there is none; the nearest are named.
        """
        own = name.replace("_", "-").lower()
        if own in self.own():
            return self._only(f"fromfew.{self.folder}.{own.replace('-', '_')}")
        others = self.others()
        if name not in others:
            raise unknown(self.what, name, self.names())
        found = others[name].load()
        if inspect.ismodule(found):
            return self._only(found.__name__)
        if not (inspect.isclass(found) and issubclass(found, self._class())):
            raise FromfewError(f"The {self.what} '{name}' of another package is no {self.what}: {found!r}.")
        return found

    def _class(self) -> type[Any]:
        module, name = self.base
        return cast("type[Any]", getattr(import_module(module), name))

    def _only(self, module: str) -> type[Any]:
        base = self._class()
        found = [
            value
            for value in vars(import_module(module)).values()
            if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module
        ]
        if len(found) != 1:
            raise FromfewError(f"{module} must define exactly one {self.what}; it defines {len(found)}.")
        return cast("type[Any]", found[0])

    def file(self, name: str) -> Path:
        """The file of that name.

        Raises:
            FromfewError: If there is none.
        """
        file = self.own().get(name.replace("_", "-").lower())
        if file is not None:
            return file
        point = self.others().get(name)
        spec = find_spec(point.module) if point else None
        if spec is None or spec.origin is None:
            raise unknown(self.what, name, self.names())
        return Path(spec.origin)

    def cards(self) -> dict[str, dict[str, Any]]:
        """Every card, read without importing its file; empty for other packages' that cannot be."""
        found = {name: _card(file) for name, file in self.own().items()}
        for name, point in self.others().items():
            spec = find_spec(point.module)
            found[name] = _card(Path(spec.origin)) if spec and spec.origin else {}
        return dict(sorted(found.items()))


METHODS = Shelf("method", "methods", ("fromfew.method", "Learner"))
GROUP = "fromfew.methods"
COMBINERS = Shelf("combiner", "combiners", ("fromfew.combine", "Combiner"))


def names() -> list[str]:
    """Names of all methods, those of other packages included."""
    return METHODS.names()


def find(name: str) -> type[Learner]:
    """The class of a method, by its name.

    Raises:
        FromfewError: If there is none of that name; the nearest are named.
    """
    return METHODS.find(name)


def cards() -> dict[str, dict[str, Any]]:
    """Every method's card, read without importing it; empty for other packages' methods that cannot be."""
    return METHODS.cards()


def _card(file: Path) -> dict[str, Any]:
    """The literal ``CARD`` at the head of a file."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "CARD":
            return dict(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return {}
