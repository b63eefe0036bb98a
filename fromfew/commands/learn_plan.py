"""What ``fromfew learn`` was asked for, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from fromfew.commands.concepts import check_base
from fromfew.commands.console import remark
from fromfew.commands.parsing import Parser, whole
from fromfew.commands.settings import add_settings, chosen, settings_of
from fromfew.errors import FromfewError
from fromfew.io.files import recover_folder
from fromfew.references import References, Role, check_noun, check_placeholder

if TYPE_CHECKING:
    from fromfew.method import Learner

__all__ = ["DONE", "WORK", "Plan", "first_pass", "parser_of", "plan_of"]

_DEFAULT_METHOD = "lora"
WORK = ".work"
DONE = ".work.tmp"

_EPILOG = """examples:
  fromfew learn photos/ --noun "cat" --as "<rex>"
  fromfew learn photos/ --noun "cat" --method textual-inversion --steps 300
  fromfew learn paintings/ --noun "painting" --role style --as "<mine>"
  fromfew learn rex/ --noun "cat" --as "<rex>" --also tom/ --noun "dog" --as "<tom>" --method custom-diffusion
"""


class _Also(argparse.Action):
    """``--also`` begins another subject; the ``--noun``, ``--as`` and ``--role`` behind it are that subject's."""

    def __call__(self, parser: Any, found: argparse.Namespace, value: Any, option: str | None = None) -> None:
        found.also = [*found.also, {"photos": value, "noun": None, "placeholder": None, "role": None}]


class _Of(argparse.Action):
    """Belongs to the subject that was named last."""

    def __call__(self, parser: Any, found: argparse.Namespace, value: Any, option: str | None = None) -> None:
        if found.also:
            found.also[-1][self.dest] = value
        else:
            setattr(found, self.dest, value)


@dataclass(frozen=True)
class Plan:
    """Everything that was asked for, checked."""

    refs: References | None
    method: Learner
    name: str
    base: str
    device: str
    out: Path
    seed: int
    resume: bool
    watch: str | None
    force: bool

    def mark(self) -> dict[str, Any]:
        """What must be equal for an interrupted run to be gone on with."""
        refs = self.refs
        return {
            "method": self.name,
            "settings": json.loads(json.dumps(self.method.settings())),
            "base": self.base,
            "seed": self.seed,
            "watch": self.watch,
            "photos": list(refs.hashes) if refs else [],
            "noun": refs.noun if refs else None,
            "placeholder": refs.placeholder if refs else None,
            "role": refs.role if refs else None,
            "also": [[one.noun, one.placeholder, one.role] for one in refs.also] if refs else [],
        }


def first_pass(argv: Sequence[str]) -> tuple[str, str]:
    """Method and base as asked, before the method's own flags are known."""
    peeking = Parser("learn", "", add_help=False)
    peeking.add_argument("--method", default=_DEFAULT_METHOD)
    peeking.add_argument("--base", default="world")
    found, _ = peeking.parse_known_args(list(argv))
    return found.method.replace("_", "-").lower(), found.base


def parser_of(method: str, base: str, card: Mapping[str, Any]) -> tuple[Parser, dict[str, str]]:
    """The words of ``learn`` with those of the method's settings, and which word stands for which setting."""
    from fromfew.recipes import recipe

    parser = Parser("learn", "Learn a concept from a few photos.", epilog=_EPILOG)
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help="a folder of photos, or the photos themselves")
    parser.add_argument("--noun", action=_Of,
                        help='what the photos show, such as "cat"; optional if every photo has a caption')  # fmt: skip
    parser.add_argument("--as", action=_Of, dest="placeholder", metavar="<WORD>", default="<v>",
                        help="what stands for it in prompts, such as <rex> (default: <v>)")  # fmt: skip
    parser.add_argument("--role", action=_Of, choices=get_args(Role),
                        help="what to learn (default: what the method is best at)")  # fmt: skip
    parser.add_argument("--also", action=_Also, nargs="+", default=[], metavar="PHOTOS",
                        help="photos of a further subject, learned together with the first; followed by its own "
                        "--noun, --as and --role; may be given several times")  # fmt: skip
    parser.add_argument("--method", default=_DEFAULT_METHOD, help=f"how to learn (default: {_DEFAULT_METHOD})")
    parser.add_argument("--base", default="world", help="model to learn on: world, a folder, a checkpoint, a hub id")
    parser.add_argument("--out", type=Path, help="folder for the concept (default: concepts/WORD)")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="seed of all that is random (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    parser.add_argument("--watch", nargs="?", const="front", choices=("front", "loss"),
                        help="stop when it is best and keep that state: by prompts kept, or by loss")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run, to the same bits")
    parser.add_argument("--replace", action="store_true", help="replace the concept that is in the way")
    parser.add_argument("--force", action="store_true", help="begin even if memory will probably not suffice")
    parser.add_argument("--skip-bad", action="store_true", help="go on without pictures that cannot be read")
    parser.add_argument("--no-preview", action="store_true", help="do not draw a preview sheet")
    parser.add_argument("--json", action="store_true", help="say the result as JSON")
    title = f"settings of {method} ({card.get('title', '')})"
    return parser, add_settings(parser, settings_of(method), recipe(method, base), title)


