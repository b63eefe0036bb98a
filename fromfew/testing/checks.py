"""The checks of the contract: sentences that hold, or an AssertionError that says where they do not."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fromfew.backbones.base import Backbone
from fromfew.concept import Concept
from fromfew.errors import FromfewError
from fromfew.fit import generator, look
from fromfew.guidance import CFG
from fromfew.method import Encoded, Free, Tuned
from fromfew.ports.part import Parts
from fromfew.testing.contract import PROMPT, Bench, Skip, few_photos, predict
from fromfew.testing.part_checks import Three, lone, others, state_of

__all__ = ["CHECKS"]

_FIELDS = {"title", "arxiv", "year", "learns", "photos", "kind", "ports", "backbones", "adds"}
_PORTS = {"text", "linear", "attention", "feature", "sampler"}


def settings_are_plain_values(bench: Bench) -> None:
    """Equal settings are equal methods; repr and JSON give the same method back."""
    method = bench.method
    again = eval(repr(method), {type(method).__name__: type(method)})
    assert again == method, "repr does not evaluate back"
    assert hash(again) == hash(method), "equal methods have other hashes"
    assert type(method).of(json.loads(json.dumps(method.settings()))) == method, "JSON does not give it back"
    with contextlib.suppress(FromfewError):
        type(method).of({"no-such-setting": 1})
        raise AssertionError("an unknown setting was accepted")


def card_says_all(bench: Bench) -> None:
    """The card is complete, and the docstring has a formula, the departures and an example."""
    card, doc = bench.method.card(), type(bench.method).__doc__ or ""
    assert card.keys() >= _FIELDS, f"the card lacks {sorted(_FIELDS - card.keys())}"
    assert re.fullmatch(r"\d{4}\.\d{4,5}", card["arxiv"]), "the paper's number is not one of arXiv's"
    assert set(card["ports"]) <= _PORTS, "the card names a port that does not exist"
    kind = next(name for name, base in (("tuned", Tuned), ("encoded", Encoded), ("free", Free)) if _is(bench, base))
    assert card["kind"] == kind, f"the card says {card['kind']}, the class is {kind}"
    for wanted in ("``", "Departs", ">>>"):
        assert wanted in doc, f"the docstring lacks {wanted!r}"
    own = [one.name for one in fields(bench.method)]
    source = Path(__import__(type(bench.method).__module__, fromlist=["x"]).__file__ or "").read_text("utf-8")
    assert all(name in own for name in re.findall(r"^    (\w+): .*= ", source, re.M)), "a setting is no field"


def _is(bench: Bench, base: type) -> bool:
    return isinstance(bench.method, base)


def learning_is_deterministic(bench: Bench) -> None:
    """One seed gives the same bits twice; another seed, where something is learned, gives others."""
    first, again = bench.concept, bench.learn()
    assert _equal(first, again), "the same seed gave other numbers"
    if _is(bench, Tuned):
        assert not _equal(first, bench.learn(seed=1)), "another seed gave the same numbers"


def _numbers(concept: Concept) -> dict[str, Tensor]:
    return dict(concept.parts.state_dict())


def _equal(one: Concept, two: Concept) -> bool:
    a, b = _numbers(one), _numbers(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def base_stays_untouched(bench: Bench) -> None:
    """Learning, drawing and exceptions in the middle leave tensors, hooks, flags and chance as they were."""
    predict(bench.bb)  # transformers hooks its encoders for good when states are first asked for
    before = state_of(bench.bb)
    bench.learn()
    bench.make([PROMPT], bench.concept)

    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    with contextlib.suppress(RuntimeError):
        bench.learn(watch=stop)
    with contextlib.suppress(RuntimeError):
        bench.make([PROMPT], bench.concept, watch=stop)
    after = state_of(bench.bb)
    for what in before:
        assert before[what] == after[what], f"{what} changed"


def detaching_restores_exactly(bench: Bench) -> None:
    """Predictions are equal bit for bit after detaching, nested and out of order."""
    bb, concept = bench.bb, bench.concept
    plain = predict(bb, prompt="a cat")
    first, second = bb.attach(concept), bb.attach(lone(bb))
    first.__enter__()
    once = predict(bb, prompt="a cat")
    second.__enter__()
    predict(bb, prompt="a cat")
    first.__exit__(None, None, None)
    other = predict(bb, prompt="a cat")
    second.__exit__(None, None, None)
    assert torch.equal(predict(bb, prompt="a cat"), plain), "the base is not what it was"
    with bb.attach(lone(bb)):
        assert torch.equal(predict(bb, prompt="a cat"), other), "what was left behind acts differently"
    with bb.attach(concept):
        assert torch.equal(predict(bb, prompt="a cat"), once), "attaching again acts differently"


def strength_zero_is_the_base(bench: Bench) -> None:
    """At strength 0 pictures are the base's, bit for bit; at 1 they are not; 0.5 is neither."""
    prompts = ["a cat", "a dog", "a lamp"]
    plain = bench.make(prompts)
    none = bench.make(prompts, bench.concept.scaled(0))
    assert torch.equal(plain, none), "strength 0 changed a picture"
    shown = [PROMPT, "a <v> dog", "a <v> lamp"]
    zero, half, whole = (bench.make(shown, bench.concept.scaled(s)) for s in (0, 0.5, 1))
    assert (whole - zero).abs().max() > 1e-3, "strength 1 changed nothing"
    assert not torch.equal(half, whole), "strength 0.5 is strength 1"
    assert not torch.equal(half, zero), "strength 0.5 is strength 0"


