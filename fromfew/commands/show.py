"""``fromfew show``: a saved concept, a method, or how a picture was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fromfew.commands.concepts import check_base, peek
from fromfew.commands.console import clock, say, say_json
from fromfew.commands.parsing import Parser
from fromfew.errors import FromfewError, either, nearest

__all__ = ["run"]


def _pairs(title: str, pairs: Mapping[str, Any]) -> None:
    say(title)
    width = max(map(len, pairs), default=0)
    for key, value in pairs.items():
        say(f"  {key:<{width}}  {value}")


def _concept(folder: Path, as_json: bool) -> None:
    from fromfew.io.tensors import read_header

    known = peek(folder)
    header = read_header(folder / "concept.safetensors")
    card = known.about["card"]
    if as_json:
        shapes = {name: {"dtype": one.dtype, "shape": one.shape} for name, one in header.tensors.items()}
        say_json({**known.about, "folder": str(folder), "sha256": known.sha256, "tensors": shapes})
        return
    parts = ", ".join(f"{part['name']} ({part['kind']})" for part in known.about.get("parts", []))
    _pairs(known.name, {
        "write": known.words or "(acts on every prompt)",
        "method": known.method,
        "base": f"{known.base} ({known.fingerprint[:12]})",
        "parts": parts,
        "numbers": f"{card.get('learned', 0):,} learned, {card.get('bytes', 0) / 1e6:.2f} MB",
        "photos": f"{len(card.get('photos', []))}",
        "seed": card.get("seed"),
        "steps": f"{card.get('steps')} in {clock(card.get('seconds') or 0)}, loss {card.get('loss')}",
        "versions": " ".join(f"{key} {value}" for key, value in card.get("versions", {}).items()),
        "rights": card.get("rights", ""),
    })  # fmt: skip
    _pairs("settings", card.get("settings", {}))


def _method(name: str, as_json: bool, base: str | None) -> None:
    from fromfew.commands.fits import memory_of
    from fromfew.commands.settings import method_doc, settings_of
    from fromfew.registry import cards

    card = cards()[name]
    settings = settings_of(name)
    memory = memory_of(name, base) if base is not None else None
    if as_json:
        plain = [asdict(one) for one in settings]
        say_json({"name": name, **card, "settings": plain, "doc": method_doc(name), "memory": memory})
        return
    say(f"{name}\n\n{method_doc(name)}\n")
    _pairs("card", {key: " ".join(map(str, v)) if isinstance(v, tuple) else v for key, v in card.items()})
    say()
    told = {one.name: "(chosen)" if one.default is None else one.default for one in settings}
    _pairs("settings", {f"{one.name}: {one.kind} = {told[one.name]}": one.about for one in settings})
    if memory is not None:
        say()
        _pairs(f"on {base}", memory)


def _picture(path: Path, as_json: bool) -> None:
    from fromfew.io.metadata import read_recipe

    recipe = read_recipe(path)
    if as_json:
        say_json(recipe)
        return
    concepts = [f"{one['name']}:{one['strength']:g} ({one['path']})" for one in recipe["concepts"]]
    plain = {key: value for key, value in recipe.items() if key not in ("prompts", "index", "concepts", "schema")}
    _pairs(str(path), {"prompt": recipe["prompts"][recipe["index"]], "concepts": ", ".join(concepts), **plain})


def _base(name: str) -> str:
    """Any base, or the shape of one."""
    return name if name == "sd15-shape" else check_base(name)


def run(argv: Sequence[str]) -> int:
    """Show one thing.

    Raises:
        FromfewError: It is neither a concept, nor a method, nor a picture made by fromfew.
    """
    from fromfew.registry import names

    parser = Parser("show", "Show a concept, a method, or how a picture was made.")
    parser.add_argument("what", metavar="CONCEPT|METHOD|PICTURE", help="a concept's folder, a method's name, a PNG")
    parser.add_argument("--base", help="for a method: also tell what a concept adds to this base, and the "
                        "memory it needs; sd15-shape is Stable Diffusion 1.5 without weights")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as JSON")
    found = parser.read(argv)
    base, path = found.base and _base(found.base), Path(found.what)
    if path.is_dir():
        _concept(path, found.json)
    elif path.exists() or path.is_symlink():
        _picture(path, found.json)
    elif found.what.replace("_", "-").lower() in names():
        _method(found.what.replace("_", "-").lower(), found.json, base)
    else:
        close = nearest(found.what, [*names(), *map(str, Path("concepts").glob("*"))])
        hint = f" Did you mean {either(close)}?" if close else ""
        raise FromfewError(f"'{found.what}' is no concept, method or picture.{hint}")
    return 0
