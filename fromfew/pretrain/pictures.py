"""Rows of pictures for the sheets that pre-training leaves behind."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def write_rows(rows: Sequence[Tensor], path: Path) -> None:
    """Write rows of pictures, each [N, 3, H, W] in [-1, 1], as one PNG."""
    whole = torch.cat([torch.cat(list(row.cpu()), dim=2) for row in rows], dim=1)
    pixels = ((whole.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)
