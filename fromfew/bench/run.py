"""The run: every contestant learns every subject with every seed, draws the prompts, and is scored."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.bench.contestants import Contestant, Drawing, Ready
from fromfew.bench.gallery import Gallery
from fromfew.bench.meter import Meter
from fromfew.bench.records import append, claimed, key_of, prepare, read
from fromfew.bench.task import Subject, Task
from fromfew.metrics.base import Case, score
from fromfew.views import pictures_of

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.metrics.suites import Suite

__all__ = ["WAIT", "Cell", "Plan", "Summary", "about", "attempt", "bench", "case_of", "finish", "finished"]

SCHEMA = 1
WAIT = 1.0
"""Seconds until a cell that another process holds is asked for again."""
_CHUNK = 16

Watch = Callable[..., object]


@dataclass(frozen=True, eq=False)
class Cell:
    """The unit of work, and of a record: one contestant, one subject, one seed."""

    task: Task
    subject: Subject
    contestant: Contestant
    seed: int
    key: str
    shelf: str
    """Folder of its pictures under those of the run."""
    home: str
    """Folder of the concept under those of the run; the same for all that learn alike."""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.contestant.label} on {self.subject.name} ({self.task.name}), seed {self.seed}"

    def wanted(self) -> list[Drawing]:
        """Every picture of the prompts."""
        count = self.task.images
        numbers = range(len(self.subject.prompts) * count)
        return [Drawing(self.subject, n, n // count, self.seed, self.task.size) for n in numbers]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run consists of."""

    bb: Backbone
    tasks: Sequence[Task]
    contestants: Sequence[Contestant]
    seeds: Sequence[int]
    suites: Mapping[str, Suite]
    """Metrics by the name that tasks give them."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of drawing."""

    def cells(self) -> list[Cell]:
        """In an order that gives every contestant its turn early: a budget cuts all alike."""
        return [
            self._cell(task, subject, one, seed)
            for seed in self.seeds
            for task in self.tasks
            for subject in task.subjects
            for one in self.contestants
        ]

    def _cell(self, task: Task, subject: Subject, one: Contestant, seed: int) -> Cell:
        learned = {"method": one.name, "settings": one.resolved(self.bb), "base": self.bb.fingerprint()}
        weights = one.weights(self.bb)
        learned |= {"weights": weights} if weights else {}
        drawn = learned | {
            "task": [task.name, task.version, task.images, task.prior],
            "prompts": [[prompt.say, prompt.plain] for prompt in subject.prompts],
            "options": dict(self.options),
        }
        if task.size is not None:
            drawn["size"] = list(task.size)
        if (combiner := getattr(one, "combiner", None)) is not None:
            drawn["combiner"] = combiner.settings()
        if getattr(one, "regions", None):
            drawn["regions"] = [prompt.alone for prompt in subject.prompts]
        scored = {**drawn, "subject": subject.name, "seed": seed, "metrics": self.suites[task.suite].about()}
        home = {**learned, "method": one.learner_name}
        shelf = f"{_file(one.name)}-{key_of(learned)[:6]}"
        where = f"{shelf}/{_file(task.name)}-{key_of(drawn)[:6]}/{_file(subject.name)}-{seed}"
        own = f"{_file(one.learner_name)}-{key_of(home)[:6]}"
        return Cell(task, subject, one, seed, key_of({**scored, "schema": SCHEMA}), where, own)


@dataclass
class Summary:
    """How a run ended."""

    done: int = 0
    """Cells finished by this process."""
    before: int = 0
    """Cells that were finished already."""
    failed: int = 0
    refused: int = 0
    left: int = 0
    """Cells the budget left undone."""

    def count(self, kind: str) -> None:
        """Add a record of a kind: "cell", "failed" or "refused"."""
        name = {"cell": "done"}.get(kind, kind)
        setattr(self, name, getattr(self, name) + 1)


def bench(
    plan: Plan, out: Path, *, budget: float | None = None, retry: bool = False, watch: Watch | None = None
) -> Summary:
    """Do every cell that has no record yet; what was learned and drawn before a kill is used again.

    Args:
        plan: what to do.
        out: folder of the records; several processes may share it.
        budget: minutes after which no further cell is begun.
        retry: whether to do failed cells once more.
        watch: called as ``watch(done, total, note)``, where what other processes have done counts too.
    """
    prepare(out)
    cells, summary = plan.cells(), Summary()
    keys, began = {cell.key for cell in cells}, time.monotonic()
    summary.before = len(finished(out, retry) & keys)
    tried: set[str] = set()
    busy = True
    while busy:
        busy = False
        done = finished(out, retry) | tried
        for cell in cells:
            if cell.key in done:
                continue
            if budget is not None and time.monotonic() - began > budget * 60:
                summary.left = len(keys - finished(out) - tried)
                finish(plan, out, cells)
                return summary
            ended = len((finished(out, retry) | tried) & keys)
            kind = attempt(plan, out, cell, retry, _inner(watch, ended, len(cells), cell))
            if kind is None:
                busy = True
            elif kind:
                summary.count(kind)
                tried.add(cell.key)
        if busy:
            time.sleep(WAIT)
    if watch is not None:
        watch(len(cells), len(cells), "")
    finish(plan, out, cells)
    return summary


