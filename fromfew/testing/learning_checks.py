"""The checks of the contract that are about learning (see `fromfew.testing.checks`)."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fromfew.backbones.base import Backbone
from fromfew.concept import Concept
from fromfew.errors import FromfewError
from fromfew.fit import generator, look
from fromfew.method import Tuned
from fromfew.ports.part import Parts
from fromfew.testing.contract import PROMPT, Bench, Skip, few_photos, predict
from fromfew.testing.part_checks import state_of

__all__ = [
    "a_killed_run_resumes_with_the_same_bits",
    "base_stays_untouched",
    "checkpointing_gives_the_same_gradients",
    "every_word_moves",
    "everything_learns_and_nothing_else",
    "it_stays_within_its_bounds",
    "learning_is_deterministic",
    "loss_falls_on_fixed_noise",
    "memory_is_told_beforehand",
    "numbers_of",
    "several_are_learned_together_or_refused",
    "what_does_not_suit_is_refused_first",
]


@dataclass(frozen=True)
class _Again:
    """The same learned a second time and drawn, and what that left behind."""

    concept: Concept
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    said: str
    wrote: frozenset[str]


def _again(bench: Bench) -> _Again:
    return bench.once("again", lambda: _watched(bench))


def _watched(bench: Bench) -> _Again:
    """Learn and draw without a network, looking at the base, the screen and the current folder."""

    def closed(*_: object, **__: object) -> None:
        raise AssertionError("it asked for the network")

    predict(bench.bb)  # transformers hooks its encoders for good when states are first asked for
    before, said, real = state_of(bench.bb), io.StringIO(), socket.socket.connect
    listed = {path.name for path in Path.cwd().iterdir()}
    socket.socket.connect = closed  # type: ignore[method-assign, assignment]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            concept = bench.learn()
            bench.make([PROMPT], concept)
    finally:
        socket.socket.connect = real  # type: ignore[method-assign]
    wrote = frozenset(path.name for path in Path.cwd().iterdir()) - listed
    return _Again(concept, before, state_of(bench.bb), said.getvalue(), wrote)


def learning_is_deterministic(bench: Bench) -> None:
    """One seed gives the same bits twice; another seed, where something is learned, gives others."""
    assert _equal(bench.concept, _again(bench).concept), "the same seed gave other numbers"
    if isinstance(bench.method, Tuned):
        assert not _equal(bench.concept, bench.learn(seed=1)), "another seed gave the same numbers"


def numbers_of(concept: Concept) -> dict[str, Tensor]:
    """Every tensor of a concept by its name."""
    return dict(concept.parts.state_dict())


def _equal(one: Concept, two: Concept) -> bool:
    a, b = numbers_of(one), numbers_of(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def base_stays_untouched(bench: Bench) -> None:
    """Learning, drawing and exceptions in the middle leave tensors, hooks, flags and chance as they were."""
    again = _again(bench)
    _same(again.before, again.after)

    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    before = state_of(bench.bb)
    with contextlib.suppress(RuntimeError):
        bench.learn(watch=stop)
    with contextlib.suppress(RuntimeError):
        bench.make([PROMPT], bench.concept, watch=stop)
    _same(before, state_of(bench.bb))


def _same(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for what in before:
        assert before[what] == after[what], f"{what} changed"


def everything_learns_and_nothing_else(bench: Bench) -> None:
    """Every parameter that a gradient can reach moves; none of the base receives one."""
    method, bb = _tuned(bench)
    parts = method.keep(bb, method.parts(bb, bench.refs, generator(0)))
    began = {name: value.clone() for name, value in parts.state_dict().items()}
    learned = numbers_of(bench.concept)
    assert began.keys() == learned.keys(), "what is saved is not what was trained"
    moved = [not torch.equal(began[name], learned[name]) for name in began]
    # A real model has parameters that no gradient reaches, such as the last text layer beside the pooled
    # vector.
    assert sum(moved) >= 0.8 * len(moved), f"only {sum(moved)} of {len(moved)} tensors moved"
    assert not any(p.requires_grad for p in bench.concept.parts.parameters()), "a learned part still asks for gradients"


def every_word_moves(bench: Bench) -> None:
    """With one, two and three vectors, every vector of every encoder moves."""
    method, bb = _tuned(bench)
    counts = (1, 2, 3) if "vectors" in method.settings() else (1,)
    for count in counts:
        more: dict[str, Any] = {"vectors": count} if len(counts) > 1 else {}
        one = replace(method, modifier="word", **more)
        began: Any = getattr(one.parts(bb, bench.refs, generator(0)), "word", None)
        learned = bench.concept if one == method else replace(one, steps=2).learn(bb, bench.refs)
        ended: Any = getattr(learned.parts, "word", None)
        if not hasattr(ended, "vectors"):  # what stands for the word is computed: all that computes it must move
            assert ended is None or all(
                not torch.equal(*pair) for pair in zip(began.parameters(), ended.parameters(), strict=True)
            ), "a part of what computes the word did not move"
            continue
        for key, vectors in ended.vectors.items():
            still = (vectors == began.vectors[key]).all(1)
            assert vectors.shape[0] == count, f"{count} vectors were asked for, encoder {key} has {len(vectors)}"
            assert not bool(still.any()), f"vector {still.nonzero().flatten().tolist()} of encoder {key} did not move"


def loss_falls_on_fixed_noise(bench: Bench) -> None:
    """The loss at fixed pictures, noise and times falls: at once, or in a longer run."""
    method, bb = _tuned(bench)
    parts = method.parts(bb, bench.refs, generator(0))
    stage = list(method.stages(bb, bench.refs, parts))[-1]
    before = look(bb, parts, stage, seed=11)
    after = look(bb, bench.concept.parts, stage, seed=11)
    if not after < before:
        after = look(bb, replace(method, steps=20).learn(bb, bench.refs).parts, stage, seed=11)
    assert after < before, f"it went from {before:.4f} to {after:.4f}"


def _tuned(bench: Bench) -> tuple[Tuned, Backbone]:
    if not isinstance(bench.method, Tuned):
        raise Skip("nothing is learned at test time")
    return bench.method.resolved(bench.bb), bench.bb


def memory_is_told_beforehand(bench: Bench) -> None:
    """A step runs on tensors without numbers, so what it needs is known before it is begun."""
    from fromfew.memory import to_learn

    method, bb = _tuned(bench)
    need = to_learn(bb, method, bench.refs)
    assert need.learned >= 3 * 4, "nothing is said to learn"
    assert need.work > 0, "a step is said to need nothing"


def a_killed_run_resumes_with_the_same_bits(bench: Bench) -> None:
    """Stopped in the middle and called again, learning ends with the bits of an uninterrupted run."""
    _tuned(bench)
    work = bench.folder / "work"

    def stop(done: int, total: int, note: str = "") -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        bench.learn(watch=stop, work=work)
    kept = next(work.glob("*.safetensors")).stat().st_size
    seen: list[int] = []
    again = bench.learn(work=work, watch=lambda done, total, note="": seen.append(done))
    assert kept > 0, "nothing was kept"
    assert seen[0] > 1, "it began anew"
    assert _equal(again, bench.concept), "the resumed run ended with other numbers"


def several_are_learned_together_or_refused(bench: Bench) -> None:
    """Two subjects give one concept with two words, both learned; a method that takes one at a time says so."""
    method, bb = _tuned(bench)
    two = replace(bench.refs, also=(replace(few_photos(2, noun="dog", masks=bench.masks), placeholder="<w>"),))
    if not method.card().get("joint", False):
        assert "one thing at a time" in _refusal(lambda: method.learn(bb, two)), "two subjects: no such reason"
        return
    concept = replace(method, modifier="word", steps=2).learn(bb, two)
    assert concept.answers == {"<v>": "cat", "<w>": "dog"}, f"it answers to {concept.answers}"
    plain = bench.make(["a <v> cat and a <w> dog"], concept.scaled(0))
    assert not torch.equal(bench.make(["a <v> cat and a <w> dog"], concept), plain), "it does nothing"
    began = replace(method, modifier="word").parts(bb, two, generator(0)).state_dict()
    ended = concept.parts.state_dict()
    words = [name for name in began if name.startswith("word")]
    assert all(not torch.equal(began[name], ended[name]) for name in words), "a subject's word did not move"
    again = Concept.load(concept.save(bench.folder / "two"))
    assert again.answers == concept.answers, "saved and loaded, it answers to others"


def _refusal(call: Callable[[], object]) -> str:
    """Why a call refuses; empty if it does not."""
    try:
        call()
    except FromfewError as error:
        return str(error)
    return ""


def checkpointing_gives_the_same_gradients(bench: Bench) -> None:
    """Recomputing activations in the backward pass gives the same gradients."""
    method, bb = _tuned(bench)
    grads = []
    for on in (False, True):
        parts = method.parts(bb, bench.refs, generator(0))
        _stir(parts)
        rng = torch.Generator().manual_seed(4)
        xt = torch.randn(2, *bb.latent_shape(), generator=rng)
        bb.checkpointing(on)
        try:
            with bb.attach(parts):
                text = bb.embed([PROMPT, "a <v> dog"])
                bb.predict(xt, torch.full((2,), 0.5), text).square().mean().backward()
        finally:
            bb.checkpointing(False)
        grads.append([p.grad for p in parts.parameters()])
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None), "a parameter got a gradient only once"
        assert a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-7), "gradients differ"


def _stir(parts: Parts) -> None:
    """Small numbers instead of zeros, so that every gradient is alive."""
    rng = generator(9)
    with torch.no_grad():
        for value in parts.parameters():
            value.add_(torch.randn(value.shape, generator=rng) * 1e-3)


def what_does_not_suit_is_refused_first(bench: Bench) -> None:
    """Too few photos, or a concept of another base, are refused with a reason before any work."""
    if bench.method.card()["photos"][0] > 0:
        none = replace(few_photos(1), photos=())
        assert "photo" in _refusal(lambda: bench.method.learn(bench.bb, none)), "no photos at all: no such reason"
    if any("/" in name for name in bench.concept.parts.state_dict()):
        from fromfew.testing.tiny import tiny

        other = tiny("flux" if "flux" not in bench.bb.name else "sd15")
        assert other.name in _refusal(lambda: bench.concept.check(other)), "another base: no such reason"


def it_stays_within_its_bounds(bench: Bench) -> None:
    """No network, nothing printed, nothing written outside its folder."""
    again = _again(bench)  # without a network
    assert again.said == "", f"it printed {again.said[:60]!r}"
    assert not again.wrote, f"it wrote {sorted(again.wrote)} into the current folder"
