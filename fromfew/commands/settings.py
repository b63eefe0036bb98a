"""A method's settings as flags, read from its file without running it: names, kinds, defaults, help."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromfew.commands.parsing import number, whole
from fromfew.errors import FromfewError
from fromfew.registry import METHODS, Shelf

__all__ = ["Setting", "add_settings", "chosen", "method_doc", "settings_of"]

_SHARED = ("method", "pretrained", "weight_tuned", "word_tuned")
_KIND = re.compile(r"^(bool|int|float|str|Literal\[.*\]|tuple\[.*\])$")


@dataclass(frozen=True)
class Setting:
    """One field of a method's dataclass: its name, kind as written, default, and the sentence below it."""

    name: str
    kind: str
    default: Any
    about: str

    @property
    def choices(self) -> tuple[Any, ...]:
        """What a ``Literal`` allows; empty for other kinds."""
        if not self.kind.startswith("Literal["):
            return ()
        values = ast.literal_eval(f"({self.kind[8:-1]},)")
        return tuple(values)


def _source(name: str, shelf: Shelf) -> ast.Module:
    """The parsed file of a method or combiner.

    Raises:
        FromfewError: There is no such one.
    """
    return ast.parse(shelf.file(name).read_text(encoding="utf-8"))


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _bases() -> dict[str, ast.ClassDef]:
    """What methods build on: the classes of these files."""
    files = (Path(__file__).parents[1] / f"{name}.py" for name in _SHARED)
    return {k: v for file in files for k, v in _classes(ast.parse(file.read_text(encoding="utf-8"))).items()}


def _main_class(tree: ast.Module, known: Mapping[str, ast.ClassDef]) -> ast.ClassDef:
    """The last class of the file that builds on Tuned, Encoded, Free or Combiner."""

    def learns(node: ast.ClassDef) -> bool:
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        return any(base in ("Learner", "Combiner") or (base in known and learns(known[base])) for base in bases)

    found = [node for node in _classes(tree).values() if learns(node)]
    if not found:
        raise FromfewError("The method's file defines no method.")
    return found[-1]


def _fields(node: ast.ClassDef) -> list[Setting]:
    """The annotated fields of a class body, each with the string that follows it."""
    found = []
    for here, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(here, ast.AnnAssign) or not isinstance(here.target, ast.Name):
            continue
        kind = ast.unparse(here.annotation)
        if kind.startswith("ClassVar"):
            continue
        text = following.value.value if _is_text(following) else ""  # type: ignore[union-attr]
        kind = " | ".join(piece for piece in kind.split(" | ") if piece != "None")
        default = None if here.value is None else ast.literal_eval(here.value)
        found.append(Setting(here.target.id, kind, default, " ".join(text.split())))
    return found


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def settings_of(name: str, shelf: Shelf = METHODS) -> list[Setting]:
    """All settings of a method or combiner, inherited ones first; one that it redefines stays in its place.

    Raises:
        FromfewError: There is no such method.
    """
    tree = _source(name, shelf)
    known = {**_bases(), **_classes(tree)}
    found: dict[str, Setting] = {}

    def collect(node: ast.ClassDef) -> None:
        for parent in node.bases:
            if isinstance(parent, ast.Name) and parent.id in known:
                collect(known[parent.id])
        for one in _fields(node):
            about = one.about or (found[one.name].about if one.name in found else "")
            found[one.name] = Setting(one.name, one.kind, one.default, about)

    collect(_main_class(tree, known))
    return list(found.values())


def method_doc(name: str, shelf: Shelf = METHODS) -> str:
    """What a method's class says about itself."""
    tree = _source(name, shelf)
    text = ast.get_docstring(_main_class(tree, {**_bases(), **_classes(tree)}))
    return text or ast.get_docstring(tree) or ""


def _reader(one: Setting) -> dict[str, Any]:
    """How argparse reads a setting."""
    if not _KIND.match(one.kind):
        raise FromfewError(f"The setting '{one.name}' is of kind '{one.kind}', which is no flag.")
    readers = {"int": whole(), "float": number(), "str": str}
    if one.kind == "bool":
        return {"action": argparse.BooleanOptionalAction}
    if one.choices:
        return {"choices": one.choices, "type": type(one.choices[0])}
    if one.kind.startswith("tuple["):
        inner = [piece.strip() for piece in one.kind[6:-1].split(",")]
        many = inner[-1] == "..."
        return {
            "nargs": "+" if many else len(inner),
            "type": readers.get(inner[0], str),
            "metavar": inner[0].upper(),
        }
    return {"type": readers[one.kind], "metavar": one.kind.upper()}


def _help(one: Setting, usual: Mapping[str, Any]) -> str:
    value = usual.get(one.name, one.default) if one.default is None else one.default
    told = (
        "chosen by itself"
        if value is None
        else f"{value}"
        if not isinstance(value, tuple)
        else " ".join(map(str, value))
    )
    return f"{one.about} (default: {told})".replace("%", "%%")


def add_settings(
    parser: argparse.ArgumentParser, settings: Sequence[Setting], usual: Mapping[str, Any], title: str
) -> dict[str, str]:
    """Add every setting as a flag; one whose name the verb itself uses becomes ``--use-NAME``.

    Returns:
        The attribute of the parsed command line for every setting's name.
    """
    group = parser.add_argument_group(title)
    taken = {flag for action in parser._actions for flag in action.option_strings}
    where = {}
    for one in settings:
        flag = f"--{one.name.replace('_', '-')}"
        if flag in taken:
            flag = f"--use-{one.name.replace('_', '-')}"
        where[one.name] = f"setting_{one.name}"
        group.add_argument(
            flag, dest=where[one.name], default=argparse.SUPPRESS, help=_help(one, usual), **_reader(one)
        )
    return where


def chosen(found: argparse.Namespace, where: Mapping[str, str]) -> dict[str, Any]:
    """The settings that were given on the command line, by name."""
    given = {name: getattr(found, key) for name, key in where.items() if hasattr(found, key)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
