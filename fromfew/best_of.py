"""Stages of which the best state is kept, not the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fromfew.ports.part import Parts
    from fromfew.stage import Stage

__all__ = ["best_of", "copied", "halts"]


def copied(parts: Parts) -> dict[str, Tensor]:
    """A copy of all that parts hold, for `load_state_dict`."""
    return {name: value.detach().clone() for name, value in parts.state_dict().items()}


def best_of(stages: Iterable[Stage], parts: Parts, score: Callable[[], float]) -> Iterator[Stage]:
    """The same stages; behind the last one, the parts are what they were after the stage with the highest score.

    Of equal scores the first counts.

    Args:
        stages: One after the other; each goes on from what the one before it learned.
        parts: What learns.
        score: Asked after every stage: how good the parts are as they are.
    """
    best, kept = float("-inf"), copied(parts)
    for stage in stages:
        yield stage
        value = score()
        if value > best:
            best, kept = value, copied(parts)
    parts.load_state_dict(kept)


def halts(stage: Stage, count: int) -> Iterator[Stage]:
    """A stage in ``count`` shorter ones of as many steps in all, at least one each."""
    for nth in range(1, count + 1):
        steps = stage.steps * nth // count - stage.steps * (nth - 1) // count
        yield replace(stage, steps=max(1, steps), name=f"{stage.name}, {nth} of {count}")
