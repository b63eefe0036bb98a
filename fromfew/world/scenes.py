"""Scenes: what is in a picture (the specification), its caption, and the picture with exact masks."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fromfew.world import faces, styles
from fromfew.world.backgrounds import SIZE, background
from fromfew.world.sprites import colours_of, recolour, sprite
from fromfew.world.vocabulary import (
    COLOURS,
    CONTEXTS,
    CORE,
    HELD_OUT,
    HELD_OUT_STYLES,
    RELATIONS,
    SETS,
    STYLES,
    WIDE,
    names,
    said,
)

CATEGORY: dict[str, str] = {**names(CORE), **names(WIDE), **names(HELD_OUT)}
"""Every object's category."""


@dataclass(frozen=True)
class Item:
    """One thing in a scene."""

    name: str
    """Object name, or ``"face"``."""
    set: str = "noto"
    colour: str | None = None
    who: int = -1
    """Identity number of a face, else -1."""
    how: faces.Look = field(default_factory=faces.Look)

    def picture(self) -> Image.Image:
        """The sprite, RGBA."""
        if self.who >= 0:
            return faces.face(faces.identity(self.who), self.how)
        plain = sprite(self.name, self.set)
        return recolour(plain, self.colour) if self.colour else plain


@dataclass(frozen=True)
class Scene:
    """The specification of a picture; ``draw`` makes the picture."""

    items: tuple[Item, ...]
    context: str
    style: str = "plain"
    relation: str | None = None
    caption: str = ""
    wide: bool = False
    """Whether the picture is twice as wide, each of two things standing in its half as it stands alone in a picture."""


def is_wide(height: int, width: int) -> bool:
    """Whether two squares fit into a picture side by side, as into that of a wide scene.

    >>> is_wide(128, 256), is_wide(128, 192)
    (True, False)
    """
    return width >= 2 * height


@dataclass(frozen=True)
class Drawn:
    """A picture with its ground truth."""

    scene: Scene
    picture: Image.Image
    alphas: tuple[np.ndarray, ...]
    """One uint8 alpha for every item, [128, 128], or [128, 256] of a wide scene."""

    @cached_property
    def boxes(self) -> tuple[tuple[int, int, int, int], ...]:
        """(left, top, right, bottom) of every item, in pixels."""
        found = []
        for alpha in self.alphas:
            ys, xs = np.nonzero(alpha > 127)
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)
            left, top, right, bottom = (int(v) for v in box)
            found.append((left, top, right, bottom))
        return tuple(found)

    def mask(self, item: int = 0) -> Image.Image:
        """The mask of one item, mode L, 0 or 255."""
        return Image.fromarray(((self.alphas[item] > 127) * 255).astype(np.uint8))


def draw(scene: Scene, rng: np.random.Generator) -> Drawn:
    """Draw a scene: places, background and the tilt of heads come from ``rng``."""
    picture = background(scene.context, rng)
    if scene.wide:
        ground = np.asarray(picture)
        picture = Image.fromarray(np.concatenate([ground, ground[:, ::-1]], 1))
    alphas: list[np.ndarray] = []
    for item, (x, y, size) in zip(scene.items, _places(scene, rng), strict=True):
        thing = item.picture().resize((size, size), Image.Resampling.BILINEAR)
        if item.who >= 0:
            thing = thing.rotate(rng.uniform(-4, 4), Image.Resampling.BILINEAR)
        _shadow(picture, x, y, size)
        picture.paste(thing, (x, y), thing)
        alpha = Image.new("L", picture.size)
        alpha.paste(thing.getchannel("A"), (x, y))
        alphas.append(np.asarray(alpha))
    return Drawn(scene, styles.apply(scene.style, picture), tuple(alphas))


CELL = 8
"""Things stand on a grid of this many pixels, the one the base's latents have.

A thing moved by a fraction of a cell has other latents altogether. A small base would spend its training on learning
those apart rather than on learning what things look like.
"""


