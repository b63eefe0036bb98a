"""From photos to batches: views and words, every one of them a function of the generator that is passed in.

A *source* is a function from a `torch.Generator` to a `Batch` and keeps no state of its own: given a
generator seeded from (seed, step), step 700 of a resumed run sees what an uninterrupted one would see.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageChops
from torch import Generator, Tensor

from fromfew.errors import FromfewError
from fromfew.references import References
from fromfew.templates import class_prompt, filled, sentences, viewed, worded
from fromfew.views import View, draw_view, frame_tensor, mask_tensor, pick, picture_tensor, see, shrunk, uniform

if TYPE_CHECKING:
    pass

__all__ = ["Batch", "Source", "class_batches", "joined", "named", "photo_batches", "union_batches"]


@dataclass(frozen=True)
class Batch:
    """Rows to learn from.

    Attributes:
        images: [B, 3, H, W] in [-1, 1].
        masks: [B, 1, H, W] in {0, 1}, 1 where the loss counts; None if it counts everywhere.
        captions: The prompt of every row.
        of: "photo" or "class" for every row.
        keys: What fully determines a row's picture (so that its latents can be kept), or None, for every row.
        shown: [B, 3, H, W] what an adapter looks at instead of the pictures themselves, or None.
        frames: [B, 1, H, W] in {0, 1}, 0 where there is nothing to learn whatever the mask: beside a shrunken
            photo, or on a thing that the prompt does not name; None if there is something everywhere.
        numbers: Number of every row's photo, None for rows of no photo; None for sources that do not count.
        regions: For every row, the mask [1, H, W] of each thing that its prompt names; None without such masks.
        taught: For every row, whether the model is to say what the untouched base says about it.
        nouns: The plain noun of what every row shows, None for rows without; None for sources that do not tell.
    """

    images: Tensor
    masks: Tensor | None
    captions: list[str]
    of: list[str]
    keys: list[Hashable | None]
    shown: Tensor | None = None
    frames: Tensor | None = None
    numbers: Sequence[int | None] | None = None
    regions: Sequence[Mapping[str, Tensor]] | None = None
    taught: Sequence[bool] | None = None
    nouns: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def looked_at(self) -> Tensor:
        """[B, 3, H, W] what an adapter looks at: another view, or else the pictures themselves."""
        return self.images if self.shown is None else self.shown

    def is_(self, kind: str) -> Tensor:
        """[B] truth values: the rows that are of this kind."""
        return torch.tensor([of == kind for of in self.of])


Source = Callable[[Generator], Batch]


def _stack_masks(masks: Sequence[Tensor | None], size: tuple[int, int]) -> Tensor | None:
    if all(mask is None for mask in masks):
        return None
    return torch.stack([torch.ones(1, *size) if mask is None else mask for mask in masks])


def _choose(rng: Generator, weights: Sequence[int], count: int) -> list[int]:
    """``count`` photo numbers by weight; none twice in a batch while others are left."""
    chosen: list[int] = []
    while len(chosen) < count:
        take = min(len(weights), count - len(chosen))
        odds = torch.tensor(weights, dtype=torch.float64)
        chosen += torch.multinomial(odds, take, replacement=False, generator=rng).tolist()
    return chosen


def _seeded(*what: object) -> Generator:
    """A generator whose stream is fixed by ``what``."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def photo_batches(  # noqa: PLR0913 - each is a choice that some method makes
    refs: References,
    *,
    size: int | tuple[int, int],
    batch: int = 1,
    word: str | None = None,
    noun: bool = True,
    flip: bool = True,
    zoom: tuple[float, float] = (1.0, 1.25),
    templates: str | Sequence[str] = "auto",
    captions: bool = True,
    variants: int = 0,
    pairs: bool = False,
) -> Source:
    """Views of the photos with their prompts.

    Args:
        refs: The photos.
        size: Side of the square views in pixels, or (height, width).
        batch: Rows a batch.
        word: What stands for the concept in prompts; default: the references' placeholder.
        noun: Whether the noun follows the word.
        flip: Whether half the views are mirrored; those of faces never are.
        zoom: Least and greatest zoom; 1 shows a full square of the photo, below 1 shrinks it on grey.
        templates: A name of `TEMPLATES`, "auto" (by role), or sentences with ``{}``.
        captions: Whether a photo's own caption is used where it has one.
        variants: How many fixed views every photo has, each with a key; 0 draws a new view every time.
        pairs: Whether every row also shows a view of another photo (the same one if there is no other).

    Raises:
        FromfewError: A range or template is not allowed.
    """
    if not 0.1 <= zoom[0] <= zoom[1] <= 8:
        raise FromfewError(f"The zoom must rise from at least 0.1 to at most 8, not {zoom[0]:g} to {zoom[1]:g}.")
    frame = _pair(size)
    flip = flip and refs.role != "face"
    lines = sentences(templates, refs.role)
    word = refs.placeholder if word is None else word
    side = math.ceil(max(frame) * max(1.0, zoom[1]))
    images = [shrunk(photo.image, side) for photo in refs.photos]
    masks = [photo.mask and shrunk(photo.mask, side, mask=True) for photo in refs.photos]
    weights = [photo.repeats for photo in refs.photos]

    def caption(rng: Generator, index: int, factor: float) -> str:
        own = refs.photos[index].caption if captions else None
        if own:
            return worded(own, word, refs.noun, style=refs.role == "style", keep_noun=noun)
        text = filled(lines[pick(rng, len(lines))], word, refs.noun if noun else None)
        return viewed(text, factor, pick(rng, 2))

    def another(rng: Generator, index: int) -> Tensor:
        if len(images) > 1:
            index = (index + 1 + pick(rng, len(images) - 1)) % len(images)
        view = draw_view(rng, images[index], masks[index], (max(1.0, zoom[0]), max(1.0, zoom[1])), flip)
        return picture_tensor(see(images[index], view, frame))

    def source(rng: Generator) -> Batch:
        rows: list[tuple[Tensor, Tensor | None, Tensor | None, str, Hashable | None]] = []
        chosen = _choose(rng, weights, batch)
        for index in chosen:
            sha = refs.photos[index].sha256
            key = (sha[:16], index, pick(rng, variants), frame, zoom, flip) if variants else None
            view = draw_view(_seeded(key) if key else rng, images[index], masks[index], zoom, flip)
            picture = picture_tensor(see(images[index], view, frame))
            mask, around = mask_tensor(masks[index], view, frame), frame_tensor(view, frame)
            rows.append((picture, mask, around, caption(rng, index, view.zoom), key))
        return Batch(
            torch.stack([row[0] for row in rows]), _stack_masks([row[1] for row in rows], frame),
            [row[3] for row in rows], ["photo"] * len(rows), [row[4] for row in rows],
            shown=torch.stack([another(rng, index) for index in chosen]) if pairs else None,
            frames=_stack_masks([row[2] for row in rows], frame), numbers=chosen,
        )  # fmt: skip

    return source


