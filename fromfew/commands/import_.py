"""``fromfew import``: a file of another tool as a concept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.commands.concepts import check_base
from fromfew.commands.console import say, say_json
from fromfew.commands.parsing import Parser
from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from fromfew.io.importing import Found, Imported

__all__ = ["run"]

_SHOWN = 12


def _parser() -> Parser:
    parser = Parser(
        "import",
        "Say what a file is, which base it fits, and make a concept of it: LoRA (diffusers, sd-scripts, PEFT) "
        "and its relatives (PEFT; of LyCORIS LoHa, LoKr and DoRA), learned words, Custom Diffusion, "
        "IP-Adapter, whole models.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE",
                        help="file or folder; a LoRA and its words may come together")  # fmt: skip
    parser.add_argument("--base", help="the base to use it on (default: the one the file names)")
    parser.add_argument("--out", type=Path, help="folder to write (default: concepts/NAME)")
    parser.add_argument("--name", help="what to call the concept")
    parser.add_argument("--as", dest="placeholder", metavar="WORD", help="how prompts call it, such as '<v>'")
    parser.add_argument("--noun", help="the plain noun of what it is")
    parser.add_argument("--alias", metavar="TEXT", help="plain text (trigger words) that WORD stands for")
    parser.add_argument("--what", action="store_true", help="only say what it is; write nothing")
    parser.add_argument("--replace", action="store_true", help="write over a concept that is there")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    return parser


def _base(asked: str | None, found: Sequence[Found]) -> str:
    """The base to open: as asked, or as a file of fromfew's own names it."""
    if asked is not None:
        return check_base(asked)
    name = (found[0].told.get("base") or {}).get("name")
    if not isinstance(name, str):
        raise FromfewError(
            f"'{found[0].path}' is {found[0].what} for {found[0].fits}, and names no base. Say with --base which "
            "model to use it on."
        )
    return check_base(name)


def _describe(found: Sequence[Found]) -> None:
    for one in found:
        say(f"{one.path}: {one.what}, for {one.fits}")
        for note in one.notes:
            say(f"  {note}")


def _ignored(result: Imported) -> None:
    for path, keys in result.ignored.items():
        some = ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
        say(f"ignored in {path}: {len(keys)} keys that have no place in this base: {some}")
    if not result.ignored:
        say("nothing was ignored")


def _saved(result: Imported, found: Any, name: str) -> Path:
    """Write the concept, or the adapter's weights; returns where."""
    from fromfew.io.files import lock

    if result.concept is not None:
        folder = found.out or Path("concepts") / name
        if (folder / "concept.json").exists() and not found.replace:
            raise FromfewError(f"'{folder}' holds a concept already. Give another --out, or --replace.")
        with lock(folder):
            result.concept.save(folder)
        return folder
    from fromfew.io.tensors import write_tensors

    assert result.adapter is not None
    file = found.out or Path("adapters") / f"{name}.safetensors"
    if file.exists() and not found.replace:
        raise FromfewError(f"'{file}' exists. Give another --out, or --replace.")
    write_tensors(file, result.adapter, {"format": "pt"})
    return file


def _next(result: Imported, where: Path, base: str) -> str:
    """What to type now."""
    if result.concept is None:
        flags = f"--weights {where} --tokens {result.settings['tokens']}"
        plus = f" --plus --inner {result.settings['inner']}" if result.settings.get("plus") else ""
        return f"fromfew learn PHOTO --method ip-adapter --base {base} {flags}{plus} --eye CLIP-FOLDER"
    words = " ".join(w for w in ("a", result.concept.placeholder, result.concept.noun or "cat") if w)
    return f'fromfew make "{words}" --with {where} --base {base}'


def run(argv: Sequence[str]) -> int:
    """Import one concept.

    Raises:
        FromfewError: The file is unknown, damaged, or does not fit the base.
    """
    found = _parser().read(argv)

    from fromfew.io.importing import bring_in, identify

    known = [one for path in found.files for one in identify(path)]
    if not found.json:
        _describe(known)
    about = [{"file": str(one.path), "form": one.form, "what": one.what, "fits": one.fits, "notes": one.notes}
             for one in known]  # fmt: skip
    if found.what:
        if found.json:
            say_json({"found": about})
        return 0
    base = _base(found.base, known)

    from fromfew.backbones.open import open_backbone

    result = bring_in(
        known, open_backbone(base), name=found.name, placeholder=found.placeholder, noun=found.noun,
        alias=found.alias,
    )  # fmt: skip
    from fromfew.io.forms.names import file_name

    name = result.concept.name if result.concept is not None else found.files[0].stem
    where = _saved(result, found, file_name(name))  # the name may come from the file: never a path
    if found.json:
        ignored = {str(path): keys for path, keys in result.ignored.items()}
        say_json({"found": about, "base": base, "written": str(where), "ignored": ignored})
        return 0
    _ignored(result)
    say(f"{where}\n{_next(result, where, base)}")
    return 0
