"""Regions: which part of the picture belongs to which concept, and three ways to keep it so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError, unknown
from fromfew.ports.sampler import Moment, SamplerPart
from fromfew.templates import plain_of, with_article

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.backbones.text import Text
    from fromfew.guidance import Guide

__all__ = [
    "FIND", "METHODS", "Box", "Region", "Regional",
    "cramped", "enter", "found_regions", "generic", "inside", "read_regions",
]  # fmt: skip

FIND = "find"
"""Instead of a box: the region is where the base, drawing the plain noun, looks at that noun."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the picture from 0 to 1."""
METHODS: tuple[str, ...] = ("attention", "layout", "noise")
"""Ways to keep a concept in its region; see `fromfew.make.make`."""
_SIDE = 128  # a box is kept as a mask of this many cells a side


@dataclass(frozen=True, eq=False)
class Region:
    """One region of a picture.

    Args:
        prompt: What is read there.
        mask: ``[h, w]`` in {0, 1}, 1 inside; stretched over the picture whatever its size.
        words: The placeholders that its prompt calls.
    """

    prompt: str
    mask: Tensor
    words: tuple[str, ...]


def _box(told: Sequence[float], size: tuple[int, int], what: str) -> Box:
    """A box as shares of the picture; px are told from shares by being above 1."""
    if len(told) != 4 or not all(isinstance(v, int | float) and abs(v) < float("inf") for v in told):
        raise FromfewError(f"The region of '{what}' is four numbers: left, top, right, bottom.")
    x0, y0, x1, y1 = (float(v) for v in told)
    if max(x0, y0, x1, y1) > 1:
        height, width = size
        x0, y0, x1, y1 = x0 / width, y0 / height, x1 / width, y1 / height
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise FromfewError(
            f"The region {','.join(f'{v:g}' for v in told)} of '{what}' is not inside the picture: left < right and "
            f"top < bottom, from 0 to 1, or in px up to {size[1]} x {size[0]}."
        )
    return x0, y0, x1, y1


def _rasterised(box: Box) -> Tensor:
    x0, y0, x1, y1 = box
    at = (torch.arange(_SIDE) + 0.5) / _SIDE
    across, down = (at >= x0) & (at < x1), (at >= y0) & (at < y1)
    mask = (down[:, None] & across[None, :]).float()
    if not mask.any():  # thinner than a cell: the cell at its middle
        mask[min(_SIDE - 1, int((y0 + y1) / 2 * _SIDE)), min(_SIDE - 1, int((x0 + x1) / 2 * _SIDE))] = 1
    return mask


