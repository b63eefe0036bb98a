"""Whether memory will suffice, before work starts; nothing heavy is imported before it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.method import Learner
    from fromfew.references import References

__all__ = ["check_drawing", "check_learning", "couples", "memory_of"]


def check_learning(method: Learner, refs: References | None, bb: Backbone, force: bool) -> None:
    """Refuse a run that would end for want of memory.

    Raises:
        FromfewError: With the batch that would fit; or the method does not suit base or photos.
    """
    from fromfew.memory import checked, to_learn
    from fromfew.method import Tuned

    if not isinstance(method, Tuned) or refs is None:
        return  # read in one pass, or not at all
    method.refuse(bb, refs)
    batch = method.resolved(bb).batch or 1
    checked(lambda n: to_learn(bb, method, refs, batch=n), batch, bb.device, "Learning", force=force)


def couples(pairs: Sequence[tuple[Any, float]]) -> bool:
    """Whether a concept draws all pictures together."""
    return any(getattr(part, "couples_images", False) for concept, _ in pairs for part in concept.parts)


def check_drawing(
    pairs: Sequence[tuple[Any, float]], bb: Backbone, count: int, batch: int, size: tuple[int, int] | None, force: bool
) -> None:
    """Refuse a batch that would end for want of memory.

    Raises:
        FromfewError: With the batch that would fit.
    """
    from fromfew.memory import checked, to_make

    concepts, side = [concept for concept, _ in pairs], size or (bb.default_size, bb.default_size)
    checked(
        lambda n: to_make(bb, concepts, batch=n, size=side, guided=not bb.distilled),
        count if couples(pairs) else min(max(1, batch), count), bb.device, "Drawing", force=force,
    )  # fmt: skip


def memory_of(name: str, base: str) -> dict[str, str]:
    """What learning with a method takes on a base at its usual batch and at batch 1, as lines for the reader.

    Raises:
        FromfewError: There is no such base.
    """
    from fromfew.backbones.open import open_backbone
    from fromfew.memory import available, checked, gigabytes, to_learn
    from fromfew.method import Tuned, find
    from fromfew.world.reference import references

    kind, bb = find(name), open_backbone(base)
    free = available(bb.device)
    told = {"free now": gigabytes(free) if free is not None else "unknown"}
    if not issubclass(kind, Tuned):
        return told
    method, refs = kind(), references("raccoon", n=max(1, kind.card()["photos"][0]), masks=True)
    for batch in dict.fromkeys((method.resolved(bb).batch or 1, 1)):
        need = checked(lambda n: to_learn(bb, method, refs, batch=n), batch, bb.device, "Learning", force=True)
        told[f"batch {batch}"] = "unknown" if need is None else (
            f"about {gigabytes(need.total)}: base {gigabytes(need.base)}, what learns with its optimiser "
            f"{gigabytes(need.learned)}, a step {gigabytes(need.work)}"
        )  # fmt: skip
    return told
