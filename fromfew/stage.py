"""Stage: what a method minimises, over what, and what may move; the training loop in `fromfew.fit` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from fromfew.backbones.base import Text
    from fromfew.data import Batch, Source
    from fromfew.ports.part import Parts
    from fromfew.rows import Rows
    from fromfew.search import Search

__all__ = ["Stage", "Step", "Term"]


@dataclass(eq=False)
class Step:
    """One step of learning, with everything a loss might want; every tensor has ``B`` rows.

    Args:
        x0: ``[B, C, h, w]`` clean latents.
        noise: ``[B, C, h, w]``.
        t: ``[B]`` times in (0, 1).
        xt: ``[B, C, h, w]`` what the model sees.
        pred: ``[B, C, h, w]`` what it says.
        target: ``[B, C, h, w]`` what it should say.
        text: The encoded captions.
        rows: What every row is.
        batch: Pictures, masks, captions and sources.
        maps: Attention of chosen words, ``[B, h, w]`` each, if the stage asked for it.
    """

    x0: Tensor
    noise: Tensor
    t: Tensor
    xt: Tensor
    pred: Tensor
    target: Tensor
    text: Text
    rows: Rows
    batch: Batch
    maps: Mapping[str, Tensor] = field(default_factory=dict)


Term = Callable[[Step], Tensor]
"""One number per row, ``[B]``; the loop averages and weighs."""


@dataclass(frozen=True, eq=False)
class Stage:
    """What to minimise, over what, and what may move.

    Args:
        steps: Optimiser steps.
        batches: A batch from a generator, without memory of earlier ones.
        terms: (weight, term) pairs; their weighted sum is minimised.
        train: Part or module to its learning rate; what is not named stays still.
        times: Replaces the model's own draw of times: ``(n, rng) -> [n]``.
        schedule: How the learning rate goes: constant, or down to 0 along a line or a cosine.
        warmup: Steps over which the learning rate rises from 0.
        clip: Largest norm of the gradient.
        decay: Weight decay of AdamW, for all that learns or by part or module.
        attach: Parts built anew for every batch, such as a stream that holds each row's picture.
        record: Words whose attention is recorded for the terms.
        record_side: Take the maps from the sites whose grids are nearest to so many tokens a side; all if None.
        offset: Strength of a further noise that is the same all over a picture, one number a channel; learns of light
            and dark, which noise of every place apart hardly touches.
        optimiser: AdamW, or plain gradient descent, whose steps add up to a sum of gradients.
        search: Takes no gradients at all but tries points of this space; learning rates then mean nothing, and a step
            is a generation.
        after: Called after every update with the step it came from, without gradients: projections, running means. What
            it keeps must lie in parameters or buffers of what is in ``train``: a resumed run finds those and no others.
        name: Shown in messages.
    """

    steps: int
    batches: Source
    terms: Sequence[tuple[float, Term]]
    train: Mapping[nn.Module, float]
    times: Callable[[int, Generator], Tensor] | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 0
    clip: float = 1.0
    decay: float | Mapping[nn.Module, float] = 0.0
    attach: Callable[[Batch, Generator], Parts] | None = None
    record: tuple[str, ...] = ()
    record_side: int | None = None
    offset: float = 0.0
    optimiser: Literal["adamw", "sgd"] = "adamw"
    search: Search | None = None
    after: Callable[[Step], object] | None = None
    name: str = "learn"
