"""The pack of sprites: one object, drawn by several emoji sets, with its exact alpha."""

import io
import json
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

PACK = Path(__file__).parent / "data" / "sprites.safetensors"

_HUES = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
_HUE_AT = (0.0, 0.09, 0.15, 0.35, 0.6, 0.77, 0.9)

TINTS: dict[str, tuple[int, int, int]] = {
    "red": (226, 40, 46),
    "orange": (245, 140, 30),
    "yellow": (252, 215, 50),
    "green": (60, 170, 75),
    "blue": (45, 105, 230),
    "purple": (140, 70, 200),
    "pink": (250, 130, 185),
    "black": (52, 52, 58),
    "white": (240, 240, 240),
}
"""Colour word to the RGB (0 to 255) a recoloured sprite is built from."""


@lru_cache(maxsize=1)
def _pack() -> tuple[dict[str, list[int]], int]:
    """The index of the pack and the byte at which its data begins."""
    with PACK.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return json.loads(header["__metadata__"]["index"]), 8 + length


@lru_cache(maxsize=4096)
def sprite(name: str, style: str = "noto") -> Image.Image:
    """One sprite, RGBA, 96 x 96 pixels.

    Args:
        name: the object, e.g. ``"red-apple"``.
        style: the emoji set: ``"noto"``, ``"twemoji"`` or ``"fluent"``.

    Raises:
        KeyError: the pack holds no such sprite.
    """
    index, base = _pack()
    start, end = index[f"{style}/{name}"]
    with PACK.open("rb") as file:
        file.seek(base + start)
        data = file.read(end - start)
    return Image.open(io.BytesIO(data)).convert("RGBA")


def recolour(picture: Image.Image, colour: str) -> Image.Image:
    """The same sprite in one colour, its light and shade kept.

    Args:
        picture: RGBA sprite.
        colour: a key of ``TINTS``.
    """
    pixels = np.asarray(picture, dtype=np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    inside = pixels[..., 3] > 128
    middle = float(np.median(light[inside])) if inside.any() else 0.5
    relative = np.clip(light - middle, -0.45, 0.45)[..., None]
    tint = np.array(TINTS[colour], dtype=np.float32)
    towards = np.where(relative > 0, 255.0, 0.0)
    mixed = tint + (towards - tint) * np.abs(relative) * 1.5
    return Image.fromarray(np.dstack([np.clip(mixed, 0, 255), pixels[..., 3]]).astype(np.uint8), "RGBA")


@lru_cache(maxsize=4096)
def colours_of(name: str, style: str = "noto") -> tuple[str, ...]:
    """The one or two colour words that cover most of a sprite, commonest first."""
    pixels = np.asarray(sprite(name, style), dtype=np.float32) / 255
    rgb = pixels[pixels[..., 3] > 0.5][:, :3]
    high, low = rgb.max(1), rgb.min(1)
    spread = high - low
    hue = _hue(rgb, high, spread)
    distance = np.abs(hue[:, None] - np.array(_HUE_AT))
    named = np.array([*_HUES, "red"])[np.argmin(np.hstack([distance, np.abs(hue[:, None] - 1.0)]), axis=1)]
    words = np.where(spread > 0.18, named, np.where(high > 0.8, "white", np.where(high < 0.35, "black", "grey")))
    brown = (spread > 0.18) & (high < 0.68) & (hue < 0.12)
    found, counts = np.unique(np.where(brown, "brown", words), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    share = counts[order] / counts.sum()
    return tuple(str(found[i]) for i, part in zip(order[:2], share[:2], strict=True) if part > 0.22)


def _hue(rgb: np.ndarray, high: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Hue in [0, 1) of pixels [N, 3]."""
    red, green, blue = rgb.T
    safe = np.maximum(spread, 1e-6)
    turn = np.where(
        high == red,
        (green - blue) / safe % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return turn / 6
