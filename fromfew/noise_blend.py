"""NoiseBlend: every region is drawn by the base with one concept alone (OMG)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.ports.sampler import Moment, SamplerPart
from fromfew.regions import inside
from fromfew.rows import Rows

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.backbones.text import Text
    from fromfew.guidance import Guide
    from fromfew.regions import Region

__all__ = ["NoiseBlend", "to_middle"]


@dataclass(frozen=True, eq=False)
class _Place:
    """A region within its window: what stays the same from step to step."""

    rows: slice
    columns: slice
    mask: Tensor
    """Where the region is in the window, [h, w]."""
    inner: Tensor
    """The same without its edge."""
    move: tuple[int, int]
    """How far down and right it is from the window's middle."""


class NoiseBlend(SamplerPart):
    """Inside its region every concept is drawn by a model that holds it and no other (OMG, arXiv:2403.10983).

    ``e <- e (1 - M_j) + e_j M_j`` at every step from ``begin`` on, with ``e`` the guided prediction of the base and
    ``e_j`` that of the base with concept j attached, reading the region's prompt. Where regions overlap, the later
    one wins. One more guided prediction a region and step.

    Models put one thing into the middle of a picture, and would fill each region with its part of a thing that spans
    them all. So in the first ``apart`` of the steps a region sees itself in the middle of a plain grey picture, and
    nothing of the rest (the plain ground is MultiDiffusion's, arXiv:2302.08113). And in a picture larger than the
    base's own a region is looked at through a window of the base's own size around it, as MultiDiffusion does: there
    the base draws one thing well, at the size it knows. After those first steps the cells along a region's edge are
    the base's: that closes the seams between regions.

    Args:
        bb: The backbone, on which nothing of the regions' concepts is attached.
        regions: The regions.
        concepts: For each region, the (concept, strength) pairs it needs.
        guide: Guidance.
        negative: What not to draw.
        begin: Share of the steps before the first blended one; until then the base alone lays the picture out.
        apart: Share of the steps in which a region sees nothing but itself.
    """

    kind = "noise_blend"

    def __init__(
        self, bb: Backbone, regions: Sequence[Region], concepts: Sequence[Sequence[tuple[Any, float]]], guide: Guide,
        negative: str | None, begin: float = 0.0, apart: float = 0.3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.bb, self.regions, self.concepts, self.begin, self.apart = bb, list(regions), list(concepts), begin, apart
        self.guidance, self.negative = guide, negative

    def guide(self, moment: Moment, pred: Tensor) -> Tensor:
        """The prediction with every region's own inside it."""
        if moment.step < self.begin * moment.steps:
            return pred
        texts, early = moment.state.setdefault("texts", {}), moment.step < self.apart * moment.steps
        if "places" not in moment.state:
            moment.state["places"] = [self._place(region, pred) for region in self.regions]
        pred = pred.clone()
        for number, (region, place) in enumerate(zip(self.regions, moment.state["places"], strict=True)):
            x, move = moment.x[..., place.rows, place.columns], (0, 0)
            if early:
                move = place.move
                x = torch.where(place.mask.roll(move, (0, 1)), x.roll(move, (2, 3)), self._ground(moment, place))
            with self._holding(number):
                if number not in texts:
                    texts[number] = self._text(region.prompt, len(moment.x))
                own = self._predict(moment, x, texts[number]).roll((-move[0], -move[1]), (2, 3))
            own_here = place.mask if early or not self.apart else place.inner
            seen = pred[..., place.rows, place.columns]
            pred[..., place.rows, place.columns] = torch.where(own_here, own, seen)
        return pred

    def _place(self, region: Region, pred: Tensor) -> _Place:
        """Where a region lies in a prediction, and the window of the base's own size (or the region's) around it."""
        mask = inside(region.mask, (pred.shape[-2], pred.shape[-1])).to(pred.device)
        own, (height, width) = self.bb.default_size // self.bb.down, mask.shape
        top, bottom, left, right = _extent(mask)
        rows = _around(top, bottom, own, height, self.bb.patch)
        columns = _around(left, right, own, width, self.bb.patch)
        here = mask[rows, columns]
        return _Place(rows, columns, here, _worn(mask)[rows, columns], to_middle(here))

    def _ground(self, moment: Moment, place: _Place) -> Tensor:
        """A plain grey picture at this time, with the noise the pictures began from there."""
        noise = moment.noise[..., place.rows, place.columns]
        height, width = noise.shape[-2:]
        key = f"grey {height} x {width}"
        if key not in moment.state:
            moment.state[key] = self.bb.encode(torch.zeros(1, 3, height * self.bb.down, width * self.bb.down))
        grey = moment.state[key].to(moment.x).expand_as(noise)
        return moment.path.mix(grey, noise, torch.full((len(grey),), moment.t, device=grey.device))

    @contextmanager
    def _holding(self, number: int) -> Iterator[None]:
        """The base with one region's concepts on it."""
        with ExitStack() as stack:
            for concept, strength in self.concepts[number]:
                stack.enter_context(self.bb.attach(concept, strength=strength))
            yield

    def _text(self, prompt: str, count: int) -> Text:
        branches = self.guidance.branches
        asked = [self.guidance.prompt(branch, prompt, self.negative) for branch in branches for _ in range(count)]
        return self.guidance.dress(self.bb.embed(asked))

    def _predict(self, moment: Moment, x: Tensor, text: Text) -> Tensor:
        branches = self.guidance.branches
        t = moment.rows.t[0]
        rows = Rows.of(moment.image, branches, t)
        out = self.bb.predict(x.repeat(len(branches), 1, 1, 1), rows.t, text, rows)
        return self.guidance(dict(zip(branches, out.chunk(len(branches)), strict=True)), t)

    def config(self) -> dict[str, Any]:
        """Prompts and begin; it belongs to one drawing and is never saved."""
        return {"prompts": [one.prompt for one in self.regions], "begin": self.begin, "apart": self.apart}


def _extent(mask: Tensor) -> tuple[int, int, int, int]:
    """First row and the one after the last, first column and the one after the last, of what is true."""
    down, right = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return int(down.min()), int(down.max()) + 1, int(right.min()), int(right.max()) + 1


def _around(start: int, stop: int, own: int, whole: int, patch: int) -> slice:
    """``own`` cells, or more if need be, in whole patches around those given, within the whole."""
    length = min(whole, max(own, -(-(stop - start) // patch) * patch))
    begin = min(max(0, (start + stop - length) // 2), whole - length)
    return slice(begin, begin + length)


def _worn(mask: Tensor) -> Tensor:
    """A region without its outermost cells, an eighth of its lesser side, except along the edge of the picture."""
    top, bottom, left, right = _extent(mask)
    cells = min(bottom - top, right - left) // 8
    outside = torch.nn.functional.pad((~mask).float()[None, None], (cells,) * 4)
    worn = torch.nn.functional.max_pool2d(outside, 2 * cells + 1, stride=1)[0, 0] < 0.5
    return worn if worn.any() else mask  # a thin or ragged region may be all edge


def to_middle(mask: Tensor) -> tuple[int, int]:
    """How far down and right a region ``[h, w]`` is moved into the middle."""
    top, bottom, left, right = _extent(mask)
    height, width = mask.shape
    return (height - top - bottom) // 2, (width - left - right) // 2
