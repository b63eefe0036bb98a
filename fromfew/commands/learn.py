"""``fromfew learn``: photos in, a concept out."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fromfew.commands.concepts import open_base, peek
from fromfew.commands.console import clock, progress, remark, say, say_json
from fromfew.commands.fits import check_learning
from fromfew.commands.learn_plan import DONE, WORK, Plan, first_pass, parser_of, plan_of
from fromfew.errors import FromfewError, unknown
from fromfew.io.files import lock, read_regular, write_atomic

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept

__all__ = ["run"]

_RUN = "run.json"


def _finished(plan: Plan) -> bool:
    """Whether --resume finds that all was done already.

    Raises:
        FromfewError: Another concept is in the way.
    """
    if not plan.resume or (plan.out / WORK).exists() or not (plan.out / "concept.json").exists():
        return False
    card = peek(plan.out).about["card"]
    photos = list(plan.refs.hashes) if plan.refs else []
    if plan.watch and len(photos) >= 4:
        photos = photos[:-1]  # the last one was watched, not learned
    if (card["method"], card.get("seed"), list(card.get("photos", []))) != (plan.name, plan.seed, photos):
        raise FromfewError(f"'{plan.out}' holds another concept (other photos, method or seed). Choose another --out.")
    return True


def _prepare_work(plan: Plan) -> Path:
    """The folder of the run's state, with a note of what the run is.

    Raises:
        FromfewError: It holds the state of another run.
    """
    work = plan.out / WORK
    mark = plan.mark()
    if plan.resume and (work / _RUN).exists():
        try:
            before = json.loads(read_regular(work / _RUN, 2**24))
        except ValueError as error:
            raise FromfewError(f"'{work / _RUN}' is damaged. Add --replace to begin anew.") from error
        other = [key for key in mark if not isinstance(before, dict) or before.get(key) != mark[key]]
        if other:
            raise FromfewError(
                f"The interrupted run in '{plan.out}' has other {', '.join(other)}. Give the same to go on, "
                "or --replace to begin anew."
            )
        return work
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    write_atomic(work / _RUN, json.dumps(mark, indent=2))
    return work


def _watched(plan: Plan, bb: Backbone, watch: Callable[..., None], work: Path) -> Concept:
    """Learn; with --watch, look now and then at what is not learned from, and keep the best state."""
    if plan.watch is None or plan.refs is None:
        return plan.method.learn(bb, plan.refs, seed=plan.seed, watch=watch, work=work)
    from fromfew.watching import Watcher, level, split

    learned, held = split(plan.refs)
    rule: Literal["front", "loss"] = "loss" if plan.watch == "loss" else "front"
    watcher = Watcher(bb, held, learned, rule=rule, inner=watch)
    concept = level(plan.method, bb).learn(bb, learned, seed=plan.seed, watch=watcher, work=work)
    remark(watcher.sentence)
    return concept


def _clear_unused(out: Path, work: Path) -> None:
    """Remove the work folder, and the concept's, of a run that was refused before it did anything."""
    if {item.name for item in work.iterdir()} == {_RUN}:
        shutil.rmtree(work)
        if not any(out.iterdir()):
            out.rmdir()


def preview_prompts(concept: Concept, role: str) -> list[str]:
    """A few prompts that show a concept: alone, and in scenes."""
    if concept.also:
        things = [f"a {' '.join(filter(None, words))}" for words in concept.answers.items()]
        both = " and ".join(things)
        return [*things, both, f"{both} on the beach"]
    word = concept.placeholder
    scenes = ("", " on the beach", " in the snow", " in the forest")
    if word is not None and role == "style":
        return [f"a {thing} in {word} style" for thing in ("cat", "house", "tree", "boat")]
    thing = " ".join(name for name in (word, concept.noun) if name) or "cat"
    return [f"a {thing}{scene}" for scene in scenes]


def _preview(plan: Plan, bb: Backbone, concept: Concept) -> Path:
    """Photos above, pictures of the concept below, in one file."""
    from fromfew.io.metadata import write_png
    from fromfew.make import make
    from fromfew.sheet import grid

    refs = plan.refs
    prompts = preview_prompts(concept, refs.role if refs else "style")
    with progress("preview") as watch:
        drawn = list(make(bb, prompts, [concept], seed=0, watch=watch))
    rows = [list(zip(drawn, prompts, strict=True))]
    if refs:
        photos = refs.photos[: len(prompts)]
        rows.insert(0, [(photo.image, photo.path.name if photo.path else "photo") for photo in photos])
    path = plan.out / "preview.png"
    write_png(path, grid(rows, title=f"{concept.name}: {plan.name} on {plan.base}"))
    return path


def _next(plan: Plan, concept_words: str, placeholder: str | None) -> str:
    """The command to type next."""
    style = plan.refs is not None and plan.refs.role == "style"
    prompt = f"a cat in {placeholder} style" if style and placeholder else f"a {concept_words or 'cat'} on the beach"
    where = "" if _found_by_name(plan.base) else f" --base {shlex.quote(plan.base)}"
    return f'fromfew make "{prompt}" --with {shlex.quote(str(plan.out))}{where}'


def _found_by_name(base: str) -> bool:
    """Whether the concept's card alone is enough to find the base again."""
    return not Path(base).exists()


def _learn(plan: Plan, preview: bool) -> dict[str, Any]:
    """Learn, save, draw; the state is kept until all is written."""
    from dataclasses import replace

    work = _prepare_work(plan)
    try:
        bb = open_base(plan.base, plan.device)
        check_learning(plan.method, plan.refs, bb, plan.force)
        with progress(f"learning with {plan.name}") as watch:
            concept = _watched(plan, bb, watch, work)
    except FromfewError:
        _clear_unused(plan.out, work)
        raise
    concept = replace(concept, name=plan.out.absolute().name)
    concept.save(plan.out)
    sheet = _preview(plan, bb, concept) if preview else None
    # Renamed first: a kill while it is being removed must not leave half a state to go on from.
    (plan.out / WORK).rename(plan.out / DONE)
    shutil.rmtree(plan.out / DONE, ignore_errors=True)
    return {
        "sheet": str(sheet) if sheet else None,
        "seconds": concept.card.seconds,
        "loss": concept.card.loss,
    }


def run(argv: Sequence[str]) -> int:
    """Learn a concept.

    Raises:
        FromfewError: Something asked for cannot be; nothing was written.
    """
    from fromfew.registry import cards

    method, base = first_pass(argv)
    known = cards()
    if method not in known:
        raise unknown("method", method, known)
    parser, where = parser_of(method, base, known[method])
    found = parser.read(argv)
    plan = plan_of(found, where, method, known[method])
    done: dict[str, Any] = {"sheet": None, "seconds": 0.0}
    with lock(plan.out):
        if _finished(plan):
            remark(f"'{plan.out}' was finished already.")
        else:
            done = _learn(plan, not found.no_preview)
    seen = peek(plan.out)
    following = _next(plan, seen.words, seen.placeholder)
    if found.json:
        say_json(
            {
                "concept": str(plan.out),
                "placeholder": seen.placeholder,
                "method": method,
                "next": following,
                **done,
            }
        )
        return 0
    size = sum(item.stat().st_size for item in plan.out.glob("concept.*"))
    say(f"Learned {seen.words or seen.name} in {clock(done['seconds'])}: {plan.out} ({size / 1e6:.2f} MB)")
    if done["sheet"]:
        say(f"Preview: {done['sheet']}")
    say(f"Next:\n  {following}")
    return 0
