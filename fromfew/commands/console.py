"""What the verbs say: results on standard output, progress and remarks on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["clock", "progress", "remark", "say", "say_json"]

_EVERY = 10.0


def say(text: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """The result for machines."""
    say(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def remark(text: str) -> None:
    """Something worth knowing that is no result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def clock(seconds: float) -> str:
    """A length of time in words of a clock.

    >>> clock(7), clock(95), clock(3700)
    ('7 s', '1 min 35 s', '1 h 1 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def progress(title: str) -> Iterator[Callable[..., None]]:
    """Yield ``watch(done, total, note="")``: a bar with the time left, or lines off a terminal.

    What was done before the first call (by a run that is gone on with) says nothing of how long the rest takes.
    """
    if sys.stderr.isatty():
        with _bar(title) as watch:
            yield watch
    else:
        yield _lines(title)


def _lines(title: str) -> Callable[..., None]:
    began = last = time.monotonic()
    before: int | None = None
    first = 0

    def watch(done: int, total: int, note: str = "") -> None:
        nonlocal began, last, before, first
        now = time.monotonic()
        if before is None or done < before:  # the first, or the next, stage
            began, first = now, done
        before = done
        if done == total or now - last > _EVERY:
            last = now
            left = f", {clock((now - began) / (done - first) * (total - done))} left" if first < done < total else ""
            remark(f"{title}: {done}/{total} {note}".rstrip() + left)

    return watch


@contextmanager
def _bar(title: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    # A cell of a bench takes minutes: the speed is that of the last quarter of an hour.
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=900) as bar:
        task = bar.add_task(title, total=None, note="")
        before: int | None = None

        def watch(done: int, total: int, note: str = "") -> None:
            nonlocal before
            if before is None or done < before:  # the first, or the next, stage
                bar.reset(task, completed=done, total=total)
            before = done
            bar.update(task, completed=done, total=total, note=note)

        yield watch