def inside(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which cells of a grid belong to masks ``[..., h, w]``: those at least half covered, and never none at all.

    Returns:
        ``[..., grid height, grid width]`` truth values.
    """
    covered = torch.nn.functional.adaptive_avg_pool2d(mask.float().reshape(-1, 1, *mask.shape[-2:]), grid)
    most = covered.flatten(1).amax(1).view(-1, 1, 1, 1)
    return (covered >= most.clamp(max=0.5)).reshape(*mask.shape[:-2], *grid)


def read_regions(
    told: Mapping[str, Any], answers: Mapping[str, str | None], size: tuple[int, int], prompts: Sequence[str]
) -> list[Region]:
    """The regions as they were asked for, checked.

    Args:
        told: A placeholder, or the prompt of the region, to its box (shares of the picture, or px), to a mask
            ``[h, w]`` in [0, 1], or to "find".
        answers: Every placeholder that is attached, with its noun.
        size: Height and width of the picture in px.
        prompts: What is to be drawn.

    Raises:
        FromfewError: If a placeholder is unknown or in no prompt, or a box is none.
    """
    found = []
    for what, where in told.items():
        words = tuple(re.findall(r"<[^<>\s]+>", what))
        for word in words:
            if word not in answers:
                raise unknown("concept of a region", word, answers)
            for prompt in prompts:
                if word not in prompt:
                    raise FromfewError(f"The region of {word} belongs to nothing: '{prompt}' does not call {word}.")
        noun = answers.get(what)
        prompt = with_article(" ".join(filter(None, (what, noun)))) if what in answers else what
        if isinstance(where, str):
            raise FromfewError(f"The region of '{what}' is a box, a mask or '{FIND}', not '{where}'.")
        if isinstance(where, Tensor):
            if where.dim() != 2 or not bool((where > 0.5).any()):
                raise FromfewError(f"The mask of the region of '{what}' is [h, w] and somewhere above 0.5.")
            mask = (where.detach().cpu() > 0.5).float()
        else:
            mask = _rasterised(_box(tuple(where), size, what))
        found.append(Region(prompt, mask, words))
    return found


def cramped(told: Mapping[str, Any], size: tuple[int, int], own: int) -> list[str]:
    """What to know of boxes that are much smaller than the pictures a base draws: things are cut or smeared there.

    Args:
        told: Regions as `make` takes them.
        size: Height and width of the picture in px.
        own: Side of the base's own pictures in px.
    """
    found = []
    for what, where in told.items():
        if isinstance(where, str | Tensor):
            continue
        x0, y0, x1, y1 = _box(tuple(where), size, what)
        height, width = round((y1 - y0) * size[0]), round((x1 - x0) * size[1])
        if height * width < 0.6 * own * own:
            across, down = (-(-side * own // least) for side, least in ((size[1], width), (size[0], height)))
            roomy = f"{max(size[1], across)}x{max(size[0], down)}"
            found.append(
                f"The region of '{what}' is {width} x {height} px, and this base draws one thing in {own} x {own}: it "
                f"may come out cut. A picture of {roomy} (width x height) gives it that room."
            )
    return found


@dataclass(frozen=True)
class Regional:
    """Guidance with one more branch for every region, which reads the region's prompt and weighs nothing itself.

    Args:
        inner: The guidance of the picture.
        prompts: Branch to prompt.
    """

    inner: Guide
    prompts: Mapping[str, str]

    @property
    def branches(self) -> tuple[str, ...]:
        """The picture's branches, then the regions'."""
        return (*self.inner.branches, *self.prompts)

    def prompt(self, branch: str, prompt: str, negative: str | None) -> str | None:
        """The region's prompt on its branch."""
        return self.prompts[branch] if branch in self.prompts else self.inner.prompt(branch, prompt, negative)

    def dress(self, text: Text) -> Text:
        """As the picture's guidance has it."""
        return self.inner.dress(text)

    def __call__(self, preds: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """The picture's guidance alone."""
        return self.inner({branch: preds[branch] for branch in self.inner.branches}, t)


def generic(prompt: str, answers: Mapping[str, str | None]) -> str:
    """A prompt with nouns in the place of some placeholders.

    >>> generic("an <a> cat and a <b>", {"<a>": "cat", "<b>": "dog"})
    'a cat and a dog'
    """
    for word, noun in answers.items():
        prompt = plain_of(prompt, word, noun)
    return prompt


def enter(
    order: Any, pairs: Sequence[tuple[Any, float]], told: Mapping[str, Any], method: str, stack: ExitStack
) -> Any:
    """Attach concepts and whatever keeps them in their regions; returns the order to draw instead.

    Args:
        order: What `fromfew.make.make` was asked for.
        pairs: Concepts and strengths.
        told: Regions as `make` takes them.
        method: How.
        stack: Holds the attachments.

    Raises:
        FromfewError: If a region does not fit what is attached or asked for.
    """
    if method not in METHODS:
        raise unknown("region method", str(method), METHODS)
    answers = {word: noun for concept, _ in pairs for word, noun in _answers(concept).items()}
    if any(isinstance(where, str) and where == FIND for where in told.values()):
        told = found_regions(order, told, answers)
        begin = 0.3  # until then the base lays out what it was found to draw
    else:
        begin = 0.0
    regions = read_regions(told, answers, order.size, order.prompts)
    here = {word for region in regions for word in region.words}
    local = [pair for pair in pairs if method == "noise" and here & set(_answers(pair[0]))]
    for concept, strength in pairs:
        if not any(concept is one for one, _ in local):
            stack.enter_context(order.bb.attach(concept, strength=strength))
    if method == "noise":
        from fromfew.noise_blend import NoiseBlend

        mine = [[pair for pair in local if set(region.words) & set(_answers(pair[0]))] for region in regions]
        stack.enter_context(
            order.bb.attach(
                # A found region is where a whole thing was seen already: it needs no moving.
                NoiseBlend(order.bb, regions, mine, order.guide, order.negative or None, begin, 0.0 if begin else 0.3)
            )
        )
        plain = {word: noun for concept, _ in local for word, noun in _answers(concept).items()}
        return replace(order, prompts=[generic(prompt, plain) for prompt in order.prompts])
    if method == "layout":
        stack.enter_context(order.bb.attach(_layout(order.bb, regions, pairs, answers)))
        return order
    from fromfew.parts.regions import RegionText

    names = [f"region {number}" for number in range(1, len(regions) + 1)]
    part = RegionText.of({name: one.mask for name, one in zip(names, _alike(regions), strict=True)})
    stack.enter_context(order.bb.attach(part))
    return replace(
        order,
        guide=Regional(order.guide, {name: one.prompt for name, one in zip(names, regions, strict=True)}),
    )


def _answers(concept: Any) -> dict[str, str | None]:
    """What a concept, a set of parts or a part answers to, with its nouns."""
    if hasattr(concept, "answers"):
        return dict(concept.answers)
    parts = [concept] if hasattr(concept, "port") else list(concept)
    words = [getattr(part, "placeholder", None) for part in parts]
    return {word: None for word in words if word is not None}


def _alike(regions: Sequence[Region]) -> list[Region]:
    """The regions with masks of one size."""
    size = max((one.mask.shape[-2:] for one in regions), key=lambda shape: shape[0] * shape[1])
    grown = [torch.nn.functional.interpolate(one.mask[None, None], tuple(size)) for one in regions]
    return [replace(one, mask=mask[0, 0]) for one, mask in zip(regions, grown, strict=True)]


def _layout(
    bb: Backbone, regions: Sequence[Region], pairs: Sequence[tuple[Any, float]], answers: Mapping[str, str | None]
) -> Any:
    """The part that draws every word into its region.

    Raises:
        FromfewError: If a region calls no concept, or two concepts' words are the same to the text encoder.
    """
    from fromfew.concept import Concept
    from fromfew.parts.layout import Layout
    from fromfew.ports.text import WordPart

    spelled = {word: one.spelled(word) for one, _ in pairs if isinstance(one, Concept) for word in one.answers}
    tokenizer = next(iter(bb.text_encoders.values())).tokenizer
    # A word without tokens of its own stands on its noun's first one.
    words = [part for one, _ in pairs for part in getattr(one, "parts", ()) if isinstance(part, WordPart)]
    on_noun = {part.placeholder for part in words if part.alias is None and not part.carriers(tokenizer)}
    masks: dict[str, Tensor] = {}
    nouns = []
    for region in _alike(regions):
        for word in region.words or (region.prompt,):
            name = spelled.get(word, word.lower().split()[-1])
            if name in masks:
                raise FromfewError(
                    f"Two regions are called '{name}' in the prompt: a layout cannot tell them apart. Use the region "
                    "method attention or noise, or learn one of them again with another text."
                )
            masks[name] = region.mask
            noun = answers.get(word)
            behind = len(tokenizer(noun, add_special_tokens=False).input_ids) if noun else 0
            nouns.append(max(0, behind - 1) if word in on_noun else behind)
    return Layout.of(masks, nouns)


class _Seen(SamplerPart):
    """Gathers, step by step, where a recording part saw each word read."""

    kind = "seen"

    def __init__(self, record: Any, there: Any) -> None:
        super().__init__()
        self.record, self.there = record, there
        self.maps: dict[str, list[Tensor]] = {word: [] for word in record.words}

    def after(self, moment: Moment) -> Tensor:
        """Keep the maps of the rows that read the prompt."""
        rows = moment.rows.is_("cond").nonzero()[0]
        for word, seen in self.record.read(self.there, moment.text).items():
            self.maps[word].append(seen[rows].mean(0).float().cpu())
        return moment.x

    def config(self) -> dict[str, Any]:
        """Nothing: it belongs to one drawing."""
        return {}


def found_regions(order: Any, told: Mapping[str, Any], answers: Mapping[str, str | None]) -> dict[str, Any]:
    """The first of OMG's two stages: draw the plain nouns with nothing attached, and see where each of them is.

    A cell belongs to the noun that is read there most, if it is read at least 0.4 as much as where most.

    Raises:
        FromfewError: If nouns are missing or alike, or more than one picture is asked for.
    """
    from fromfew.parts.record import Record

    if len(order.prompts) > 1:
        raise FromfewError("Regions are found for one picture at a time: draw one prompt a call, or give boxes.")
    wanted = [what for what, where in told.items() if isinstance(where, str)]
    nouns = {what: next((answers.get(word) for word in re.findall(r"<[^<>\s]+>", what)), None) for what in wanted}
    missing = [what for what, noun in nouns.items() if noun is None]
    if missing or len({str(noun).split()[-1] for noun in nouns.values()}) < len(nouns):
        raise FromfewError(
            "To find regions, every one needs a concept with a noun that no other has; give boxes instead "
            f"(nouns here: {', '.join(str(noun) for noun in nouns.values())})."
        )
    heads = {what: str(noun).split()[-1].lower() for what, noun in nouns.items()}
    record = Record(list(heads.values()))
    layout = replace(order, prompts=[generic(prompt, answers) for prompt in order.prompts])
    with torch.no_grad(), order.bb.attach(record) as there:
        seen = _Seen(record, there)
        with order.bb.attach(seen):
            [run] = layout.runs(layout.noise(), 1)
            run.draw(lambda done, total: None)
    maps = torch.stack([torch.stack(seen.maps[head]).mean(0) for head in heads.values()])
    maps = torch.nn.functional.interpolate(maps[None], (_SIDE, _SIDE), mode="bilinear")[0]
    maps = maps / maps.flatten(1).amax(1).clamp_min(1e-9).view(-1, 1, 1)
    best = maps.argmax(0)
    masks = {what: ((best == i) & (maps[i] >= 0.4)).float() for i, what in enumerate(heads)}
    return {what: masks.get(what, where) for what, where in told.items()}