def everything_learns_and_nothing_else(bench: Bench) -> None:
    """Every parameter that a gradient can reach moves; none of the base receives one."""
    method, bb = _tuned(bench)
    parts = method.keep(bb, method.parts(bb, bench.refs, generator(0)))
    began = {name: value.clone() for name, value in parts.state_dict().items()}
    learned = _numbers(bench.concept)
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
        began = getattr(one.parts(bb, bench.refs, generator(0)), "word", None)
        ended = getattr(one.learn(bb, bench.refs).parts, "word", None)
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
    """The loss at fixed pictures, noise and times falls."""
    method, bb = _tuned(bench)
    parts = method.parts(bb, bench.refs, generator(0))
    stage = list(method.stages(bb, bench.refs, parts))[-1]
    before = look(bb, parts, stage, seed=11)
    after = look(bb, replace(method, steps=20).learn(bb, bench.refs).parts, stage, seed=11)
    assert after < before, f"it went from {before:.4f} to {after:.4f}"


def _tuned(bench: Bench) -> tuple[Tuned, Backbone]:
    if not isinstance(bench.method, Tuned):
        raise Skip("nothing is learned at test time")
    return bench.method.resolved(bench.bb), bench.bb


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


def saving_and_loading_changes_nothing(bench: Bench) -> None:
    """Saved and loaded, a concept draws the same bits; its files have the size the card says."""
    concept = bench.concept
    folder = concept.save(bench.folder / "concept")
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".safetensors"], "it is not just the two files"
    loaded = Concept.load(folder)
    shown = [PROMPT, "a <v> dog"]
    assert torch.equal(bench.make(shown, concept), bench.make(shown, loaded)), "the loaded concept draws otherwise"
    assert loaded.card == concept.card, "the card changed"
    size = (folder / "concept.safetensors").stat().st_size
    assert concept.card.bytes <= size <= concept.card.bytes * 1.05 + 65536, f"{size} bytes, the card says otherwise"


def a_picture_is_the_same_alone(bench: Bench) -> None:
    """Picture i of a batch equals picture i alone; where pictures are coupled, the first is what it was."""
    prompts = [PROMPT, "a <v> dog", "a <v> lamp"]
    whole = bench.make(prompts, bench.concept)
    if not bench.couples:
        for i, prompt in enumerate(prompts):
            lone = bench.make([""] * i + [prompt], bench.concept, batch=1)[i]
            assert torch.allclose(lone, whole[i], atol=2e-4), f"picture {i} depends on the others"
        return
    other = bench.make([prompts[0], "a <v> dog", "a <v> boat"], bench.concept)
    assert torch.equal(whole[:2], other[:2]), "pictures depend on more than the first"


def any_number_of_branches_and_any_size(bench: Bench) -> None:
    """One, two and three guidance branches; a batch of one; a picture that is not square."""
    concept, bb = bench.concept, bench.bb
    one, two, three = (bench.make([PROMPT], concept, guidance=g) for g in (1.0, CFG(2.0), Three(2.0)))
    assert one.shape == two.shape == three.shape, "shapes differ with the branches"
    # A third branch of weight 0 must change nothing but rounding: parts read rows, not halves of the batch.
    if not bb.distilled:
        assert torch.allclose(two, three, atol=2e-4), "a third branch changed what two branches draw"
    held = any(getattr(part, "shape", None) for part in concept.parts)
    if not held:
        wide = bench.make([PROMPT], concept, size=(bb.default_size, bb.default_size * 2))
        assert wide.shape[-1] == 2 * wide.shape[-2], "the wide picture has another shape"
        assert bool(torch.isfinite(wide).all()), "the wide picture is not finite"