def _settings(method: str, given: Mapping[str, Any]) -> Learner:
    """The method with its settings; their ranges are checked as it is built."""
    from fromfew.registry import find

    return find(method).of(given)


def _references(found: argparse.Namespace, method: str, card: Mapping[str, Any]) -> References | None:
    """The photos of every subject, or None for a method that needs none and got none."""
    if not found.photos:
        if card.get("photos", (1, 1))[0] == 0 and not found.also:
            return None
        raise FromfewError('Say where the photos are: fromfew learn PHOTOS --noun "cat".')
    if found.also and not card.get("joint", False):
        raise FromfewError(
            f"The method '{method}' learns one thing at a time. Learn each apart and join them with 'fromfew combine'."
        )
    first = {"photos": found.photos, "noun": found.noun, "placeholder": found.placeholder, "role": found.role}
    each = [_subject(one, found.skip_bad, method, card) for one in (first, *found.also)]
    several = [one for refs in each for one in refs.subjects]
    if len(several) > 1 and not card.get("joint", False):
        words = ", ".join(one.placeholder for one in several)
        raise FromfewError(f"The method '{method}' learns one thing at a time. Pick one with --as: {words}.")
    if card.get("masks", False) and any(photo.mask is None for one in several for photo in one.photos):
        raise FromfewError(
            f"The method '{method}' needs a mask of every thing it learns: scene.rex=cat.mask.png beside scene.jpg, "
            "white where <rex>, a cat, is."
        )
    return dataclasses.replace(several[0], notes=each[0].notes, also=tuple(several[1:]))


def _subject(told: Mapping[str, Any], skip_bad: bool, method: str, card: Mapping[str, Any]) -> References:
    """The photos of one subject."""
    least, most = card.get("photos", (1, 10**6))
    learns = tuple(card.get("learns", ("subject",)))
    role = told["role"] or ("subject" if "subject" in learns else learns[0])
    if role not in learns:
        able = ", ".join(learns)
        raise FromfewError(f"The method '{method}' does not learn the role '{role}', but: {able}.")
    where = told["photos"][0] if len(told["photos"]) == 1 else told["photos"]
    refs = References.read(
        where, noun=told["noun"], placeholder=told["placeholder"], role=cast(Role, role), skip_bad=skip_bad
    )
    for note in refs.notes:
        remark(note)
    if len(refs) < least:
        raise FromfewError(f"The method '{method}' needs at least {least} photos, and there are {len(refs)}.")
    if len(refs) > most:
        remark(f"{method} is meant for up to {most} photos, not {len(refs)}: it may learn them less well.")
    return refs


def _check_out(out: Path, resume: bool, replace: bool) -> None:
    """Refuse to write over what is not an unfinished run or, with --replace, a concept.

    Raises:
        FromfewError: With what to type instead.
    """
    recover_folder(out)
    shutil.rmtree(out / DONE, ignore_errors=True)  # left by a run that was killed at its very end
    if out.exists() and not out.is_dir():
        raise FromfewError(f"'{out}' is a file. Choose another folder with --out.")
    if not out.exists() or not any(out.iterdir()):
        return
    concept, work = (out / "concept.json").exists(), (out / WORK).exists()
    if not concept and not work:
        raise FromfewError(f"'{out}' holds other files and no concept. Choose another folder with --out.")
    if replace or (resume and (work or concept)):
        return
    if work:
        raise FromfewError(
            f"'{out}' holds an interrupted run. Add --resume to go on with it, or --replace to begin anew."
        )
    raise FromfewError(f"'{out}' holds a concept already. Choose another folder with --out, or add --replace.")


def plan_of(found: argparse.Namespace, where: Mapping[str, str], method: str, card: Mapping[str, Any]) -> Plan:
    """Check everything that can be checked without a model."""
    check_placeholder(found.placeholder)
    if found.noun is not None:
        found.noun = check_noun(found.noun)
    for one in found.also:
        if one["placeholder"] is None:
            raise FromfewError(f"Say what stands for '{one['photos'][0]}' in prompts: --also PHOTOS --as \"<w>\".")
        check_placeholder(one["placeholder"])
        one["noun"] = check_noun(one["noun"]) if one["noun"] is not None else None
    if found.also and found.watch:
        raise FromfewError("--watch looks at one subject; leave it out with --also.")
    if found.device not in ("auto", "cpu") and not found.device.startswith("cuda"):
        raise FromfewError(f"Unknown device '{found.device}'. There is: auto, cpu, cuda.")
    base = check_base(found.base)
    tiny = base.removeprefix("tiny-")
    able = card.get("backbones", ())
    if base.startswith("tiny-") and tiny not in able:
        raise FromfewError(f"The method '{method}' does not work on '{base}', but on: {', '.join(able)}.")
    if found.watch and card.get("kind") != "tuned":
        raise FromfewError(f"--watch is for methods that learn step by step; '{method}' does not.")
    learner = _settings(method, chosen(found, where))
    refs = _references(found, method, card)
    own = "-".join(one.placeholder.strip("<>") for one in refs.subjects) if refs else method
    out = found.out or Path("concepts") / own
    _check_out(out, found.resume, found.replace)
    return Plan(refs, learner, method, base, found.device, out, found.seed, found.resume, found.watch, found.force)
