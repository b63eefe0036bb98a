"""``kill -9`` of ``fromfew learn`` at random moments: what is resumed must end in the very same bits.

Every run is a forked process that calls the command line as a user would. Half of the kills come at a random time,
the other half at a random system call that opens, renames or removes a file, so that saves, the way from one stage to
the next, and the end of the run are hit often.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from unittest.mock import patch

__all__ = ["CASES", "Told", "photos", "torment"]

_COMMON = ("--base", "tiny-sd15", "--noun", "cat", "--as", "<rex>", "--batch", "1", "--views", "2", "--lr", "0.03")
CASES: dict[str, tuple[str, ...]] = {
    "one stage, preview": ("--method", "lora", "--rank", "2", "--steps", "6"),
    "two stages": ("--method", "two-stages", "--steps", "5", "--no-preview"),
    "two stages, watched": ("--method", "two-stages", "--steps", "14", "--watch", "--no-preview"),
    "class pictures, watched by loss": (
        "--method", "custom-diffusion", "--class-images", "2", "--steps", "14", "--watch", "loss", "--no-preview",
    ),
}  # fmt: skip
"""What is learned, and how."""
_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree"}
_LONGEST = 600.0
_FAULT = 70


@dataclass
class Told:
    """What came of one case."""

    kills: int = 0
    runs: int = 0
    where: Counter[str] = field(default_factory=Counter)
    """What lay on the disk when the process died."""
    wrong: list[str] = field(default_factory=list)
    """What differed from the run that was left alone; empty if nothing did."""
    seconds: float = 0.0


def photos(folder: Path) -> Path:
    """Three photos of a subject of the small world."""
    from fromfew.world.reference import references

    folder.mkdir(parents=True)
    for number, photo in enumerate(references("raccoon", n=3).photos):
        photo.image.resize((48, 48)).save(folder / f"{number}.png")
    return folder


@contextlib.contextmanager
def _hurried() -> Iterator[None]:
    """State written after every step; watching looks often and has little patience; the two-stage method is known."""
    from fromfew import fit, registry, watching

    point = EntryPoint("two-stages", "fromfew.testing.two_stages", registry.GROUP)
    learning: Any = fit.fit
    watched: Any = watching.Watcher.__init__
    every = {**learning.__kwdefaults__, "every": 0.0}
    look = {**watched.__kwdefaults__, "every": 2, "patience": 2, "window": 3}
    with (
        patch.object(learning, "__kwdefaults__", every),
        patch.object(watched, "__kwdefaults__", look),
        patch.object(registry.Shelf, "others", lambda self: {"two-stages": point}),
    ):
        yield


class _Deadly:
    """An audit hook that counts file events under a folder, and kills this process at the ``at``-th."""

    def __init__(self, at: int | None, home: Path) -> None:
        self.at, self.home, self.seen = at, str(home), 0

    def __call__(self, event: str, about: tuple[object, ...]) -> None:
        if event in _EVENTS and self.home in str(about):
            self.seen += 1
            if self.seen == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


def _start(argv: Sequence[str], out: Path, log: Path, at: int | None) -> int:
    """Fork a process that learns; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = _FAULT
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.environ["FROMFEW_DEBUG"] = "1"
        os.environ["FROMFEW_CACHE"] = str(out.parent / "cache")
        hook = _Deadly(at, out.parent)
        sys.addaudithook(hook)
        from fromfew.cli import main

        with _hurried():
            code = main(["learn", *argv])
        (log.parent / "events").write_text(str(hook.seen))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _end(pid: int, after: float | None) -> int:
    """Kill the process after so many seconds, unless it ends before; returns its exit status (-9: killed)."""
    limit = time.monotonic() + (_LONGEST if after is None else after)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= limit:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if after is None:
                raise RuntimeError(f"A run hung for {_LONGEST:g} s.")
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)


def _place(out: Path) -> str:
    """What a dead process left, in words."""
    work = out / ".work"
    if not work.exists():
        return "after the end" if (out / "concept.json").exists() else "before anything was written"
    if any(out.parent.glob(f".{out.name}.*.tmp")):
        return "while the concept was saved"
    if any(work.glob(".*.tmp")):
        return "while a state was saved"
    if (out / "concept.json").exists():
        return "between saving the concept and the end"
    count = len(list(work.glob("stage-*")))
    return f"in stage {count}" if count else "before the first state"


def _result(out: Path) -> dict[str, object]:
    """Everything of a concept but the time it took."""
    about = json.loads((out / "concept.json").read_text())
    about["card"].pop("seconds")
    files = {item.name: item.read_bytes() for item in out.iterdir() if item.name != "concept.json"}
    return {**files, "concept.json": json.dumps(about, sort_keys=True)}


def torment(case: str, folder: Path, kills: int, seed: int) -> Told:
    """Learn once in peace and again and again under kills, until so many have fallen.

    Args:
        case: Name in `CASES`.
        folder: An empty folder to work in.
        kills: How many processes are to be killed.
        seed: Of the moments.

    Raises:
        RuntimeError: A run fails by itself, or hangs.
    """
    import torch

    import fromfew.fit
    import fromfew.watching  # noqa: F401 - imported before the fork, so that runs are short

    torch.set_num_threads(1)
    rng, told, began = random.Random(f"{seed} {case}"), Told(), time.monotonic()
    source, log = photos(folder / "photos"), folder / "log"
    argv = [str(source), *_COMMON, *CASES[case]]
    peace, start = folder / "peace" / "rex", time.monotonic()
    peace.parent.mkdir()
    _alone(_end(_start([*argv, "--out", str(peace)], peace, log, None), None), log)
    spent, events = time.monotonic() - start, int((folder / "events").read_text())
    expected = _result(peace)
    while told.kills < kills:
        home = folder / f"war-{told.runs}"
        out = home / "rex"
        home.mkdir()
        often = rng.randint(1, 4)
        told.runs += 1
        while True:
            deadly = often > 0 and told.kills < kills
            timed = rng.random() < 0.5
            after = rng.uniform(0, spent) if deadly and timed else None
            at = rng.randint(1, max(events, 1)) if deadly and not timed else None
            resume = ["--resume"] if out.exists() else []
            status = _end(_start([*argv, "--out", str(out), *resume], out, log, at), after)
            if status != -signal.SIGKILL:
                _alone(status, log)
                break
            often -= 1
            told.kills += 1
            told.where[_place(out)] += 1
        found = _result(out)
        told.wrong += [f"{case}, run {told.runs}: {name}" for name in sorted({*found, *expected})
                       if found.get(name) != expected.get(name)]  # fmt: skip
    told.seconds = time.monotonic() - began
    return told


def _alone(status: int, log: Path) -> None:
    if status != 0:
        raise RuntimeError(f"A run that was left alone ended with {status}:\n{log.read_text()[-4000:]}")
