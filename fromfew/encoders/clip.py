"""CLIP's image tower, from a folder or the hub, through transformers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fromfew.encoders.base import Eye
from fromfew.errors import FromfewError

__all__ = ["ClipEye"]

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipEye(Eye):
    """A ``CLIPVisionModelWithProjection`` (Radford et al., arXiv:2103.00020); read from safetensors only.

    Args:
        where: A folder in transformers' layout, or a hub id (``id:folder`` for a folder inside).
        device: Where it runs.

    Raises:
        FromfewError: If there is no such model.
    """

    def __init__(self, where: str, *, device: str = "cpu") -> None:
        self.name = where
        model, mean, std = _load(where)
        self.model: Any = model
        self.model.to(device)
        self.mean, self.std = (torch.tensor(one, device=device).view(1, 3, 1, 1) for one in (mean, std))
        config = self.model.config
        self.side, self.width, self.patch_width = config.image_size, config.projection_dim, config.hidden_size

    def _prepared(self, images: Tensor) -> Tensor:
        """Centre square, the model's size, its mean and spread."""
        side = min(images.shape[-2:])
        top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
        square = images[..., top : top + side, left : left + side].to(self.mean)
        if side != self.side:
            square = F.interpolate(square, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        return (square * 0.5 + 0.5 - self.mean) / self.std

    def pooled(self, images: Tensor) -> Tensor:
        """The projected vector of every picture, ``[B, width]``."""
        return self.model(pixel_values=self._prepared(images)).image_embeds

    def patches(self, images: Tensor) -> Tensor:
        """The last but one layer's states, ``[B, 1 + N, patch_width]``."""
        seen = self.model(pixel_values=self._prepared(images), output_hidden_states=True)
        return seen.hidden_states[-2]


@lru_cache(maxsize=2)
def _load(where: str) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """The frozen model with the mean and spread its pictures need."""
    import json

    from transformers import CLIPVisionModelWithProjection
    from transformers.utils import logging

    if where.startswith((".", "/")) and not Path(where).is_dir():
        raise FromfewError(f"There is no image encoder at '{where}'.")
    # Loading draws a progress bar; the setting is put back afterwards.
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        repository, _, inside = where.partition(":") if not Path(where).is_dir() else (where, "", "")
        model = CLIPVisionModelWithProjection.from_pretrained(repository, subfolder=inside, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise FromfewError(
            f"The image encoder '{where}' cannot be opened: {str(error).splitlines()[0]} "
            "Give a folder that holds a CLIP image tower, or the id of one on the hub."
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    about = Path(where) / "preprocessor_config.json"
    told = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    mean, std = tuple(told.get("image_mean", _MEAN)), tuple(told.get("image_std", _STD))
    return model.eval().requires_grad_(False), mean, std
