"""What watching saves: both runs of every subject, resumed where they were stopped; shares worked out by hand."""

from dataclasses import replace

import pytest
import torch

from fromfew.bench import watched
from fromfew.bench.contestants import contestant
from fromfew.bench.records import read
from fromfew.bench.run import Plan
from fromfew.bench.task import open_task
from fromfew.bench.watched import Comparison, compare, savings, table
from fromfew.errors import FromfewError


@pytest.fixture
def what(bb, suite):
    options = {"steps": 2, "guidance": 2.0}
    quick = {"steps": 20, "batch": 1, "lr": 0.05, "views": 1}
    who = [contestant("textual-inversion", {"textual-inversion": quick}, options)]
    plan = Plan(bb, [open_task("world/objects").only(1, 2, 1)], who, range(1), {"world": suite}, options)
    return Comparison(plan, {"textual-inversion": {"lr": 0.03}}, lengths=2)


def test_both_runs_are_done_once_and_the_full_one_is_scored_at_its_lengths(what, tmp_path, monkeypatch):
    compare(what, tmp_path)
    full, stopped = read(tmp_path)
    assert (full["kind"], stopped["kind"]) == ("full", "watched")
    assert [one["step"] for one in full["scores"]] == [10, 20]
    assert full["scores"][0]["clip-t"] != full["scores"][1]["clip-t"], "both lengths were scored in one state"
    assert stopped["kept"] in (10, 20)
    assert (full["settings"]["lr"], stopped["settings"]["lr"]) == (0.05, 0.03)
    assert stopped["looking"] > 0
    assert stopped["seconds"] > 0
    assert all({"dino-i-held", "clip-t", "all-drawn", "score"} <= set(one) for one in full["scores"])
    monkeypatch.setattr(watched, "_full", lambda *how: pytest.fail("done again"))
    compare(what, tmp_path)
    assert len(read(tmp_path)) == 2
    assert "textual-inversion | 1 |" in table(savings(read(tmp_path)))


def test_the_last_length_is_the_concept_that_learning_gives(what):
    cell = what.plan.cells()[0]
    method, bb = cell.contestant, what.plan.bb
    refs = method.refs(cell.subject.parts[0], "<v>")
    states = watched._Lengths(bb, 2, lambda *how: None)
    concept = method.learner(0).learn(bb, refs, seed=0, watch=states)
    last = {name: value.clone() for name, value in concept.parts.state_dict().items()}
    states.put_back(concept, 10)
    assert any(not torch.equal(last[name], value) for name, value in concept.parts.state_dict().items())
    states.put_back(concept, 20)
    assert all(torch.equal(last[name], value) for name, value in concept.parts.state_dict().items())


def run(kind, subject, steps, *scores, **more):
    said = {"method": "m", "subject": subject, "seed": 0, "kind": kind, "steps": steps, "seconds": 10.0}
    return {**said, "scores": [{"step": step, "score": score} for step, score in scores], **more}


def test_shares_are_those_worked_out_by_hand():
    records = [
        run("full", "a", 100, (50, 0.4), (100, 0.2)), run("watched", "a", 30, (30, 0.3), looking=1.0),
        run("full", "b", 100, (50, 0.1), (100, 0.2)), run("watched", "b", 50, (50, 0.25), looking=0.5),
        run("full", "c", 100, (50, 0.0), (100, 0.0)), run("watched", "c", 40, (40, 0.0), looking=1.5),
        run("full", "d", 100, (50, 0.9), (100, 0.9)),
    ]  # fmt: skip
    (row,) = savings(records)
    assert row.runs == 3  # of d one run is missing
    assert (row.best, row.at) == (pytest.approx(0.5 / 3), 0.5), "50 steps: .4, .1, 0; 100 steps: .2, .2, 0"
    assert row.watched == pytest.approx((0.3 + 0.25 + 0.0) / 3)
    assert row.share == pytest.approx(1.1)
    assert row.steps == pytest.approx(0.4)
    assert row.looking == pytest.approx(0.1)
    assert "| m | 3 | 0.167 | 50% | 0.183 | 110% | 40% | 10% |" in table([row])
    assert "| - |" in table(savings(records[4:6]))


def test_what_does_not_learn_step_by_step_is_refused(what, bb, suite, tmp_path):
    who = [contestant("style-aligned", {}, {})]
    plan = Plan(bb, what.plan.tasks, who, range(1), {"world": suite}, {})
    with pytest.raises(FromfewError, match="does not learn step by step"):
        compare(Comparison(plan, {}), tmp_path)
    mixed = replace(plan, contestants=[contestant("lora/custom-diffusion", {}, {})])
    with pytest.raises(FromfewError, match="one method learning one thing"):
        compare(Comparison(mixed, {}), tmp_path)
