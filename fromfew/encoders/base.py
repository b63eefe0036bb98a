"""Eye: a frozen image encoder; pictures in, features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from fromfew.references import References

__all__ = ["Eye", "look_at", "open_eye", "squares"]


class Eye(ABC):
    """A frozen image encoder."""

    name: str
    width: int
    """Width of the pooled features."""
    patch_width: int
    """Width of the features of every patch."""

    @abstractmethod
    def pooled(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to one vector each, ``[B, width]``; gradients pass."""

    @abstractmethod
    def patches(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to every patch's features, ``[B, N, patch_width]``; gradients pass."""


def open_eye(name: str | None, *, device: str = "cpu") -> Eye:
    """An image encoder by name.

    Args:
        name: ``"world"`` (comes with fromfew); ``"shape"`` (sees nothing, see `fromfew.sizes`); a folder with a CLIP
            image tower; or one's hub id, with the folder inside the repository behind a colon where it has one.
        device: Where it runs.

    Raises:
        FromfewError: If none is named, there is no such, or the hub cannot be reached and nothing is kept from it.
    """
    if name is None:
        raise FromfewError("This needs an image encoder: say which with eye=...")
    if name == "world":
        from fromfew.encoders.world import WorldEye

        return WorldEye(device=device)
    if name == "shape":
        from fromfew.encoders.shape import ShapeEye

        return ShapeEye()
    from fromfew.encoders.clip import ClipEye

    return ClipEye(name, device=device)


def squares(refs: References, size: int) -> Tensor:
    """Every photo's middle square, ``[n, 3, size, size]`` in [-1, 1]; grey outside its mask, if it has one."""
    import torch
    from PIL import Image

    from fromfew.views import picture_tensor, square

    seen = []
    for photo in refs.photos:
        grey = Image.new("RGB", photo.image.size, (128, 128, 128))
        shown = photo.image if photo.mask is None else Image.composite(photo.image, grey, photo.mask)
        seen.append(picture_tensor(square(shown, size)))
    return torch.stack(seen)


def look_at(name: str | None, images: Tensor, device: object, *, patches: bool = False) -> Tensor:
    """What an eye, by its name, sees of pictures, without gradients: pooled, or of every patch."""
    import torch

    eye = open_eye(name, device=str(device))
    with torch.no_grad():
        return (eye.patches if patches else eye.pooled)(images.to(device))  # type: ignore[call-overload]
