"""Write what the bench measured into the documents, from the committed records.

Every method's page gets its figures, and a sheet of its pictures; where a document says ``<!-- table: objects -->``
(a folder of benchmarks/), the leaderboard of that folder follows.

python scripts/measured.py            # writes the figures, and a sheet where the bench's pictures are at hand
python scripts/measured.py --check    # only says whether the figures are those of the records; 1 if not
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fromfew.bench.gallery import Gallery
from fromfew.bench.records import current, read
from fromfew.bench.tables import COLUMNS, CONTROL_NAMES, Row, leaderboard
from fromfew.bench.watched import savings, table
from fromfew.io.files import write_atomic

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/methods"
BEGIN, END = "<!-- measured: written by scripts/measured.py -->", "<!-- end of measured -->"
SHOWN = (
    "dino-i", "subject-masked", "clip-t", "object-drawn", "context-drawn", "style-drawn", "relation-drawn", "each-own",
    "prior-drift",
)  # fmt: skip
BOARD = (
    "all-drawn", "dino-i", "subject-masked", "clip-i", "clip-t", "object-drawn", "second-drawn", "relation-drawn",
    "each-own", "bleeding", "context-drawn", "style-drawn", "copy-rate", "prior-drift",
)  # fmt: skip
MOST_SUBJECTS, MOST_PROMPTS, SIDE = 3, 6, 112


def folders() -> list[Path]:
    """The committed folders of records; that of all methods comes first, and pages take their sheets from it."""
    found = (file.parent for file in (ROOT / "benchmarks").glob("*/records.jsonl"))
    return sorted(found, key=lambda folder: (folder.name != "objects", folder.name))


def base_name(method: str) -> str:
    """``lora@noise`` and ``lora (rank=4)`` are told on lora's page."""
    for mark in ("+", "@", " "):
        method = method.partition(mark)[0]
    return method


def cells_of(folder: Path) -> list[dict[str, Any]]:
    """What was drawn and scored."""
    return [one for one in current(read(folder)) if one["kind"] == "cell"]


def figures(folder: Path) -> dict[str, str]:
    """By method, its part of the page: one table of this folder."""
    cells = cells_of(folder)
    rows = leaderboard(cells)
    told: dict[str, str] = {}
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task]
        shown = [name for name in SHOWN if any(name in row.means for row in mine) and not _dull(name, task)]
        for method in {base_name(row.method) for row in mine} - set(CONTROL_NAMES):
            own = [row for row in mine if base_name(row.method) == method]
            about = _about(folder, [one for one in cells if one["task"] == task and one["method"] == own[0].method])
            controls = [row for row in mine if row.method in ("base", "real")]
            told[method] = told.get(method, "") + f"{about}\n\n{_table([*own, *controls], shown)}\n"
    return told


def _dull(metric: str, task: str) -> bool:
    """Columns that say nothing about a task: everything is plain where no style is asked for."""
    return metric == "style-drawn" and "style" not in task


def _about(folder: Path, cells: Sequence[Mapping[str, Any]]) -> str:
    subjects, seeds = ({one[key] for one in cells} for key in ("subject", "seed"))
    task, prompts = cells[0]["task"].split()[0], max(len(one["prompts"]) for one in cells)
    fewest = min(sum(one["subject"] == subject for one in cells) for subject in subjects)
    told = f"{fewest} to {len(seeds)}" if fewest < len(seeds) else f"{fewest}"
    counted = f"{len(subjects)} subjects x {prompts} prompts x {told} seed{'s' if len(seeds) > 1 else ''}"
    where = f"../../{folder.relative_to(ROOT).as_posix()}/report.md"
    return f"**Measured** on `{task}`, {counted} ([all]({where})); in brackets the 95 % interval over subjects:"


