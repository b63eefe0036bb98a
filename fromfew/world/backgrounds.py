"""The world's contexts: procedural backgrounds with jitter, 128 x 128 pixels."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128
VARIANTS = 24
_BIG = SIZE * 2  # drawn twice as large and scaled down, for smooth edges

Rng = np.random.Generator


def background(context: str, rng: Rng) -> Image.Image:
    """One background, RGB, 128 x 128.

    Args:
        context: a key of ``vocabulary.CONTEXTS``.
        rng: chooses the variant, the mirror image and the light.
    """
    picture = _variant(context, int(rng.integers(VARIANTS)))
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    light = 1 + rng.uniform(-0.07, 0.07)
    return Image.fromarray(np.clip(picture * light, 0, 255).astype(np.uint8))


@lru_cache(maxsize=1024)
def _variant(context: str, number: int) -> np.ndarray:
    rng = np.random.default_rng([number, *context.encode()])
    return np.asarray(_DRAW[context](rng).resize((SIZE, SIZE), Image.Resampling.LANCZOS), dtype=np.float32)


def _blend(top: tuple[int, ...], bottom: tuple[int, ...], rng: Rng, jitter: float = 10) -> np.ndarray:
    """A vertical gradient [_BIG, _BIG, 3]."""
    a, b = (np.array(c, dtype=np.float32) + rng.uniform(-jitter, jitter, 3) for c in (top, bottom))
    ramp = np.linspace(0, 1, _BIG, dtype=np.float32)[:, None, None]
    return np.broadcast_to(a + (b - a) * ramp, (_BIG, _BIG, 3)).copy()


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _hill(draw: ImageDraw.ImageDraw, rng: Rng, height: float, fill: tuple[int, int, int], rough: float) -> None:
    """Fill everything below a smooth skyline at ``height`` (share of the picture from the top)."""
    x = np.arange(_BIG + 1)
    waves = [rng.uniform(0.2, 1) * np.sin(x / _BIG * k * 3.1 + rng.uniform(0, 6.3)) for k in (1, 2, 3)]
    wave = np.sum(waves, axis=0)
    y = height * _BIG + rough * wave
    jitter = rng.integers(-8, 9, 3)
    colour = tuple(int(np.clip(c + j, 0, 255)) for c, j in zip(fill, jitter, strict=True))
    draw.polygon([(0, _BIG), *zip(x.tolist(), y.tolist(), strict=True), (_BIG, _BIG)], fill=colour)


def _dots(
    draw: ImageDraw.ImageDraw, rng: Rng, n: int, fill: tuple[int, ...], r: tuple[float, float], below: float = 1.0
) -> None:
    for _ in range(n):
        x, y, s = rng.uniform(0, _BIG), rng.uniform(0, _BIG * below), rng.uniform(*r)
        draw.ellipse((x - s, y - s, x + s, y + s), fill=fill)


def _disc(draw: ImageDraw.ImageDraw, rng: Rng, fill: tuple[int, int, int], r: tuple[float, float]) -> None:
    x, y, s = rng.uniform(30, _BIG - 30), rng.uniform(24, 60), rng.uniform(*r)
    draw.ellipse((x - s, y - s, x + s, y + s), fill=fill)


def _sky(top: tuple[int, ...], bottom: tuple[int, ...], rng: Rng) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = _image(_blend(top, bottom, rng))
    return picture, ImageDraw.Draw(picture)


def _beach(rng: Rng) -> Image.Image:
    picture, draw = _sky((120, 195, 245), (205, 235, 250), rng)
    _disc(draw, rng, (255, 240, 150), (16, 26))
    sea = rng.uniform(0.36, 0.48)
    draw.rectangle((0, sea * _BIG, _BIG, _BIG), fill=(40, 140, 190))
    _hill(draw, rng, sea + 0.17, (120, 205, 215), 3)
    _hill(draw, rng, sea + 0.2, (240, 215, 155), 4)
    return picture


def _snow(rng: Rng) -> Image.Image:
    picture, draw = _sky((165, 190, 220), (215, 226, 238), rng)
    _hill(draw, rng, rng.uniform(0.42, 0.52), (205, 220, 238), 10)
    _hill(draw, rng, rng.uniform(0.58, 0.68), (240, 246, 252), 8)
    _dots(draw, rng, 45, (255, 255, 255), (2, 4.5))
    return picture


def _meadow(rng: Rng) -> Image.Image:
    picture, draw = _sky((110, 185, 250), (200, 230, 250), rng)
    for _i in range(2):
        x, y = rng.uniform(20, _BIG - 20), rng.uniform(20, 60)
        for dx in (-18, 0, 18):
            draw.ellipse((x + dx - 18, y - 11, x + dx + 18, y + 11), fill=(250, 252, 255))
    _hill(draw, rng, rng.uniform(0.42, 0.5), (125, 195, 90), 10)
    _hill(draw, rng, rng.uniform(0.58, 0.66), (90, 170, 65), 7)
    return picture


def _night(rng: Rng) -> Image.Image:
    picture, draw = _sky((12, 16, 50), (45, 50, 105), rng)
    _dots(draw, rng, 26, (235, 235, 210), (1.5, 3), 0.6)
    _disc(draw, rng, (245, 240, 205), (15, 22))
    _hill(draw, rng, rng.uniform(0.66, 0.76), (22, 32, 48), 8)
    return picture


def _desert(rng: Rng) -> Image.Image:
    picture, draw = _sky((245, 165, 85), (255, 220, 150), rng)
    _disc(draw, rng, (255, 245, 200), (18, 26))
    _hill(draw, rng, rng.uniform(0.46, 0.54), (225, 160, 85), 14)
    _hill(draw, rng, rng.uniform(0.64, 0.72), (205, 130, 60), 14)
    return picture


def _forest(rng: Rng) -> Image.Image:
    picture, draw = _sky((60, 110, 70), (130, 170, 110), rng)
    for x in np.linspace(0, _BIG, 7) + rng.uniform(-14, 14, 7):
        w = rng.uniform(7, 13)
        draw.rectangle((x - w, 0, x + w, _BIG * 0.75), fill=(90, 62, 40))
    for _i in range(14):
        x, y, s = rng.uniform(0, _BIG), rng.uniform(-10, 60), rng.uniform(22, 40)
        draw.ellipse((x - s, y - s, x + s, y + s), fill=(30, int(rng.uniform(85, 125)), 45))
    _hill(draw, rng, rng.uniform(0.66, 0.74), (60, 85, 40), 6)
    return picture


def _city(rng: Rng) -> Image.Image:
    picture, draw = _sky((150, 180, 205), (215, 222, 225), rng)
    x = -10.0
    while x < _BIG:
        w, top = rng.uniform(34, 56), rng.uniform(0.08, 0.42) * _BIG
        grey = int(rng.uniform(95, 150))
        draw.rectangle((x, top, x + w, _BIG), fill=(grey, grey, grey + 12))
        for wy in np.arange(top + 10, _BIG * 0.7, 24):
            for wx in np.arange(x + 7, x + w - 10, 17):
                draw.rectangle((float(wx), float(wy), float(wx) + 8, float(wy) + 11), fill=(250, 235, 160))
        x += w + rng.uniform(2, 8)
    draw.rectangle((0, _BIG * 0.72, _BIG, _BIG), fill=(85, 85, 92))
    for x in np.arange(rng.uniform(-30, 0), _BIG, 60).tolist():
        draw.rectangle((x, _BIG * 0.86, x + 32, _BIG * 0.86 + 7), fill=(235, 235, 225))
    return picture


def _wood(rng: Rng) -> Image.Image:
    picture, draw = _sky((185, 125, 70), (165, 105, 58), rng)
    step = rng.uniform(34, 44)
    for i, y in enumerate(np.arange(rng.uniform(-30, 0), _BIG, step)):
        shade = int(rng.uniform(-16, 16))
        draw.rectangle((0, y, _BIG, y + step - 3), fill=(190 + shade, 130 + shade, 75 + shade))
        draw.rectangle((0, y + step - 3, _BIG, y + step), fill=(110, 70, 38))
        x = rng.uniform(0, _BIG) if i % 2 else rng.uniform(0, 100)
        draw.rectangle((x, y, x + 3, y + step), fill=(110, 70, 38))
    return picture


def _brick(rng: Rng) -> Image.Image:
    picture, draw = _sky((205, 190, 178), (205, 190, 178), rng)
    floor = _BIG * rng.uniform(0.76, 0.84)
    for row, y in enumerate(np.arange(rng.uniform(-20, 0), floor, 26).tolist()):
        for x in range(-52 + (row % 2) * 26, _BIG, 52):
            shade = int(rng.uniform(-14, 14))
            draw.rectangle((x, y, x + 47, y + 21), fill=(178 + shade, 82 + shade, 62 + shade))
    draw.rectangle((0, floor, _BIG, _BIG), fill=(150, 148, 145))
    return picture


def _space(rng: Rng) -> Image.Image:
    picture, draw = _sky((8, 6, 22), (22, 10, 45), rng)
    for _i in range(3):
        x, y, s = rng.uniform(0, _BIG), rng.uniform(0, _BIG), rng.uniform(40, 80)
        draw.ellipse((x - s, y - s * 0.6, x + s, y + s * 0.6), fill=(58, 20, 90))
    picture = picture.filter(ImageFilter.GaussianBlur(24))
    draw = ImageDraw.Draw(picture)
    _dots(draw, rng, 38, (240, 240, 255), (1.5, 3.2))
    x, y, s = rng.uniform(20, _BIG - 20), rng.uniform(20, _BIG - 20), rng.uniform(18, 30)
    draw.ellipse((x - s, y - s, x + s, y + s), fill=(205, 120, 80))
    draw.arc((x - 1.8 * s, y - 0.5 * s, x + 1.8 * s, y + 0.5 * s), 0, 360, fill=(225, 200, 160), width=5)
    return picture


def _pink(rng: Rng) -> Image.Image:
    y, x = np.mgrid[0:_BIG, 0:_BIG].astype(np.float32) / _BIG
    a, b = rng.uniform(0.4, 1.2), rng.uniform(0, 6.3)
    folds = np.sin((x * a + y * (1.3 - a)) * 22 + 1.5 * np.sin(y * 5 + b) + b)
    base = np.array([244, 150, 185], dtype=np.float32) + rng.uniform(-10, 10, 3)
    return _image(base + folds[..., None] * np.array([10, 22, 18], dtype=np.float32))


def _checker(rng: Rng) -> Image.Image:
    y, x = np.mgrid[0:_BIG, 0:_BIG]
    step = int(rng.integers(30, 38))
    dx, dy = rng.integers(0, 2 * step, 2)
    odd = (((x + dx) // step + (y + dy) // step) % 2).astype(np.float32)[..., None]
    return _image(55 + 185 * odd + rng.uniform(-8, 8, 3).astype(np.float32))


def _underwater(rng: Rng) -> Image.Image:
    picture, draw = _sky((45, 175, 205), (8, 65, 125), rng)
    for x in rng.uniform(0, _BIG, 3):
        w = rng.uniform(14, 26)
        draw.polygon([(x, 0), (x + w, 0), (x + w * 2.5 - 60, _BIG), (x - 60, _BIG)], fill=(50, 150, 190))
    picture = picture.filter(ImageFilter.GaussianBlur(9))
    draw = ImageDraw.Draw(picture)
    for _i in range(12):
        x, y, s = rng.uniform(0, _BIG), rng.uniform(0, _BIG), rng.uniform(4, 9)
        draw.ellipse((x - s, y - s, x + s, y + s), outline=(205, 240, 250), width=3)
    _hill(draw, rng, rng.uniform(0.84, 0.9), (170, 160, 110), 5)
    return picture


def _white(rng: Rng) -> Image.Image:
    return _image(_blend((252, 252, 252), (232, 232, 234), rng, 3))


_DRAW: dict[str, Callable[[Rng], Image.Image]] = {
    "beach": _beach,
    "snow": _snow,
    "meadow": _meadow,
    "night": _night,
    "desert": _desert,
    "forest": _forest,
    "city": _city,
    "wood": _wood,
    "brick": _brick,
    "space": _space,
    "pink": _pink,
    "checker": _checker,
    "underwater": _underwater,
    "white": _white,
}
