"""Whether memory will suffice, before work starts; nothing heavy is imported before it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fromfew.errors import FromfewError

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
    """What a method adds to a base, and what learning takes at its usual batch and at batch 1, as lines for the reader.

    Raises:
        FromfewError: There is no such base.
    """
    from fromfew.backbones.open import open_backbone
    from fromfew.memory import available, checked, gigabytes, to_learn
    from fromfew.method import Tuned, find
    from fromfew.world.reference import references

    kind, bb = find(name), open_backbone(base)
    told = _kept(kind(), bb)
    if bb.device.type == "meta":
        return told
    free = available(bb.device)
    told["free now"] = gigabytes(free) if free is not None else "unknown"
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


def _kept(method: Learner, bb: Backbone) -> dict[str, str]:
    """The size of one concept on a base, counted from shapes."""
    from fromfew.memory import hollow
    from fromfew.sizes import bytes_of, parts_on

    try:
        parts = parts_on(method, hollow(bb)[0])
    except (FromfewError, NotImplementedError, RuntimeError, ValueError) as error:
        return {"a concept": f"not known without learning one ({str(error).splitlines()[0][:100]})"}
    size, numbers = bytes_of(parts), sum(value.numel() for value in parts.state_dict().values())
    return {"a concept": f"{size:,} bytes ({_short(size)}) in {numbers:,} numbers"}


def _short(size: int) -> str:
    """Bytes as people say them: a thousand is a kilobyte.

    >>> _short(3_188_736)
    '3.19 MB'
    """
    for unit, worth in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= worth:
            return f"{size / worth:.3g} {unit}"
    return f"{size} bytes"
