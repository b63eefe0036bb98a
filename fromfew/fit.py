"""The only training loop: deterministic, and resumable bit for bit from a kill at any moment.

Every step draws from a generator of its own, seeded from the stage's seed and the step's number; so the
number of the step is all there is to remember of chance and of the data's position.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from fromfew.checkpoint import Kept, load_state, save_state
from fromfew.errors import FromfewError
from fromfew.ports.part import Part, Parts, bare
from fromfew.rows import Rows
from fromfew.search import Evolution
from fromfew.stage import Stage, Step

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone, Text
    from fromfew.data import Batch

__all__ = ["Fall", "History", "Remembering", "Watch", "fit", "generator", "look"]

_KEPT_TEXTS = 4096
Watch = Callable[..., object]
"""Called after every step with (steps done, steps in all, a note such as "loss 0.123"). "stop" ends the stage; a `Fall`
lets its rates fall first."""


@dataclass(frozen=True)
class Fall:
    """What a watch returns for rates to fall along a line to 0: over so many further steps, which are the last ones.

    A level rate leaves what is learned noisy; a short fall takes the noise away whenever it begins, so that the length
    of a run need not be known at its start (arXiv:2405.18392).
    """

    steps: int


@runtime_checkable
class Remembering(Protocol):
    """A watch with a memory: it is kept in the stage's own state, so that it always belongs to the same step."""

    def begin(self, told: Mapping[str, Any] | None, seen: Mapping[str, Tensor]) -> None:
        """A stage begins, or goes on with what was remembered at its last kept step (None: nothing yet)."""

    def memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What to remember after the step just watched: plain JSON, and tensors by name."""


@dataclass
class History:
    """What happened: the loss of every step, seconds spent (before a kill, too), and the step it was resumed at."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    resumed: int = 0

    def mean(self, last: int = 20) -> float:
        """Mean loss of the last steps."""
        tail = self.losses[-last:]
        return sum(tail) / len(tail) if tail else math.nan


def generator(seed: int, step: int = 0) -> Generator:
    """A generator of its own for every (seed, step)."""
    # Golden-ratio mixing keeps neighbouring seeds and steps apart; manual_seed takes 64 bits.
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63)


def fit(
    bb: Backbone,
    parts: Parts,
    stage: Stage,
    *,
    rng: Generator,
    watch: Watch | None = None,
    resume: Path | None = None,
    every: float = 20.0,
    mark: str = "",
) -> History:
    """Minimise a stage's terms over its parts; the base is never written.

    Args:
        bb: A frozen backbone.
        parts: All parts of the concept; they are attached while learning.
        stage: What to do.
        rng: One number is drawn from it; all else follows from that number.
        watch: Called after every step; one that is `Remembering` is told where the stage begins, and its memory
            is kept with the state.
        resume: File that keeps the state; if it exists, learning goes on from it. A stage that had ended, at its
            last step or before, is not gone on with.
        every: Seconds between two writings of that file.
        mark: What identifies the run besides its stage, such as photos and settings.

    Raises:
        FromfewError: If loss or gradient are not finite (the last good state is kept), or the file is another's.
    """
    loop = _Loop(bb, parts, stage, int(torch.randint(2**62, (1,), generator=rng)), mark)
    keeper = _Keeper(loop, resume, every, watch)
    history = keeper.history
    if keeper.finished:
        return history
    with loop, bb.attach(parts):
        try:
            _run(loop, keeper, watch)
        except (_NotFinite, KeyboardInterrupt) as stop:
            keeper.keep()
            if isinstance(stop, _NotFinite):
                raise FromfewError(_advice(stage, len(history.losses), str(stop), resume)) from None
            raise
    keeper.keep(finished=True)
    return history


def _run(loop: _Loop, keeper: _Keeper, watch: Watch | None) -> None:
    """All steps that are left, or as many as ``watch`` wants."""
    history = keeper.history
    while (step := len(history.losses)) < loop.last:
        history.losses.append(loop.step(step))
        # A memory that was interrupted while it changed is as torn as an update.
        loop.torn = isinstance(watch, Remembering)
        told = watch(step + 1, loop.last, f"loss {history.losses[-1]:.3f}") if watch is not None else None
        if isinstance(told, Fall):
            loop.falls = (step + 1, min(told.steps, loop.last - step - 1))
        loop.torn = False
        if told == "stop":
            return
        keeper.keep_if_due()


