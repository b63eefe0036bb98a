"""NoiseBlend: every region is drawn by the base with one concept alone (OMG)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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


class NoiseBlend(SamplerPart):
    """Inside its region every concept is drawn by a model that holds it and no other (OMG, arXiv:2403.10983).

    ``e <- e (1 - M_j) + e_j M_j`` at every step from ``begin`` on, with ``e`` the guided prediction of the base and
    ``e_j`` that of the base with concept j attached, reading the region's prompt. Where regions overlap, the later
    one wins. One more guided prediction a region and step.

    Models put one thing into the middle of a picture, and would fill each region with its part of a thing that spans
    them all. So in the first ``apart`` of the steps a region sees itself in the middle of a plain grey picture, and
    nothing of the rest (the plain ground is MultiDiffusion's, arXiv:2302.08113).

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
        texts = moment.state.setdefault("texts", {})
        for number, region in enumerate(self.regions):
            with self._holding(number):
                if number not in texts:
                    texts[number] = self._text(region.prompt, len(moment.x))
                mask = inside(region.mask, (pred.shape[-2], pred.shape[-1])).to(pred.device)
                x, move = moment.x, (0, 0)
                if moment.step < self.apart * moment.steps:
                    move = to_middle(mask)
                    ground = self._ground(moment)
                    x = torch.where(mask.roll(move, (0, 1)), x.roll(move, (2, 3)), ground)
                own = self._predict(moment, x, texts[number]).roll((-move[0], -move[1]), (2, 3))
            pred = torch.where(mask, own, pred)
        return pred

    def _ground(self, moment: Moment) -> Tensor:
        """A plain grey picture at this time, with the noise the pictures began from."""
        if "grey" not in moment.state:
            height, width = (side * self.bb.down for side in moment.x.shape[-2:])
            moment.state["grey"] = self.bb.encode(torch.zeros(1, 3, height, width))
        grey = moment.state["grey"].to(moment.x).expand_as(moment.x)
        return moment.path.mix(grey, moment.noise, torch.full((len(grey),), moment.t, device=grey.device))

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


def to_middle(mask: Tensor) -> tuple[int, int]:
    """How far down and right a region ``[h, w]`` is moved into the middle."""
    down, right = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    height, width = mask.shape
    return (
        (height - int(down.min()) - int(down.max()) - 1) // 2,
        (width - int(right.min()) - int(right.max()) - 1) // 2,
    )