def attempt(plan: Plan, out: Path, cell: Cell, retry: bool = False, watch: Watch | None = None) -> str | None:
    """Do one cell, to its record, unless somebody else does.

    Returns:
        The record's kind; nothing to speak of ("") if it was there already, None if another process holds the cell.
    """
    with claimed(out, cell.key) as mine:
        if not mine:
            return None
        # Another process may have finished it since the records were read.
        return "" if cell.key in finished(out, retry) else _do(plan, out, cell, watch)


def finished(out: Path, retry: bool = False) -> set[str]:
    """Keys of the cells that have a record; those that failed are not among them if they are to be retried."""
    return {one["key"] for one in read(out) if not (retry and one["kind"] == "failed")}


def _inner(watch: Watch | None, ended: int, total: int, cell: Cell) -> Watch:
    """Progress of learning, as a note to the progress of the run."""

    def tick(done: int, of: int, note: str = "") -> None:
        if watch is not None:
            watch(ended, total, f"{cell.title}: {done}/{of}")

    tick(0, 1)
    return tick


def _do(plan: Plan, out: Path, cell: Cell, watch: Watch | None) -> str:
    """One cell, to its record; returns the record's kind."""
    told = about(plan, cell)
    reasons = cell.contestant.suits(plan.bb, cell.task.role, cell.subject)
    if reasons:
        append(out, {**told, "kind": "refused", "why": "; ".join(reasons)})
        return "refused"
    try:
        found = _measured(plan, out, cell, watch)
    except Exception as error:  # one broken method must not end an unattended run; the record says what broke
        why = f"{type(error).__name__}: {str(error).strip()[:400]}"
        append(out, {**told, "kind": "failed", "why": why})
        return "failed"
    append(out, {**told, "kind": "cell", **found})
    return "cell"


def about(plan: Plan, cell: Cell) -> dict[str, Any]:
    """What the record of a cell says before anything is known of how it went."""
    from fromfew.concept import versions

    return {
        "schema": SCHEMA,
        "key": cell.key,
        "method": cell.contestant.label,
        "settings": cell.contestant.resolved(plan.bb),
        "task": f"{cell.task.name} v{cell.task.version}",
        "subject": cell.subject.name,
        "seed": cell.seed,
        "base": {"name": plan.bb.name, "fingerprint": plan.bb.fingerprint()},
        "options": dict(plan.options),
        "versions": versions(),
        "machine": f"{platform.machine()} {plan.bb.device}",
    }


def _measured(plan: Plan, out: Path, cell: Cell, watch: Watch | None) -> dict[str, Any]:
    """Learn, draw, score."""
    meter, gallery = Meter(), Gallery(out / "pictures" / cell.shelf)
    shelf = out / "concepts" / cell.home
    with meter.of("learn"):
        ready = cell.contestant.learn(plan.bb, cell.subject, seed=cell.seed, folder=shelf, watch=watch)
    meter.seconds["learn"] = round(max(meter.seconds["learn"], ready.seconds), 3)
    with meter.of("draw"):
        wanted = cell.wanted()
        for some in _missing(ready, wanted, gallery):
            gallery.save({d.number: picture for d, picture in zip(some, ready.draw(some), strict=True)})
        prior = _prior(ready, cell, gallery)
    meter.seconds["draw"] = max(meter.seconds["draw"], _drawn_before(out, cell))
    with meter.of("score"):
        suite = plan.suites[cell.task.suite]
        case = case_of(cell, gallery.load([one.number for one in wanted]))
        scores = {
            name: values
            for name, values in score(case, suite.metrics).items()
            if any(value is not None for value in values)
        }
        drift = suite.prior_drift(prior, case.photos) if prior is not None else []
    sources = suite.about()
    return {
        "prompts": [prompt.without(cell.subject.nouns) for prompt in cell.subject.prompts],
        "images": cell.task.images,
        "scores": scores | ({"prior-drift": drift} if drift else {}),
        "metrics": {name: sources[name] for name in (*scores, *(["prior-drift"] if drift else []))},
        "seconds": meter.seconds,
        "memory": meter.peak(),
        "bytes": ready.bytes,
        "learned": ready.learned,
        "pictures": cell.shelf,
    }


