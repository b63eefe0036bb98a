"""The registry of methods is the folder ``fromfew/methods``; other packages add theirs by an entry point.

Finding and listing methods imports neither torch nor a model library; a method's file is imported when it is
used.
"""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.errors import FromfewError, unknown

if TYPE_CHECKING:
    from fromfew.method import Learner

__all__ = ["cards", "find", "names"]

GROUP = "fromfew.methods"
_FOLDER = Path(__file__).with_name("methods")


def _own() -> dict[str, Path]:
    files = sorted(_FOLDER.glob("*.py"))
    return {file.stem.replace("_", "-"): file for file in files if not file.stem.startswith("_")}


def _others() -> dict[str, EntryPoint]:
    """Methods of other packages; a name of ours is never replaced."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _own()}


def names() -> list[str]:
    """Names of all methods, those of other packages included."""
    return sorted({*_own(), *_others()})


def find(name: str) -> type[Learner]:
    """The class of a method, by its name.

    Raises:
        FromfewError: If there is none of that name; the nearest are named.
    """
    from fromfew.method import Learner

    own = name.replace("_", "-").lower()
    if own in _own():
        return _only_method(f"fromfew.methods.{own.replace('-', '_')}")
    others = _others()
    if name not in others:
        raise unknown("method", name, names())
    found = others[name].load()
    if inspect.ismodule(found):
        return _only_method(found.__name__)
    if not (inspect.isclass(found) and issubclass(found, Learner)):
        raise FromfewError(f"The method '{name}' of another package is no method: {found!r}.")
    return found


def _only_method(module: str) -> type[Learner]:
    from fromfew.method import Learner

    found = [
        value
        for value in vars(import_module(module)).values()
        if inspect.isclass(value) and issubclass(value, Learner) and value.__module__ == module
    ]
    if len(found) != 1:
        raise FromfewError(f"{module} must define exactly one method; it defines {len(found)}.")
    return found[0]


def cards() -> dict[str, dict[str, Any]]:
    """Every method's card, read without importing it; empty for other packages' methods that cannot be."""
    found = {name: _card(file) for name, file in _own().items()}
    for name, point in _others().items():
        spec = find_spec(point.module)
        found[name] = _card(Path(spec.origin)) if spec and spec.origin else {}
    return dict(sorted(found.items()))


def _card(file: Path) -> dict[str, Any]:
    """The literal ``CARD`` at the head of a file."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "CARD":
            return dict(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    return {}
