"""Learning that watches itself: fixed noise, held-out views, and a rule for when it was best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Generator, Tensor

from fromfew.errors import FromfewError, unknown
from fromfew.ports.part import Part, attached
from fromfew.rows import Rows

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.references import References

__all__ = ["RULES", "Look", "Rule", "Watcher", "settled", "split"]

STOP = "stop"
"""What the watcher returns when the training loop is to end the stage."""
Rule = Literal["front", "loss"]
RULES: tuple[Rule, ...] = get_args(Rule)
_TIMES = (0.25, 0.5, 0.75, 0.9)
_FAR = 0.9
_CONTEXTS = ("on the beach", "in the snow")
_STYLED = ("a cat", "a house")


@dataclass(frozen=True)
class Look:
    """What was seen after a step."""

    step: int
    loss: float
    """Denoising loss on the held-out views, with fixed noise and times."""
    fidelity: float
    """Share of the base's loss on them that is gone: 0 is the base with the plain noun, 1 would be no loss."""
    alignment: float
    """Cosine between what a context changes now and what it changed in the base; falls as prompts lose power."""
    drift: float
    """How far the plain noun's prediction has moved, as a share of its own size."""

    @property
    def score(self) -> float:
        """Fidelity times alignment; what the front rule maximises."""
        return max(self.fidelity, 0.0) * max(self.alignment, 0.0)


def split(refs: References) -> tuple[References, References]:
    """Photos to learn from, and one to watch: the last of four or more, else mirrored views of those learned."""
    from PIL import ImageOps

    if len(refs) >= 4:
        return replace(refs, photos=refs.photos[:-1]), replace(refs, photos=refs.photos[-1:])
    mirrored = tuple(replace(one, image=ImageOps.mirror(one.image), mask=None) for one in refs.photos)
    return refs, replace(refs, photos=mirrored)


def settled(losses: Sequence[float], window: int, ratio: float) -> bool:
    """DVAR's rule (arXiv 2302.04841): ``Var(last window) / Var(all) < ratio``.

    Args:
        losses: deterministic losses in order; comparable because noise and times are fixed.
        window: how many count as the last.
        ratio: threshold.

    >>> settled([1.0, 0.5, 0.1, 0.1, 0.1], window=3, ratio=0.15)
    True
    """
    if len(losses) <= window:
        return False
    values = torch.tensor(losses, dtype=torch.float64)
    everything = float(values.var(unbiased=False))
    return everything > 0 and float(values[-window:].var(unbiased=False)) / everything < ratio


