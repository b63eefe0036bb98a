"""Files that are wholly the old or wholly the new: atomic writes, folders swapped in one step, locks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from fromfew.errors import FromfewError

__all__ = [
    "hash_regular",
    "lock",
    "open_regular",
    "read_regular",
    "recover_folder",
    "replace_folder",
    "replacing",
    "write_atomic",
]

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _reason(path: Path, error: OSError) -> str:
    """What went wrong with ``path``, in words."""
    if error.errno in _FULL:
        return f"The disk is full: '{path}' was not written; what was there before is unchanged."
    words = {
        errno.ENOENT: "does not exist",
        errno.EACCES: "may not be opened: permission denied",
        errno.EPERM: "may not be opened: permission denied",
        errno.EROFS: "lies on a read-only disk",
        errno.ELOOP: "is a link that leads to itself",
        errno.ENXIO: "is a socket or device, not a file",
        errno.ENOTDIR: "lies under something that is not a folder",
        errno.EISDIR: "is a folder, not a file",
        errno.ENAMETOOLONG: "has too long a name",
    }
    return f"'{path}' {words.get(error.errno or 0, f'cannot be used: {error.strerror or error}')}."


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a FromfewError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise FromfewError(_reason(path, error)) from error


def open_regular(path: Path | str, limit: int | None = None) -> int:
    """A read-only descriptor of a regular file, opened without ever waiting for a pipe or a device.

    Args:
        path: What to open; links are followed.
        limit: Most bytes the file may have.

    Raises:
        FromfewError: It is missing, no regular file, a loop of links, empty, or longer than ``limit``.
    """
    path = Path(path)
    with _explained(path):
        # O_NONBLOCK: opening a pipe that nobody writes to would otherwise wait for ever.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        about = os.fstat(fd)
        for test, kind in _KINDS:
            if test(about.st_mode):
                raise FromfewError(f"'{path}' is {kind}, not a file.")
        if about.st_size == 0:
            raise FromfewError(f"'{path}' is empty (0 bytes).")
        if limit is not None and about.st_size > limit:
            raise FromfewError(f"'{path}' has {about.st_size:,} bytes; more than {limit:,} are not read.")
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_regular(path: Path | str, limit: int) -> bytes:
    """All bytes of a regular file of at most ``limit`` bytes.

    Raises:
        FromfewError: As `open_regular`.
    """
    path = Path(path)
    with os.fdopen(open_regular(path, limit), "rb") as file, _explained(path):
        data = file.read(limit + 1)
    if not data:
        raise FromfewError(f"'{path}' is empty (0 bytes).")
    if len(data) > limit:
        raise FromfewError(f"'{path}' grew while it was read; more than {limit:,} bytes are not read.")
    return data


def hash_regular(path: Path | str) -> str:
    """SHA-256 (64 hexadecimal digits) of a regular file of any length, read piece by piece.

    Raises:
        FromfewError: As `open_regular`.
    """
    path = Path(path)
    with os.fdopen(open_regular(path), "rb") as file, _explained(path):
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut, where the system can."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a fresh path beside ``path``; what is written there takes its name in one step at the end.

    Raises:
        FromfewError: The disk is full or the folder cannot be written; the old file is untouched.
    """
    path = Path(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.parent / f".{path.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with _explained(path):
            yield fresh
            _sync_file(fresh)
            fresh.replace(path)
            _sync_folder(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old one or the new one, whole.

    Raises:
        FromfewError: As `replacing`.
    """
    with replacing(path) as fresh:
        fresh.write_bytes(data.encode() if isinstance(data, str) else data)


def _exchange(new: Path, old: Path) -> bool:
    """Swap two folders in one system call; False where the system has none."""
    if sys.platform.startswith("linux"):
        name, flags = "renameat2", (-100, os.fsencode(new), -100, os.fsencode(old), 2)  # AT_FDCWD, EXCHANGE
    elif sys.platform == "darwin":
        name, flags = "renamex_np", (os.fsencode(new), os.fsencode(old), 2)
    else:
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return call is not None and call(*flags) == 0


def recover_folder(target: Path | str) -> None:
    """Finish a swap that was cut short on a system without an atomic exchange; safe to call at any time."""
    target = Path(target)
    aside = target.parent / f".{target.name}.old"
    if aside.is_dir() and not target.exists():
        aside.rename(target)


def _sweep(target: Path) -> None:
    """Remove what earlier processes, killed while they wrote ``target``, left beside it."""
    for left in target.parent.glob(f".{target.name[:80]}.*-*.tmp"):
        owner = left.name.rsplit(".", 2)[1].partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _carry_over(source: Path, new: Path) -> None:
    """Link (or copy) into ``new`` every file of ``source`` that ``new`` lacks."""
    for item in sorted(source.rglob("*")):
        there = new / item.relative_to(source)
        if item.is_dir() and not item.is_symlink():
            there.mkdir(exist_ok=True)
        elif not there.exists() and not item.name.endswith(".tmp"):
            try:
                os.link(item, there, follow_symlinks=False)
            except OSError:
                shutil.copy2(item, there, follow_symlinks=False)


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
    elif not _exchange(new, target):
        aside = target.parent / f".{target.name}.old"
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)  # cut short here, `recover_folder` puts it back
        new.rename(target)
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def replace_folder(target: Path | str, keep: bool = True) -> Iterator[Path]:
    """Yield a new, empty folder that takes the place of ``target`` in one step at the end.

    Args:
        target: The folder to write; it may exist.
        keep: Carry over the old folder's files that were not written anew.

    Raises:
        FromfewError: The disk is full, or the place cannot be written; the old folder is untouched.
    """
    target = Path(target)
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(target)
        _sweep(target)
        if target.exists() and not target.is_dir():
            raise FromfewError(f"'{target}' is a file; a folder is to be written there.")
        new = target.parent / f".{target.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        new.mkdir()
    try:
        with _explained(target):
            yield new
            if keep and target.exists():
                _carry_over(target, new)
            for item in new.rglob("*"):
                if item.is_file() and not item.is_symlink():
                    _sync_file(item)
            _sync_folder(new)
            _swap(new, target)
            _sync_folder(target.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _try_lock(fd: int) -> bool:
    """Take an exclusive lock that the system drops when this process ends, however it ends."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _same_file(fd: int, path: Path) -> bool:
    """Whether ``path`` still names the open file (a holder removes it when done)."""
    try:
        there = path.stat()
    except OSError:
        return False
    here = os.fstat(fd)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


@contextlib.contextmanager
def lock(target: Path | str) -> Iterator[None]:
    """Hold ``target`` (a file or folder to be written) for this process alone.

    Raises:
        FromfewError: Another process is writing it.
    """
    target = Path(target).absolute()
    path = target.parent / f".{target.name}.lock"
    with _explained(target):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _explained(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _try_lock(fd):
            owner = os.read(fd, 32).decode("ascii", "replace").strip()
            os.close(fd)
            who = f" (process {owner})" if owner.isdigit() else ""
            raise FromfewError(f"'{target}' is being written by another fromfew{who}. Wait for it or write elsewhere.")
        if _same_file(fd, path):
            break
        os.close(fd)  # it was removed between opening and locking: take the new one
    try:
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(fd)
