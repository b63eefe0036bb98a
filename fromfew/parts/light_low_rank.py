"""LightLowRank: changes of rank 1 that lie in fixed random subspaces, a hundred and fifty numbers a map (LiDB)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fromfew.ports.linear import LinearPart

__all__ = ["LightLowRank", "frame"]


def frame(rows: int, columns: int, *what: object) -> Tensor:
    """``[rows, columns]`` random numbers, orthonormal along the longer side, the same for the same ``what``."""
    digest = hashlib.sha256(repr((rows, columns, *what)).encode()).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    wide = torch.randn(max(rows, columns), min(rows, columns), generator=rng, device="cpu")
    q, r = torch.linalg.qr(wide)
    # QR leaves signs open, and libraries choose them differently.
    q = q * r.diagonal().sign()
    return q if rows >= columns else q.T


class LightLowRank(LinearPart):
    """``ΔW = (L l) ((r₀ + r) R)`` with fixed frames ``L [out, a]`` and ``R [b, in]`` (arXiv:2307.06949).

    Learned are ``l [a]`` and ``r [b]`` of every map, both 0 at the start; the fixed ``r₀`` lets ``l`` learn from there.
    Frames and ``r₀`` are made anew from ``seed``, which is part of the file.

    Args:
        shapes: Path of each linear map to its ``(out, in)``.
        inner: ``a`` and ``b``.
        seed: Of the frames.
    """

    kind = "light_low_rank"

    def __init__(self, shapes: Mapping[str, Sequence[int]], inner: Sequence[int] = (100, 50), seed: int = 0) -> None:
        super().__init__()
        self._shapes = {path: (int(shape[0]), int(shape[1])) for path, shape in shapes.items()}
        self._order = {path: number for number, path in enumerate(self._shapes)}
        self.inner, self.seed = (int(inner[0]), int(inner[1])), seed
        self.left = nn.Parameter(torch.zeros(len(self._shapes), self.inner[0]))
        self.right = nn.Parameter(torch.zeros(len(self._shapes), self.inner[1]))
        self.rows: tuple[Tensor, Tensor] | None = None
        self._frames: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def of(cls, maps: Mapping[str, nn.Linear], inner: Sequence[int], seed: int = 0) -> LightLowRank:
        """Beside these linear maps."""
        return cls({path: tuple(m.weight.shape) for path, m in maps.items()}, inner, seed)

    @property
    def numbers(self) -> int:
        """Numbers a map."""
        return sum(self.inner)

    def holding(self, numbers: Tensor) -> LightLowRank:
        """The same maps with other numbers ``[B, maps, a + b]``: one row's changes for each row of a batch."""
        part = LightLowRank(self._shapes, self.inner, self.seed)
        part._frames = self._frames
        if len(numbers) == 1:
            with torch.no_grad():
                part.left.copy_(numbers[0, :, : self.inner[0]])
                part.right.copy_(numbers[0, :, self.inner[0] :])
        else:
            part.rows = (numbers[..., : self.inner[0]], numbers[..., self.inner[0] :])
        return part

    def targets(self) -> Mapping[str, tuple[int, ...]]:
        """Path to ``(out, in)``."""
        return self._shapes

    def frames(self, path: str) -> tuple[Tensor, Tensor, Tensor]:
        """``L``, ``R`` and ``r₀`` of one map."""
        if path not in self._frames:
            (out, into), (a, b) = self._shapes[path], self.inner
            begin = frame(1, b, path, "begin", self.seed)[0]
            left, right = frame(out, a, path, "left", self.seed), frame(b, into, path, "right", self.seed)
            self._frames[path] = (left, right, begin)
        found = self._frames[path]
        if found[0].device != self.left.device:
            found = self._frames[path] = tuple(one.to(self.left.device) for one in found)  # type: ignore[assignment]
        return found

    def thin(self, path: str) -> tuple[Tensor, Tensor]:
        """``up [..., out]`` and ``down [..., in]`` whose product is the change; with a row axis where rows differ."""
        number, (left, right, begin) = self._order[path], self.frames(path)
        one, two = (self.left, self.right) if self.rows is None else self.rows
        return one[..., number, :] @ left.T, (begin + two[..., number, :]) @ right

    def apply_to(self, path: str, x: Tensor) -> Tensor:
        """``(L l) ((r₀ + r) R x)``, row by row where rows differ."""
        up, down = self.thin(path)
        x = x.to(up.dtype)
        if up.dim() == 1:
            return (x @ down)[..., None] * up
        return torch.einsum("b...i,bi->b...", x, down)[..., None] * up.view(len(up), *[1] * (x.dim() - 2), -1)

    def delta(self, path: str) -> Tensor:
        """``(L l) ((r₀ + r) R)``."""
        up, down = self.thin(path)
        return up[:, None] * down

    def config(self) -> dict[str, Any]:
        """Shapes, inner widths and seed."""
        shapes = {path: list(shape) for path, shape in self._shapes.items()}
        return {"shapes": shapes, "inner": list(self.inner), "seed": self.seed}

    def __repr__(self) -> str:
        return f"LightLowRank({len(self._shapes)} maps, inner={self.inner}, seed={self.seed})"
