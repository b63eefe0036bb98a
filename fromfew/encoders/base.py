"""Eye: a frozen image encoder; pictures in, features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from fromfew.references import References

__all__ = ["Eye", "open_eye", "squares"]


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


def open_eye(name: str, *, device: str = "cpu") -> Eye:
    """An image encoder by name.

    Args:
        name: ``"world"`` (comes with fromfew), a folder, or a hub id of a CLIP vision model.
        device: Where it runs.

    Raises:
        FromfewError: If there is none, or the hub cannot be reached and nothing is kept from it.
    """
    from fromfew.encoders.clip import ClipEye

    if name == "world":
        return ClipEye(str(Path(__file__).parent.parent / "weights" / "eye"), device=device)
    return ClipEye(name, device=device)


def squares(refs: References, size: int) -> Tensor:
    """Every photo's middle square, ``[n, 3, size, size]`` in [-1, 1]."""
    import torch
    from PIL.ImageOps import fit

    from fromfew.data import picture_tensor

    return torch.stack([picture_tensor(fit(photo.image, (size, size))) for photo in refs.photos])
