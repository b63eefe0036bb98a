"""The report of a bench folder: one page of HTML that needs nothing else, Markdown, CSV, and one contact sheet."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fromfew.bench.charts import scatter
from fromfew.bench.parquet import FILE, packed
from fromfew.bench.records import current, read
from fromfew.bench.tables import COLUMNS, CONTROL_NAMES, Row, breakdown, leaderboard, published
from fromfew.errors import FromfewError
from fromfew.io.files import write_atomic

__all__ = ["report"]

_THUMB = 80
_MOST_THUMBS = 1200
_SHEET_PROMPTS = 4
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:12.5px;margin:.6rem 0 1.4rem;display:block;overflow-x:auto}
td,th{padding:.25rem .35rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap;line-height:1.25}
th{white-space:normal;vertical-align:bottom}
td:first-child,th:first-child{text-align:left;position:sticky;left:0;background:#fff}
small{color:#777;display:block;font-size:10px}tr.control{color:#777;font-style:italic}.flag{color:#b00}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.charts div{flex:1 1 30rem;max-width:40rem}
.charts div:has(.large){flex-basis:60rem;max-width:66rem}
.chart{width:100%}.chart text{font-size:11px;fill:#333}.chart .tick{fill:#888;font-size:10px}
.axis{stroke:#999;fill:none}.leader{stroke:#bbb;fill:none}.front{stroke:#2a7;fill:none;stroke-dasharray:4 3}
.method{fill:#2666cf}.control{fill:#aaa}img{display:block;image-rendering:auto}
.sheet td{padding:2px;border:0}.sheet td:first-child{padding-right:.6rem}
.sheet th{max-width:84px;text-align:left;vertical-align:bottom}
"""


@dataclass(frozen=True)
class Written:
    """Where a report is."""

    html: Path
    markdown: Path
    csv: Path
    sheet: Path | None
    parquet: Path | None


def report(folder: Path) -> Written:
    """Write ``report.html``, ``report.md``, ``report.csv``, and ``sheet.jpg`` if pictures are there.

    With pyarrow, also ``records.parquet``: all records, those that are out of date included.

    Raises:
        FromfewError: The folder holds no records.
    """
    records = current(read(folder))
    rows = leaderboard(records)
    if not records:
        raise FromfewError(f"'{folder}' holds no records; run `fromfew bench --out {folder}` first.")
    write_atomic(folder / "report.md", _markdown(rows, records))
    write_atomic(folder / "report.csv", _csv(rows))
    write_atomic(folder / "report.html", _html(folder, rows, records))
    sheet = _sheet(folder, records)
    return Written(folder / "report.html", folder / "report.md", folder / "report.csv", sheet, _parquet(folder))


def _parquet(folder: Path) -> Path | None:
    if find_spec("pyarrow") is None:
        return None
    write_atomic(folder / FILE, packed(read(folder)))
    return folder / FILE


