"""An image encoder that sees nothing: the shapes of CLIP ViT-H/14's features, for counting."""

from __future__ import annotations

import torch
from torch import Tensor

from fromfew.encoders.base import Eye

__all__ = ["ShapeEye"]


class ShapeEye(Eye):
    """Zeros of the right shapes."""

    name = "shape"
    width, patch_width = 1024, 1280

    def pooled(self, images: Tensor) -> Tensor:
        """``[B, 1024]``."""
        return torch.zeros(len(images), self.width, device=images.device)

    def patches(self, images: Tensor) -> Tensor:
        """``[B, 257, 1280]``."""
        return torch.zeros(len(images), 257, self.patch_width, device=images.device)
