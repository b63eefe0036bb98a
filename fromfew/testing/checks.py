"""The checks of the contract: sentences that hold, or an AssertionError that says where they do not."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from fromfew.concept import Concept
from fromfew.errors import FromfewError
from fromfew.guidance import CFG
from fromfew.method import Free, Tuned
from fromfew.pretrained import Encoded
from fromfew.testing.contract import PROMPT, SHOWN, Bench, predict
from fromfew.testing.learning_checks import (
    a_killed_run_resumes_with_the_same_bits,
    base_stays_untouched,
    checkpointing_gives_the_same_gradients,
    every_word_moves,
    everything_learns_and_nothing_else,
    it_stays_within_its_bounds,
    learning_is_deterministic,
    loss_falls_on_fixed_noise,
    memory_is_told_beforehand,
    numbers_of,
    several_are_learned_together_or_refused,
    what_does_not_suit_is_refused_first,
)
from fromfew.testing.part_checks import Three, lone, others

__all__ = ["CHECKS", "ON_EVERY_BASE", "WHERE_SOMETHING_LEARNS"]

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
    prompts = ["a cat", "a dog"]
    plain = bench.make(prompts)
    none = bench.make(prompts, bench.concept.scaled(0))
    assert torch.equal(plain, none), "strength 0 changed a picture"
    zero, half, whole = (*(bench.make(SHOWN, bench.concept.scaled(s)) for s in (0, 0.5)), bench.shown)
    assert (whole - zero).abs().max() > 1e-3, "strength 1 changed nothing"
    assert not torch.equal(half, whole), "strength 0.5 is strength 1"
    assert not torch.equal(half, zero), "strength 0.5 is strength 0"


def a_word_is_silent_until_it_is_called(bench: Bench) -> None:
    """Where all that is learned stands for a word, a prompt without it is the base's, bit for bit."""
    bb, concept = bench.bb, bench.concept
    if concept.placeholder is None or not {part.port for part in concept.parts} <= {"text", "sampler"}:
        return
    plain = predict(bb, prompt="a dog")
    with bb.attach(concept):
        assert torch.equal(predict(bb, prompt="a dog"), plain), "it changed a prompt that does not call it"
        assert not torch.equal(predict(bb, prompt=PROMPT), plain), "it changed nothing where it is called"


def saving_and_loading_changes_nothing(bench: Bench) -> None:
    """Saved and loaded, a concept draws the same bits; its files have the size the card says."""
    concept = bench.concept
    folder = concept.save(bench.folder / "concept")
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".safetensors"], "it is not just the two files"
    loaded = Concept.load(folder)
    assert torch.equal(bench.shown, bench.make(SHOWN, loaded)), "the loaded concept draws otherwise"
    assert loaded.card == concept.card, "the card changed"
    size = (folder / "concept.safetensors").stat().st_size
    assert concept.card.bytes <= size <= concept.card.bytes * 1.05 + 65536, f"{size} bytes, the card says otherwise"


def a_picture_is_the_same_alone(bench: Bench) -> None:
    """Picture i of a batch equals picture i alone; where pictures are coupled, the first is what it was."""
    whole = bench.shown
    if not bench.couples:
        alone = bench.make(SHOWN, bench.concept, batch=1)
        for i, picture in enumerate(alone):
            assert torch.allclose(picture, whole[i], atol=2e-4), f"picture {i} depends on the others"
        return
    other = bench.make([*SHOWN[:2], "a <v> boat"], bench.concept)
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


def half_precision_works(bench: Bench) -> None:
    """On a bfloat16 base pictures are finite and parts keep their own number format."""
    bb, concept = bench.bb, bench.concept
    kinds = {name: value.dtype for name, value in numbers_of(concept).items()}
    kept = {name: {n: t.clone() for n, t in m.state_dict().items()} for name, m in bb.modules_().items()}
    try:
        bb.to(dtype=torch.bfloat16)
        drawn = bench.make([PROMPT, "a <v> dog"], concept)
        assert bool(torch.isfinite(drawn.float()).all()), "a picture is not finite"
    finally:
        bb.to(dtype=torch.float32)
        for name, module in bb.modules_().items():
            module.load_state_dict(kept[name])
    assert kinds == {name: value.dtype for name, value in numbers_of(concept).items()}, "a part changed its format"


CHECKS: dict[str, Callable[[Bench], None]] = {
    check.__name__: check
    for check in (
        settings_are_plain_values,
        card_says_all,
        learning_is_deterministic,
        base_stays_untouched,
        detaching_restores_exactly,
        strength_zero_is_the_base,
        a_word_is_silent_until_it_is_called,
        everything_learns_and_nothing_else,
        every_word_moves,
        loss_falls_on_fixed_noise,
        memory_is_told_beforehand,
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

ON_EVERY_BASE: tuple[str, ...] = tuple(
    check.__name__
    for check in (
        base_stays_untouched,
        detaching_restores_exactly,
        strength_zero_is_the_base,
        a_word_is_silent_until_it_is_called,
        everything_learns_and_nothing_else,
        every_word_moves,
        loss_falls_on_fixed_noise,
        a_picture_is_the_same_alone,
        any_number_of_branches_and_any_size,
        works_beside_other_families,
        ports_are_those_declared,
        half_precision_works,
        checkpointing_gives_the_same_gradients,
        what_does_not_suit_is_refused_first,
    )
)
"""What may hold on one base and not on another."""

WHERE_SOMETHING_LEARNS: tuple[str, ...] = tuple(
    check.__name__
    for check in (
        everything_learns_and_nothing_else,
        every_word_moves,
        loss_falls_on_fixed_noise,
        memory_is_told_beforehand,
        a_killed_run_resumes_with_the_same_bits,
        several_are_learned_together_or_refused,
        checkpointing_gives_the_same_gradients,
    )
)
"""What applies to tuned methods only."""
