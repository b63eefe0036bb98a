"""What a lone part promises."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fromfew.backbones.base import Backbone
from fromfew.concept import _class_of
from fromfew.fit import generator
from fromfew.guidance import CFG
from fromfew.ports.part import Part
from fromfew.testing.contract import Skip, predict

__all__ = ["PART_CHECKS", "Three", "lone", "others", "state_of"]


def state_of(bb: Backbone) -> dict[str, Any]:
    """Everything about a base, and about chance, that must be the same before and after."""
    modules = [m for root in bb.modules_().values() for m in root.modules()]
    return {
        "a tensor": bb.fingerprint(afresh=True),
        "the hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__) for m in modules],
        "an attribute": [sorted(m.__dict__) for m in modules],
        "requires_grad": [p.requires_grad for m in bb.modules_().values() for p in m.parameters()],
        "a gradient": [p.grad is None for m in bb.modules_().values() for p in m.parameters()],
        "train or eval mode": [m.training for m in modules],
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(np.random.get_state()),  # noqa: NPY002
        "python's random state": random.getstate(),
        "what is attached": len(bb.attached),
    }


def lone(bb: Backbone) -> Part:
    """A low-rank part that acts, for being attached beside others."""
    from fromfew.parts.low_rank import LowRank

    part = LowRank.of(bb.select("text.value"), 2, 2.0, generator(5))
    for value in part.up.values():
        value.data.fill_(0.05)
    return part.requires_grad_(False)


class Three(CFG):
    """Guidance of three branches."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The three."""
        return ("uncond", "cond", "aside")

    def prompt(self, branch: str, prompt: str, negative: str | None) -> str | None:
        """The third reads of a lamp."""
        return {"cond": prompt, "aside": "a lamp"}.get(branch, negative)

    def __call__(self, preds: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """The third weighs nothing."""
        return preds["uncond"] + 2 * (preds["cond"] - preds["uncond"]) + 0 * preds["aside"]


def others(bb: Backbone) -> Iterator[Part]:
    """One part of each other family."""
    from fromfew.parts.image_stream import ImageStream
    from fromfew.parts.share import ShareFirst
    from fromfew.parts.word import Word

    yield Word.learned(bb, "<other>", "dog", 2, generator(1)).requires_grad_(False)
    yield lone(bb)
    width = next(iter(bb.select("text.key").values())).in_features
    tokens = torch.randn(1, 3, width, generator=generator(2))
    yield ImageStream.of(bb, width, 3).holding(tokens, torch.zeros_like(tokens)).requires_grad_(False)
    yield ShareFirst()


def part_detaches_exactly(part: Part, bb: Backbone, acts: bool, prompt: str) -> None:
    """Predictions are equal bit for bit after detaching; the part acts meanwhile."""
    plain = predict(bb, prompt="a cat")
    with bb.attach(part):
        shown = predict(bb, prompt=prompt)
    with bb.attach(part, strength=0):
        none = predict(bb, prompt=prompt)
    assert torch.equal(predict(bb, prompt="a cat"), plain), "the base is not what it was"
    assert not acts or not torch.equal(shown, none), "it does nothing"


def part_at_strength_zero_is_absent(part: Part, bb: Backbone, acts: bool, prompt: str) -> None:
    """At strength 0 a prediction is the base's, bit for bit."""
    plain = predict(bb, prompt="a cat")
    with bb.attach(part, strength=0):
        assert torch.equal(predict(bb, prompt="a cat"), plain), "strength 0 changed a prediction"


def part_leaves_no_trace(part: Part, bb: Backbone, acts: bool, prompt: str) -> None:
    """Tensors, hooks and flags of the base are as before."""
    predict(bb)
    before = state_of(bb)
    with bb.attach(part):
        predict(bb, prompt=prompt)
    after = state_of(bb)
    for what in before:
        assert before[what] == after[what], f"{what} changed"


def part_receives_all_gradients(part: Part, bb: Backbone, acts: bool, prompt: str) -> None:
    """Every parameter receives a gradient and nothing in the base does."""
    if not list(part.parameters()):
        raise Skip("it has no parameters")
    flags = [p.requires_grad for p in part.parameters()]
    part.requires_grad_(True)
    xt = torch.randn(2, *bb.latent_shape(), generator=torch.Generator().manual_seed(1))
    with bb.attach(part):
        bb.predict(xt, torch.full((2,), 0.5), bb.embed([prompt] * 2)).square().mean().backward()
    missing = [name for name, p in part.named_parameters() if p.grad is None]
    for parameter, flag in zip(part.parameters(), flags, strict=True):
        parameter.grad = None
        parameter.requires_grad_(flag)
    assert not missing, f"no gradient reached {missing[:3]}"


def part_reads_rows(part: Part, bb: Backbone, acts: bool, prompt: str) -> None:
    """Any number of branches and pictures runs and stays finite."""
    with bb.attach(part):
        for branches in (("cond",), ("uncond", "cond"), ("uncond", "cond", "aside")):
            for rows in (1, 3):
                seen = predict(bb, rows=rows, prompt=prompt, branches=branches)
                assert len(seen) == rows * len(branches), "the batch changed its size"
                assert bool(torch.isfinite(seen).all()), "a prediction is not finite"


def part_comes_back_from_its_configuration(part: Part, bb: Backbone, acts: bool, prompt: str) -> None:
    """Its class is found by its kind, and configuration and numbers give the same part back."""
    config = json.loads(json.dumps(part.config()))
    with torch.device("meta"):
        again = _class_of(part.kind).build(config)
    again.load_state_dict(part.state_dict(), assign=True)
    with bb.attach(part):
        one = predict(bb, prompt=prompt)
    with bb.attach(again):
        two = predict(bb, prompt=prompt)
    assert torch.equal(one, two), "the part built again acts otherwise"
    assert repr(again) == repr(part), "it describes itself otherwise"


PART_CHECKS: dict[str, Callable[[Part, Backbone, bool, str], None]] = {
    check.__name__: check
    for check in (
        part_detaches_exactly,
        part_at_strength_zero_is_absent,
        part_leaves_no_trace,
        part_receives_all_gradients,
        part_reads_rows,
        part_comes_back_from_its_configuration,
    )
}
