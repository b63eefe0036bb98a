"""What encoded prompts of a base look like in general: captions that any photo could have, and their second moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fromfew.templates import TEMPLATES, with_article

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["captions", "second_moment"]

_NOUNS = (
    "cat", "dog", "horse", "bird", "fish", "bear", "man", "woman", "child", "face", "car", "bus", "bike", "boat",
    "train", "plane", "house", "church", "bridge", "street", "room", "table", "chair", "lamp", "book", "cup", "vase",
    "teapot", "bottle", "bowl", "bag", "hat", "shirt", "shoe", "watch", "phone", "guitar", "toy", "ball", "clock",
    "tree", "flower", "apple", "cake", "pizza", "mountain", "forest", "river", "beach", "garden",
)  # fmt: skip
_SCENES = (
    "", "on the beach", "in the snow", "in the forest", "on a table", "in the city", "at night", "in a room",
    "under water", "on the moon",
)  # fmt: skip
_KEPT: dict[str, Tensor] = {}


def captions(count: int = 250) -> list[str]:
    """Plain captions, always the same: fifty nouns in turn, under changing sentences and in changing scenes."""
    lines = TEMPLATES["photo"]
    found = []
    for i in range(count):
        noun, scene = _NOUNS[i % len(_NOUNS)], _SCENES[(i // len(_NOUNS) + i) % len(_SCENES)]
        line = lines[(7 * i) % len(lines)]
        found.append(f"{line.replace('a {}', with_article(noun)).replace('{}', noun)} {scene}".strip())
    return found


def second_moment(bb: Backbone, *, count: int = 250, ridge: float = 1e-4) -> Tensor:
    """``[C, C]`` the mean of ``e eᵀ`` over all positions of encoded captions, as the untouched base reads them.

    ``ridge`` times the mean of the diagonal is added to it, so that it has an inverse however few the captions are.
    It is computed once for a base, and kept in the user's cache.

    Args:
        bb: The base.
        count: Captions.
        ridge: Share of the mean of the diagonal.
    """
    if bb.device.type == "meta":
        width = bb.embed([""]).states.shape[-1]
        return torch.eye(width)
    key = f"{bb.fingerprint()}-{count}"
    if key not in _KEPT:
        _KEPT[key] = _from_disk(bb, key, count)
    moment = _KEPT[key]
    return moment + ridge * moment.diagonal().mean() * torch.eye(len(moment))


def _from_disk(bb: Backbone, key: str, count: int) -> Tensor:
    from fromfew.class_images import cache_folder
    from fromfew.io.tensors import read_tensors, write_tensors

    file = cache_folder() / "captions" / f"{key}.safetensors"
    if file.is_file():
        return read_tensors(file)["moment"]
    moment = _computed(bb, count)
    write_tensors(file, {"moment": moment})
    return moment


@torch.no_grad()
def _computed(bb: Backbone, count: int) -> Tensor:
    from fromfew.ports.part import bare

    total, seen = None, 0
    said = captions(count)
    with bare(bb):
        for start in range(0, count, 25):
            states = bb.compose(said[start : start + 25], ()).states.flatten(0, 1).double().cpu()
            total = states.T @ states if total is None else total + states.T @ states
            seen += len(states)
    assert total is not None
    return (total / seen).float()
