"""Over Ray: the table equals the serial one though a worker is killed in the middle; a cell that kills is given up."""

import os
import signal
import sys
from contextlib import nullcontext
from functools import partial

import bench_makers
import pytest
import torch

from fromfew.bench import cluster
from fromfew.bench.cluster import over
from fromfew.bench.records import read
from fromfew.bench.run import bench
from fromfew.bench.tables import leaderboard
from fromfew.errors import FromfewError


@pytest.fixture(scope="module")
def workers():
    """A cluster of two workers on this machine, begun and ended as a run does."""
    ray = pytest.importorskip("ray")
    from ray import cloudpickle

    # Workers cannot import what is in this folder, so it travels along.
    for module in (bench_makers, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)
    real = ray.init
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(ray, "init", lambda **how: real(**how if "address" in how else {**how, "num_cpus": 2}))
        with cluster._joined(cluster._ray(), "auto"):
            yield
    assert not ray.is_initialized()


def dying_once(mark, driver):
    """A plan in whose first process that has learned something and draws, the whole process is killed."""
    from fromfew.bench import contestants

    real = contestants.Drawer.draw

    def draw(self, wanted):
        if self.concepts:
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return real(self, wanted)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, wanted)

    if os.getpid() != driver:
        contestants.Drawer.draw = draw
    return bench_makers.fresh_plan()


def deadly(driver):
    """A plan with a contestant that kills every process that would learn it."""
    plan = bench_makers.small_plan(
        bench_makers.tiny("sd15"), bench_makers.small_suite(), methods=("paste",), subjects=1
    )
    if os.getpid() != driver:
        plan.contestants[0].learn = lambda *args, **how: os.kill(os.getpid(), signal.SIGKILL)
    return plan


def table(out):
    return [(row.method, row.means, row.sets, row.pictures) for row in leaderboard(read(out))]


def test_a_worker_killed_in_the_middle_changes_nothing_in_the_table(workers, tmp_path):
    through_ray, serial, mark, ticks = tmp_path / "ray", tmp_path / "serial", tmp_path / "killed", []
    watch = lambda done, total, note="": ticks.append((done, total))  # noqa: E731
    summary = over(partial(dying_once, str(mark), os.getpid()), through_ray, watch=watch)
    assert mark.exists(), "no worker was killed"
    assert (summary.done, summary.failed, summary.left) == (6, 0, 0)
    assert ticks == [(i + 1, 6) for i in range(6)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray's workers have
    try:
        bench(bench_makers.fresh_plan(), serial)
    finally:
        torch.set_num_threads(threads)
    assert table(through_ray) == table(serial)
    assert {one["key"] for one in read(through_ray)} == {one["key"] for one in read(serial)}
    assert len((through_ray / "records.jsonl").read_text().splitlines()) == 9, "a cell was recorded twice"
    again = over(bench_makers.fresh_plan, through_ray)
    assert (again.done, again.before) == (0, 6)


def test_a_cell_whose_workers_die_is_given_up(workers, tmp_path):
    summary = over(partial(deadly, os.getpid()), tmp_path, times=0)
    assert (summary.done, summary.failed) == (0, 1)
    (failed,) = read(tmp_path)
    assert (failed["kind"], failed["method"]) == ("failed", "paste")
    assert "its worker died" in failed["why"]


def test_a_worker_whose_plan_is_another_says_so(workers, tmp_path):
    here = os.getpid()

    def build():
        return bench_makers.small_plan(
            bench_makers.tiny("sd15"), bench_makers.small_suite(), methods=("paste",), subjects=1,
            prompts=2 if os.getpid() == here else 1,
        )  # fmt: skip

    with pytest.raises(FromfewError, match="its plan lacks the cell"):
        over(build, tmp_path)
    assert read(tmp_path) == []


def test_a_spent_budget_begins_nothing(workers, tmp_path):
    summary = over(bench_makers.fresh_plan, tmp_path, budget=0)
    assert (summary.done, summary.left) == (0, 6)


def test_a_cell_that_another_run_holds_is_waited_for(monkeypatch, tmp_path):
    """Without a cluster: the cell is handed back, asked for again, and found done."""
    answers = iter([None, ""])

    class Pool:
        def __init__(self, *what):
            self.running = []

        def free(self):
            return True

        def begin(self, cell):
            self.running.append(cell)

        def ended(self):
            return [(self.running.pop(), next(answers))]

    monkeypatch.setattr(cluster, "_ray", lambda: None)
    monkeypatch.setattr(cluster, "_joined", lambda *what: nullcontext())
    monkeypatch.setattr(cluster, "_Pool", Pool)
    monkeypatch.setattr("fromfew.bench.run.WAIT", 0.0)
    monkeypatch.setattr("fromfew.bench.run.finish", lambda *what: None)
    build = partial(bench_makers.small_plan, bench_makers.tiny("sd15"), bench_makers.small_suite(), ("paste",))
    summary = over(partial(build, subjects=1), tmp_path)
    assert (summary.done, summary.before) == (0, 1)
    assert next(answers, "all were used") == "all were used"


def test_a_missing_ray_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FromfewError, match=r"fromfew\[ray\]"):
        over(bench_makers.fresh_plan, None)
