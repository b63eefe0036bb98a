"""Cut-mix: pictures of which one half shows one thing and the other half another (SVDiff, arXiv:2303.11305)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.templates import with_article
from fromfew.views import pick, uniform

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.data import Batch, Source

__all__ = ["Thing", "cut_mix"]


@dataclass(frozen=True)
class Thing:
    """One of the things that are joined.

    Args:
        source: Batches that show it alone.
        words: How a prompt calls it, such as ``"<v> dog"`` or ``"dog"``.
        name: What stands for it in encoded prompts, by which its attention is recorded.
    """

    source: Source
    words: str
    name: str


def cut_mix(things: tuple[Thing, ...] | list[Thing], *, share: float = 0.6) -> Source:
    """The rows of several sources, some of them joined in halves with prompts that tell the sides.

    Every batch takes one row each of all pairs of things in turn. With probability ``share`` the two become two joined
    pictures, each thing once on either side: the half of a picture that is kept is the middle one, or the one around
    its mask. Otherwise they stay as they are. Joined rows carry each thing's half in `Batch.regions`.

    Args:
        things: Two or more.
        share: Probability of joining, 0 to 1.

    Raises:
        FromfewError: Fewer than two things, or a share out of range.
    """
    if len(things) < 2 or not 0 <= share <= 1:
        raise FromfewError(f"Cut-mix joins two or more things, with a share of 0 to 1; here {len(things)}, {share:g}.")
    pairs = list(combinations(range(len(things)), 2))

    def source(rng: Generator) -> Batch:
        batches = [thing.source(rng) for thing in things]
        rows: list[_Row] = []
        for number in range(max(len(batch) for batch in batches)):
            first, second = pairs[pick(rng, len(pairs))]
            alone = [_Row.of_(batches[i], number % len(batches[i])) for i in (first, second)]
            if uniform(rng) < share:
                one, two = things[first], things[second]
                said = _PROMPTS[pick(rng, len(_PROMPTS))]
                rows += [_joined(one, alone[0], two, alone[1], said), _joined(two, alone[1], one, alone[0], said)]
            else:
                rows += alone
        return _batch(rows)

    return source


_PROMPTS: tuple[Callable[[str, str], str], ...] = (
    lambda left, right: f"a photo of {with_article(left)} on the left and {with_article(right)} on the right",
    lambda left, right: f"a photo of {with_article(left)} and {with_article(right)}",
)


@dataclass(frozen=True)
class _Row:
    """One row of a batch."""

    image: Tensor
    mask: Tensor | None
    frame: Tensor | None
    caption: str
    of: str
    key: Hashable | None
    regions: Mapping[str, Tensor]

    @classmethod
    def of_(cls, batch: Batch, i: int) -> _Row:
        """Row ``i``."""
        mask = None if batch.masks is None else batch.masks[i]
        frame = None if batch.frames is None else batch.frames[i]
        regions = batch.regions[i] if batch.regions is not None else {}
        return cls(batch.images[i], mask, frame, batch.captions[i], batch.of[i], batch.keys[i], regions)


def _joined(left: Thing, first: _Row, right: Thing, second: _Row, said: Callable[[str, str], str]) -> _Row:
    """One picture of two halves."""
    height, width = first.image.shape[-2:]
    here, there = width // 2, width - width // 2
    cuts = [_cut(first, here), _cut(second, there)]

    def both(pick_: Callable[[_Row], Tensor | None]) -> Tensor | None:
        values = [pick_(row) for row in (first, second)]
        if all(value is None for value in values):
            return None
        whole = [torch.ones(1, height, width) if value is None else value for value in values]
        return torch.cat([value[..., cut] for value, cut in zip(whole, cuts, strict=True)], -1)

    image = torch.cat([first.image[..., cuts[0]], second.image[..., cuts[1]]], -1)
    half = torch.zeros(1, height, width)
    half[..., :here] = 1
    key = (first.key, second.key, "cut-mix") if None not in (first.key, second.key) else None
    regions = {left.name: half, right.name: 1 - half}
    frame = both(lambda row: row.frame)
    return _Row(image, both(lambda row: row.mask), frame, said(left.words, right.words), first.of, key, regions)


def _cut(row: _Row, width: int) -> slice:
    """Which columns are kept: the middle ones, or those around the mask."""
    whole = row.image.shape[-1]
    middle = whole / 2
    if row.mask is not None and bool(row.mask.any()):
        columns = row.mask.sum((0, 1))
        middle = float((columns * torch.arange(whole)).sum() / columns.sum())
    start = int(min(max(round(middle - width / 2), 0), whole - width))
    return slice(start, start + width)


def _batch(rows: list[_Row]) -> Batch:
    from fromfew.data import Batch

    def whole(values: list[Tensor | None]) -> Tensor | None:
        if all(value is None for value in values):
            return None
        size = rows[0].image.shape[-2:]
        return torch.stack([torch.ones(1, *size) if value is None else value for value in values])

    return Batch(
        torch.stack([row.image for row in rows]), whole([row.mask for row in rows]), [row.caption for row in rows],
        [row.of for row in rows], [row.key for row in rows], frames=whole([row.frame for row in rows]),
        regions=[row.regions for row in rows],
    )  # fmt: skip