def _table(rows: Iterable[Row], shown: Sequence[str]) -> str:
    heads = ["", *(COLUMNS[name][0] for name in shown), "learn (s)", "MB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        control = row.method in CONTROL_NAMES
        cost = ["", ""] if control else [f"{row.cost['learn']:.0f}", f"{row.cost['megabytes']:.3f}"]
        cells = [f"*{row.method}*" if control else row.method, *(_cell(row, name) for name in shown), *cost]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Row, metric: str) -> str:
    if metric not in row.means:
        return ""
    mean, low, high = row.means[metric]
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def board(folder: Path) -> str:
    """The leaderboard of a folder, task by task; of runs that watched themselves, what it saved."""
    records = read(folder)
    if any(one["kind"] == "watched" for one in records):
        return table(savings(records))
    rows, parts = leaderboard(cells_of(folder)), []
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task]
        shown = [name for name in BOARD if any(name in row.means for row in mine) and not _dull(name, task)]
        ordered = sorted(mine, key=lambda row: -row.means["each-own" if "each-own" in row.means else "dino-i"][0])
        parts.append(f"`{task}`\n\n{_table(ordered, shown)}\n")
    return "\n".join(parts)


def with_boards(text: str) -> str:
    """A document with its leaderboards as the records have them."""

    def fill(found: re.Match[str]) -> str:
        made = board(ROOT / "benchmarks" / found[1])
        return f"<!-- table: {found[1]} -->\n{made}<!-- end of table -->"

    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end of table -->", fill, text, flags=re.DOTALL)


def sheet(folder: Path, method: str) -> bytes | None:
    """Per subject: a photo, then the method's pictures of the first prompts; None without pictures."""
    from PIL import Image

    from fromfew.sheet import grid

    cells = cells_of(folder)
    photos = {one["subject"]: one for one in cells if one["method"] == "paste"}
    rows = []
    own = [one for one in cells if base_name(one["method"]) == method and one["seed"] == 0]
    # Variants are in the table; a sheet whose rows are of several would not say which is which.
    for cell in [one for one in own if one["method"] == own[0]["method"]][:MOST_SUBJECTS]:
        mine = Gallery(folder / "pictures" / cell["pictures"])
        files = [(mine.path(i * cell["images"]), said) for i, said in enumerate(cell["prompts"][:MOST_PROMPTS])]
        if photo := photos.get(cell["subject"]):
            first = Gallery(folder / "pictures" / photo["pictures"]).path(0)
            files.insert(0, (first, f"a photo: {cell['subject']}"))
        if not all(file.exists() for file, _ in files):
            return None
        rows.append([(Image.open(file).convert("RGB"), said) for file, said in files])
    if not rows:
        return None
    file = io.BytesIO()
    grid(rows, cell=SIDE).convert("RGB").save(file, "JPEG", quality=80)
    return file.getvalue()


def main() -> int:
    """Write or check all pages."""
    check, wrong = "--check" in sys.argv, 0
    told: dict[str, list[str]] = {}
    drawn: dict[str, Path] = {}
    for folder in folders():
        for method, text in figures(folder).items():
            told.setdefault(method, []).append(text)
            drawn.setdefault(method, folder)
    for page in sorted(PAGES.glob("*.md")):
        method, text = page.stem, page.read_text(encoding="utf-8")
        picture = PAGES / "sheets" / f"{method}.jpg"
        if not check and method in drawn and (made := sheet(drawn[method], method)):
            picture.parent.mkdir(exist_ok=True)
            write_atomic(picture, made)
        head, _, rest = text.partition(BEGIN)
        block = ""
        if method in told:
            shown = f"\n![What {method} drew](sheets/{method}.jpg)\n" if picture.exists() else ""
            block = f"{BEGIN}\n" + "\n".join(told[method]) + shown + END
        new = head.rstrip() + "\n" + (f"\n{block}" if block else "") + rest.partition(END)[2].rstrip() + "\n"
        wrong |= _keep(page, text, new.rstrip() + "\n", check)
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        wrong |= _keep(page, text, with_boards(text), check)
    return wrong


def _keep(page: Path, old: str, new: str, check: bool) -> int:
    """Write a page that has changed, or say that it should."""
    if new != old and not check:
        write_atomic(page, new)
    elif new != old:
        print(f"{page.relative_to(ROOT)} is out of date: run scripts/measured.py")
    return int(check and new != old)


if __name__ == "__main__":
    sys.exit(main())
