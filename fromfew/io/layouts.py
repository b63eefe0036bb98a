"""How people keep training pictures in folders, read as they are: which files, which captions, how often.

Understood: a plain folder; captions in ``NAME.txt`` beside ``NAME.jpg``; ``metadata.jsonl`` or
``metadata.csv`` (imagefolder); ``10_token class`` folders (kohya: ten repeats); masks in ``NAME.mask.png``, and of
several things in one picture in ``NAME.WORD.mask.png`` or ``NAME.WORD=NOUN.mask.png``.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fromfew.errors import FromfewError, nearest
from fromfew.io.files import read_regular
from fromfew.io.pictures import ENDINGS, FOREIGN

__all__ = ["Layout", "Shot", "find_pictures"]

_KOHYA = re.compile(r"^(\d{1,4})_(.+)$")
_TEXT_LIMIT = 16 * 1024**2
_MOST_FILES = 100_000
_CAPTION_KEYS = ("text", "caption", "prompt")
_OURS = {"metadata.jsonl", "metadata.csv"}


@dataclass(frozen=True)
class Shot:
    """One picture to read: its file, mask file, caption, how often it counts, and masks of things by their names."""

    path: Path
    mask: Path | None = None
    caption: str | None = None
    repeats: int = 1
    things: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class Layout:
    """What a folder holds.

    Attributes:
        shots: The pictures, in the order of their names.
        ignored: Files that are no pictures, hidden, or sub-folders, as relative names.
        foreign: Picture files that must be converted first.
        noun: The class a kohya folder's name gives, or None.
    """

    shots: tuple[Shot, ...]
    ignored: tuple[str, ...] = ()
    foreign: tuple[Path, ...] = ()
    noun: str | None = None


@dataclass
class _Found:
    shots: list[Shot] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def _natural(path: Path) -> tuple[Any, ...]:
    """Sort key under which 2.jpg comes before 10.jpg."""
    return tuple((int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", path.name))


def _text(path: Path) -> str:
    try:
        return read_regular(path, _TEXT_LIMIT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FromfewError(f"'{path}' is not UTF-8 text.") from error


def _caption_of(path: Path) -> str | None:
    """The caption in the .txt (or .caption) file beside a picture; an empty file counts as none."""
    for beside in (path.with_suffix(".txt"), path.with_suffix(".caption")):
        if beside.exists() and beside.stat().st_size:
            return " ".join(_text(beside).split()) or None
    return None


def _is_mask(path: Path) -> bool:
    return path.name.lower().endswith(".mask.png")


def _mask_of(path: Path) -> Path | None:
    """``cat.mask.png`` or ``cat.jpg.mask.png`` beside ``cat.jpg``."""
    for beside in (path.with_suffix(".mask.png"), path.with_name(path.name + ".mask.png")):
        if beside.exists() or beside.is_symlink():
            return beside
    return None


def _things_of(path: Path, beside: Iterable[Path] | None = None) -> tuple[tuple[str, Path], ...]:
    """``cat.WORD.mask.png`` beside ``cat.jpg``, by WORD, in the order of their names.

    Not ``cat.jpg.mask.png``, which is the mask of ``cat.jpg`` itself, nor ``cat.2.mask.png`` if there is a
    ``cat.2.jpg``.
    """
    around = sorted(path.parent.iterdir(), key=_natural) if beside is None else list(beside)
    pictures = {item.stem for item in around if item.suffix.lower() in ENDINGS and not _is_mask(item)}
    start, end = f"{path.stem}.", ".mask.png"
    found = []
    for item in around:
        if item.name.startswith(start) and _is_mask(item) and len(item.name) > len(start) + len(end):
            name = item.name[len(start) : -len(end)]
            if f".{name.lower()}" not in ENDINGS and f"{path.stem}.{name}" not in pictures:
                found.append((name, item))
    return tuple(found)


def _scan(folder: Path) -> _Found:
    """Sort what lies in one folder; nothing is opened yet."""
    found = _Found()
    try:
        items = sorted(folder.iterdir(), key=_natural)
    except OSError as error:
        raise FromfewError(f"'{folder}' cannot be listed: {error.strerror}.") from error
    if len(items) > _MOST_FILES:
        raise FromfewError(f"'{folder}' holds {len(items):,} files; name a folder of a few pictures.")
    masks = items if any(map(_is_mask, items)) else []
    for item in items:
        ending = item.suffix.lower()
        if item.name.startswith("."):
            found.ignored.append(item.name)
        elif item.is_dir():
            found.folders.append(item)
        elif _is_mask(item):
            continue
        elif ending in FOREIGN:
            found.foreign.append(item)
        elif ending in ENDINGS:
            found.shots.append(Shot(item, _mask_of(item), _caption_of(item), things=_things_of(item, masks)))
        elif ending not in (".txt", ".caption") and item.name not in _OURS:
            found.ignored.append(item.name)
    names = {shot.path.stem for shot in found.shots}
    texts = [item for item in items if item.suffix.lower() in (".txt", ".caption") and item.name[0] != "."]
    found.ignored += [item.name for item in texts if item.stem not in names]
    return found


def _rows(table: Path) -> Iterable[tuple[int, Any]]:
    """Numbered rows of a metadata file."""
    text = _text(table)
    if table.suffix == ".csv":
        yield from enumerate(csv.DictReader(io.StringIO(text)), start=2)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FromfewError(f"'{table}' line {number} is not JSON.") from error


def _row(table: Path, number: int, row: Any) -> Shot:
    """One checked row of a metadata file."""
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        raise FromfewError(f"'{table}' line {number} has no \"file_name\".")
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise FromfewError(f"'{table}' line {number} names '{name}', which is outside the folder.")
    path = table.parent / path
    if not path.exists():
        raise FromfewError(f"'{table}' line {number} names '{name}', which is not there.")
    caption = next((row[key] for key in _CAPTION_KEYS if row.get(key)), None)
    if caption is not None and not isinstance(caption, str):
        raise FromfewError(f"'{table}' line {number} has a caption that is not text.")
    return Shot(path, _mask_of(path), " ".join(caption.split()) if caption else None, things=_things_of(path))


def _with_metadata(folder: Path, found: _Found) -> None:
    """Add the captions of a metadata file, and the pictures in sub-folders that it names."""
    for name in sorted(_OURS):
        if not (folder / name).exists():
            continue
        named = {}
        for number, row in _rows(folder / name):
            shot = _row(folder / name, number, row)
            if shot.path in named:
                raise FromfewError(f"'{folder / name}' line {number} names '{row['file_name']}' a second time.")
            named[shot.path] = shot
        own = [
            replace(shot, caption=named.pop(shot.path).caption or shot.caption) if shot.path in named else shot
            for shot in found.shots
        ]
        found.shots = own + list(named.values())
        return


def _kohya(folder: Path) -> tuple[int, str] | None:
    """Repeats and label of a folder called ``10_token class``."""
    match = _KOHYA.match(folder.name)
    return (int(match[1]), match[2].strip()) if match and int(match[1]) > 0 else None


def _repeated(folder: Path) -> _Found:
    repeats, _ = _kohya(folder) or (1, "")
    found = _scan(folder)
    _with_metadata(folder, found)
    found.shots = [replace(shot, repeats=repeats) for shot in found.shots]
    return found


def _class_of(folder: Path) -> str | None:
    """``10_sks dog`` teaches a dog: all but the first word of the label."""
    label = (_kohya(folder) or (1, ""))[1].split()
    return " ".join(label[1:]) or None


def _of_folder(folder: Path) -> Layout:
    found = _repeated(folder)
    sets = [sub for sub in found.folders if _kohya(sub)]
    noun = _class_of(folder)
    if not found.shots and sets:
        noun = next(filter(None, map(_class_of, sets)), None)
        for inner in map(_repeated, sets):
            found.shots += inner.shots
            found.ignored += inner.ignored
            found.foreign += inner.foreign
    used = {shot.path.parent for shot in found.shots}
    others = [sub for sub in found.folders if sub not in used]
    if not found.shots and not found.foreign:
        _explain_empty(folder, others, found.ignored)
    ignored = found.ignored + [f"{sub.name}/" for sub in others if not sub.name.startswith("__")]
    return Layout(tuple(found.shots), tuple(ignored), tuple(found.foreign), noun)


def _explain_empty(folder: Path, subs: Sequence[Path], ignored: Sequence[str]) -> None:
    holding = [sub.name for sub in subs if any(item.suffix.lower() in ENDINGS for item in sub.iterdir())]
    if holding:
        names = ", ".join(f"'{folder / name}'" for name in holding[:3])
        raise FromfewError(f"'{folder}' has no pictures of its own. Did you mean {names}?")
    if ignored:
        raise FromfewError(f"'{folder}' holds no pictures, only other files ({', '.join(ignored[:3])}).")
    raise FromfewError(f"'{folder}' is empty.")


def _of_files(files: Sequence[Path]) -> Layout:
    shots, foreign = [], []
    for path in files:
        if path.is_dir():
            raise FromfewError(f"'{path}' is a folder; give either one folder or single pictures.")
        if not path.exists() and not path.is_symlink():
            raise FromfewError(f"'{path}' does not exist.")
        if path.suffix.lower() in FOREIGN:
            foreign.append(path)
        else:
            shots.append(Shot(path, _mask_of(path), _caption_of(path), things=_things_of(path)))
    return Layout(tuple(shots), (), tuple(foreign))


def find_pictures(where: Path | str | Sequence[Path | str]) -> Layout:
    """The pictures of a folder, or of a list of files, with captions, masks and repeats; none is opened yet.

    Raises:
        FromfewError: There is no such folder, it holds no pictures, or its metadata is wrong.
    """
    if not isinstance(where, str | Path):
        files = [Path(item) for item in where]
        if not files:
            raise FromfewError("No pictures were given.")
        return _of_folder(files[0]) if len(files) == 1 and files[0].is_dir() else _of_files(files)
    path = Path(where)
    if path.is_dir():
        return _of_folder(path)
    if path.exists() or path.is_symlink():
        return _of_files([path])
    near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, near, 1) if path.name else []
    raise FromfewError(f"'{path}' does not exist." + (f" Did you mean '{path.parent / close[0]}'?" if close else ""))
