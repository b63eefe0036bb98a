"""The bench over many processes or machines, through Ray: one task a cell, all of them on one folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from fromfew.bench.run import Cell, Plan, Summary, Watch

__all__ = ["over"]

_USUAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers of a cluster that is begun here are no less urgent than a run without one.
    "RAY_worker_niceness": "0",
    # Workers use the software that is installed where they are; nothing is built for them.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
_STORE = 100 * 2**20
"""Bytes of Ray's own store on this machine: only names of cells pass through it."""
_MORE = 5.0
"""Seconds between two looks at how much the cluster can do at once; machines may come and go."""

_plans: dict[str, Plan] = {}
"""In a worker: the plan of the run that it works for."""


def over(
    build: Callable[[], Plan],
    out: Path,
    *,
    address: str = "auto",
    budget: float | None = None,
    retry: bool = False,
    watch: Watch | None = None,
    times: int = 3,
    gpu: bool = False,
) -> Summary:
    """Do what `fromfew.bench.run.bench` does, cell by cell in the workers of a Ray cluster; the records are the same.

    A worker that dies is replaced and its cell done again, from what of it is on disk already.

    Args:
        build: makes the plan, here and once in every worker; it is pickled, so a function of a module or a partial
            of one.
        out: folder of the records, which every machine must see under this path.
        address: of a cluster; "auto" joins one that runs here, or else starts one on this machine.
        budget: minutes after which no further cell is begun.
        retry: whether to do failed cells once more.
        watch: called as ``watch(done, total, note)``.
        times: how often a cell is begun again whose worker dies, before it counts as failed.
        gpu: whether a cell takes a GPU, if the cluster has any; it takes one CPU otherwise.

    Raises:
        FromfewError: Ray is not installed, there is no cluster at the address, or a worker's software or weights make
            another plan than those here.
    """
    from fromfew.bench.records import prepare
    from fromfew.bench.run import WAIT, finish, finished

    ray = _ray()
    plan, out = build(), out.absolute()
    prepare(out)
    cells, run = plan.cells(), uuid4().hex
    with _joined(ray, address):
        pool = _Pool(ray, gpu, lambda cell: (run, build, str(out), cell.key, retry), times)
        began, tally = time.monotonic(), _Tally(plan, out, len(cells), watch)
        done = finished(out, retry)
        waiting = [cell for cell in cells if cell.key not in done]
        tally.summary.before = len(cells) - len(waiting)
        while waiting or pool.running:
            if budget is not None and time.monotonic() - began > budget * 60:
                tally.summary.left, waiting = tally.summary.left + len(waiting), []
            while waiting and pool.free():
                pool.begin(waiting.pop(0))
            for cell, kind in pool.ended():
                if kind is None:  # another run holds it: it is asked for again, last
                    waiting.append(cell)
                    time.sleep(WAIT)
                else:
                    tally.add(cell, kind)
    finish(plan, out, cells)
    return tally.summary


class _Tally:
    """What has come of the cells."""

    def __init__(self, plan: Plan, out: Path, total: int, watch: Watch | None) -> None:
        from fromfew.bench.run import Summary

        self.plan, self.out, self.total, self.watch = plan, out, total, watch
        self.summary = Summary()

    def add(self, cell: Cell, kind: str) -> None:
        """A cell has ended; "lost" if its workers died, which becomes its record."""
        from fromfew.bench.records import append
        from fromfew.bench.run import about

        if kind == "lost":
            why = "its worker died, and so did those that began it again; is there memory enough?"
            append(self.out, {**about(self.plan, cell), "kind": "failed", "why": why})
            kind = "failed"
        if kind:
            self.summary.count(kind)
        else:
            self.summary.before += 1
        if self.watch is not None:
            sums = self.summary
            ended = sums.done + sums.before + sums.failed + sums.refused
            self.watch(ended, self.total, cell.title)


class _Pool:
    """Cells that are being done, as many at once as the cluster can do."""

    def __init__(self, ray: Any, gpu: bool, told: Callable[[Cell], tuple[Any, ...]], times: int) -> None:
        self.ray, self.told = ray, told
        self.kind = "GPU" if gpu and ray.cluster_resources().get("GPU", 0) >= 1 else "CPU"
        needs = {"num_cpus": 1, "num_gpus": 1 if self.kind == "GPU" else 0}
        self.task = ray.remote(max_retries=times, **needs)(_one)
        self.running: dict[Any, Cell] = {}

    def free(self) -> bool:
        """Whether another cell can be begun; one always can, so that a cluster that grows is waited for."""
        return len(self.running) < max(1, int(self.ray.cluster_resources().get(self.kind, 0)))

    def begin(self, cell: Cell) -> None:
        """Hand a cell to a worker."""
        self.running[self.task.remote(*self.told(cell))] = cell

    def ended(self) -> list[tuple[Cell, str | None]]:
        """Cells that have ended since, each with what `attempt` returned, or "lost"; waits a while for the first."""
        ready, _ = self.ray.wait(list(self.running), timeout=_MORE) if self.running else ([], [])
        return [(self.running.pop(ref), self._result(ref)) for ref in ready]

    def _result(self, ref: Any) -> str | None:
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise FromfewError(f"A Ray worker could not begin: {error.cause}") from error
        except self.ray.exceptions.RayError:
            return "lost"


def _one(run: str, build: Callable[[], Plan], out: str, key: str, retry: bool) -> str | None:
    """In a worker: one cell, as a run on one machine does it."""
    from fromfew.bench.run import attempt

    if run not in _plans:
        _plans.clear()
        _plans[run] = build()
    plan = _plans[run]
    cell = next((one for one in plan.cells() if one.key == key), None)
    if cell is None:
        raise FromfewError("its plan lacks the cell; are fromfew, the base and the metrics' networks the same there?")
    return attempt(plan, Path(out), cell, retry)


def _ray() -> Any:
    """Ray, told before it is imported to send no statistics and to build no environments."""
    for name, value in _USUAL.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise FromfewError("--ray needs Ray: pip install 'fromfew[ray]'") from error
    return ray


@contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    """A cluster that is there, or one on this machine that ends with the run; one joined already is left as it is."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address != "auto":
            raise FromfewError(f"There is no Ray cluster at '{address}': {str(error).splitlines()[0]}") from error
        ray.init(include_dashboard=False, object_store_memory=_STORE, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()