def class_batches(
    pictures: Sequence[Image.Image],
    *,
    noun: str,
    size: int | tuple[int, int],
    batch: int = 1,
    flip: bool = True,
    templates: str | Sequence[str] = ("a {}",),
) -> Source:
    """Pictures of the plain noun, with prompts that name it and nothing else.

    Args:
        pictures: RGB pictures, such as `class_images` gives.
        noun: The noun.
        size: Side in pixels, or (height, width).
        batch: Rows a batch.
        flip: Whether half of them are mirrored.
        templates: As for `photo_batches`.

    Raises:
        FromfewError: If there is no picture, or a template has no place for the noun.
    """
    if not pictures:
        raise FromfewError(f"There are no class pictures of '{noun}'.")
    frame = _pair(size)
    lines = sentences(templates)

    def source(rng: Generator) -> Batch:
        images, words, keys = [], [], []
        for index in _choose(rng, [1] * len(pictures), batch):
            picture, turned = pictures[index], flip and uniform(rng) < 0.5
            side = min(picture.size)
            left, top = (picture.width - side) / 2, (picture.height - side) / 2
            view = View((left, top, left + side, top + side), 1.0, (0, 0), turned, 1.0)
            images.append(picture_tensor(see(picture, view, frame)))
            words.append(class_prompt(lines[pick(rng, len(lines))], noun))
            keys.append(("class", noun, index, turned, frame))
        return Batch(torch.stack(images), None, words, ["class"] * len(words), list(keys))

    return source


def joined(*sources: Source) -> Source:
    """The rows of several sources in one batch, in their order."""

    def source(rng: Generator) -> Batch:
        parts = [one(rng) for one in sources]
        size = parts[0].images.shape[-2:]

        def whole(masks: Sequence[Tensor | None]) -> Tensor | None:
            if all(mask is None for mask in masks):
                return None
            filled = zip(masks, parts, strict=True)
            return torch.cat([torch.ones(len(p), 1, *size) if mask is None else mask for mask, p in filled])

        def each(lists: Sequence[Sequence[Any] | None], empty: Any) -> list[Any] | None:
            if all(one is None for one in lists):
                return None
            filled = zip(lists, parts, strict=True)
            return [value for one, p in filled for value in ([empty] * len(p) if one is None else one)]

        shown = None
        if any(part.shown is not None for part in parts):
            shown = torch.cat([part.looked_at for part in parts])
        return Batch(
            torch.cat([part.images for part in parts]), whole([part.masks for part in parts]),
            [c for part in parts for c in part.captions], [of for part in parts for of in part.of],
            [key for part in parts for key in part.keys], shown, whole([part.frames for part in parts]),
            each([p.numbers for p in parts], None), each([p.regions for p in parts], {}),
            each([p.taught for p in parts], False), each([p.nouns for p in parts], None),
        )  # fmt: skip

    return source


