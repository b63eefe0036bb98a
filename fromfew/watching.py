"""Learning that watches itself: fixed noise, held-out views, and a rule for when it was best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Generator, Tensor

from fromfew.errors import FromfewError, unknown
from fromfew.fit import Fall
from fromfew.ports.part import Part, attached
from fromfew.rows import Rows

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.method import Learner
    from fromfew.references import References

__all__ = ["RULES", "Look", "Rule", "Watcher", "level", "settled", "split"]

STOP = "stop"
"""What the watcher returns when the training loop is to end the stage."""
Rule = Literal["front", "loss"]
RULES: tuple[Rule, ...] = get_args(Rule)
_TIMES = (0.25, 0.5, 0.75, 0.9)
_MOST_LEARNED = 4
_FAR = 0.9
_CONTEXTS = ("on the beach", "in the snow")
_STYLED = ("a cat", "a house")


@dataclass(frozen=True)
class Look:
    """What was seen after a step."""

    step: int
    loss: float
    """Denoising loss with fixed noise and times, on views learned from (on held-out ones if no others are given)."""
    fidelity: float
    """Share of the base's loss on them that is gone: 0 is the base with the plain noun, 1 would be no loss."""
    alignment: float
    """Cosine between what a context changes now and what it changed in the base; falls as prompts lose power."""
    drift: float
    """How far the plain noun's prediction has moved, as a share of its own size."""
    gap: float = 0.0
    """Fidelity to the views learned from, less that to held-out ones: what is memorised."""

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


