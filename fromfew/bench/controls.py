"""Three contestants that are no methods: a floor, a cheat and a ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fromfew.bench.contestants import Contestant, Drawer, Drawing, Ready
from fromfew.views import picture_tensor, pictures_of

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.bench.task import Subject
    from fromfew.fit import Watch
    from fromfew.references import References

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

    def learn(self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None) -> Drawer:
        """Nothing."""
        return Drawer(bb, (), self.options)


@dataclass(frozen=True, eq=False)
class _Paster(Ready):
    photos: tuple[References, ...]
    side: int

    def draw(self, wanted: Sequence[Drawing]) -> Tensor:
        side, wide = _shape(wanted[0], self.side)
        sets = [pictures_of(refs, side)[0] for refs in (self.photos if wide else self.photos[:1])]
        return torch.stack([torch.cat([photos[one.number % len(photos)] for photos in sets], -1) for one in wanted])


def _shape(one: Drawing, side: int) -> tuple[int, bool]:
    """Height of a picture, and whether it is wide."""
    from fromfew.world.scenes import is_wide

    height, width = one.size or (side, side)
    return height, is_wide(height, width)


class Paste(Control):
    """A cheat: returns a photo, or in wide pictures one of each thing side by side, whatever the prompt says."""

    name = "paste"

    def learn(self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None) -> _Paster:
        """Keeps the photos."""
        return _Paster(tuple(part.load("<v>") for part in subject.parts), bb.default_size)


@dataclass(frozen=True, eq=False)
class _Renderer(Ready):
    side: int

    def draw(self, wanted: Sequence[Drawing]) -> Tensor:
        return torch.stack([self._one(one) for one in wanted])

    def _one(self, one: Drawing) -> Tensor:
        from PIL import Image

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
        side, wide = _shape(one, self.side)
        scene = Scene(tuple(items), want.context or "white", want.style or "plain", want.relation, wide=wide)
        picture = draw(scene, rng).picture
        size = (picture.width * side // picture.height, side)
        return picture_tensor(picture.resize(size, Image.Resampling.LANCZOS))


class Real(Control):
    """The world's own rendering of the prompt: the ceiling."""

    name = "real"

    def suits(self, bb: Backbone, role: str, subject: Subject) -> list[str]:
        """Only the world can be drawn."""
        return [] if subject.parts[0].truth else ["only scenes of the world can be drawn"]

    def learn(self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None) -> _Renderer:
        """Nothing."""
        return _Renderer(bb.default_size)


CONTROLS: dict[str, type[Control]] = {"base": Base, "paste": Paste, "real": Real}
"""Controls by name."""
