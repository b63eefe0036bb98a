import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.method import find
from fromfew.testing.contract import few_photos
from fromfew.testing.eye import tiny_eye
from fromfew.testing.tiny import tiny

QUICK = {
    "steps": 4, "batch": 1, "lr": 2e-2, "class_images": 2, "cycles": 2, "ladder": (1.0, 0.5), "checks": 2,
    "previews": 1, "initial": 1, "add": 1, "hidden": (8, 8),
}  # fmt: skip


@pytest.fixture
def method(tmp_path, monkeypatch):
    monkeypatch.setenv("FROMFEW_CACHE", str(tmp_path / "cache"))
    return find("coti")(**QUICK, eye=tiny_eye(tmp_path / "eye"))


def walk(method, monkeypatch, scores):
    """All stages, with the word set to the stage's number after each, and scores as told; what each begins with."""
    bb, refs = tiny("sd15"), few_photos(3)
    parts = method.parts(bb, refs, generator(0))
    scores = iter(scores)
    monkeypatch.setattr("fromfew.pool.drawn_worth", lambda *_, **__: next(scores))
    first = parts.word.vectors["one"].clone()
    begins, stages = [], []
    for number, stage in enumerate(method.stages(bb, refs, parts)):
        now = parts.word.vectors["one"]
        begins.append("first" if torch.equal(now, first) else int(now[0, 0]))
        stages.append(stage)
        with torch.no_grad():
            parts.word.vectors["one"].fill_(number)
    return begins, stages, int(parts.word.vectors["one"][0, 0])


def test_a_rung_goes_on_from_the_best_state_not_the_last(method, monkeypatch):
    begins, stages, last = walk(method, monkeypatch, [5, 1, 2, 3, 1, 9, 8, 4])
    # Stages 0, 1 are the first rung: 0 was better, so stage 2 begins there; the second cycle begins anew.
    assert begins == ["first", 0, 0, 2, "first", 4, 5, 6]
    assert last == 6
    rates = [next(iter(stage.train.values())) for stage in stages]
    assert rates == [2e-2, 2e-2, 1e-2, 1e-2] * 2
    assert all(stage.steps == 2 for stage in stages)


def test_every_cycle_learns_from_one_photo_more(method, monkeypatch):
    _, stages, _ = walk(method, monkeypatch, [0] * 8)
    seen = []
    for stage in stages:
        keys = {stage.batches(generator(step)).keys[0][:2] for step in range(24)}
        seen.append(len(keys))
    assert seen == [2] * 4 + [3] * 4


def test_it_learns_and_scores_what_it_draws(method):
    concept = method.learn(tiny("sd15"), few_photos(3))
    assert concept.card.steps == 16
    assert torch.isfinite(concept.parts.word.vectors["one"]).all()


def test_bad_settings_are_refused():
    for how, why in (({"add": 0}, "add is"), ({"ladder": ()}, "ladder is"), ({"initial": 0}, "initial is")):
        with pytest.raises(FromfewError, match=why):
            find("coti")(**how)
