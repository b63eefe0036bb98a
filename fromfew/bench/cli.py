"""``fromfew bench``: compare methods on the same subjects, prompts and seeds; ``fromfew bench report FOLDER``."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.commands.console import clock, progress, remark, say, say_json
from fromfew.commands.parsing import Parser, number, whole
from fromfew.errors import FromfewError, unknown

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.bench.run import Plan, Summary
    from fromfew.metrics.suites import Suite

__all__ = ["run", "settings_of"]

CONTROLS = ("base", "paste", "real")

_EPILOG = """examples:
  fromfew bench --methods lora,textual-inversion --tasks world/objects --seeds 2
  fromfew bench --methods all --tasks world/objects,world/styles --seeds 3 --budget 60
  fromfew bench --methods lora --set lora.steps=40 --subjects 2 --prompts 3
  fromfew bench --tasks world/pairs --methods lora,lora+weighted,lora+gradient-fusion@attention,lora@noise
  fromfew bench --tasks photos/dreambooth --data dreambooth/ --base MODEL --methods lora
  fromfew bench report benchmarks/objects
  fromfew bench tasks

Stopped at any moment, the same command goes on; several may work on one folder at once (--jobs begins them).
"""


def _parser() -> Parser:
    parser = Parser("bench", "Compare methods on the same subjects, prompts and seeds.", epilog=_EPILOG)
    add = parser.add_argument
    add("--methods", default="all",
        help='names with commas, or "all" that suit the task; controls are always added; for several things '
        "METHOD+COMBINER, METHOD+joint and METHOD@REGIONS say how they come together, METHOD/METHOD learns each by "
        "its own")  # fmt: skip
    add("--base", default="world", help="world, a folder, a checkpoint, a hub id (default: world)")
    add("--tasks", default="world/objects", help="names with commas; `fromfew bench tasks` lists them")
    add("--data", type=Path, help="folder of the published photos, for tasks of photographs")
    add("--seeds", type=whole(1, 1000), default=2, help="how many seeds of learning and drawing (default: 2)")
    add("--out", type=Path, help="folder of the records (default: benchmarks/TASK)")
    add("--budget", type=number(0.01, 1e6), help="minutes after which nothing new is begun")
    add("--set", action="append", default=[], metavar="METHOD.NAME=VALUE", help="a setting of a method; repeatable")
    add("--steps", type=whole(1, 1000), help="sampling steps (default: the base's)")
    add("--guidance", type=number(0, 100), help="scale of guidance (default: the base's)")
    add("--subjects", type=whole(1, 10**6), help="only the first so many subjects")
    add("--prompts", type=whole(1, 10**6), help="only the first so many prompts of each")
    add("--images", type=whole(1, 100), help="pictures a prompt (default: the task's)")
    add("--no-controls", action="store_true", help="leave out base, paste and real")
    add("--retry", action="store_true", help="do failed cells once more")
    add("--jobs", type=whole(1, 1024), default=1, help="processes that share this machine's cores (default: 1)")
    add("--helper", action="store_true", help=argparse.SUPPRESS)
    add("--ray", metavar="ADDRESS", help='cells go to Ray: "auto" (a cluster here, or one begun here), or an address')
    add("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    add("--clip", default="openai/clip-vit-base-patch32", help="CLIP for photographs: a folder or a stored hub id")
    add("--dino", default="facebook/dino-vits16", help="DINO for photographs: a folder or a stored hub id")
    add("--face", help="face network in TorchScript, for faces in photographs")
    add("--detector", help="OWL-ViT for photographs: a folder or a stored hub id")
    add("--inception", help="torch-fidelity's Inception weights, for FID on photographs")
    add("--dreamsim", help="folder of DreamSim's weights, for photographs; needs its package")
    add("--json", action="store_true", help="say the result as JSON")
    return parser


def run(argv: Sequence[str]) -> int:
    """Run ``fromfew bench`` with the words after the verb; returns the exit code.

    Raises:
        FromfewError: Something asked for cannot be.
    """
    if argv and argv[0] == "report":
        return _report(argv[1:])
    if argv and argv[0] == "tasks":
        return _list(argv[1:])
    found = _parser().read(argv)
    methods = _methods(found.methods, found.no_controls)
    settings = settings_of(found.set, methods)
    names = _words(found.tasks)
    out = found.out or Path("benchmarks") / names[0].rpartition("/")[2]
    if found.ray and found.jobs > 1:
        raise FromfewError("--jobs shares out this machine, --ray a cluster: give one of them.")
    summary = _carry_out(found, out, partial(_plan, found, names, methods, settings), argv)
    if not found.helper:
        _tell(found, out, summary, argv)
    return 0


def _carry_out(found: argparse.Namespace, out: Path, build: Callable[[], Plan], argv: Sequence[str]) -> Summary:
    """Here, with helpers or through Ray, with a progress bar."""
    how: dict[str, Any] = {"budget": found.budget, "retry": found.retry}
    if found.ray:
        from fromfew.bench.cluster import over

        with progress("bench") as watch:
            return over(build, out, address=found.ray, gpu=found.device != "cpu", watch=watch, **how)
    from fromfew.bench.helpers import helped, leave_with_parent
    from fromfew.bench.run import bench

    if found.helper:
        leave_with_parent()
    plan = build()
    with helped(argv, 1 if found.helper else found.jobs), progress("bench") as watch:
        return bench(plan, out, watch=watch, **how)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _methods(asked: str, no_controls: bool) -> list[str]:
    """Names of methods and controls, each once.

    Raises:
        FromfewError: One is unknown.
    """
    from fromfew.bench.contestants import spelled
    from fromfew.registry import names

    known = names()
    wanted = known if asked == "all" else [word.lower().replace("_", "-") for word in _words(asked)]
    for name in wanted:
        if name not in known and name not in CONTROLS:
            spelled(name)
    return list(dict.fromkeys([*wanted, *(() if no_controls else CONTROLS)]))


def settings_of(given: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``lora.steps=20`` to a method's settings, however its things are joined then.

    Raises:
        FromfewError: It cannot be read, or the method does not take part.
    """
    found: dict[str, dict[str, Any]] = {}
    methods = list(dict.fromkeys(one for name in methods for one in learners_of(name)))
    for text in given:
        place, equals, value = text.partition("=")
        method, dot, name = place.partition(".")
        if not (equals and dot and name):
            raise FromfewError(f"'{text}' is no setting; write METHOD.NAME=VALUE, such as lora.steps=40.")
        if method not in methods:
            raise unknown("method", method, methods)
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            read = {"true": True, "false": False, "none": None}.get(value.lower(), value)
        found.setdefault(method, {})[name.replace("-", "_")] = read
    return found