class _Keeper:
    """Writes a loop's state to its file, and reads it back at the start."""

    def __init__(self, loop: _Loop, file: Path | None, every: float, watch: Watch | None) -> None:
        self.loop, self.file, self.every = loop, file, every
        self.watch = watch if isinstance(watch, Remembering) else None
        kept = Kept()
        if file is not None and file.exists():
            kept = load_state(file, loop.modules, loop.evolution or loop.optimiser, loop.mark)
            loop.falls = kept.falls
        self.finished = kept.finished
        self.history = History(kept.losses, kept.seconds, len(kept.losses))
        self.began, self.written = time.monotonic() - kept.seconds, time.monotonic()
        if self.watch is not None:
            self.watch.begin(kept.told, kept.seen)

    def keep(self, *, finished: bool = False) -> None:
        """Write the state, unless an interrupt fell into the middle of a step's update."""
        self.history.seconds = time.monotonic() - self.began
        if self.file is None or self.loop.torn:
            return
        told, seen = self.watch.memory() if self.watch is not None else (None, dict[str, Tensor]())
        falls = self.loop.falls
        kept = Kept(self.history.losses, self.history.seconds, finished, told, {} if finished else seen, falls)
        # Of a stage that has ended nothing but its result is needed.
        optimiser = None if finished else self.loop.evolution or self.loop.optimiser
        save_state(self.file, self.loop.modules, optimiser, self.loop.mark, kept)

    def keep_if_due(self) -> None:
        """Write the state if the last writing was long ago."""
        if time.monotonic() - self.written > self.every:
            self.keep()
            self.written = time.monotonic()


def look(bb: Backbone, parts: Parts, stage: Stage, *, seed: int, count: int = 4) -> float:
    """The stage's loss on fixed pictures, noise and times, without learning: comparable before and after."""
    loop = _Loop(bb, parts, stage, seed)
    with torch.no_grad(), bb.attach(parts):
        return sum(float(loop.loss(step)) for step in range(count)) / count


class _NotFinite(Exception):
    pass


