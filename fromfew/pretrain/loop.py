"""The loop every stage of pre-training runs in: resumable from any kill with the same bits.

What a step does is a function of (seed, step) and of the state before it, and nothing else: batches, times and
noise come from generators seeded by the step. The state (weights, their average, AdamW's moments) is written to a
temporary name, flushed and renamed, so a kill at any moment leaves one whole state to go on from.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.io.files import replacing

Log = Callable[[dict[str, Any]], None]


class Trainee(ABC):
    """One stage of pre-training: what is trained, on what, by which loss."""

    name: ClassVar[str]
    steps: int = 1000
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    average: float = 0.999
    """Decay of the running average of the weights, which is what ships."""
    warmup: int = 200
    amp: bool = False
    """Whether the loss is computed under bfloat16 autocast (worth it on a GPU; slower on a CPU without AMX)."""
    seed: int = 0

    @abstractmethod
    def build(self) -> Any:
        """The network to train; called under ``torch.manual_seed(seed)``."""

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The batch of a step, the same whenever it is asked for."""

    @abstractmethod
    def loss(self, model: Any, batch: Any, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """A scalar loss and figures for the log."""

    def measure(self, model: Any) -> dict[str, float]:
        """Figures on held-out data, for the log; called with the averaged weights."""
        return {}

    def sheet(self, model: Any, path: Path) -> None:  # noqa: B027  (a stage without pictures has none)
        """Write a picture of how far the stage is, if it has one."""

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, level, and down to nothing over the last quarter.

        The level stretch lets a run be made longer afterwards: a state from before the descent goes on as if the
        longer run had been asked for at once.
        """
        left = max(0, self.steps - step) / (0.25 * self.steps)
        return self.lr * min(1.0, (step + 1) / self.warmup, left)


def generator(seed: int, *numbers: int) -> torch.Generator:
    """A CPU generator that depends on the numbers and nothing else."""
    value = seed
    for number in numbers:
        value = (value * 1_000_003 + number + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(value)


class Run:
    """The state of one stage: network, averaged weights, optimiser, step."""

    def __init__(self, stage: Trainee, folder: Path, device: str = "cpu") -> None:
        self.stage, self.folder, self.device = stage, folder / stage.name, device
        self.folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.seed)
            self.model = stage.build().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.trained]
        self.optimiser = torch.optim.AdamW(
            self.trained, lr=stage.lr, betas=stage.betas, weight_decay=stage.weight_decay, fused=True
        )
        self.step = 0
        self._resume()

    def train(self, *, save_every: float = 60, log: Log | None = None, until: int | None = None) -> None:
        """Run to the stage's last step, or to ``until``.

        Args:
            save_every: seconds between states written to disk.
            log: receives a dict of figures about every 50 steps.
            until: stop after this step all the same (a later call goes on from there).
        """
        last = min(self.stage.steps, until or self.stage.steps)
        saved = shown = time.monotonic()
        since = self.step
        while self.step < last:
            loss, figures = self.advance()
            now = time.monotonic()
            if log and (self.step % 50 == 0 or self.step == last):
                speed = (self.step - since) * self.stage.batch_size / max(now - shown, 1e-9)
                log(dict(step=self.step, steps=last, loss=round(loss, 5), speed=round(speed, 1), **figures))
                shown, since = now, self.step
            if now - saved > save_every:
                self.save()
                saved = time.monotonic()
        self.save()

    def advance(self) -> tuple[float, dict[str, float]]:
        """One optimiser step."""
        stage = self.stage
        for group in self.optimiser.param_groups:
            group["lr"] = stage.rate(self.step)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=stage.amp):
            loss, figures = stage.loss(self.model, stage.batch(self.step), generator(stage.seed, 17, self.step))
        if not torch.isfinite(loss):
            raise FromfewError(
                f"{stage.name}: the loss is {float(loss)} at step {self.step}; the last good state is in "
                f"{self.folder}. Lower the learning rate (it was {stage.rate(self.step):.2g})."
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(stage.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.trained], 1 - keep)
        return float(loss.detach()), figures

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The network with its averaged weights, in evaluation mode."""
        live = [p.detach().clone() for p in self.trained]
        with torch.no_grad():
            torch._foreach_copy_(self.trained, self.average)
        training = self.model.training
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train(training)
            with torch.no_grad():
                torch._foreach_copy_(self.trained, live)

    def save(self) -> None:
        """Write the whole state atomically."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{i}": v for i, v in enumerate(self.average)}
        for i, p in enumerate(self.trained):
            state = self.optimiser.state.get(p, {})
            tensors |= {f"{key}.{i}": state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}
        # A copy in plain order: safetensors refuses strided tensors, and channels_last weights are strided.
        plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        with replacing(self.folder / "state.safetensors") as new:
            save_file(plain, new, metadata={"step": str(self.step), "stage": json.dumps(self._identity())})

    def _identity(self) -> dict[str, Any]:
        stage = self.stage
        return dict(name=stage.name, batch_size=stage.batch_size, lr=stage.lr, seed=stage.seed)

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            about = file.metadata()
            if json.loads(about["stage"]) != self._identity():
                raise FromfewError(
                    f"{path} belongs to other settings ({about['stage']}); this run has {self._identity()}. "
                    "Choose another folder or remove the state."
                )
            self.step = int(about["step"])
            keys = set(file.keys())
            weights = {k[6:]: file.get_tensor(k) for k in keys if k.startswith("model.")}
            self.model.load_state_dict(weights)
            for i, p in enumerate(self.trained):
                self.average[i].copy_(file.get_tensor(f"average.{i}"))
                if f"exp_avg.{i}" in keys:
                    # empty_like keeps the parameter's memory order, which the fused kernel relies on.
                    state: dict[str, Tensor] = {"step": torch.tensor(float(self.step), device=self.device)}
                    for key in ("exp_avg", "exp_avg_sq"):
                        state[key] = torch.empty_like(p).copy_(file.get_tensor(f"{key}.{i}"))
                    self.optimiser.state[p] = state
