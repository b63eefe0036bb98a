"""Parametric faces: an identity is a fixed set of features; expression, clothing and accessories vary."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

SKIN = ((255, 224, 196), (241, 194, 155), (224, 172, 120), (190, 130, 88), (141, 85, 54), (92, 56, 38))
HAIR = {
    "black": (38, 32, 36),
    "brown": (102, 62, 36),
    "blond": (232, 196, 110),
    "red": (186, 74, 36),
    "grey": (168, 168, 172),
    "blue": (70, 120, 210),
}
"""Hair colour word to RGB."""
CUTS = ("short", "long", "curly", "bald", "bob")
EXPRESSIONS = ("neutral", "smiling", "surprised", "sad")

HELD_OUT_FROM = 10_000
"""Identities numbered from here on are held out: the base and its encoders never saw them."""


@dataclass(frozen=True)
class Identity:
    """What stays the same in every picture of one person."""

    noun: Literal["woman", "man"]
    skin: int
    hair: str
    cut: str
    width: float
    jaw: float
    eyes: tuple[int, int, int]
    eye_gap: float
    eye_size: float
    brow: float
    nose: float
    mouth: float
    beard: bool
    freckles: bool
    mole: tuple[float, float] | None


def identity(number: int) -> Identity:
    """The identity with a number; the same number is always the same person.

    Args:
        number: >= 0; from ``HELD_OUT_FROM`` on, nobody but the evaluators saw the person.
    """
    rng = np.random.default_rng([7, number])
    noun: Literal["woman", "man"] = "woman" if rng.random() < 0.5 else "man"
    cuts = ("long", "curly", "bob", "short") if noun == "woman" else ("short", "curly", "bald", "short")
    mole = (float(rng.uniform(-0.6, 0.6)), float(rng.uniform(0.15, 0.5))) if rng.random() < 0.25 else None
    eyes = ((70, 120, 60), (60, 110, 190), (90, 60, 35), (40, 35, 40))
    return Identity(
        noun=noun,
        skin=int(rng.integers(len(SKIN))),
        hair=str(rng.choice(list(HAIR))),
        cut=str(rng.choice(cuts)),
        width=float(rng.uniform(0.82, 1.12)),
        jaw=float(rng.uniform(0.7, 1.05)),
        eyes=eyes[int(rng.integers(len(eyes)))],
        eye_gap=float(rng.uniform(0.32, 0.5)),
        eye_size=float(rng.uniform(0.8, 1.35)),
        brow=float(rng.uniform(0.6, 1.8)),
        nose=float(rng.uniform(0.6, 1.5)),
        mouth=float(rng.uniform(0.75, 1.3)),
        beard=noun == "man" and bool(rng.random() < 0.35),
        freckles=bool(rng.random() < 0.2),
        mole=mole,
    )


@dataclass(frozen=True)
class Look:
    """What changes from picture to picture."""

    expression: str = "neutral"
    glasses: bool = False
    shirt: tuple[int, int, int] = (70, 90, 160)


def look(rng: np.random.Generator) -> Look:
    """A random look."""
    shirt = tuple(int(c) for c in rng.integers(40, 230, 3))
    return Look(str(rng.choice(EXPRESSIONS)), bool(rng.random() < 0.25), (shirt[0], shirt[1], shirt[2]))


def face(who: Identity, how: Look) -> Image.Image:
    """A portrait: head and shoulders on nothing, RGBA, 96 x 96."""
    s = 4  # drawn four times as large, scaled down for smooth edges
    picture = Image.new("RGBA", (96 * s, 96 * s))
    draw = ImageDraw.Draw(picture)
    cx, cy, rx, ry = 48 * s, 44 * s, 21 * s * who.width, 26 * s
    skin, hair = SKIN[who.skin], HAIR[who.hair]
    dark = tuple(int(c * 0.78) for c in skin)
    if who.cut in ("long", "bob"):
        low = 84 * s if who.cut == "long" else 64 * s
        draw.rounded_rectangle((cx - rx * 1.22, cy - ry * 1.05, cx + rx * 1.22, low), 20 * s, fill=hair)
    draw.rounded_rectangle((14 * s, 76 * s, 82 * s, 120 * s), 18 * s, fill=how.shirt)
    draw.rectangle((cx - 8 * s, 62 * s, cx + 8 * s, 79 * s), fill=dark)
    for side in (-1, 1):
        ex = cx + side * rx
        draw.ellipse((ex - 5 * s, cy - 2 * s, ex + 5 * s, cy + 9 * s), fill=dark)
    draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry * 0.8), fill=skin)
    draw.ellipse((cx - rx * who.jaw, cy - ry * 0.5, cx + rx * who.jaw, cy + ry), fill=skin)
    _hair(draw, who, (cx, cy, rx, ry), s)
    _features(draw, who, how, (cx, cy, rx, ry), s)
    return picture.resize((96, 96), Image.Resampling.LANCZOS)


Head = tuple[float, float, float, float]


def _hair(draw: ImageDraw.ImageDraw, who: Identity, head: Head, s: int) -> None:
    cx, cy, rx, ry = head
    hair = HAIR[who.hair]
    if who.cut == "bald":
        return
    if who.cut == "curly":
        for angle in np.linspace(np.pi * 1.02, np.pi * 1.98, 8):
            x, y = cx + rx * 1.02 * np.cos(angle), cy - 3 * s + ry * 0.95 * np.sin(angle)
            draw.ellipse((x - 9 * s, y - 9 * s, x + 9 * s, y + 9 * s), fill=hair)
        return
    draw.pieslice((cx - rx * 1.1, cy - ry * 1.15, cx + rx * 1.1, cy + ry * 0.45), 185, 355, fill=hair)
    if who.cut in ("long", "bob"):
        for side in (-1, 1):
            x = cx + side * rx * 1.02
            draw.rounded_rectangle((x - 5 * s, cy - ry * 0.4, x + 5 * s, cy + ry * 0.75), 5 * s, fill=hair)


def _features(draw: ImageDraw.ImageDraw, who: Identity, how: Look, head: Head, s: int) -> None:
    cx, cy, rx, ry = head
    hair, skin = HAIR[who.hair], SKIN[who.skin]
    dark = tuple(int(c * 0.72) for c in skin)
    if who.beard:
        draw.pieslice((cx - rx * 0.95, cy - ry * 0.3, cx + rx * 0.95, cy + ry * 1.08), 15, 165, fill=hair)
    raised = 3 * s if how.expression == "surprised" else 0
    for side in (-1, 1):
        ex, ey, e = cx + side * rx * who.eye_gap, cy - 1 * s, 4.2 * s * who.eye_size
        draw.ellipse((ex - e, ey - e * 0.8, ex + e, ey + e * 0.8), fill=(250, 250, 250))
        draw.ellipse((ex - e * 0.6, ey - e * 0.6, ex + e * 0.6, ey + e * 0.6), fill=who.eyes)
        tilt = side * 2 * s if how.expression == "sad" else 0
        by = ey - 8 * s - raised
        draw.line((ex - 5 * s, by - tilt, ex + 5 * s, by + tilt), fill=(60, 45, 40), width=int(2 * s * who.brow))
        if how.glasses:
            draw.ellipse((ex - 7.5 * s, ey - 7 * s, ex + 7.5 * s, ey + 7 * s), outline=(30, 30, 36), width=int(1.8 * s))
    nose = 4 * s * who.nose
    draw.polygon([(cx, cy + 1 * s), (cx - nose, cy + 9 * s), (cx + nose, cy + 9 * s)], fill=dark)
    if who.freckles:
        for k in (-0.55, -0.4, -0.3, 0.3, 0.4, 0.55):
            x, y = cx + rx * k, cy + (8 + 3 * abs(k)) * s
            draw.ellipse((x - s, y - s, x + s, y + s), fill=dark)
    if who.mole:
        x, y = cx + rx * who.mole[0], cy + ry * who.mole[1]
        draw.ellipse((x - 1.5 * s, y - 1.5 * s, x + 1.5 * s, y + 1.5 * s), fill=(60, 40, 35))
    _mouth(draw, cx, cy + ry * 0.58, 8.5 * s * who.mouth, how.expression, s)


def _mouth(draw: ImageDraw.ImageDraw, x: float, y: float, w: float, expression: str, s: int) -> None:
    red = (176, 60, 62)
    if expression == "smiling":
        draw.chord((x - w, y - 7 * s, x + w, y + 5 * s), 0, 180, fill=red)
    elif expression == "surprised":
        draw.ellipse((x - w * 0.45, y - 4 * s, x + w * 0.45, y + 5 * s), fill=red)
    elif expression == "sad":
        draw.arc((x - w, y, x + w, y + 9 * s), 200, 340, fill=red, width=int(2.2 * s))
    else:
        draw.line((x - w * 0.8, y, x + w * 0.8, y), fill=red, width=int(2.4 * s))