def _drawn_before(out: Path, cell: Cell) -> float:
    """Seconds it took to draw pictures that an older record, scored by other metrics, was made of."""
    mine = [one for one in read(out) if one.get("pictures") == cell.shelf]
    return max((one["seconds"].get("draw", 0.0) for one in mine), default=0.0)


def _missing(ready: Ready, wanted: Sequence[Drawing], gallery: Gallery) -> Iterator[list[Drawing]]:
    """What is still to be drawn, in portions that a kill loses one of."""
    missing = [one for one in wanted if not gallery.has(one.number)]
    if missing and ready.together:
        yield list(wanted)  # pictures that look at each other are drawn in one go
        return
    for i in range(0, len(missing), _CHUNK):
        yield missing[i : i + _CHUNK]


def _prior(ready: Ready, cell: Cell, gallery: Gallery) -> Tensor | None:
    """Pictures of the plain noun, drawn or found."""
    from fromfew.bench.contestants import PRIOR_FROM

    numbers = [PRIOR_FROM + i for i in range(cell.task.prior)]
    if not numbers:
        return None
    if not all(gallery.has(number) for number in numbers):
        drawn = ready.prior(len(numbers), cell.seed)
        if drawn is None:
            return None
        gallery.save(dict(zip(numbers, drawn, strict=True)))
    return gallery.load(numbers)


def case_of(cell: Cell, images: Tensor) -> Case:
    """The pictures with everything they are compared with."""
    subject, side = cell.subject, min(images.shape[-2:])
    sets = [pictures_of(part.load("<v>"), side) for part in subject.parts]
    photos, masks = _joined(sets)
    kept = [pictures_of(part.held(), side) if part.held is not None else None for part in subject.parts]
    helds = [one for one in kept if one is not None]
    # Photos that show several things say nothing about one of them; those of it alone do.
    of_each = zip(subject.parts, sets, kept, strict=True)
    alone = [(held if part.shared and held is not None else shown)[0] for part, shown, held in of_each]
    order = [one.prompt for one in cell.wanted()]
    said = [prompt.without(subject.nouns) for prompt in subject.prompts]
    wants = [prompt.want for prompt in subject.prompts]
    asked = any(want.known() or want.things for want in wants)
    return Case(
        images,
        tuple(said[i] for i in order),
        photos,
        masks=masks,
        held=_joined(helds)[0] if helds else None,
        wants=tuple(wants[i] for i in order) if asked else (),
        group=tuple(order),
        things=tuple(alone) if len(sets) > 1 else (),
        noun=subject.nouns[0],
        role=cell.task.role,
    )


def _joined(sets: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    masks = [mask for _, mask in sets if mask is not None]
    photos = torch.cat([images for images, _ in sets])
    return photos, torch.cat(masks) if len(masks) == len(sets) else None


def finish(plan: Plan, out: Path, cells: Sequence[Cell]) -> None:
    """Distances between all pictures of a contestant and the real ones: once all its cells are there."""
    records = {one["key"]: one for one in read(out)}
    for task in plan.tasks:
        suite = plan.suites[task.suite]
        for one in plan.contestants:
            mine = [c for c in cells if c.task is task and c.contestant is one]
            found = [records.get(cell.key, {}) for cell in mine]
            keys = [cell.key for cell in mine]
            key = key_of({"sets": keys})
            if key in records or not mine or not all(r.get("kind") == "cell" for r in found):
                continue
            made = _all(out, zip(mine, found, strict=True))
            real = torch.cat([_case_photos(cell, min(made.shape[-2:])) for cell in mine])
            if min(len(made), len(real)) < 2:
                continue
            told = {"key": key, "kind": "set", "method": one.label, "task": f"{task.name} v{task.version}"}
            append(out, {**told, "count": [len(made), len(real)], "sets": suite.between(made, real)})


def _all(out: Path, cells: Iterable[tuple[Cell, Mapping[str, Any]]]) -> Tensor:
    """Every picture, from where the cell's record says it lies."""
    galleries = [(Gallery(out / "pictures" / record["pictures"]), cell) for cell, record in cells]
    return torch.cat([g.load([one.number for one in cell.wanted()]) for g, cell in galleries])


def _case_photos(cell: Cell, side: int) -> Tensor:
    """Photos of a cell's subject that were not learned from, or else those that were."""
    parts = cell.subject.parts
    return torch.cat([pictures_of(p.held() if p.held else p.load("<v>"), side)[0] for p in parts])


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
