"""Views of a photo: square crops, zooms and mirrorings, the same for picture and mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

if TYPE_CHECKING:
    from fromfew.references import References

__all__ = [
    "View", "draw_view", "frame_tensor", "mask_tensor", "pick", "picture_tensor", "pictures_of", "see", "shrunk",
    "square", "uniform",
]  # fmt: skip


def uniform(rng: Generator, low: float = 0.0, high: float = 1.0) -> float:
    """One number between ``low`` and ``high``."""
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))


def pick(rng: Generator, count: int) -> int:
    """One whole number from 0 to ``count`` - 1."""
    return int(torch.randint(count, (), generator=rng))


def picture_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] in [-1, 1] from an RGB picture."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def pictures_of(refs: References, side: int) -> tuple[Tensor, Tensor | None]:
    """Photos as [R, 3, side, side] in [-1, 1], and their masks [R, 1, side, side] in {0, 1} if all have one."""
    images, masks = [], []
    for photo in refs.photos:
        small = square(photo.image.convert("RGB"), side)
        images.append(picture_tensor(small))
        if photo.mask is not None:
            mask = square(photo.mask.convert("L"), side, Image.Resampling.NEAREST)
            masks.append((torch.from_numpy(np.array(mask)) > 127).float()[None])
    return torch.stack(images), torch.stack(masks) if len(masks) == len(images) else None


def square(image: Image.Image, side: int, how: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """The middle square of a picture, made ``side`` px."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    middle = image.crop((left, top, left + edge, top + edge))
    return middle if edge == side else middle.resize((side, side), how)


@dataclass(frozen=True)
class View:
    """One way of looking at a photo: the square ``box`` of it, drawn at ``share`` of the frame, at ``at``."""

    box: tuple[float, float, float, float]
    share: float
    at: tuple[float, float]
    flip: bool
    zoom: float


def _place(rng: Generator, length: int, side: float, kept: tuple[int, int] | None) -> float:
    """Where a crop begins along one axis; it holds the subject's extent ``kept``, or lies within it."""
    low, high = 0.0, length - side
    if kept is not None:
        low, high = max(low, min(kept[1] - side, kept[0])), min(high, max(kept[1] - side, kept[0]))
    return uniform(rng, low, max(low, high))


def draw_view(
    rng: Generator, image: Image.Image, mask: Image.Image | None, zoom: tuple[float, float], flip: bool
) -> View:
    """A view drawn at random, its zoom even on a logarithmic scale, with the mask kept in sight."""
    factor = math.exp(uniform(rng, math.log(zoom[0]), math.log(zoom[1])))
    side = min(image.size) / max(factor, 1.0)
    extent = mask.getbbox() if mask is not None else None
    left = _place(rng, image.width, side, (extent[0], extent[2]) if extent else None)
    top = _place(rng, image.height, side, (extent[1], extent[3]) if extent else None)
    at = (uniform(rng), uniform(rng))
    return View((left, top, left + side, top + side), min(factor, 1.0), at, flip and uniform(rng) < 0.5, factor)


def see(image: Image.Image, view: View, size: tuple[int, int], mask: bool = False) -> Image.Image:
    """The picture (or mask) seen so, as ``size`` (height, width); what lies outside is grey (mask: 0)."""
    method = Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS
    height, width = (max(1, round(side * view.share)) for side in size)
    seen = image.resize((width, height), method, box=view.box)
    if view.flip:
        seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if (height, width) == size:
        return seen
    frame = Image.new(image.mode, (size[1], size[0]), 0 if mask else (128, 128, 128))
    frame.paste(seen, (int(view.at[0] * (size[1] - width)), int(view.at[1] * (size[0] - height))))
    return frame


def shrunk(image: Image.Image, side: int, mask: bool = False) -> Image.Image:
    """A large photo made small once, so that every view of it is quick: short side at least ``side``."""
    factor = min(image.size) / side
    if factor <= 1.5:
        return image
    size = (max(side, round(image.width / factor)), max(side, round(image.height / factor)))
    return image.resize(size, Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS)


def mask_tensor(mask: Image.Image | None, view: View, size: tuple[int, int]) -> Tensor | None:
    """[1, H, W] in {0, 1}; None where the loss counts everywhere."""
    if mask is None and view.share >= 1:
        return None
    whole = mask if mask is not None else Image.new("L", (8, 8), 255)
    seen = see(whole, view if mask is not None else _whole(view), size, mask=True)
    return torch.from_numpy(np.array(seen) > 127).float()[None]


def frame_tensor(view: View, size: tuple[int, int]) -> Tensor | None:
    """[1, H, W] in {0, 1}, 0 on the grey beside a shrunken photo; None where the photo fills the view."""
    return mask_tensor(None, view, size)


def _whole(view: View) -> View:
    return View((0, 0, 8, 8), view.share, view.at, view.flip, view.zoom)