def level(method: Learner, bb: Backbone) -> Learner:
    """The method for a run that stops by itself: a schedule that falls to its end would presuppose its length.

    Where the base's recipe falls and the user left it open, the rates stay level at half of the recipe's, which is
    what a cosine or a line comes to on average.
    """
    own = method.resolved(bb)
    if getattr(method, "schedule", None) is not None or getattr(own, "schedule", None) in (None, "constant"):
        return own
    rates = {one.name: getattr(own, one.name) for one in fields(own) if one.name == "lr" or one.name.endswith("_lr")}
    halved = {name: value / 2 for name, value in rates.items() if value is not None}
    changed: dict[str, Any] = {"schedule": "constant", **halved}
    return replace(own, **changed)


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
        learned: Photos that are. Where they are given, fidelity is that to them, and how much worse the others are
            known is told beside it: the loss on one held-out view rises long before pictures get worse.
        rule: "front" keeps the highest fidelity times alignment and stops when the mean of the last ``patience`` looks
            is no ``gain`` above that of as many before; "loss" is DVAR: it stops once the loss on fixed noise has
            settled, and keeps the lowest.
        inner: Called as well, with what was seen as its note.
        every: Steps between two looks; a twentieth of the steps, at least 10, if left out.
        patience: Looks of which a mean is taken: a single one is noisy.
        gain: Smallest relative gain that counts. Once rates fall, an earlier state has to be as much better to stay.
        fall: When the rule has spoken (or so that it ends with the steps), the rates fall to 0 over this share of the
            steps done so far (see `fromfew.fit.Fall`); 0 stops at once.
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
        learned: References | None = None,
        *,
        rule: Rule = "front",
        inner: Callable[..., object] | None = None,
        every: int | None = None,
        patience: int = 3,
        gain: float = 0.2,
        fall: float = 0.25,
        window: int = 6,
        ratio: float = 0.15,
        seed: int = 0,
    ) -> None:
        if rule not in RULES:
            raise unknown("rule of --watch", rule, RULES)
        if attached(bb):
            raise FromfewError("Something is attached to the base already; watching begins on the base alone.")
        self.bb, self.rule, self.inner, self.every = bb, rule, inner, every
        self.patience, self.gain, self.fall, self.window, self.ratio = patience, gain, fall, window, ratio
        self.pace = self.spoke = self.end = 0  # steps between looks, the one at which rates began to fall, the last one
        self.looks: list[Look] = []
        self.best: Look | None = None
        self.kept: list[dict[str, Tensor]] = []
        self.why = ""
        self.seconds = 0.0
        """What looking has cost so far, of this process."""
        with self._timed():
            self.probe = _Probe(bb, refs, learned, seed)

    @property
    def sentence(self) -> str:
        """Which state was kept, and why."""
        if self.best is None:
            return "Nothing was trained, so there was no state to choose."
        one = self.best
        told = f"fidelity {one.fidelity:.3f}, alignment {one.alignment:.3f}, drift {one.drift:.3f}, gap {one.gap:.3f}"
        what = "highest fidelity times alignment" if self.rule == "front" else "lowest loss on fixed noise"
        why = self.why or "all steps were done"
        fell = f", and the rates fell to 0 up to step {self.end}" if self.end else ""
        return f"Kept the state after step {self.best.step} ({what}: {told}); {why}{fell}."

    def __call__(self, done: int, total: int, note: str = "") -> str | Fall | None:
        """Look if it is time; says when the rates are to fall, and ``"stop"`` when the stage should end."""
        self.pace = self.pace or self.every or max(10, total // 20)
        parts = self._parts()
        if parts and (done % self.pace == 0 or done == total):
            with self._timed():
                self._look(parts, done)
            note = f"{note}, fidelity {self.looks[-1].fidelity:.3f}, alignment {self.looks[-1].alignment:.3f}"
        if self.inner is not None:
            self.inner(done, total, note.strip(", "))
        if not parts:
            return None
        if done == total or (self.why and not self.fall):
            self._restore(parts)
            return STOP
        left = total - done
        if self.end or not (self.why or left <= self.fall * done):
            return None
        over = max(1, min(left, round(self.fall * done)))
        self.spoke, self.end = done, done + over
        return Fall(over)

    def begin(self, told: Mapping[str, Any] | None, seen: Mapping[str, Tensor]) -> None:
        """A stage begins: nothing was seen yet, or what was remembered at the step where it goes on."""
        self.looks, self.best, self.kept, self.why, self.pace = [], None, [], "", 0
        self.spoke = self.end = 0
        if told is None:
            return
        self.pace, self.spoke, self.end = told["pace"], told["spoke"], told["end"]
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
        looks = [asdict(look) for look in self.looks]
        told: dict[str, Any] = {"looks": looks, "best": best, "why": self.why}
        told |= {"pace": self.pace, "spoke": self.spoke, "end": self.end}
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
        if not self.end:
            self.why = self._reason()

    def _better(self, look: Look) -> bool:
        if self.best is None:
            return True
        if self.rule == "loss":
            return look.loss < self.best.loss
        # The best of many noisy states is worse than it looks; one whose rates fell is as good as it looks.
        noisy = self.end and self.best.step <= self.spoke
        return look.score * (1 + self.gain if noisy else 1) > self.best.score

    def _reason(self) -> str:
        """Why to stop now; empty to go on."""
        if self.rule == "loss":
            held = settled([look.loss for look in self.looks], self.window, self.ratio)
            return f"the loss had settled at step {self.looks[-1].step}" if held else ""
        scores = [look.score for look in self.looks[-2 * self.patience :]]
        before, recent = sum(scores[: self.patience]), sum(scores[self.patience :])
        # Right at the start nothing is learned yet: patience begins with states better than the base.
        if len(scores) < 2 * self.patience or before <= 0 or recent > before * (1 + self.gain):
            return ""
        return f"the {self.patience} looks up to step {self.looks[-1].step} were hardly better than those before"

    def _restore(self, parts: Sequence[Part]) -> None:
        """The best state, in place: the caller's parts are these parts."""
        with torch.no_grad():
            for part, state in zip(parts, self.kept, strict=True):
                for name, value in part.state_dict().items():
                    value.copy_(state[name])


class _Probe:
    """Fixed latents, noise and times, with what the base alone makes of them."""

    def __init__(self, bb: Backbone, held: References, learned: References | None, seed: int) -> None:
        from fromfew.templates import with_article

        self.bb = bb
        style, word, noun = held.role == "style", held.placeholder, held.noun or "picture"
        self.plain = "a picture" if style else with_article(noun)
        self.called = called = f"a picture in {word} style" if style else f"a {word} {noun}"
        if style:
            self.contexts = [(f"{thing} in {word} style", thing) for thing in _STYLED]
        else:
            self.contexts = [(f"{called} {where}", f"{self.plain} {where}") for where in _CONTEXTS]
        rng = Generator().manual_seed(seed + 77)
        with torch.no_grad():
            views = [self._views(held, called, per=len(_TIMES) if len(held) == 1 else 2)]
            if learned is not None:
                views.append(self._views(learned, called, per=len(_TIMES)))
            self.said = [text for one in views for text in one[1]]
            said_plainly = [text for one in views for text in one[2]]
            self.x0 = torch.cat([one[0] for one in views])
            self.t = torch.tensor([t for one in views for t in one[3]], device=self.x0.device)
            # Which rows are of held-out views, and which of learned ones.
            ends = [0, len(views[0][1]), len(self.said)]
            self.groups = [slice(a, b) for a, b in pairwise(ends) if b > a]
            self.noise = torch.randn(self.x0.shape, generator=rng).to(self.x0)
            self.xt = bb.path.mix(self.x0, self.noise, self.t)
            self.target = bb.path.target(self.x0, self.noise, self.t)
            # Where a prompt decides most, everything still is noise.
            self.far = torch.randn((1, *self.x0.shape[1:]), generator=rng).to(self.x0)
            plain, far = self._predict(said_plainly, [self.plain, *(base for _, base in self.contexts)])
            self.zero = self._losses(plain)
            self.far_plain, self.shifts = far[0], [one - far[0] for one in far[1:]]

    def _views(self, refs: References, called: str, per: int) -> tuple[Tensor, list[str], list[str], list[float]]:
        """Latents of some photos, ``per`` times each; what is said of each, the same without the word, and times."""
        from fromfew.templates import worded
        from fromfew.views import pictures_of

        refs = replace(refs, photos=refs.photos[:_MOST_LEARNED])
        latents = self.bb.encode(pictures_of(refs, self.bb.default_size)[0].to(self.bb.device, self.bb.dtype))
        rows = [i for i in range(len(refs)) for _ in range(per)]
        own = [refs.photos[i].caption for i in rows]
        style = refs.role == "style"
        said = [worded(one, refs.placeholder, refs.noun, style=style) if one else called for one in own]
        times = [_TIMES[(i + k * len(_TIMES) // per) % len(_TIMES)] for i in range(len(refs)) for k in range(per)]
        return latents[rows], said, [one or self.plain for one in own], times

    def look(self, step: int) -> Look:
        """Everything, with what is attached now."""
        with torch.no_grad():
            pred, far = self._predict(self.said, [self.called, self.plain, *(said for said, _ in self.contexts)])
            losses = self._losses(pred)
            pairs = [(one - far[0], shift) for one, shift in zip(far[2:], self.shifts, strict=True)]
            cosines = [torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs]
            moved = far[1] - self.far_plain
            drift = float(moved.square().mean() / self.far_plain.square().mean().clamp(min=1e-12))
        gone = [1 - loss / max(zero, 1e-12) for loss, zero in zip(losses, self.zero, strict=True)]
        return Look(step, losses[-1], gone[-1], float(torch.stack(cosines).mean()), drift, gone[-1] - gone[0])

    def _losses(self, pred: Tensor) -> list[float]:
        return [float((pred[rows] - self.target[rows]).square().mean()) for rows in self.groups]

    def _predict(self, near: Sequence[str], far: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What is said of the views, each asked its own prompt, and of noise, asked several; one pass."""
        xt = torch.cat([self.xt, self.far.expand(len(far), *self.far.shape[1:])])
        t = torch.cat([self.t, self.t.new_full((len(far),), _FAR)])
        pred = self.bb.predict(xt, t, self.bb.embed([*near, *far]), Rows.plain(len(xt), t)).float()
        return pred[: len(self.xt)], pred[len(self.xt) :]
