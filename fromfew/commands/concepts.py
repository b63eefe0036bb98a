"""What a command can know of concepts, bases and prompts before anything heavy is imported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.errors import FromfewError, nearest, unknown
from fromfew.io.files import hash_regular, read_regular

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["Known", "base_to_use", "check_base", "check_prompts", "open_base", "peek"]

TINY = ("tiny-sd15", "tiny-sd21", "tiny-sdxl", "tiny-sd3", "tiny-flux")
_PLACEHOLDER = re.compile(r"<[^<>\s]{1,60}>")
_JSON_LIMIT = 64 * 1024**2


@dataclass(frozen=True)
class Known:
    """The light half of a concept: its folder, names, method, base, and the hash of its numbers."""

    folder: Path
    name: str
    placeholder: str | None
    noun: str | None
    method: str
    base: str
    fingerprint: str
    sha256: str
    about: dict[str, Any]

    @property
    def answers(self) -> dict[str, str | None]:
        """Every placeholder it answers to, with its noun."""
        return {**({self.placeholder: self.noun} if self.placeholder else {}), **self.about.get("also", {})}

    @property
    def aside(self) -> list[str]:
        """Words it also has numbers for, which need not be called, such as those of its photos' backgrounds."""
        told = [part.get("config", {}).get("placeholder") for part in self.about.get("parts", ())]
        return [word for word in told if isinstance(word, str) and word not in self.answers]

    @property
    def words(self) -> str:
        """How a prompt calls it, such as ``<rex> cat``, or ``<rex> cat and a <tom> dog``."""
        each = [f"{word} {noun}" if noun else word for word, noun in self.answers.items()]
        return " and a ".join(each) or self.noun or ""


def _missing(folder: Path) -> FromfewError:
    """The error for a folder that is no concept, with the concepts that lie near."""
    around = {folder.parent, Path("concepts")}
    near = [item.parent for place in around if place.is_dir() for item in place.glob("*/concept.json")]
    names = {str(item): item.name for item in near}
    close = nearest(folder.name, names.values(), 1)
    hint = next((f" Did you mean '{path}'?" for path, name in names.items() if close and name == close[0]), "")
    what = "holds no concept (no concept.json)" if folder.is_dir() else "does not exist"
    return FromfewError(f"'{folder}' {what}.{hint}")


def peek(folder: Path | str) -> Known:
    """Names and origin of a saved concept; the numbers are hashed but not loaded.

    Raises:
        FromfewError: There is no concept, or its JSON is damaged.
    """
    folder = Path(folder)
    if not (folder / "concept.json").exists():
        raise _missing(folder)
    text = read_regular(folder / "concept.json", _JSON_LIMIT)
    try:
        about = json.loads(text.decode("utf-8"))
        name, placeholder, noun, card = about["name"], about["placeholder"], about["noun"], about["card"]
        base = card["base"]
        texts = [name, card["method"], base["name"], base["fingerprint"]]
        optional = [value for value in (placeholder, noun, *about.get("also", {}).values()) if value is not None]
        if not all(isinstance(value, str) for value in texts + optional):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FromfewError(f"'{folder / 'concept.json'}' is damaged: it is not the card of a concept.") from error
    numbers = folder / "concept.safetensors"
    if not numbers.exists():
        raise FromfewError(f"'{folder}' is damaged: concept.safetensors is missing.")
    sha = hash_regular(numbers)
    return Known(folder, name, placeholder, noun, card["method"], base["name"], base["fingerprint"], sha, about)


def check_base(name: str) -> str:
    """``name`` if a base of that name may exist: "world", a tiny twin, a folder, a checkpoint, or a hub id.

    Raises:
        FromfewError: It cannot exist.
    """
    path = Path(name)
    if name == "world" or name in TINY or path.exists():
        return name
    if name.startswith("tiny-"):
        raise unknown("base", name, TINY)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/")):
        return name
    if "/" in name or path.suffix:
        raise FromfewError(f"The base '{name}' does not exist.")
    raise unknown("base", name, ["world", *TINY])


def base_to_use(asked: str | None, concepts: Sequence[Known]) -> str:
    """The base that was asked for, else the one the concepts were learned on, else the embedded one.

    Raises:
        FromfewError: The concepts were learned on different bases, or that base is not found.
    """
    if asked is not None:
        return check_base(asked)
    names = {one.base: one for one in concepts}
    if len(names) > 1:
        told = ", ".join(f"'{one.name}' on '{one.base}'" for one in names.values())
        raise FromfewError(f"The concepts were learned on different bases ({told}). Choose one with --base.")
    for name, one in names.items():
        try:
            return check_base(name)
        except FromfewError as error:
            raise FromfewError(
                f"'{one.name}' was learned on the base '{name}', which is not found by that name. "
                "Say where it is with --base."
            ) from error
    return "world"


def _edits(a: str, b: str) -> int:
    """Letters to change, drop or add to turn one word into the other; swapping two neighbours counts once."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def check_prompts(prompts: Iterable[str], concepts: Sequence[Known]) -> list[str]:
    """Check that every ``<word>`` of the prompts is a concept's; returns remarks about concepts not called.

    Raises:
        FromfewError: A prompt is empty, or calls a concept that is not there; the nearest is named.
    """
    prompts = list(prompts)
    known = [word for one in concepts for word in one.answers]
    aside = {word for one in concepts for word in one.aside}
    for one in concepts:
        if sum(one.sha256 == other.sha256 and one.name == other.name for other in concepts) > 1:
            raise FromfewError(f"The concept '{one.folder}' is given twice. Give it once, with a strength.")
    for twice in {word for word in known if known.count(word) > 1}:
        both = " and ".join(f"'{one.folder}'" for one in concepts if twice in one.answers)
        raise FromfewError(f"{both} both answer to {twice}. Learn one of them again with another --as.")
    for prompt in prompts:
        if not prompt.strip():
            raise FromfewError("A prompt is empty. Say what to make.")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise FromfewError("A prompt holds bytes that are no text (it is not UTF-8).")
        for word in _PLACEHOLDER.findall(prompt):
            if word in known or word in aside:
                continue
            if not known:
                raise FromfewError(f"The prompt calls {word}, but no concept is given. Add --with FOLDER.")
            close = min(known, key=lambda one: _edits(word.lower(), one))
            meant = _edits(word.lower(), close) <= max(2, len(close) // 3)
            hint = f"Did you mean {close}?" if meant else f"There is: {', '.join(known)}."
            raise FromfewError(f"The prompt calls {word}, which no concept answers to. {hint}")
    called = " ".join(prompts)
    return [
        f"No prompt calls {word}: '{one.name}' may not show. Write '{' '.join(filter(None, (word, noun)))}' where it "
        "belongs."
        for one in concepts
        for word, noun in one.answers.items()
        if word not in called
    ]


def open_base(name: str, device: str) -> Backbone:
    """Open a base on a device; "auto" takes the GPU if there is one.

    Raises:
        FromfewError: There is no such base, or no such device.
    """
    import torch

    from fromfew.backbones.open import open_backbone

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise FromfewError("There is no CUDA device here. Use --device cpu.")
    return open_backbone(name, device=device)
