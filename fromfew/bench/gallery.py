"""Pictures of a cell on disk: WebP without loss, so that a score can be computed again to the same number."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fromfew.io.files import write_atomic
from fromfew.views import picture_tensor

__all__ = ["Gallery"]


class Gallery:
    """Pictures by number.

    Args:
        folder: one cell's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int) -> Path:
        """Where a picture is."""
        return self.folder / f"{number:05d}.webp"

    def has(self, number: int) -> bool:
        """Whether a picture is there."""
        return self.path(number).exists()

    def save(self, pictures: Mapping[int, Tensor]) -> None:
        """Write pictures [3, H, W] in [-1, 1], each whole or not at all."""
        for number, picture in pictures.items():
            pixels = ((picture.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(file, "WEBP", lossless=True)
            write_atomic(self.path(number), file.getvalue())

    def load(self, numbers: Sequence[int]) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1]."""
        return torch.stack([self._one(number) for number in numbers])

    def _one(self, number: int) -> Tensor:
        with Image.open(self.path(number)) as picture:
            return picture_tensor(picture.convert("RGB"))
