"""Records: one line of JSON per finished cell, only ever added to; claims, so that several processes share a folder."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fromfew.errors import FromfewError
from fromfew.io.files import lock

__all__ = ["IGNORED", "alone", "append", "claimed", "current", "key_of", "prepare", "read"]

FILE = "records.jsonl"
IGNORED = ("pictures/", "concepts/", "claims/", "report.html", "records.parquet")
"""What a folder's own .gitignore leaves out: bulky, or drawn again from the rest."""


def key_of(parts: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with anything that would change the result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def prepare(out: Path) -> None:
    """Make the folder, with a .gitignore that keeps pictures out of git."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "claims").mkdir(exist_ok=True)
    ignore = out / ".gitignore"
    if not ignore.exists():
        ignore.write_text("\n".join(IGNORED) + "\n")


def append(out: Path, record: Mapping[str, Any]) -> None:
    """Add one line in one write; a line cut short by an earlier kill is closed first."""
    line = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    fd = os.open(out / FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(fd).st_size
        torn = size and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, (("\n" if torn else "") + line + "\n").encode())
        os.fsync(fd)
    finally:
        os.close(fd)


def read(out: Path) -> list[dict[str, Any]]:
    """All whole records, the last one of a key only; lines that a kill cut short are passed over."""
    path = out / FILE
    if not path.exists():
        return []
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "key" in record:
            found[record["key"]] = record
    return list(found.values())


def current(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The newest record of every method, task, subject, seed and base.

    Older ones, made with other versions of metrics or networks, stay in the file and out of tables.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in records:
        base = one.get("base", {}).get("fingerprint")
        place = (one["kind"] == "set", one.get("method"), one.get("task"), one.get("subject"), one.get("seed"), base)
        found.pop(place, None)  # the newest keeps its place in time
        found[place] = dict(one)
    return list(found.values())


@contextmanager
def claimed(out: Path, key: str) -> Iterator[bool]:
    """Yield whether this process may do a cell; the claim is dropped by the system when the process ends."""
    holder = lock(out / "claims" / key)
    try:
        holder.__enter__()
    except FromfewError:
        yield False
        return
    try:
        yield True
    finally:
        holder.__exit__(None, None, None)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Wait until no other process is at this concept: what is learned once serves several contestants."""
    while True:
        holder = lock(home)
        try:
            holder.__enter__()
        except FromfewError:
            time.sleep(1)
            continue
        try:
            yield
        finally:
            holder.__exit__(None, None, None)
        return
