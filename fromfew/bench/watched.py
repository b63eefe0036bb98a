"""What watching saves and costs: a run of full length scored at several lengths, beside one that stops by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fromfew.bench.contestants import Drawer, Method
from fromfew.bench.records import append, claimed, key_of, prepare, read
from fromfew.bench.run import Plan, case_of
from fromfew.errors import FromfewError
from fromfew.metrics.base import score
from fromfew.ports.part import Part, attached
from fromfew.watching import Watcher, level, split

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.bench.run import Cell
    from fromfew.concept import Concept
    from fromfew.watching import Rule

__all__ = ["Comparison", "Savings", "compare", "savings", "table"]

Watch = Callable[..., object]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared with what."""

    plan: Plan
    """Base, task, seeds and metrics; its contestants are methods that learn step by step."""
    watched: Mapping[str, Mapping[str, Any]]
    """By method, settings of the watched run alone."""
    lengths: int = 8
    """At how many equally spaced steps the run of full length is scored."""
    rule: Rule = "front"

    def units(self) -> list[tuple[str, Cell, str]]:
        """Key, cell, and which of its two runs: all the work, each piece resumable."""
        found = []
        for cell in self.plan.cells():
            said = {"cell": cell.key, "lengths": self.lengths}
            more = {"rule": self.rule, "own": self.watched.get(cell.contestant.name, {})}
            found.append((key_of({**said, "run": "full"}), cell, "full"))
            found.append((key_of({**said, **more, "run": "watched"}), cell, "watched"))
        return found


def compare(what: Comparison, out: Path, *, watch: Watch | None = None) -> None:
    """Do every run that has no record yet; several processes may share the folder.

    Args:
        what: runs.
        out: folder of the records.
        watch: called as ``watch(done, total, note)``.

    Raises:
        FromfewError: A contestant is no method that learns step by step.
    """
    prepare(out)
    units = what.units()
    for number, (key, cell, kind) in enumerate(units):
        title = f"{cell.title}, {kind}"
        with claimed(out, key) as mine:
            if not mine or key in {one["key"] for one in read(out)}:
                continue

            def tick(done: int, of: int, note: str = "", number: int = number, title: str = title) -> None:
                if watch is not None:
                    watch(number, len(units), f"{title}: {done}/{of}")

            found = _full(what, cell, tick) if kind == "full" else _watched(what, cell, tick)
            about = {"method": cell.contestant.name, "subject": cell.subject.name, "seed": cell.seed}
            append(out, {"key": key, "kind": kind, **about, **found})
    if watch is not None:
        watch(len(units), len(units), "")


def _method(cell: Cell) -> Method:
    one = cell.contestant
    if not isinstance(one, Method) or any(learner.card().get("kind") != "tuned" for learner in one.learners):
        raise FromfewError(f"'{one.name}' does not learn step by step, so there is nothing to watch.")
    if one.name not in one.methods:
        raise FromfewError(f"'{one.name}' learns several things; what is watched is one method learning one thing.")
    return one


def _full(what: Comparison, cell: Cell, watch: Watch) -> dict[str, Any]:
    """All steps, from all photos; scored after each of several lengths."""
    one, bb = _method(cell), what.plan.bb
    states = _Lengths(bb, what.lengths, watch)
    concept = one.learner(0).learn(bb, one.refs(cell.subject.parts[0], "<v>"), seed=cell.seed, watch=states)
    scores = []
    for step in sorted(states.kept):
        states.put_back(concept, step)
        scores.append({"step": step, **_scored(what.plan, cell, concept)})
    card = concept.card
    return {"settings": one.resolved(bb), "steps": card.steps, "scores": scores, "seconds": card.seconds}


def _watched(what: Comparison, cell: Cell, watch: Watch) -> dict[str, Any]:
    """As `fromfew learn --watch` does it: one photo held back, the best state kept."""
    one, bb = _method(cell), what.plan.bb
    method = Method(one.name, {one.name: {**one.settings, **what.watched.get(one.name, {})}}, one.options)
    learned, held = split(one.refs(cell.subject.parts[0], "<v>"))
    watcher = Watcher(bb, held, learned, rule=what.rule, inner=watch)
    setup = watcher.seconds
    learner = level(method.learner(0), bb)
    concept = learner.learn(bb, learned, seed=cell.seed, watch=watcher)
    return {
        "settings": learner.settings(),
        "steps": concept.card.steps,
        "kept": watcher.best.step if watcher.best else 0,
        "scores": [{"step": concept.card.steps, **_scored(what.plan, cell, concept)}],
        "seconds": round(concept.card.seconds - (watcher.seconds - setup), 3),
        "looking": round(watcher.seconds, 3),
        "looks": [[one.step, round(one.fidelity, 4), round(one.alignment, 4)] for one in watcher.looks],
        "sentence": watcher.sentence,
    }


