"""The world's own image encoder, which comes with fromfew."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fromfew.encoders.base import Eye
from fromfew.errors import FromfewError
from fromfew.io.tensors import read_tensors
from fromfew.world.eye import Eye as Network

__all__ = ["WorldEye"]

_SIDE = 64


class WorldEye(Eye):
    """A small residual network that was trained on the world's pictures and captions, beside its text tower.

    Args:
        device: Where it runs.
        weights: File of its weights; those that come with fromfew by default.

    Raises:
        FromfewError: If the weights are missing.
    """

    name = "world"

    def __init__(self, *, device: str = "cpu", weights: Path | None = None) -> None:
        self.network = _load(weights or Path(__file__).parent.parent / "weights" / "eye.safetensors").to(device)
        self.width, self.patch_width = self.network.out_width, 192

    @staticmethod
    def _prepared(images: Tensor) -> Tensor:
        """The middle square, averaged down to the network's size."""
        side = min(images.shape[-2:])
        top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
        return F.adaptive_avg_pool2d(images[..., top : top + side, left : left + side].float(), _SIDE)

    def pooled(self, images: Tensor) -> Tensor:
        """One vector a picture, ``[B, width]``."""
        return self.network(self._prepared(images)).pooled

    def patches(self, images: Tensor) -> Tensor:
        """The features of 8 by 8 places, ``[B, 64, 192]``."""
        return self.network(self._prepared(images)).grid.flatten(2).transpose(1, 2)


@lru_cache(maxsize=1)
def _load(file: Path) -> Network:
    if not file.is_file():
        raise FromfewError(f"The world's image encoder is missing: there is no '{file}'.")
    with torch.device("meta"):
        network = Network()
    network.load_state_dict({name: value.float() for name, value in read_tensors(file).items()}, assign=True)
    return network.eval().requires_grad_(False)
