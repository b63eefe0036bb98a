"""The networks that metrics look through: the world's own evaluators, or models from folders and the hub."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from fromfew.metrics.base import Case

__all__ = ["Detector", "Reader", "Sight", "WorldFace", "WorldJudge", "WorldPair", "fitted", "mark_of", "seen"]


def mark_of(model: nn.Module) -> str:
    """Eight hexadecimal digits that change with any weight."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


def fitted(images: Tensor, resize: int, crop: int) -> Tensor:
    """[B, 3, H, W]: the shorter side made ``resize`` px (bicubic, antialiased), the centre square of ``crop`` px."""
    height, width = images.shape[-2:]
    factor = resize / min(height, width)
    size = (max(crop, round(height * factor)), max(crop, round(width * factor)))
    if size != (height, width):
        images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    top, left = (size[0] - crop) // 2, (size[1] - crop) // 2
    return images[..., top : top + crop, left : left + crop]


class Sight(ABC):
    """An image network."""

    name: str
    """With a mark of its weights."""

    @abstractmethod
    def see(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] to unit vectors [B, D]."""

    def grid(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to the features of every place, [B, C, h, w].

        Raises:
            FromfewError: The network has none.
        """
        raise FromfewError(f"{self.name} has no features of places.")

    def layers(self, images: Tensor) -> list[Tensor]:
        """Features of several depths, [B, C, h, w] each; the grid alone if there is no more."""
        return [self.grid(images)]


class Reader(Sight):
    """An image network with a text network that meets it in one space."""

    @abstractmethod
    def read(self, texts: Sequence[str]) -> Tensor:
        """Texts to unit vectors [B, D]."""


class Detector(ABC):
    """Says how surely things of a name are in a picture."""

    name: str

    @abstractmethod
    def find(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """[B, 3, H, W] and T names to [B, T] in [0, 1]: the best score of each."""


def _halved(images: Tensor) -> Tensor:
    """What the world's evaluators look at: the lesser side 64 px, by averaging."""
    return F.interpolate(images.float(), size=lesser_side(images, 64), mode="area")


def lesser_side(images: Tensor, side: int) -> tuple[int, int]:
    """Height and width that make the lesser of both ``side``, in eights, and keep the shape of [B, 3, H, W]."""
    height, width = images.shape[-2:]
    least = min(height, width)
    return tuple(round(whole * side / least / 8) * 8 for whole in (height, width))  # type: ignore[return-value]


class WorldPair(Reader):
    """The world's own picture and word towers, in CLIP's place."""

    def __init__(self, net: nn.Module | None = None) -> None:
        self.net = cast(Any, net if net is not None else _evaluator("pair"))
        self.name = f"world-pair {mark_of(self.net)}"

    def see(self, images: Tensor) -> Tensor:
        """Unit vectors [B, 128]."""
        return self.net.see(_halved(images))

    def read(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [B, 128]."""
        return self.net.read(list(texts))


class WorldJudge(Sight, Detector):
    """The world's judge, in DINO's place, and what names things."""

    def __init__(self, net: nn.Module | None = None) -> None:
        self.net = cast(Any, net if net is not None else _evaluator("judge"))
        self.name = f"world-judge {mark_of(self.net)}"

    def see(self, images: Tensor) -> Tensor:
        """Unit vectors [B, 256]."""
        return self.net.embedding(_halved(images))

    def grid(self, images: Tensor) -> Tensor:
        """[B, 160, 8, 8]."""
        return self.net.trunk(_halved(images))

    def layers(self, images: Tensor) -> list[Tensor]:
        """The trunk after every stage, as LPIPS wants it."""
        x, found = _halved(images), []
        for layer in self.net.trunk.layers:
            x = layer(x)
            if type(layer).__name__ == "Residual":
                found.append(x)
        return found

    def told(self, images: Tensor) -> dict[str, Tensor]:
        """Probabilities of every factor, each [B, classes]."""
        return {name: logits.softmax(-1) for name, logits in self.net(_halved(images)).items()}

    def find(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """[B, T]: probability of an object, or of any of a category, as the only, first or second thing."""
        from fromfew.pretrain.data import OBJECTS
        from fromfew.world.scenes import CATEGORY

        told = self.told(images)
        columns = []
        for thing in things:
            mine = [i for i, name in enumerate(OBJECTS) if thing in (name, CATEGORY[name])]
            if not mine:
                raise FromfewError(f"The world has no object or category '{thing}'.")
            columns.append(torch.maximum(told["object"][:, mine].sum(1), told["second"][:, mine].sum(1)))
        return torch.stack(columns, 1)


class WorldFace(Sight):
    """The world's face network, in ArcFace's place; a picture is taken for one face."""

    def __init__(self, net: nn.Module | None = None) -> None:
        self.net = net if net is not None else _evaluator("face")
        self.name = f"world-face {mark_of(self.net)}"

    def see(self, images: Tensor) -> Tensor:
        """Unit vectors [B, 128]."""
        return self.net(_halved(images))


def _evaluator(name: str) -> nn.Module:
    from fromfew.world.evaluators import evaluator

    return evaluator(name)


def seen(case: Case, sight: Sight, images: Tensor) -> Tensor:
    """What a network sees in a case's pictures, [B, D], looked at once for all metrics."""
    key = (id(images), sight.name)
    if key not in case.cache:
        case.cache[key] = torch.cat([sight.see(part) for part in images.split(64)])
    return case.cache[key]