class _Lengths:
    """A watch that keeps what was learned after equally spaced steps."""

    def __init__(self, bb: Backbone, count: int, inner: Watch) -> None:
        self.bb, self.count, self.inner = bb, count, inner
        self.kept: dict[int, list[tuple[Part, dict[str, Tensor]]]] = {}

    def __call__(self, done: int, total: int, note: str = "") -> None:
        self.inner(done, total, note)
        if done in {max(1, round(total * i / self.count)) for i in range(1, self.count + 1)}:
            parts = [entry.part for entry in attached(self.bb) if any(True for _ in entry.part.parameters())]
            self.kept[done] = [(p, {k: v.detach().clone() for k, v in p.state_dict().items()}) for p in parts]

    def put_back(self, concept: Concept, step: int) -> None:
        """Give the concept's parts the state after a step.

        Raises:
            FromfewError: What it holds is not what was trained.
        """
        own = list(concept.parts)
        with torch.no_grad():
            for part, state in self.kept[step]:
                if not any(part is one for one in own):
                    raise FromfewError(f"{concept.card.method} keeps other parts than it trains.")
                for name, value in part.state_dict().items():
                    value.copy_(state[name])


def _scored(plan: Plan, cell: Cell, concept: Concept) -> dict[str, float]:
    """Mean fidelity to photos that nobody learned from, mean alignment, their product, and what was really drawn."""
    images = Drawer(plan.bb, [concept], plan.options).draw(cell.wanted())
    wanted = ("dino-i-held", "clip-t", "all-drawn")
    metrics = [metric for metric in plan.suites[cell.task.suite].metrics if metric.name in wanted]
    values = score(case_of(cell, images), metrics)
    told = {name: [v for v in some if v is not None] for name, some in values.items()}
    means = {name: round(float(np.mean(some)), 5) for name, some in told.items() if some}
    product = max(means.get("dino-i-held", 0.0), 0.0) * max(means.get("clip-t", 0.0), 0.0)
    return {**means, "score": round(product, 5)}


@dataclass(frozen=True)
class Savings:
    """One method: means over its subjects and seeds."""

    method: str
    runs: int
    best: float
    """Score of the run of full length after the number of steps that is best on average: one length for all."""
    at: float
    """That length, as a share of all steps."""
    watched: float
    """Score of what the watched run kept."""
    steps: float
    """Share of all steps that the watched run took."""
    looking: float
    """Seconds of looking as a share of seconds of training."""

    @property
    def share(self) -> float:
        """Of the best score that the watched runs reached; no number where nothing was learned."""
        return self.watched / self.best if self.best > 0 else float("nan")


def savings(records: Sequence[Mapping[str, Any]]) -> list[Savings]:
    """A row a method, of subjects and seeds of which both runs are there."""
    runs: dict[tuple[str, str, int], dict[str, Mapping[str, Any]]] = {}
    for one in records:
        runs.setdefault((one["method"], one["subject"], one["seed"]), {})[one["kind"]] = one
    pairs: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for (method, _, _), both in runs.items():
        if len(both) == 2:
            pairs.setdefault(method, []).append((both["full"], both["watched"]))
    return [_saved(method, some) for method, some in pairs.items()]


def _saved(method: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Savings:
    scores = np.array([[one["score"] for one in full["scores"]] for full, _ in pairs]).mean(0)
    first = pairs[0][0]
    return Savings(
        method,
        len(pairs),
        float(scores.max()),
        first["scores"][int(scores.argmax())]["step"] / first["steps"],
        float(np.mean([one["scores"][-1]["score"] for _, one in pairs])),
        float(np.mean([one["steps"] / full["steps"] for full, one in pairs])),
        float(np.mean([one["looking"] / one["seconds"] for _, one in pairs])),
    )


def table(rows: Sequence[Savings]) -> str:
    """The rows as Markdown."""
    heads = (
        "method", "runs", "best fixed length", "at, of all steps", "watched", "share of the best", "steps used",
        "looking, of training time",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        shares = (f"{value:.0%}" for value in (row.share, row.steps, row.looking))
        share, steps, looking = ("-" if text == "nan%" else text for text in shares)
        scores = f"{row.best:.3f}", f"{row.at:.0%}", f"{row.watched:.3f}"
        lines.append("| " + " | ".join((row.method, str(row.runs), *scores, share, steps, looking)) + " |")
    return "\n".join(lines) + "\n"
