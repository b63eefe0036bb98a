"""The run: resumes where it was killed, repeats nothing, shares a folder, and its controls are what they say."""

import json
import os
from pathlib import Path

import pytest

from fromfew.bench import contestants
from fromfew.bench.records import append, claimed, prepare, read
from fromfew.bench.run import bench


def kinds(out):
    return sorted(one["kind"] for one in read(out))


def test_a_run_leaves_one_record_per_cell_and_one_of_sets_per_method(plan, tmp_path):
    summary = bench(plan(), tmp_path)
    assert (summary.done, summary.failed, summary.refused) == (6, 0, 0)
    assert kinds(tmp_path) == ["cell"] * 6 + ["set"] * 3
    one = next(r for r in read(tmp_path) if r["method"].startswith("textual-inversion"))
    assert len(one["scores"]["clip-t"]) == 2
    assert one["bytes"] > 0
    assert set(one["seconds"]) == {"learn", "draw", "score"}
    assert one["memory"]["process"] > 10**7
    assert set(one["scores"]) == set(one["metrics"])
    assert all(text.startswith("v") for text in one["metrics"].values())
    ignored = (tmp_path / ".gitignore").read_text().split()
    assert ignored == ["pictures/", "concepts/", "claims/", "report.html", "records.parquet"]


def test_nothing_finished_is_done_again(plan, tmp_path, monkeypatch):
    first = plan(methods=("base", "paste"))
    bench(first, tmp_path)
    before = (tmp_path / "records.jsonl").read_bytes()

    def never(*args, **how):
        raise AssertionError("drawn again")

    monkeypatch.setattr(contestants.Drawer, "draw", never)
    summary = bench(plan(methods=("base", "paste")), tmp_path)
    assert (summary.done, summary.before) == (0, 4)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_progress_counts_what_was_done_before_and_by_others(plan, tmp_path):
    bench(plan(methods=("paste",)), tmp_path)
    told = []
    bench(plan(methods=("base", "paste")), tmp_path, watch=lambda done, total, note="": told.append((done, total)))
    assert list(dict.fromkeys(told)) == [(2, 4), (3, 4), (4, 4)]