class _Loop:
    """State of one stage: optimiser, kept latents and texts."""

    def __init__(self, bb: Backbone, parts: Parts, stage: Stage, seed: int, mark: str = "") -> None:
        self.bb, self.parts, self.stage, self.seed = bb, parts, stage, seed
        for module in (parts, *stage.train):
            module.to(bb.device)
        self.modules = [module for module in stage.train if any(True for _ in module.parameters())]
        decay = stage.decay if isinstance(stage.decay, Mapping) else dict.fromkeys(self.modules, stage.decay)
        groups = [
            {"params": list(m.parameters()), "lr": rate, "base": rate, "weight_decay": decay.get(m, 0.0)}
            for m, rate in stage.train.items() if m in self.modules
        ]  # fmt: skip
        kind: Any = torch.optim.SGD if stage.optimiser == "sgd" else torch.optim.AdamW
        self.optimiser = kind(groups) if groups else None
        self.evolution = None if stage.search is None else Evolution(stage.search, seed)
        self.torn = False  # whether an update was begun whose loss is not yet noted
        self.falls: tuple[int, int] | None = None  # the step at which the rates began to fall, and over how many
        self.now: Step | None = None
        self.latents: dict[Hashable, Tensor] = {}
        self.texts: dict[str, Text] = {}
        learning = [part for part in self.modules if isinstance(part, Part) and part.touches_text]
        words = [getattr(part, "placeholder", None) for part in learning]
        self.text_learns = any(word is None for word in words)
        self.words = [word for word in words if word]
        self.mark = f"{mark} {seed} {stage.name} {stage.steps} {sorted(stage.train.values())} {bb.fingerprint()}"

    def __enter__(self) -> _Loop:
        self.parts.requires_grad_(False)
        for module in self.modules:
            module.requires_grad_(True)
            module.train()
        return self

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            module.requires_grad_(False)
            module.eval()

    @property
    def last(self) -> int:
        """After how many steps the stage ends."""
        return self.stage.steps if self.falls is None else sum(self.falls)

    def step(self, step: int) -> float:
        """One optimiser step; its loss."""
        if self.evolution is not None:
            return self._generation(self.evolution, step)
        optimiser = self.optimiser
        loss = self.loss(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _NotFinite("loss")
        if optimiser is None or not loss.requires_grad:
            return value
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for group in optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.stage.clip)
        if not bool(torch.isfinite(norm)):
            raise _NotFinite("gradient")
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * self._factor(step)
        self.torn = True
        optimiser.step()
        if self.stage.after is not None and self.now is not None:
            with torch.no_grad():
                self.stage.after(self.now)
        self.now = None
        return value

    def _generation(self, evolution: Evolution, step: int) -> float:
        """One population, tried on the same pictures, noise and times; its mean loss."""
        self.torn = True
        with torch.no_grad():
            value = evolution.step(lambda: float(self.loss(step)))
        if not math.isfinite(value):
            raise _NotFinite("loss")
        return value

    def _factor(self, step: int) -> float:
        stage = self.stage
        rise = min(1.0, (step + 1) / (stage.warmup + 1))
        done = step / stage.steps
        fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[stage.schedule]
        if self.falls is not None:
            begun, over = self.falls
            fall *= 1 - (step - begun + 1) / (over + 1)
        return rise * fall

    def loss(self, step: int) -> Tensor:
        """The weighted sum of the terms at this step."""
        rng = generator(self.seed, step)
        batch = self.stage.batches(rng)
        x0 = self._encode(batch)
        noise = torch.randn(x0.shape, generator=rng).to(x0)
        if self.stage.offset:
            noise = noise + self.stage.offset * torch.randn((*x0.shape[:2], 1, 1), generator=rng).to(x0)
        draw = self.stage.times or self.bb.path.draw
        t = draw(len(x0), rng).to(x0.device)
        extra = self.stage.attach(batch, rng) if self.stage.attach else Parts()
        maps = _recorder(self.stage.record, self.stage.record_side)
        with self.bb.attach(extra, *maps) as there:
            text = self._embed(batch.captions, t)
            rows = Rows.plain(len(x0), t)
            xt = self.bb.path.mix(x0, noise, t)
            pred = self.bb.predict(xt, t, text, rows)
            seen = maps[0].read(there, text) if maps else {}
        target = self._taught(batch, self.bb.path.target(x0, noise, t), xt, t)
        self.now = now = Step(x0, noise, t, xt, pred, target, text, rows, batch, seen)
        return torch.stack([weight * term(now).mean() for weight, term in self.stage.terms]).sum()

    def _taught(self, batch: Batch, target: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The target, and on the rows that are taught what the untouched base says."""
        rows = [row for row, taught in enumerate(batch.taught or ()) if taught]
        if not rows:
            return target
        with torch.no_grad(), bare(self.bb):
            said = self.bb.predict(xt[rows], t[rows], self.bb.embed([batch.captions[row] for row in rows]))
        return target.index_copy(0, torch.tensor(rows, device=target.device), said.to(target))

    def _encode(self, batch: Batch) -> Tensor:
        rows = []
        for i, key in enumerate(batch.keys):
            latent = None if key is None else self.latents.get(key)
            if latent is None:
                # One by one: the bits must not depend on what happened to be kept already.
                with torch.no_grad():
                    latent = self.bb.encode(batch.images[i : i + 1])
                if key is not None:
                    self.latents[key] = latent
            rows.append(latent)
        return torch.cat(rows)

    def _embed(self, captions: Sequence[str], t: Tensor) -> Text:
        from fromfew.backbones.text import Text

        while len(self.texts) > _KEPT_TEXTS:
            del self.texts[next(iter(self.texts))]
        rows = [i for i, c in enumerate(captions) if self.text_learns or any(word in c for word in self.words)]
        moving = [captions[i] for i in rows]
        for caption in captions:
            if caption not in moving and caption not in self.texts:
                # One by one: the bits must not depend on what happened to be kept already.
                with torch.no_grad():
                    self.texts[caption] = self.bb.embed([caption])
        fresh = self.bb.embed(moving, t[rows]) if moving else None
        order = iter(range(len(moving)))
        pick = [fresh.select([next(order)]) if fresh and c in moving else self.texts[c] for c in captions]
        return fresh if fresh and len(moving) == len(captions) else Text.join(pick)


def _recorder(words: tuple[str, ...], side: int | None = None) -> tuple:
    if not words:
        return ()
    from fromfew.parts.record import Record

    return (Record(words, side=side),)


def _advice(stage: Stage, step: int, what: str, kept: Path | None) -> str:
    rates = ", ".join(f"{rate:g}" for rate in sorted(set(stage.train.values())))
    where = f" The last good state is kept at '{kept}'." if kept else ""
    return (
        f"The {what} is not a finite number after step {step} of {stage.steps} ('{stage.name}'). The likely "
        f"cause is a learning rate too high for this model (now {rates}); try a third of it.{where}"
    )
