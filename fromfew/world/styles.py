"""The world's styles: treatments of a whole picture, so that style and content are independent factors."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter


def apply(style: str, picture: Image.Image) -> Image.Image:
    """A picture redrawn in a style.

    Args:
        style: a key of ``vocabulary.STYLES`` or ``vocabulary.HELD_OUT_STYLES``.
        picture: RGB.

    Raises:
        KeyError: there is no such style.
    """
    return picture if style == "plain" else _STYLES[style](picture)


def _light(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"), dtype=np.float32) / 255


def _edges(picture: Image.Image) -> np.ndarray:
    """Strength of edges in [0, 1], [H, W]: the largest over the three colours."""
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32) / 255
    dx = np.abs(np.diff(pixels, axis=1, append=pixels[:, -1:]))
    dy = np.abs(np.diff(pixels, axis=0, append=pixels[-1:]))
    return np.clip((dx + dy).max(2) * 3.0 - 0.12, 0, 1)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _ink(picture: Image.Image, paper: tuple[int, ...], ink: tuple[int, ...], shade: float, lines: float) -> Image.Image:
    """Light and shade of a picture in one colour on paper of another, and its edges drawn over them.

    Mostly shade: latents of 8 x 8 pixels hold tones well and thin lines badly, so that a drawing of lines alone is
    noise to a small base.
    """
    paper_, ink_ = np.array(paper, dtype=np.float32), np.array(ink, dtype=np.float32)
    tone = np.clip((1 - _light(picture)) * 1.25 - 0.15, 0, 1)
    amount = np.clip(lines * _edges(picture) + shade * tone, 0, 1)[..., None]
    return _image(paper_ + (ink_ - paper_) * amount)


def _sketch(picture: Image.Image) -> Image.Image:
    return _ink(picture, (248, 244, 232), (45, 42, 50), 0.9, 0.4)


def _blueprint(picture: Image.Image) -> Image.Image:
    return _ink(picture, (28, 70, 160), (235, 242, 255), 0.7, 0.4)


def _pixel(picture: Image.Image) -> Image.Image:
    small = picture.resize((picture.width // 4, picture.height // 4), Image.Resampling.BOX)
    levels = np.round(np.asarray(small, dtype=np.float32) / 51) * 51
    return _image(levels).resize(picture.size, Image.Resampling.NEAREST)


def _neon(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture, dtype=np.float32)
    vivid = pixels - pixels.min(2, keepdims=True) * 0.85
    vivid = vivid / np.maximum(vivid.max(2, keepdims=True), 1) * 255
    line = _image(vivid * _edges(picture)[..., None])
    glow = np.asarray(line.filter(ImageFilter.GaussianBlur(2.5)), dtype=np.float32)
    dusk = np.array([24, 6, 52], dtype=np.float32) + pixels * np.array([0.40, 0.24, 0.45], dtype=np.float32)
    return _image(dusk + 0.5 * np.asarray(line, dtype=np.float32) + 0.8 * glow)


def _poster(picture: Image.Image) -> Image.Image:
    inks = np.array([[22, 38, 70], [200, 50, 48], [105, 160, 175], [248, 228, 178]], dtype=np.float32)
    light = _light(picture.filter(ImageFilter.GaussianBlur(1.0)))
    # Four flat tones with short ramps between them.
    ends = (0.25, 0.35, 0.47, 0.57, 0.69, 0.79)
    tones = (0, 1, 1, 2, 2, 3)
    return _image(np.stack([np.interp(light, ends, inks[list(tones), c]) for c in range(3)], axis=-1))


def _sepia(picture: Image.Image) -> Image.Image:
    light = _light(picture)[..., None]
    h, w = light.shape[:2]
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    corner = np.clip(1.25 - 0.45 * (x**2 + y**2), 0, 1)[..., None]
    return _image((np.array([40, 24, 10]) + light * np.array([205, 175, 125])) * corner)


def _halftone(picture: Image.Image) -> Image.Image:
    light = _light(picture.filter(ImageFilter.GaussianBlur(2.0)))
    h, w = light.shape
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    u, v = (x + y) * np.pi / 6, (x - y) * np.pi / 6
    wave = (np.cos(u) * np.cos(v) + 1) / 2
    ink = np.clip(1 - light + 0.5 * (wave - 0.5), 0, 1)[..., None]
    return _image(np.array([250, 246, 225]) * (1 - ink) + np.array([30, 20, 70]) * ink)


_STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "sketch": _sketch,
    "pixel": _pixel,
    "neon": _neon,
    "poster": _poster,
    "blueprint": _blueprint,
    "sepia": _sepia,
    "halftone": _halftone,
}
