"""``fromfew combine``: concepts learned apart in, one concept that answers to all their placeholders out."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fromfew.commands.concepts import Known, base_to_use, open_base, peek
from fromfew.commands.console import clock, progress, say, say_json
from fromfew.commands.parsing import Parser, strengthened, whole
from fromfew.commands.settings import add_settings, chosen, settings_of
from fromfew.errors import FromfewError, unknown

__all__ = ["run"]

_DEFAULT = "weighted"
_EPILOG = """examples:
  fromfew combine concepts/rex concepts/tom --out concepts/pets
  fromfew combine concepts/rex:0.8 concepts/mine --method zip-lora --out concepts/rex-in-mine
  fromfew make "a <rex> cat and a <tom> dog" --with concepts/pets
"""


def _parser(method: str, card: Mapping[str, Any]) -> tuple[Parser, dict[str, str]]:
    from fromfew.registry import COMBINERS

    parser = Parser("combine", "Join concepts that were learned apart into one.", epilog=_EPILOG)
    add = parser.add_argument
    add("concepts", nargs="*", type=strengthened, metavar="FOLDER[:HOW]",
        help="two or more concepts, and how strongly each one's change of weights counts (default: 1)")  # fmt: skip
    add("--method", default=_DEFAULT, help=f"how to join (default: {_DEFAULT})")
    add("--out", type=Path, help="folder for the new concept")
    add("--base", help="the base they were learned on (default: by the name it has on their cards)")
    add("--seed", type=whole(0, 2**63 - 1), default=0, help="seed of all that is random (default: 0)")
    add("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    add("--replace", action="store_true", help="replace the concept that is in the way")
    add("--list", action="store_true", help="list the ways of joining")
    add("--json", action="store_true", help="say the result as JSON")
    title = f"settings of {method} ({card.get('title', '')})"
    return parser, add_settings(parser, settings_of(method, COMBINERS), {}, title)


def _first_pass(argv: Sequence[str]) -> str:
    peeking = Parser("combine", "", add_help=False)
    peeking.add_argument("--method", default=_DEFAULT)
    found, _ = peeking.parse_known_args(list(argv))
    return str(found.method).replace("_", "-").lower()


def _check(found: argparse.Namespace) -> list[tuple[Known, float]]:
    """What can be known before anything heavy is imported.

    Raises:
        FromfewError: With what to type instead.
    """
    if len(found.concepts) < 2:
        raise FromfewError("Name two or more concepts: fromfew combine concepts/a concepts/b --out concepts/both.")
    if found.out is None:
        raise FromfewError("Say where the new concept goes: --out concepts/both.")
    seen = [(peek(folder), strength) for folder, strength in found.concepts]
    words: dict[str, Path] = {}
    for one, _ in seen:
        for word in one.answers:
            if word in words:
                raise FromfewError(
                    f"'{words[word]}' and '{one.folder}' both answer to {word}. Learn one of them again with another "
                    "--as."
                )
            words[word] = one.folder
    out = found.out
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "concept.json").exists())):
        raise FromfewError(f"'{out}' holds other files and no concept. Choose another folder with --out.")
    if any(out.exists() and out.samefile(one.folder) for one, _ in seen):
        raise FromfewError(f"'{out}' is one of the concepts to join. Choose another folder with --out.")
    if (out / "concept.json").exists() and not found.replace:
        raise FromfewError(f"'{out}' holds a concept already. Choose another folder with --out, or add --replace.")
    return seen


def run(argv: Sequence[str]) -> int:
    """Join concepts.

    Raises:
        FromfewError: Something asked for cannot be; nothing was written.
    """
    from fromfew.registry import COMBINERS

    method, known = _first_pass(argv), COMBINERS.cards()
    if method not in known:
        raise unknown("combiner", method, known)
    parser, where = _parser(method, known[method])
    found = parser.read(argv)
    if found.list:
        return _list(found.json)
    seen = _check(found)
    combiner = COMBINERS.find(method).of(chosen(found, where))
    base = base_to_use(found.base, [one for one, _ in seen])

    from dataclasses import replace

    from fromfew.concept import load

    bb = open_base(base, found.device)
    concepts = [load(one.folder).scaled(strength) for one, strength in seen]
    with progress(f"joining with {method}") as watch:
        concept = combiner.combine(bb, concepts, seed=found.seed, watch=watch)
    replace(concept, name=found.out.absolute().name).save(found.out)
    made = peek(found.out)
    following = f'fromfew make "a {made.words or "cat"}" --with {shlex.quote(str(found.out))}'
    if found.json:
        say_json({"concept": str(found.out), "answers": made.answers, "method": method, "next": following,
                  "bytes": concept.card.bytes, "seconds": concept.card.seconds})  # fmt: skip
        return 0
    size = sum(item.stat().st_size for item in found.out.glob("concept.*"))
    say(f"Joined {made.words or made.name} in {clock(concept.card.seconds)}: {found.out} ({size / 1e6:.2f} MB)")
    say(f"Next:\n  {following}")
    return 0


def _list(as_json: bool) -> int:
    from fromfew.commands.methods import list_combiners
    from fromfew.registry import COMBINERS

    if as_json:
        say_json([{"name": name, **card} for name, card in COMBINERS.cards().items()])
    else:
        list_combiners()
    return 0
