"""The forecast against what is really alive, and what is refused because of it."""

import json
import sys
from importlib import import_module

import pytest
import torch
from PIL import Image

from fromfew.cli import main
from fromfew.errors import FromfewError
from fromfew.fit import _Loop, generator
from fromfew.make import make
from fromfew.memory import Need, available, checked, counting, to_learn, to_make, weigh
from fromfew.method import find
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny

GB = 10**9


@pytest.mark.parametrize("base", ["sd15", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("method", ["textual-inversion", "lora", "dreambooth"])
def test_a_step_needs_what_was_forecast(base, method):
    bb, refs = tiny(base), few_photos()
    plan = find(method).of({"steps": 1, "batch": 3, "lr": 1e-6, "views": 1, "prior": 0.0}).resolved(bb)
    parts = plan.parts(bb, refs, generator(0))
    [stage] = plan.stages(bb, refs, parts)
    loop = _Loop(bb, parts, stage, 0)
    with loop, bb.attach(parts), counting("cpu") as real:
        loop.loss(0).backward()
    need = to_learn(bb, plan, refs)
    learned = sum(one.numel() * 4 for one in parts.parameters())
    assert need.learned == 3 * learned, "the numbers and two moments of each"
    assert need.base == weigh(*bb.modules_().values())
    told = max(1.4 * real.peak, 7 * learned)  # seven: gradients, and twice the state while it is written
    assert need.work == pytest.approx(told, rel=0.08)


@pytest.mark.parametrize("base", ["sd15", "sdxl", "sd3", "flux"])
def test_a_batch_of_pictures_needs_what_was_forecast(base):
    bb = tiny(base)
    with counting("cpu") as real:
        make(bb, ["a cat"] * 3, steps=1)
    need = to_make(bb, [], batch=3, size=(32, 32), guided=not bb.distilled)
    assert need.work == pytest.approx(1.4 * real.peak, rel=0.06)


def test_counting_sees_what_is_alive_at_once_and_views_once():
    with counting("cpu") as count:
        a = torch.zeros(1000)
        assert a.view(10, 100).sum() == 0
        del a
        b = torch.zeros(500)
    assert 4000 <= count.peak < 4100
    assert b.sum() == 0


def test_forecasting_leaves_base_and_chance_alone():
    bb = tiny("sd15")
    before, chance = bb.fingerprint(), torch.get_rng_state()
    to_learn(bb, find("lora")(), few_photos())
    assert bb.fingerprint(afresh=True) == before
    assert bb.attached == []
    assert torch.equal(torch.get_rng_state(), chance)


def needs(fixed, row):
    return lambda batch: Need(GB, fixed, row * batch, batch)


def test_what_does_not_fit_is_refused_with_the_batch_that_does(monkeypatch):
    monkeypatch.setattr("fromfew.memory.available", lambda device: 3 * GB)
    assert checked(needs(GB, GB // 2), 4, "cpu", "Learning") == Need(GB, GB, 2 * GB, 4)
    said = r"batch 8 would need about 5.0 GB.*3.0 GB are free.*--batch 4 would need about 3.0 GB"
    with pytest.raises(FromfewError, match=said):
        checked(needs(GB, GB // 2), 8, "cpu", "Learning")
    with pytest.raises(FromfewError, match=r"Not even --batch 1 fits \(about 6.0 GB\)"):
        checked(needs(5 * GB, GB), 8, "cpu", "Learning")
    assert checked(needs(5 * GB, GB), 8, "cpu", "Learning", force=True) == Need(GB, 5 * GB, 8 * GB, 8)


def test_what_cannot_be_told_is_not_refused(monkeypatch):
    monkeypatch.setattr("fromfew.memory.available", lambda device: 0)

    def looks(batch):
        return torch.empty(1, device="meta").item()

    assert checked(looks, 4, "cpu", "Learning") is None


def test_free_memory_is_that_of_the_machine_or_of_a_tighter_container(tmp_path, monkeypatch):
    memory = import_module("fromfew.memory")
    assert available("cpu") > 0
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert list(memory._free_in_group(tmp_path)) == [2000]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(memory._free_in_group(tmp_path)) == []


@pytest.fixture
def short(monkeypatch):
    """Room for little."""
    monkeypatch.setattr(sys.modules["fromfew.memory"], "available", lambda device: 4_500_000)


def test_the_command_line_refuses_before_it_learns_or_draws(short, tmp_path, capsys):
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "1.png")
    out = tmp_path / "rex"
    words = ["learn", str(tmp_path / "1.png"), "--noun", "cat", "--base", "tiny-sd15", "--steps", "1",
             "--out", str(out), "--no-preview", "--method", "textual-inversion"]  # fmt: skip
    assert main([*words, "--batch", "8"]) == 2
    assert "Learning with batch 8 would need about" in (said := capsys.readouterr().err)
    assert "--batch 1 would need about" in said
    assert not out.exists()
    assert main([*words, "--batch", "8", "--force"]) == 0
    draw = ["make", "a cat", "--base", "tiny-sd15", "--steps", "1", "--out", str(tmp_path / "drawn"), "--no-sheet"]
    capsys.readouterr()
    assert main([*draw, "-n", "8"]) == 2
    assert "Drawing with batch 8 would need about" in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()
    assert main([*draw, "-n", "8", "--batch", "2"]) == 0


def test_show_tells_the_memory_of_a_method_on_a_base(capsys):
    assert main(["show", "lora", "--base", "tiny-sd15"]) == 0
    assert "on tiny-sd15" in (said := capsys.readouterr().out)
    assert "batch 1" in said
    assert main(["show", "lora", "--base", "tiny-sd15", "--json"]) == 0
    assert "about" in json.loads(capsys.readouterr().out)["memory"]["batch 1"]