def learners_of(name: str) -> list[str]:
    """The methods within a contestant's name.

    >>> learners_of("lora+zip-lora@noise"), learners_of("lora/style-aligned")
    (['lora'], ['lora', 'style-aligned'])
    """
    return name.partition("@")[0].partition("+")[0].split("/")


def _plan(
    found: argparse.Namespace, names: Sequence[str], methods: Sequence[str], settings: dict[str, dict[str, Any]]
) -> Plan:
    from fromfew.bench.contestants import contestant
    from fromfew.bench.run import Plan
    from fromfew.bench.task import open_task
    from fromfew.commands.concepts import open_base

    tasks = [open_task(name, found.data).only(found.subjects, found.prompts, found.images) for name in names]
    for task in tasks:
        for problem in task.problems[:20]:
            remark(f"{task.name}: {problem}")
    options = {name: getattr(found, name) for name in ("steps", "guidance") if getattr(found, name) is not None}
    who = [contestant(name, settings, options) for name in methods]
    suites = {name: _suite(name, found) for name in dict.fromkeys(task.suite for task in tasks)}
    bb: Backbone = open_base(found.base, found.device)
    return Plan(bb, tasks, who, range(found.seeds), suites, options)


def _suite(name: str, found: argparse.Namespace) -> Suite:
    from fromfew.metrics import suites

    if name == "world":
        return suites.world()
    how = {key: getattr(found, key) for key in ("face", "detector", "inception", "dreamsim")}
    return suites.hub(found.clip, found.dino, **how)


def _tell(found: argparse.Namespace, out: Path, summary: Summary, argv: Sequence[str]) -> None:
    from fromfew.bench.report import report

    written = report(out)
    if found.json:
        say_json({"out": str(out), "report": str(written.html), **vars(summary)})
        return
    told = f"{summary.done} cells done, {summary.before} were done before, {summary.refused} do not suit"
    say(f"{told}, {summary.failed} failed: {out}")
    say(f"Report: {written.html}")
    if summary.left:
        import shlex

        say(f"{summary.left} cells are left by the budget of {clock(found.budget * 60)}. Go on with:")
        say(f"  fromfew bench {shlex.join(argv)}")


def _report(argv: Sequence[str]) -> int:
    parser = Parser("bench report", "Write the report of a bench folder: HTML, Markdown, CSV, one sheet.")
    parser.add_argument("folder", type=Path, help="the folder given to --out")
    parser.add_argument("--json", action="store_true", help="say where as JSON")
    found = parser.read(argv)
    if not found.folder.is_dir():
        raise FromfewError(f"There is no folder '{found.folder}'.")
    from fromfew.bench.report import report

    written = report(found.folder)
    if found.json:
        say_json({name: str(path) if path else None for name, path in vars(written).items()})
        return 0
    say(written.markdown.read_text(encoding="utf-8"))
    say(f"Page: {written.html}")
    return 0


def _list(argv: Sequence[str]) -> int:
    Parser("bench tasks", "List the tasks.").read(argv)
    import tomllib

    for path in sorted((Path(__file__).with_name("tasks")).glob("*.toml")):
        about = tomllib.loads(path.read_text(encoding="utf-8"))
        say(f"{about['name']} v{about['version']}: {about['about']}")
        if "needs" in about:
            say(f"    needs {about['needs']}")
        say(f"    licence: {about['licence']}")
    return 0
