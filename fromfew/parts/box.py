"""Box: early steps of a drawing are moved until a word is read from inside its box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.ports.sampler import Moment, SamplerPart

__all__ = ["Box"]


class Box(SamplerPart):
    """``x ← x - σ_t² ∇_x scale (1 - Σ A·B / Σ A)²`` with ``A`` a word's attention map and ``B`` its box.

    Up to ``inner`` times a step, while a picture's share outside is more than ``stop`` allows and during the first
    ``until`` of the steps (the spatial inversion of arXiv:2312.08048). Pictures whose prompt lacks the word stay.

    Args:
        word: The word, usually a concept's placeholder.
        box: Left, top, right and bottom edge, each 0 to 1.
        scale: Size of a move.
        inner: Most moves a step.
        stop: Loss ``(1 - share)²`` at which a picture is left alone.
        until: Share of the steps, from the first, in which it acts.
        side: The grids with the shorter side nearest to this are read; all if None.

    Raises:
        FromfewError: If the box has no area inside the picture, or a number is out of range.
    """

    kind = "box"

    def __init__(
        self,
        word: str,
        box: Sequence[float],
        scale: float = 30.0,
        inner: int = 5,
        stop: float = 0.2,
        until: float = 0.2,
        side: int | None = 16,
    ) -> None:
        super().__init__()
        if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise FromfewError(f"box is left, top, right, bottom within 0 to 1, such as 0,0,0.5,1; not {list(box)}.")
        if not (scale >= 0 and inner >= 1 and 0 <= stop <= 1 and 0 <= until <= 1):
            raise FromfewError("A box needs scale >= 0, inner >= 1, and stop and until from 0 to 1.")
        self.word, self.box = word, tuple(float(edge) for edge in box)
        self.scale, self.inner, self.stop, self.until, self.side = scale, inner, stop, until, side

    def before(self, moment: Moment) -> Tensor:
        """The latents, moved."""
        x = moment.x
        if moment.step >= self.until * moment.steps or not self.scale:
            return x
        sigma = moment.path.levels(torch.full((1,), moment.t, device=x.device))[1]
        for _ in range(self.inner):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                loss = self.outside(moment.maps(x, (self.word,), self.side)[self.word])
                far = loss.detach() > self.stop
                if not bool(far.any()):
                    break
                (grad,) = torch.autograd.grad(loss.sum(), x)
            step = (self.scale * sigma**2 * grad.float()).to(x.dtype)
            x = torch.where(far.view(-1, 1, 1, 1), x.detach() - step, x.detach())
        return x.detach()

    def outside(self, maps: Tensor) -> Tensor:
        """``(1 - share inside)²`` of each picture's map ``[I, h, w]``; 0 where the word is not read."""
        height, width = maps.shape[-2:]
        left, top, right, bottom = self.box
        rows = (torch.arange(height, device=maps.device) + 0.5) / height
        columns = (torch.arange(width, device=maps.device) + 0.5) / width
        inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
        maps = maps.float()
        whole = maps.sum((1, 2))
        share = (maps * inside).sum((1, 2)) / whole.clamp_min(1e-12)
        return torch.where(whole > 0, (1 - share).square(), 0.0)

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {
            "word": self.word, "box": list(self.box), "scale": self.scale, "inner": self.inner, "stop": self.stop,
            "until": self.until, "side": self.side,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"Box({self.word!r}, {', '.join(f'{edge:g}' for edge in self.box)})"
