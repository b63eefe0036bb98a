"""Three contestants that are no methods: a floor, a cheat and a ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fromfew.bench.contestants import Contestant, Drawer, Drawing, Ready, pictures_of

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.bench.task import Subject
    from fromfew.fit import Watch

__all__ = ["CONTROLS", "Base", "Control", "Paste", "Real"]


class Control(Contestant):
    """No method: a floor, a cheat or a ceiling."""

    settings: Mapping[str, Any] = {}

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def suits(self, bb: Backbone, role: str, subject: Subject) -> list[str]:
        """Always."""
        return []


class Base(Control):
    """The untouched base, asked for the class noun: the floor of fidelity."""

    name = "base"

    def learn(
        self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None
    ) -> Drawer:
        """Nothing."""
        return Drawer(bb, (), self.options)


@dataclass(frozen=True, eq=False)
class _Paster(Ready):
    photos: tuple[Tensor, ...]

    def draw(self, wanted: Sequence[Drawing]) -> Tensor:
        return torch.stack([self._one(one) for one in wanted])

    def _one(self, one: Drawing) -> Tensor:
        sets = self.photos if one.size and _squares_across(one.size) > 1 else self.photos[:1]
        return torch.cat([photos[one.number % len(photos)] for photos in sets], -1)


def _squares_across(size: tuple[int, int]) -> int:
    """How many square pictures stand side by side in one of this height and width."""
    return size[1] // size[0]


class Paste(Control):
    """A cheat: returns a photo, or in wide pictures one of each thing side by side, whatever the prompt says."""

    name = "paste"

    def learn(
        self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None
    ) -> _Paster:
        """Keeps the photos."""
        return _Paster(tuple(pictures_of(part.load("<v>"), bb.default_size)[0] for part in subject.parts))


@dataclass(frozen=True, eq=False)
class _Renderer(Ready):
    side: int

    def draw(self, wanted: Sequence[Drawing]) -> Tensor:
        return torch.stack([self._one(one) for one in wanted])

    def _one(self, one: Drawing) -> Tensor:
        from fromfew.references import References
        from fromfew.world.faces import HELD_OUT_FROM, look
        from fromfew.world.scenes import Item, Scene, draw

        rng = np.random.default_rng([902, one.seed, one.number, *one.subject.name.encode()])
        want = one.subject.prompts[one.prompt].want
        truth = one.subject.parts[0].truth or ""
        if truth.startswith("face-"):
            items = [Item("face", who=HELD_OUT_FROM + int(truth[5:]), how=look(rng))]
        else:
            items = [Item(str(want.object), colour=want.colour)]
        items += [Item(want.second)] if want.second else []
        wide = one.size is not None and _squares_across(one.size) > 1
        scene = Scene(tuple(items), want.context or "white", want.style or "plain", want.relation, wide=wide)
        picture = draw(scene, rng).picture
        squares = [picture.crop((left, 0, left + picture.height, picture.height))
                   for left in range(0, picture.width, picture.height)]  # fmt: skip
        sides = [pictures_of(References.of(square, noun="picture"), self.side)[0][0] for square in squares]
        return torch.cat(sides, -1)


class Real(Control):
    """The world's own rendering of the prompt: the ceiling."""

    name = "real"

    def suits(self, bb: Backbone, role: str, subject: Subject) -> list[str]:
        """Only the world can be drawn."""
        return [] if subject.parts[0].truth else ["only scenes of the world can be drawn"]

    def learn(
        self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None
    ) -> _Renderer:
        """Nothing."""
        return _Renderer(bb.default_size)


CONTROLS: dict[str, type[Control]] = {"base": Base, "paste": Paste, "real": Real}
"""Controls by name."""
