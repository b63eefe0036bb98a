"""Several processes on one machine: they share the cells, and none outlives the run that began it."""

import subprocess
import sys
import time

import pytest
import torch

from fromfew.bench import helpers
from fromfew.bench.cli import run
from fromfew.bench.records import read
from fromfew.errors import FromfewError

ASKED = [
    "--base", "tiny-sd15", "--methods", "textual-inversion", "--seeds", "1", "--subjects", "2", "--prompts", "1",
    "--steps", "2", "--set", "textual-inversion.steps=2", "--set", "textual-inversion.class_images=1",
]  # fmt: skip


def cells(out):
    return {one["key"]: one["scores"] for one in read(out) if one["kind"] == "cell"}


def helper(out, *more):
    command = [sys.executable, "-m", "fromfew", "bench", *ASKED, "--out", str(out), "--helper", *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_two_processes_do_what_one_does_and_one_of_them_writes_the_report(tmp_path):
    assert run([*ASKED, "--out", str(tmp_path / "two"), "--jobs", "2"]) == 0
    assert run([*ASKED, "--out", str(tmp_path / "one")]) == 0
    both, alone = cells(tmp_path / "two"), cells(tmp_path / "one")
    assert both.keys() == alone.keys()
    assert len(alone) == 2 * 4
    for key, scores in alone.items():
        assert both[key].keys() == scores.keys()
        assert all(both[key][name] == pytest.approx(values, abs=1e-3) for name, values in scores.items()), key
    assert (tmp_path / "two" / "report.html").exists()


def test_a_helper_does_cells_and_writes_no_report(tmp_path):
    with helper(tmp_path) as one:
        told = one.stdout.read()
        assert one.wait() == 0, told
    assert len(cells(tmp_path)) == 2 * 4
    assert not (tmp_path / "report.html").exists()


def test_a_helper_ends_with_the_run_that_began_it(tmp_path):
    with helper(tmp_path, "--set", "textual-inversion.steps=100000") as one:
        while not (tmp_path / "claims").exists():
            time.sleep(0.1)
        one.stdin.close()
        one.wait(timeout=60)


def test_helpers_and_a_cluster_exclude_each_other():
    with pytest.raises(FromfewError, match="one of them"):
        run([*ASKED, "--jobs", "2", "--ray", "auto"])


def test_threads_are_shared_out_and_a_run_alone_keeps_what_it_was_given(monkeypatch):
    asked = []

    class Begun:
        def __init__(self, command, env, **how):
            asked.append((command[-1], env["OMP_NUM_THREADS"]))

        def kill(self):
            pass

        communicate = kill

    monkeypatch.setattr(helpers.subprocess, "Popen", Begun)
    before = torch.get_num_threads()
    try:
        for given, jobs, each in ((1, 1, 1), (4, 2, 2), (2, 3, 1)):
            torch.set_num_threads(given)
            with helpers.helped(ASKED, jobs):
                assert torch.get_num_threads() == each
            assert torch.get_num_threads() == given
    finally:
        torch.set_num_threads(before)
    assert asked == [("--helper", "2"), ("--helper", "1"), ("--helper", "1")]