class Watcher:
    """Give it as ``watch`` to ``learn``: it scores, keeps the best state in the parts, and stops.

    What it saw is part of the stage's state (see `fromfew.fit.Remembering`), so that a resumed run goes on with it.

    Args:
        bb: The backbone, nothing attached.
        refs: Photos that are not learned from (see `split`).
        rule: "front" keeps the highest fidelity times alignment and stops after ``patience`` looks without a
            gain; "loss" is DVAR: it stops once the loss on fixed noise has settled, and keeps the lowest.
        inner: Called as well, with what was seen as its note.
        every: Steps between two looks; a fortieth of the steps, at least 10, if left out.
        patience: Looks without a gain of ``gain``.
        gain: Smallest relative gain that counts.
        window: Looks in DVAR's window.
        ratio: DVAR's threshold.
        seed: Of the fixed noise.

    Raises:
        FromfewError: The rule is unknown, or something is attached already.
    """

    def __init__(  # noqa: PLR0913 - each is a knob of one of the two rules
        self,
        bb: Backbone,
        refs: References,
        *,
        rule: Rule = "front",
        inner: Callable[..., object] | None = None,
        every: int | None = None,
        patience: int = 5,
        gain: float = 0.01,
        window: int = 6,
        ratio: float = 0.15,
        seed: int = 0,
    ) -> None:
        if rule not in RULES:
            raise unknown("rule of --watch", rule, RULES)
        if attached(bb):
            raise FromfewError("Something is attached to the base already; watching begins on the base alone.")
        self.bb, self.rule, self.inner, self.every = bb, rule, inner, every
        self.patience, self.gain, self.window, self.ratio = patience, gain, window, ratio
        self.looks: list[Look] = []
        self.best: Look | None = None
        self.kept: list[dict[str, Tensor]] = []
        self.why = ""
        self.seconds = 0.0
        """What looking has cost so far, of this process."""
        with self._timed():
            self.probe = _Probe(bb, refs, seed)

    @property
    def sentence(self) -> str:
        """Which state was kept, and why."""
        if self.best is None:
            return "Nothing was trained, so there was no state to choose."
        told = f"fidelity {self.best.fidelity:.3f}, alignment {self.best.alignment:.3f}, drift {self.best.drift:.3f}"
        what = "highest fidelity times alignment" if self.rule == "front" else "lowest loss on fixed noise"
        return f"Kept the state after step {self.best.step} ({what}: {told}); {self.why or 'all steps were done'}."

    def __call__(self, done: int, total: int, note: str = "") -> str | None:
        """Look if it is time; returns ``"stop"`` when the stage should end."""
        every = self.every or max(10, total // 40)
        parts = self._parts()
        if parts and (done % every == 0 or done == total) and not self.why:
            with self._timed():
                self._look(parts, done)
            note = f"{note}, fidelity {self.looks[-1].fidelity:.3f}, alignment {self.looks[-1].alignment:.3f}"
        if self.inner is not None:
            self.inner(done, total, note.strip(", "))
        if not parts or not (self.why or done == total):
            return None
        self._restore(parts)
        return STOP

    def begin(self, told: Mapping[str, Any] | None, seen: Mapping[str, Tensor]) -> None:
        """A stage begins: nothing was seen yet, or what was remembered at the step where it goes on."""
        self.looks, self.best, self.kept, self.why = [], None, [], ""
        if told is None:
            return
        self.looks = [Look(**one) for one in told["looks"]]
        self.best, self.why = Look(**told["best"]) if told["best"] else None, told["why"]
        for key, value in sorted(seen.items()):
            number, _, name = key.partition(".")
            while len(self.kept) <= int(number):
                self.kept.append({})
            self.kept[int(number)][name] = value

    def memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Everything seen, and the best state."""
        best = asdict(self.best) if self.best else None
        told = {"looks": [asdict(look) for look in self.looks], "best": best, "why": self.why}
        return told, {f"{i}.{name}": v for i, state in enumerate(self.kept) for name, v in state.items()}

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = monotonic()
        try:
            yield
        finally:
            self.seconds += monotonic() - began

    def _parts(self) -> list[Part]:
        return [entry.part for entry in attached(self.bb) if any(True for _ in entry.part.parameters())]

    def _look(self, parts: Sequence[Part], step: int) -> None:
        modes = [part.training for part in parts]
        for part in parts:
            part.eval()
        look = self.probe.look(step)
        for part, mode in zip(parts, modes, strict=True):
            part.train(mode)
        self.looks.append(look)
        if self._better(look):
            self.best = look
            self.kept = [{k: v.detach().clone() for k, v in part.state_dict().items()} for part in parts]
        self.why = self._reason()

    def _better(self, look: Look) -> bool:
        if self.best is None:
            return True
        if self.rule == "loss":
            return look.loss < self.best.loss
        return look.score > self.best.score

    def _reason(self) -> str:
        """Why to stop now; empty to go on."""
        if self.rule == "loss":
            held = settled([look.loss for look in self.looks], self.window, self.ratio)
            return f"the loss had settled at step {self.looks[-1].step}" if held else ""
        scores = [look.score for look in self.looks]
        before, recent = scores[: -self.patience], scores[-self.patience :]
        # Right at the start nothing is learned yet: patience begins with the first state better than the base.
        if not before or max(before) <= 0 or max(recent) > max(before) * (1 + self.gain):
            return ""
        return f"nothing better came in the {self.patience} looks up to step {self.looks[-1].step}"

    def _restore(self, parts: Sequence[Part]) -> None:
        """The best state, in place: the caller's parts are these parts."""
        with torch.no_grad():
            for part, state in zip(parts, self.kept, strict=True):
                for name, value in part.state_dict().items():
                    value.copy_(state[name])


class _Probe:
    """Fixed latents, noise and times, with what the base alone makes of them."""

    def __init__(self, bb: Backbone, refs: References, seed: int) -> None:
        from fromfew.bench.contestants import pictures_of
        from fromfew.templates import with_article

        self.bb = bb
        self.style = refs.role == "style"
        word, noun = refs.placeholder, refs.noun or "picture"
        self.plain = "a picture" if self.style else with_article(noun)
        self.word = f"a picture in {word} style" if self.style else f"a {word} {noun}"
        if self.style:
            self.contexts = [(f"{thing} in {word} style", thing) for thing in _STYLED]
        else:
            self.contexts = [(f"{self.word} {where}", f"{self.plain} {where}") for where in _CONTEXTS]
        rng = Generator().manual_seed(seed + 77)
        with torch.no_grad():
            latents = bb.encode(pictures_of(refs, bb.default_size)[0].to(bb.device, bb.dtype))
            times = torch.tensor(_TIMES, device=latents.device)
            rows = [i % len(latents) for i in range(len(_TIMES))]
            self.x0, self.t = latents[rows], times
            self.noise = torch.randn(self.x0.shape, generator=rng).to(self.x0)
            self.xt = bb.path.mix(self.x0, self.noise, self.t)
            self.target = bb.path.target(self.x0, self.noise, self.t)
            # Where a prompt decides most, everything still is noise.
            self.far = torch.randn((1, *self.x0.shape[1:]), generator=rng).to(self.x0)
            plain, far = self._predict(self.plain, [self.plain, *(base for _, base in self.contexts)])
            self.zero = float((plain - self.target).square().mean())
            self.far_plain, self.shifts = far[0], [one - far[0] for one in far[1:]]

    def look(self, step: int) -> Look:
        """Everything, with what is attached now."""
        with torch.no_grad():
            pred, far = self._predict(self.word, [self.word, self.plain, *(said for said, _ in self.contexts)])
            loss = float((pred - self.target).square().mean())
            pairs = [(one - far[0], shift) for one, shift in zip(far[2:], self.shifts, strict=True)]
            cosines = [torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs]
            moved = far[1] - self.far_plain
            drift = float(moved.square().mean() / self.far_plain.square().mean().clamp(min=1e-12))
        return Look(step, loss, 1 - loss / max(self.zero, 1e-12), float(torch.stack(cosines).mean()), drift)

    def _predict(self, near: str, far: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What is said of the held-out views, all asked one prompt, and of noise, asked several; one pass."""
        xt = torch.cat([self.xt, self.far.expand(len(far), *self.far.shape[1:])])
        t = torch.cat([self.t, self.t.new_full((len(far),), _FAR)])
        text = self.bb.embed([near] * len(self.xt) + list(far))
        pred = self.bb.predict(xt, t, text, Rows.plain(len(xt), t)).float()
        return pred[: len(self.xt)], pred[len(self.xt) :]
