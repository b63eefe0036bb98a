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
    """Yield ``watch(done, total, note="")``: a bar with the time left, or lines off a terminal."""
    if sys.stderr.isatty():
        with _bar(title) as watch:
            yield watch
    else:
        yield _lines(title)


def _lines(title: str) -> Callable[..., None]:
    began = last = time.monotonic()
    before = 0

    def watch(done: int, total: int, note: str = "") -> None:
        nonlocal began, last, before
        now = time.monotonic()
        if done < before:  # the next stage
            began = now
        before = done
        if done == total or now - last > _EVERY:
            last = now
            left = (now - began) / max(done, 1) * (total - done)
            tail = f", {clock(left)} left" if done < total else ""
            remark(f"{title}: {done}/{total} {note}".rstrip() + tail)

    return watch


@contextmanager
def _bar(title: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(title, total=None, note="")
        before = 0

        def watch(done: int, total: int, note: str = "") -> None:
            nonlocal before
            if done < before:  # the next stage
                bar.reset(task)
            before = done
            bar.update(task, completed=done, total=total, note=note)

        yield watch