def works_beside_other_families(bench: Bench) -> None:
    """Beside a word, a low-rank part, a picture stream and sharing it runs and comes off exactly."""
    bb = bench.bb
    plain = predict(bb, prompt="a cat")
    for other in others(bb):
        with bb.attach(bench.concept), bb.attach(other):
            assert bool(torch.isfinite(predict(bb, branches=("uncond", "cond"))).all()), f"not finite beside {other!r}"
        assert torch.equal(predict(bb, prompt="a cat"), plain), f"beside {other!r} it did not come off exactly"


def ports_are_those_declared(bench: Bench) -> None:
    """Parts touch the ports the card names and no other; every attention site they name is reached."""
    ports = {part.port for part in bench.concept.parts}
    declared = set(bench.method.card()["ports"])
    assert ports <= declared, f"it touches {sorted(ports - declared)}, which its card does not name"
    if _is(bench, Tuned):
        assert ports == declared, f"its card names {sorted(declared - ports)}, which it does not touch"


def several_are_learned_together_or_refused(bench: Bench) -> None:
    """Two subjects give one concept with two words, both learned; a method that takes one at a time says so."""
    method, bb = _tuned(bench)
    two = replace(bench.refs, also=(replace(few_photos(2, noun="dog", masks=bench.masks), placeholder="<w>"),))
    if not method.card().get("joint", False):
        assert "one thing at a time" in _refusal(lambda: method.learn(bb, two)), "two subjects: no such reason"
        return
    concept = replace(method, modifier="word").learn(bb, two)
    assert concept.answers == {"<v>": "cat", "<w>": "dog"}, f"it answers to {concept.answers}"
    plain = bench.make(["a <v> cat and a <w> dog"], concept.scaled(0))
    assert not torch.equal(bench.make(["a <v> cat and a <w> dog"], concept), plain), "it does nothing"
    began = replace(method, modifier="word").parts(bb, two, generator(0)).state_dict()
    ended = concept.parts.state_dict()
    words = [name for name in began if name.startswith("word")]
    assert all(not torch.equal(began[name], ended[name]) for name in words), "a subject's word did not move"
    again = Concept.load(concept.save(bench.folder / "two"))
    assert again.answers == concept.answers, "saved and loaded, it answers to others"


def half_precision_works(bench: Bench) -> None:
    """On a bfloat16 base pictures are finite and parts keep their own number format."""
    bb, concept = bench.bb, bench.concept
    kinds = {name: value.dtype for name, value in _numbers(concept).items()}
    kept = {name: {n: t.clone() for n, t in m.state_dict().items()} for name, m in bb.modules_().items()}
    try:
        bb.to(dtype=torch.bfloat16)
        drawn = bench.make([PROMPT, "a <v> dog"], concept)
        assert bool(torch.isfinite(drawn.float()).all()), "a picture is not finite"
    finally:
        bb.to(dtype=torch.float32)
        for name, module in bb.modules_().items():
            module.load_state_dict(kept[name])
    assert kinds == {name: value.dtype for name, value in _numbers(concept).items()}, "a part changed its format"


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


def _refusal(call: Callable[[], object]) -> str:
    """Why a call refuses; empty if it does not."""
    try:
        call()
    except FromfewError as error:
        return str(error)
    return ""


def it_stays_within_its_bounds(bench: Bench) -> None:
    """No network, nothing printed, nothing written outside its folder."""
    said = io.StringIO()
    around = Path.cwd()
    listed = sorted(p.name for p in around.iterdir())

    def closed(*_: object, **__: object) -> None:
        raise AssertionError("it asked for the network")

    real = socket.socket.connect
    socket.socket.connect = closed  # type: ignore[method-assign, assignment]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            bench.make([PROMPT], bench.learn())
    finally:
        socket.socket.connect = real  # type: ignore[method-assign]
    assert said.getvalue() == "", f"it printed {said.getvalue()[:60]!r}"
    assert sorted(p.name for p in around.iterdir()) == listed, "it wrote into the current folder"


CHECKS: dict[str, Callable[[Bench], None]] = {
    check.__name__: check
    for check in (
        settings_are_plain_values,
        card_says_all,
        learning_is_deterministic,
        base_stays_untouched,
        detaching_restores_exactly,
        strength_zero_is_the_base,
        everything_learns_and_nothing_else,
        every_word_moves,
        loss_falls_on_fixed_noise,
        a_killed_run_resumes_with_the_same_bits,
        saving_and_loading_changes_nothing,
        a_picture_is_the_same_alone,
        any_number_of_branches_and_any_size,
        works_beside_other_families,
        ports_are_those_declared,
        several_are_learned_together_or_refused,
        half_precision_works,
        checkpointing_gives_the_same_gradients,
        what_does_not_suit_is_refused_first,
        it_stays_within_its_bounds,
    )
}