def named(source: Source, noun: str, *, templates: str | Sequence[str] = ("a {}",)) -> Source:
    """The pictures of a source under prompts of the plain noun, for the untouched base to say what they need.

    No picture of the noun is needed: what is learned is the base's own answer, at places the photos lead to
    (learning without forgetting, arXiv:1606.09282).

    Args:
        source: Where the pictures come from.
        noun: The noun.
        templates: As for `photo_batches`.
    """
    lines = sentences(templates)

    def of(rng: Generator) -> Batch:
        batch = source(rng)
        words = [class_prompt(lines[pick(rng, len(lines))], noun) for _ in batch.captions]
        return Batch(batch.images, None, words, ["class"] * len(words), batch.keys, taught=[True] * len(words))

    return of


def union_batches(
    refs: References, *, size: int | tuple[int, int], batch: int = 1, noun: bool = True, flip: bool = True,
    zoom: tuple[float, float] = (1.0, 1.25), templates: str | Sequence[str] = "auto", variants: int = 0,
) -> Source:  # fmt: skip
    """Views of photos that show several things, each row named by a part of them (arXiv:2305.16311).

    For every row a number from 1 to all is drawn, evenly, and that many of the things in view in random order. The
    prompt names them; the mask is the union of theirs; the things that are not named lie outside the frame.

    Args:
        refs: Every subject with its photos, each with that subject's mask; equal photos are one.
        size: Side of the square views in pixels, or (height, width).
        batch: Rows a batch.
        noun: Whether a subject's noun follows its word.
        flip: Whether half the views are mirrored; those of faces never are.
        zoom: As for `photo_batches`.
        templates: As for `photo_batches`.
        variants: As for `photo_batches`.

    Raises:
        FromfewError: A photo has no mask of a subject.
    """
    frame, flip = _pair(size), flip and refs.role != "face"
    lines, side = sentences(templates, refs.role), math.ceil(max(_pair(size)) * max(1.0, zoom[1]))
    scenes: dict[str, _Scene] = {}
    for one in refs.subjects:
        for photo in one.photos:
            if photo.mask is None:
                raise FromfewError(f"A photo of {one.placeholder} has no mask: say where it is.")
            scene = scenes.setdefault(photo.sha256, _Scene(shrunk(photo.image, side), photo.repeats))
            scene.add(one, shrunk(photo.mask, side, mask=True))
    kept = list(scenes.items())
    weights = [scene.repeats for _, scene in kept]

    def source(rng: Generator) -> Batch:
        rows = []
        for index in _choose(rng, weights, batch):
            sha, scene = kept[index]
            key = (sha[:16], "scene", pick(rng, variants), frame, zoom, flip) if variants else None
            view, seen = scene.seen(_seeded(key) if key else rng, frame, zoom, flip)
            order = torch.randperm(len(seen), generator=rng).tolist()
            names = [list(seen)[i] for i in order[: 1 + pick(rng, len(order))]]
            thing = " and a ".join(scene.words[name] if noun else name for name in names)
            text = viewed(filled(lines[pick(rng, len(lines))], thing, None), view.zoom, pick(rng, 2))
            rows.append((picture_tensor(see(scene.image, view, frame)), seen, names, text, key, index, view))
        regions = [{name: seen[name] for name in names} for _, seen, names, *_ in rows]
        inside = torch.stack([torch.stack(list(one.values())).amax(0) for one in regions])
        every = torch.stack([torch.stack(list(seen.values())).amax(0) for _, seen, *_ in rows])
        around = _stack_masks([frame_tensor(row[6], frame) for row in rows], frame)
        frames = (1 - every + inside).clamp(0, 1) * (1.0 if around is None else around)
        return Batch(
            torch.stack([row[0] for row in rows]), inside, [row[3] for row in rows], ["photo"] * len(rows),
            [row[4] for row in rows], frames=frames, numbers=[row[5] for row in rows], regions=regions,
        )  # fmt: skip

    return source


@dataclass
class _Scene:
    """One photo with the masks of the things it shows, by placeholder."""

    image: Image.Image
    repeats: int
    masks: dict[str, Image.Image] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def add(self, subject: References, mask: Image.Image) -> None:
        """One more thing."""
        self.masks[subject.placeholder], self.words[subject.placeholder] = mask, subject.words

    def seen(
        self, rng: Generator, frame: tuple[int, int], zoom: tuple[float, float], flip: bool
    ) -> tuple[View, dict[str, Tensor]]:
        """A view, and the masks of the things in it: of all if they fit, else of one at least."""
        whole, *others = self.masks.values()
        for mask in others:
            whole = ImageChops.lighter(whole, mask)
        for around in (whole, list(self.masks.values())[pick(rng, len(self.masks))]):
            view = draw_view(rng, self.image, around, zoom, flip)
            drawn = {name: mask_tensor(mask, view, frame) for name, mask in self.masks.items()}
            seen = {name: mask for name, mask in drawn.items() if mask is not None and bool(mask.any())}
            if seen:
                return view, seen
        raise FromfewError(f"A thing of {', '.join(self.masks)} is too small to be seen in a view of its photo.")