def _tasks(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(row)
    return found


def _shown(rows: Sequence[Row]) -> list[str]:
    return [name for name in COLUMNS if any(name in row.means for row in rows)]


def _cell(row: Row, metric: str) -> str:
    if metric not in row.means:
        return ""
    mean, low, high = row.means[metric]
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


_COSTS = ("learn (s)", "draw (s)", "MB", "peak GB")


def _costs(row: Row) -> list[str]:
    cost = row.cost
    return [f"{cost['learn']:.1f}", f"{cost['draw']:.2f}", f"{cost['megabytes']:.3f}", f"{cost['gigabytes']:.1f}"]


def _markdown(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    lines = ["# Bench", "", _conditions(records), ""]
    for task, mine in _tasks(rows).items():
        shown = _shown(mine)
        note = f"{_arrows(shown)} Mean over subjects [95 % bootstrap interval over subjects].{_uneven(mine)}"
        lines += [f"## {task}", "", note, ""]
        heads = ["method", *(COLUMNS[name][0] for name in shown), *_COSTS]
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for row in mine:
            name = f"*{row.method}*" if row.method in CONTROL_NAMES else row.method
            name += " (copies photos)" if row.copied else ""
            cells = [name, *(_cell(row, metric) for metric in shown), *_costs(row)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    trouble = _trouble(records)
    if trouble:
        lines += ["## Failures and refusals", "", *(f"- {line}" for line in trouble), ""]
    return "\n".join(lines)


def _uneven(rows: Sequence[Row]) -> str:
    """Which rows rest on fewer subjects or pictures than others, so that means cannot be compared."""
    sizes = {row.method: (row.subjects, row.pictures) for row in rows}
    most = max(sizes.values())
    fewer = [f"{name} ({n} subjects, {k} pictures)" for name, (n, k) in sizes.items() if (n, k) != most]
    full = f"{most[0]} subjects and {most[1]} pictures"
    return f" Not comparable with the rest, which rests on {full}: {', '.join(fewer)}." if fewer else ""


def _arrows(shown: Sequence[str]) -> str:
    less = [COLUMNS[name][0] for name in shown if not COLUMNS[name][1]]
    return f"More is better, except: {', '.join(less)}." if less else "More is better."


def _conditions(records: Sequence[Mapping[str, Any]]) -> str:
    cells = [one for one in records if one["kind"] == "cell"]
    if not cells:
        return "No cell was finished."
    bases = sorted({f"{one['base']['name']} ({one['base']['fingerprint'][:12]})" for one in cells})
    machines, seeds = sorted({one["machine"] for one in cells}), sorted({one["seed"] for one in cells})
    versions = ", ".join(f"{name} {number}" for name, number in sorted(cells[-1]["versions"].items()))
    told = f"Base {', '.join(bases)}; seeds {', '.join(map(str, seeds))}; {', '.join(machines)}; {versions}."
    return told + " *base*, *paste* and *real* are controls: the untouched base, a returned photo, the real scene."


def _trouble(records: Sequence[Mapping[str, Any]]) -> list[str]:
    found: dict[str, int] = {}
    for one in records:
        if one["kind"] in ("failed", "refused"):
            line = f"{one['method']} {one['kind']} on {one['task']}: {one['why']}"
            found[line] = found.get(line, 0) + 1
    return [f"{line} ({count} cells)" for line, count in sorted(found.items())]


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "method", "measure", "mean", "low", "high", "subjects", "pictures"])
    for row in rows:
        tail = [row.subjects, row.pictures]
        for metric, values in sorted(row.means.items()):
            writer.writerow([row.task, row.method, metric, *(f"{v:.5f}" for v in values), *tail])
        for name, value in [*sorted(row.sets.items()), *sorted(row.cost.items())]:
            writer.writerow([row.task, row.method, name, f"{value:.5f}", "", "", *tail])
    return text.getvalue()


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """HTML of a table; the first of each pair is the row's class."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for kind, cells in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _html(folder: Path, rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fromfew bench</title>',
        f"<style>{_STYLE}</style></head><body><h1>Bench</h1>",
        f"<p>{escape(_conditions(records)).replace('*', '')}</p>",
    ]
    pictures = _Thumbs(folder)
    for task, mine in _tasks(rows).items():
        parts += [f"<h2>{escape(task)}</h2>", _board(mine), *_charts(mine), *_breakdowns(records, task)]
        parts.append(_contact(pictures, [r for r in records if r["kind"] == "cell" and r["task"] == task]))
    trouble = _trouble(records)
    if trouble:
        parts.append("<h2>Failures and refusals</h2><ul>" + "".join(f"<li>{escape(t)}</li>" for t in trouble) + "</ul>")
    parts += [_metrics(records), _papers(), "</body></html>"]
    return "\n".join(parts)


def _board(rows: Sequence[Row]) -> str:
    shown = _shown(rows)
    heads = ["method", *(COLUMNS[name][0] for name in shown), *_COSTS]
    body = []
    for row in rows:
        name = escape(row.method) + (' <span class="flag">copies photos</span>' if row.copied else "")
        cells = [name]
        for metric in shown:
            told = row.means.get(metric)
            ends = "–".join(f"{end:.3f}".replace("-", "−") for end in told[1:]) if told else ""
            cells.append(f"{told[0]:.3f}<small>{ends}</small>" if told else "")
        body.append((_kind(row), [*cells, *_costs(row)]))
    most = max(row.subjects for row in rows)
    note = f"{_arrows(shown)} Small: 95 % bootstrap interval over {most} subjects.{_uneven(rows)}"
    return f"<p>{escape(note)}</p>" + _table(heads, body) + _distances(rows)


def _kind(row: Row) -> str:
    return "control" if row.method in CONTROL_NAMES else ""


def _distances(rows: Sequence[Row]) -> str:
    """Distances between all pictures of a method and the photos not learned from."""
    sets = sorted({name for row in rows for name in row.sets})
    body = [
        (_kind(row), [escape(row.method), *(f"{row.sets[s]:.3f}" if s in row.sets else "" for s in sets)])
        for row in rows
        if row.sets
    ]
    if not body:
        return ""
    small = min(row.pictures for row in rows)
    few = f"<p>They rest on {small} pictures only: compare rows, not papers.</p>" if small < 2000 else ""
    return f"<details><summary>distances of sets</summary>{few}{_table(['method', *sets], body)}</details>"


def _charts(rows: Sequence[Row]) -> list[str]:
    plane = {
        row.method: (row.fidelity, row.means["clip-t"][0])
        for row in rows
        if row.fidelity is not None and "clip-t" in row.means
    }
    cost = {
        row.method: (row.cost["learn"] + row.cost["draw"] * row.pictures / max(1, row.subjects), row.quality)
        for row in rows
        if row.method not in ("paste", "real")
    }
    return [
        '<div class="charts"><div><h3>Fidelity against alignment</h3>',
        scatter(plane, ("subject fidelity", "text alignment (CLIP-T)"), pareto=True),
        "</div><div><h3>Cost against quality</h3>",
        scatter(cost, ("seconds a subject, learning and drawing", "quality"), log=True),
        "</div></div>",
    ]


def _breakdowns(records: Sequence[Mapping[str, Any]], task: str) -> list[str]:
    parts = []
    for metric in ("all-drawn", "dino-i", "clip-t"):
        for by in ("subject", "prompt"):
            table = breakdown(records, task, metric, by)
            methods = sorted({method for cells in table.values() for method in cells})
            rows = [
                ("", [escape(name), *(f"{cells[m]:.3f}" if m in cells else "" for m in methods)])
                for name, cells in table.items()
            ]
            if rows:
                title = f"{COLUMNS[metric][0]} by {by}"
                parts.append(f"<details><summary>{escape(title)}</summary>{_table([by, *methods], rows)}</details>")
    return parts


class _Thumbs:
    """Small pictures inside the page, up to a number that keeps it light."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.left = folder, _MOST_THUMBS

    def image(self, path: Path) -> str:
        if self.left <= 0 or not path.exists():
            return ""
        from PIL import Image

        self.left -= 1
        with Image.open(path) as picture:
            width = round(_THUMB * picture.width / picture.height)
            small = picture.convert("RGB").resize((width, _THUMB), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=70)
        data = base64.b64encode(file.getvalue()).decode()
        return f'<img alt="" width="{width}" height="{_THUMB}" src="data:image/webp;base64,{data}">'


def _contact(thumbs: _Thumbs, cells: Sequence[Mapping[str, Any]]) -> str:
    """Per subject: photos, then every method's pictures of the first prompts, first seed."""
    parts = ["<h3>Side by side</h3>"]
    for subject in dict.fromkeys(cell["subject"] for cell in cells):
        mine = [c for c in cells if c["subject"] == subject]
        seed = min(c["seed"] for c in mine)
        mine = sorted((c for c in mine if c["seed"] == seed), key=lambda c: _order(c["method"]))
        rows = [("", [escape(cell["method"]), *_pictures(thumbs, cell)]) for cell in mine]
        rows = [row for row in rows if any(row[1][1:])]
        if rows:
            heads = [subject, *mine[0]["prompts"][:_SHEET_PROMPTS]]
            parts.append(f'<div class="sheet">{_table(heads, rows)}</div>')
    return "\n".join(parts) if len(parts) > 1 else ""


def _order(method: str) -> tuple[int, str]:
    """A returned photo first, as the reference; then the real scene, the base, and the methods."""
    return ({"paste": 0, "real": 1, "base": 2}.get(method, 3), method)


def _pictures(thumbs: _Thumbs, cell: Mapping[str, Any]) -> list[str]:
    home = thumbs.folder / "pictures" / cell["pictures"]
    return [
        thumbs.image(home / f"{i * cell['images']:05d}.webp") for i in range(min(_SHEET_PROMPTS, len(cell["prompts"])))
    ]


def _metrics(records: Sequence[Mapping[str, Any]]) -> str:
    about = {name: text for one in records for name, text in one.get("metrics", {}).items()}
    rows = [("", [escape(name), escape(text)]) for name, text in sorted(about.items())]
    return f"<details><summary>Metrics: version, source, network</summary>{_table(['metric', 'about'], rows)}</details>"


def _papers() -> str:
    heads = ["method", "paper", "backbone", "dataset", "metric", "value", "source"]
    rows = [("", [escape(row[head]) for head in heads]) for row in published()]
    note = (
        "Measured by others, on other pictures, with other models, seeds and samplers: <b>not comparable with the "
        "tables above</b>, nor always with each other. Values are in the scale of their source."
    )
    title = f"Published numbers ({len(rows)}), other conditions"
    return f"<details><summary>{title}</summary><p>{note}</p>{_table(heads, rows)}</details>"


def _sheet(folder: Path, records: Sequence[Mapping[str, Any]]) -> Path | None:
    """One page of pictures: a column a method, a row a subject."""
    from PIL import Image

    from fromfew.sheet import grid

    cells = [one for one in records if one["kind"] == "cell" and one["seed"] == 0]
    cells = cells or [one for one in records if one["kind"] == "cell"]
    rows = []
    for subject in list(dict.fromkeys((one["task"], one["subject"]) for one in cells))[:8]:
        mine = {c["method"]: c for c in cells if (c["task"], c["subject"]) == subject}
        row = []
        for method in sorted(mine, key=_order):
            cell = mine[method]
            path = folder / "pictures" / cell["pictures"] / "00000.webp"
            if path.exists():
                with Image.open(path) as picture:
                    row.append((picture.convert("RGB"), f"{method}: {cell['prompts'][0]}"))
        rows.append(row)
    if not any(rows):
        return None
    file = io.BytesIO()
    grid(rows, title="first prompt of every subject", cell=96).save(file, "JPEG", quality=82)
    write_atomic(folder / "sheet.jpg", file.getvalue())
    return folder / "sheet.jpg"