def _places(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(left, top, size) of every item, in whole cells."""
    if len(scene.items) == 1:
        return [_alone(rng)]
    if scene.wide:
        halves = (1, 0) if scene.relation == "right" else (0, 1)
        return [(left + half * SIZE, top, side) for half, (left, top, side) in ((h, _alone(rng)) for h in halves)]
    size, last = 7 * CELL, SIZE - 7 * CELL
    ends = [int(rng.integers(2)) * CELL, last - int(rng.integers(2)) * CELL]
    if scene.relation == "above":
        return [(int(rng.integers(3, 7)) * CELL, end, size) for end in ends]
    order = (1, 0) if scene.relation == "right" else (0, 1)
    return [(ends[order.index(i)], int(rng.integers(5, 9)) * CELL, size) for i in (0, 1)]


def _alone(rng: np.random.Generator) -> tuple[int, int, int]:
    """(left, top, size) of a thing that has a square to itself."""
    left, top = rng.choice((1, 2, 3, 4), p=(0.1, 0.4, 0.4, 0.1)), rng.choice((2, 3, 4), p=(0.25, 0.5, 0.25))
    return int(left) * CELL, int(top) * CELL, 11 * CELL


def _shadow(picture: Image.Image, x: int, y: int, size: int) -> None:
    """Darken an ellipse under a thing, softly."""
    height = max(4, size // 8)
    shade = Image.new("L", (size, height * 2))
    ImageDraw.Draw(shade).ellipse((size * 0.15, height * 0.5, size * 0.85, height * 1.5), fill=80)
    shade = shade.filter(ImageFilter.GaussianBlur(2))
    picture.paste((0, 0, 0), (x, y + size - height - 2), shade)


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def words_for(item: Item, rng: np.random.Generator | None = None) -> str:
    """How a caption calls an item, without article; ``rng`` chooses how much of it is spelled out."""
    if item.who >= 0:
        who = faces.identity(item.who)
        hair = "bald" if who.cut == "bald" else f"{who.hair} hair"
        said_ = who.noun if hair == "bald" else f"{who.noun} with {hair}"
        if hair == "bald":
            said_ = f"bald {said_}"
        if item.how.expression != "neutral":
            said_ = f"{item.how.expression} {said_}"
        return f"{said_} {'and' if 'with' in said_ else 'with'} glasses" if item.how.glasses else said_
    if item.name in _CORE:
        return f"{item.colour} {said(item.name)}" if item.colour else said(item.name)
    category = CATEGORY[item.name]
    if item.colour:
        return f"{item.colour} {category}"
    if rng is not None and rng.random() < 0.6:
        return f"{' and '.join(colours_of(item.name, item.set))} {category}".strip()
    return category


_CORE = names(CORE)
_WIDE = names(WIDE)


COLOURLESS = ("sketch", "poster", "blueprint", "sepia", "halftone")
"""Styles in which an object's own colours cannot be seen, so captions do not speak of them."""


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """A caption that says everything that is in the scene."""
    seen = None if scene.style in COLOURLESS else rng  # no words for colours that do not show
    things = [article(words_for(item, seen)) for item in scene.items]
    said_ = things[0] if len(things) == 1 else f"{things[0]} {RELATIONS[scene.relation or 'and']} {things[1]}"
    if scene.items[0].who >= 0:
        said_ = f"a portrait of {said_}"
    if rng is not None and scene.items[0].who < 0:
        lead = rng.random()
        said_ = f"a photo of {said_}" if lead < 0.3 else f"a picture of {said_}" if lead < 0.45 else said_
    style = {**STYLES, **HELD_OUT_STYLES}[scene.style]
    # One scene in ten does not say where it is: a prompt without a context must mean "anywhere".
    where = "" if rng is not None and rng.random() < 0.1 else CONTEXTS[scene.context]
    return " ".join(part for part in (said_, where, style) if part)


def random_item(rng: np.random.Generator, *, core: float = 0.8, names_: tuple[str, ...] | None = None) -> Item:
    """A random thing: a core object with probability ``core``, else one called by its category."""
    if names_ is not None:
        name = str(rng.choice(names_))
    else:
        name = str(rng.choice(_CORE_NAMES if rng.random() < core else _WIDE_NAMES))
    colour = str(rng.choice(COLOURS)) if rng.random() < 0.2 else None
    return Item(name, "noto" if name in _CORE else str(rng.choice(SETS)), colour)


_CORE_NAMES = tuple(_CORE)
_WIDE_NAMES = tuple(_WIDE)


def random_scene(rng: np.random.Generator, *, pairs: float = 0.2, portraits: float = 0.05) -> Scene:
    """A random scene of the held-in grammar, with its caption.

    Args:
        rng: numpy generator.
        pairs: share of scenes with two things.
        portraits: share of scenes with a face.
    """
    kind = rng.random()
    relation = None
    if kind < portraits:
        items: tuple[Item, ...] = (Item("face", who=int(rng.integers(2000)), how=faces.look(rng)),)
    elif kind < portraits + pairs:
        items = (random_item(rng), random_item(rng))
        relation = str(rng.choice(list(RELATIONS)))
    else:
        items = (random_item(rng),)
    style = "plain" if rng.random() < 0.6 else str(rng.choice([s for s in STYLES if s != "plain"]))
    if style in COLOURLESS:
        items = tuple(replace(item, colour=None) for item in items)
    scene = Scene(items, str(rng.choice(list(CONTEXTS))), style, relation)
    return replace(scene, caption=caption(scene, rng))


def scene_at(seed: int, number: int) -> Drawn:
    """Scene ``number`` of the endless stream with ``seed``: the same numbers always give the same picture."""
    rng = np.random.default_rng([seed, number])
    return draw(random_scene(rng), rng)
