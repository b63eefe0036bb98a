import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator, look
from fromfew.method import find
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny

QUICK = {"steps": 3, "batch": 1, "population": 5, "spread": 1.0, "dims": 8}


@pytest.mark.parametrize("subspace", ["prior", "pca"])
@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_no_gradient_is_ever_taken(monkeypatch, base, subspace):
    bb, refs = tiny(base), few_photos()

    def never(*_, **__):
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(torch.Tensor, "backward", never)
    asked = []
    real = bb.predict
    monkeypatch.setattr(bb, "predict", lambda *a, **k: (asked.append(torch.is_grad_enabled()), real(*a, **k))[1])
    method = find("gradient-free")(**QUICK, subspace=subspace)
    began = method.parts(bb, refs, generator(0)).word
    ended = method.learn(bb, refs).parts.word
    assert asked == [False] * 15
    assert all(not torch.equal(began.vectors[key], ended.vectors[key]) for key in ended.vectors)


def test_all_points_of_a_step_see_the_same_pictures_noise_and_times(monkeypatch):
    bb, refs = tiny("sd15"), few_photos()
    seen = []
    real = bb.predict

    def predict(xt, t, text, rows=None):
        seen.append((xt.clone(), t.clone(), text.states.clone()))
        return real(xt, t, text, rows)

    monkeypatch.setattr(bb, "predict", predict)
    find("gradient-free")(**{**QUICK, "steps": 2}).learn(bb, refs)
    for step in (seen[:5], seen[5:]):
        assert all(torch.equal(one[0], step[0][0]) and torch.equal(one[1], step[0][1]) for one in step)
        assert all(not torch.equal(a[2], b[2]) for i, a in enumerate(step) for b in step[:i])
    assert not torch.equal(seen[0][0], seen[5][0])


def test_the_photos_loss_falls():
    bb, refs = tiny("sd15"), few_photos()
    method = find("gradient-free")(**{**QUICK, "steps": 25, "population": 8}, views=2)
    parts = method.parts(bb, refs, generator(0))
    stage = next(iter(method.stages(bb, refs, parts)))
    before = look(bb, parts, stage, seed=1, count=6)
    after = look(bb, method.learn(bb, refs).parts, stage, seed=1, count=6)
    assert after < before


def test_bad_settings_are_refused():
    for how, why in (({"population": 2}, "population"), ({"subspace": "x"}, "subspace"), ({"spread": 0.0}, "spread")):
        with pytest.raises(FromfewError, match=why):
            find("gradient-free")(**how)
