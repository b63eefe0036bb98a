"""What `learn --watch` saves and costs on held-out objects of the world; stopped at any moment, it goes on.

    python scripts/watch_table.py --out benchmarks/watch

For every method, subject and seed: a run of full length from all photos, scored after equally spaced steps, and a run
that watches itself, from one photo fewer. Scored are pictures of the task's prompts: likeness to photos that no run
learned from, times likeness to the prompt. Writes OUT/records.jsonl and OUT/watch.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from fromfew.bench.cli import settings_of
from fromfew.bench.contestants import contestant
from fromfew.bench.records import read
from fromfew.bench.run import Plan
from fromfew.bench.task import open_task
from fromfew.bench.watched import Comparison, compare, savings, table
from fromfew.commands.concepts import open_base
from fromfew.commands.console import progress
from fromfew.errors import FromfewError
from fromfew.io.files import write_atomic
from fromfew.metrics.suites import world


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=Path("benchmarks/watch"), help="folder of the records")
    add("--methods", default="textual-inversion,lora,custom-diffusion", help="names with commas")
    add("--base", default="world", help="as for fromfew bench")
    add("--task", default="world/objects", help="a task of the world")
    add("--subjects", type=int, default=8, help="the first so many")
    add("--prompts", type=int, default=8, help="the first so many")
    add("--images", type=int, default=2, help="pictures a prompt")
    add("--seeds", type=int, default=1, help="how many seeds")
    add("--lengths", type=int, default=8, help="at how many lengths the full run is scored")
    add("--steps", type=int, help="sampling steps")
    add("--rule", default="front", choices=("front", "loss"), help="rule of --watch")
    setting = {"action": "append", "default": [], "metavar": "METHOD.NAME=VALUE"}
    add("--set", help="a setting of both runs; repeatable", **setting)
    add("--watched", help="a setting of the watched run alone; repeatable", **setting)
    return parser


def main() -> int:
    """Compare, and write the table."""
    found = _parser().parse_args()
    methods = found.methods.split(",")
    options = {"steps": found.steps} if found.steps else {}
    given = settings_of(found.set, methods)
    who = [contestant(name, given, options) for name in methods]
    task = open_task(found.task).only(found.subjects, found.prompts, found.images)
    bb = open_base(found.base, "auto")
    plan = Plan(bb, [task], who, range(found.seeds), {"world": world()}, options)
    what = Comparison(plan, settings_of(found.watched, methods), found.lengths, found.rule)
    with progress("watch") as watch:
        compare(what, found.out, watch=watch)
    keys = {key for key, _, _ in what.units()}
    text = table(savings([one for one in read(found.out) if one["key"] in keys]))
    command = shlex.join(["python", "scripts/watch_table.py", *sys.argv[1:]])
    write_atomic(found.out / "watch.md", f"```sh\n{command}\n```\n\n{text}")
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FromfewError as error:
        sys.exit(str(error))
