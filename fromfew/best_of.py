"""Stages of which the best state is kept, not the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fromfew.fit import Stage
    from fromfew.ports.part import Parts

__all__ = ["best_of", "copied"]


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