def test_a_run_killed_while_drawing_goes_on_to_the_same_scores(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("fromfew.bench.run._CHUNK", 1)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    bench(plan(methods=("textual-inversion",), subjects=1), straight)
    real, calls = contestants.Drawer.draw, []

    def dies(self, wanted):
        calls.append(len(wanted))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, wanted)

    monkeypatch.setattr(contestants.Drawer, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        bench(plan(methods=("textual-inversion",), subjects=1), killed)
    assert read(killed) == []
    bench(plan(methods=("textual-inversion",), subjects=1), killed)
    assert calls == [1, 1, 1]  # the picture drawn before the kill was not drawn again
    a, b = (next(r for r in read(out) if r["kind"] == "cell") for out in (straight, killed))
    assert a["scores"] == b["scores"]
    assert a["key"] == b["key"]


def test_pictures_that_newer_metrics_score_again_cost_what_they_cost(plan, tmp_path, monkeypatch):
    from fromfew.metrics.subject import CopyRate

    bench(plan(methods=("base",), subjects=1), tmp_path)
    monkeypatch.setattr(CopyRate, "version", 99)
    assert bench(plan(methods=("base",), subjects=1), tmp_path).done == 1
    old, new = (one for one in read(tmp_path) if one["kind"] == "cell")
    assert old["key"] != new["key"]
    assert new["seconds"]["draw"] >= old["seconds"]["draw"] > 0


def test_a_line_cut_short_by_a_kill_is_passed_over_and_the_next_is_whole(tmp_path):
    prepare(tmp_path)
    append(tmp_path, {"key": "a", "kind": "cell"})
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"key": "b", "kin')
    append(tmp_path, {"key": "c", "kind": "cell"})
    assert [one["key"] for one in read(tmp_path)] == ["a", "c"]


def test_a_cell_that_another_process_holds_is_left_to_it(tmp_path):
    prepare(tmp_path)
    with claimed(tmp_path, "x") as first, claimed(tmp_path, "x") as second, claimed(tmp_path, "y") as other:
        assert (first, second, other) == (True, False, True)
    with claimed(tmp_path, "x") as again:
        assert again


def test_a_failing_method_is_recorded_and_the_others_go_on(plan, tmp_path, monkeypatch):
    def fails(self, *args, **how):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(contestants.Method, "learn", fails)
    summary = bench(plan(subjects=1), tmp_path)
    assert (summary.done, summary.failed) == (2, 1)
    failed = next(one for one in read(tmp_path) if one["kind"] == "failed")
    assert "no memory left" in failed["why"]
    assert bench(plan(subjects=1), tmp_path).failed == 0
    monkeypatch.undo()
    assert bench(plan(subjects=1), tmp_path, retry=True).done == 1
    assert "failed" not in kinds(tmp_path)


def test_a_method_that_does_not_learn_faces_is_refused_with_the_reason(plan, tmp_path):
    summary = bench(plan(methods=("textual-inversion", "base"), task="world/faces", subjects=1), tmp_path)
    assert (summary.done, summary.refused) == (1, 1)
    assert "not face" in next(one["why"] for one in read(tmp_path) if one["kind"] == "refused")


def test_of_all_methods_those_that_do_not_suit_are_refused_with_reasons_and_the_others_are_not(bb, suite):
    from fromfew.bench.cli import _methods
    from fromfew.bench.run import Plan
    from fromfew.bench.task import open_task
    from fromfew.registry import cards

    who = [contestants.contestant(name, {}, {}) for name in _methods("all", False)]
    plan = Plan(bb, [open_task("world/objects").only(1, 2, 1)], who, range(1), {"world": suite})
    why = {c.contestant.name: c.contestant.suits(bb, c.task.role, c.subject) for c in plan.cells()}
    assert len(why) == len(cards()) + 3
    for name, card in cards().items():
        bad = (
            "subject" not in card.get("learns", ("subject",)) or "sd15" not in card["backbones"]
            or card["kind"] == "encoded" or card.get("needs_weights", False)
        )  # fmt: skip
        assert bool(why[name]) == bad, (name, why[name])
    assert "it learns style, not subject" in why["style-aligned"]
    assert why["ip-adapter"] == ["there are no weights for this base that come with fromfew (set weights=...)"]
    assert not any(str(Path.cwd()) in reason for reasons in why.values() for reason in reasons)


def test_other_weights_of_an_adapter_are_another_cell(bb, suite, tmp_path):
    from fromfew.bench.run import Plan
    from fromfew.bench.task import open_task

    file = tmp_path / "adapter.safetensors"
    who = [contestants.contestant("ip-adapter", {"ip-adapter": {"weights": str(file)}}, {})]
    plan = Plan(bb, [open_task("world/objects").only(1, 1)], who, range(1), {"world": suite})
    keys = [plan.cells()[0]]
    for said in (b"one", b"two"):
        file.write_bytes(said)
        os.utime(file, ns=(len(keys), len(keys)))
        keys.append(plan.cells()[0])
    assert len({cell.key for cell in keys}) == len({cell.shelf for cell in keys}) == len({c.home for c in keys}) == 3


def test_a_spent_budget_begins_nothing_and_says_what_is_left(plan, tmp_path):
    summary = bench(plan(methods=("base", "paste")), tmp_path, budget=0)
    assert (summary.done, summary.left) == (0, 4)


def test_pasted_photos_are_all_copy_and_more_like_the_subject_than_what_the_base_draws(plan, tmp_path):
    bench(plan(methods=("base", "paste"), prompts=4), tmp_path)
    mean = {}
    for one in read(tmp_path):
        if one["kind"] == "cell":
            for name in ("copy-rate", "dino-i", "clip-t-penalised"):
                mean.setdefault((one["method"], name), []).extend(one["scores"][name])
    mean = {key: sum(values) / len(values) for key, values in mean.items()}
    assert mean["paste", "copy-rate"] == 1
    assert mean["base", "copy-rate"] < 0.2
    assert mean["paste", "dino-i"] > mean["base", "dino-i"]
    assert mean["paste", "clip-t-penalised"] == pytest.approx(0, abs=1e-6)


def test_the_real_control_draws_what_every_world_task_asks_for(plan):
    from fromfew.bench.task import open_task, shipped

    for name in (n for n in shipped() if n.startswith("world/")):
        task = open_task(name)
        built = plan(methods=("real",), task=name, subjects=1, prompts=8)
        cell = built.cells()[0]
        ready = cell.contestant.learn(built.bb, task.subjects[0], seed=0, folder=None, watch=None)
        drawn = ready.draw(cell.wanted())
        assert drawn.shape == (8, 3, *(task.size or (built.bb.default_size, built.bb.default_size)))
        assert (ready.draw(cell.wanted()) == drawn).all()


def test_two_things_are_learned_apart_and_drawn_together(plan, tmp_path):
    bench(plan(methods=("textual-inversion",), task="world/pairs", subjects=1), tmp_path)
    one = next(r for r in read(tmp_path) if r["kind"] == "cell")
    assert one["prompts"][0] == "an animal to the left of a toy on the beach"
    assert set(one["scores"]["relation-drawn"]) <= {0, 1}
    homes = sorted(path.name for path in (tmp_path / "concepts").glob("*/*") if not path.name.startswith("."))
    assert homes == ["raccoonv1-0", "yarnv2-0"]


def test_records_hold_only_plain_json_and_no_line_is_long(plan, tmp_path):
    bench(plan(methods=("paste",), prompts=8), tmp_path)
    for line in (tmp_path / "records.jsonl").read_text().splitlines():
        assert len(line) < 6000
        assert json.loads(line)["key"]
