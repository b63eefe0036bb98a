"""A stage of pre-training goes on from any kill with the same bits."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fromfew.errors import FromfewError
from fromfew.pretrain.loop import Run, Trainee, generator


class Line(Trainee):
    name = "line"
    steps = 40
    batch_size = 4
    warmup = 3
    lr = 2e-2

    def build(self):
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 1))

    def batch(self, step):
        return torch.randn(4, 2, 6, 6, generator=generator(3, step))

    def loss(self, model, batch, rng):
        noise = torch.randn(batch.shape, generator=rng)
        return (model(batch + 0.1 * noise) - batch.sum(1, keepdim=True)).square().mean(), {}


def bits(folder):
    return load_file(folder / "line" / "state.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_loss_falls_and_the_average_ships(tmp_path):
    stage = Line()
    run = Run(stage, tmp_path)
    losses = [run.advance()[0] for _ in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    live = [p.clone() for p in run.trained]
    with run.averaged():
        assert not torch.equal(run.trained[0], live[0])
    assert torch.equal(run.trained[0], live[0])


@pytest.mark.parametrize("stop", [1, 7, 39])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, stop):
    Run(Line(), tmp_path / "whole").train()
    Run(Line(), tmp_path / "parts").train(until=stop)
    Run(Line(), tmp_path / "parts").train()
    assert same(bits(tmp_path / "whole"), bits(tmp_path / "parts"))


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from test_loop import Line; from fromfew.pretrain.loop import Run\n"
        "Run(Line(), Path(sys.argv[2])).train(save_every=0, log=lambda f: None)\n"
    )
    here = str(Path(__file__).parent)
    killed = 0
    for delay in (0.0, 0.02, 0.05, 0.1):
        process = subprocess.Popen([sys.executable, "-c", code, here, str(tmp_path / "killed")])
        while process.poll() is None and not (tmp_path / "killed" / "line" / "state.safetensors").exists():
            time.sleep(0.005)
        time.sleep(delay)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed
    Run(Line(), tmp_path / "killed").train()
    Run(Line(), tmp_path / "whole").train()
    assert same(bits(tmp_path / "whole"), bits(tmp_path / "killed"))


def test_a_state_of_other_settings_is_refused(tmp_path):
    Run(Line(), tmp_path).train(until=2)
    other = Line()
    other.lr = 5e-4
    with pytest.raises(FromfewError, match="belongs to other settings"):
        Run(other, tmp_path)


def test_a_loss_that_is_not_finite_stops_with_the_cause(tmp_path):
    class Bad(Line):
        def loss(self, model, batch, rng):
            return model(batch).sum() * float("nan"), {}

    with pytest.raises(FromfewError, match="Lower the learning rate"):
        Run(Bad(), tmp_path).advance()


def test_a_longer_run_goes_on_from_before_the_descent(tmp_path):
    short, long = Line(), Line()
    long.steps = 80
    Run(short, tmp_path / "a").train(until=20)
    Run(long, tmp_path / "b").train(until=20)
    assert same(bits(tmp_path / "a"), bits(tmp_path / "b"))
