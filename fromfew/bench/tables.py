"""From records to tables: means over subjects with bootstrap intervals; nothing is written here."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fromfew.bench.records import current

__all__ = ["COLUMNS", "Entry", "Row", "breakdown", "entries", "front", "interval", "leaderboard", "published"]

COLUMNS: dict[str, tuple[str, bool]] = {
    "all-drawn": ("all drawn", True),
    "dino-i": ("subject (DINO-I)", True),
    "dino-i-held": ("held-out photos", True),
    "subject-masked": ("masked subject", True),
    "clip-i": ("CLIP-I", True),
    "dreamsim": ("DreamSim", False),
    "face-id": ("face", True),
    "clip-t": ("text (CLIP-T)", True),
    "object-drawn": ("object", True),
    "second-drawn": ("second", True),
    "context-drawn": ("context", True),
    "style-drawn": ("style", True),
    "colour-drawn": ("colour", True),
    "relation-drawn": ("relation", True),
    "each-own": ("each like its own", True),
    "bleeding": ("bleeding", False),
    "copy-rate": ("copied", False),
    "prior-drift": ("prior drift", False),
    "diversity": ("diversity", True),
}
"""Metrics of the leaderboard, in order: heading, and whether more is better. All others are in the CSV."""

CONTROL_NAMES = ("base", "paste", "real")
FLAGGED = 0.5
"""Copy rate from which a row is flagged."""


@dataclass(frozen=True)
class Entry:
    """One number: a metric of one picture."""

    method: str
    task: str
    subject: str
    seed: int
    prompt: str
    metric: str
    value: float


@dataclass(frozen=True, eq=False)
class Row:
    """One method on one task."""

    method: str
    task: str
    means: dict[str, tuple[float, float, float]]
    """Metric to its mean over subjects and the ends of its 95 % interval."""
    pictures: int
    subjects: int
    cost: dict[str, float]
    """Seconds to learn a subject, seconds a picture, megabytes a concept, peak gigabytes."""
    sets: dict[str, float]
    """Distances between sets."""

    @property
    def quality(self) -> float:
        """Share of pictures in which all was drawn that was asked for; fidelity times alignment without it."""
        if "all-drawn" in self.means:
            return self.means["all-drawn"][0]
        fidelity = self.means.get("dino-i", self.means.get("face-id", (0.0, 0.0, 0.0)))[0]
        return fidelity * self.means.get("clip-t", (0.0, 0.0, 0.0))[0]

    @property
    def fidelity(self) -> float | None:
        """The x axis of the two pictures of the report."""
        found = self.means.get("face-id") or self.means.get("dino-i")
        return found[0] if found else None

    @property
    def copied(self) -> bool:
        """Whether pictures are pasted from photos."""
        return self.means.get("copy-rate", (0.0,))[0] >= FLAGGED


def entries(records: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Every number of every picture."""
    found = []
    for one in records:
        if one["kind"] != "cell":
            continue
        for metric, values in one["scores"].items():
            for i, value in enumerate(values):
                prior = metric == "prior-drift"
                prompt = f"a {one['subject']}" if prior else one["prompts"][i // one["images"]]
                if value is not None:
                    found.append(Entry(one["method"], one["task"], one["subject"], one["seed"], prompt, metric, value))
    return found


def interval(groups: Sequence[Sequence[float]], *, rounds: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Mean over subjects of their means, with a 95 % bootstrap interval over subjects.

    Args:
        groups: one list of values a subject.
        rounds: resamples.
        seed: of the resamples; equal for all methods, so that intervals can be compared.
    """
    means = np.array([np.mean(group) for group in groups])
    picks = np.random.default_rng(seed).integers(len(means), size=(rounds, len(means)))
    low, high = np.percentile(means[picks].mean(1), (2.5, 97.5))
    return float(means.mean()), float(low), float(high)


def leaderboard(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row per task and method, best quality first."""
    records = current(records)
    numbers: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for one in entries(records):
        table = numbers.setdefault((one.task, one.method), {})
        table.setdefault(one.metric, {}).setdefault(one.subject, []).append(one.value)
    rows = []
    for (task, method), table in numbers.items():
        cells = [r for r in records if r["kind"] == "cell" and (r["task"], r["method"]) == (task, method)]
        sets = [r["sets"] for r in records if r["kind"] == "set" and (r["task"], r["method"]) == (task, method)]
        means = {metric: interval(list(groups.values())) for metric, groups in table.items()}
        pictures = sum(len(r["prompts"]) * r["images"] for r in cells)
        subjects = len({r["subject"] for r in cells})
        rows.append(Row(method, task, means, pictures, subjects, _cost(cells), sets[-1] if sets else {}))
    return sorted(rows, key=lambda row: (row.task, -row.quality, row.method))


def _cost(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    def mean(of: Callable[[Mapping[str, Any]], float]) -> float:
        return float(np.mean([of(cell) for cell in cells]))

    learned = [cell["seconds"].get("learn", 0.0) for cell in cells]
    drawn = [c["seconds"].get("draw", 0.0) / (len(c["prompts"]) * c["images"]) for c in cells]
    return {
        "learn": float(np.median(learned)),
        "draw": float(np.median(drawn)),
        "megabytes": mean(lambda cell: cell["bytes"] / 1e6),
        "gigabytes": max(cell["memory"]["process"] for cell in cells) / 1e9,
    }


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names on the Pareto front: no other is at least as good in both and better in one; left to right."""
    on = [
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for other, (a, b) in points.items() if other != name)
    ]
    return sorted(on, key=lambda name: points[name])


def breakdown(records: Iterable[Mapping[str, Any]], task: str, metric: str, by: str) -> dict[str, dict[str, float]]:
    """Means of one metric: row (a subject or a prompt) to method to mean.

    Args:
        records: as read.
        task: name and version.
        metric: name.
        by: "subject" or "prompt".
    """
    found: dict[str, dict[str, list[float]]] = {}
    for one in entries(records):
        if one.task == task and one.metric == metric:
            found.setdefault(getattr(one, by), {}).setdefault(one.method, []).append(one.value)
    return {row: {method: float(np.mean(v)) for method, v in cells.items()} for row, cells in found.items()}


def published() -> list[dict[str, str]]:
    """Numbers from papers, each with its source; measured by others under other conditions."""
    text = (Path(__file__).with_name("data") / "published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))
