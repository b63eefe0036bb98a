"""Who takes part: methods, and three controls that are no methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fromfew.bench.task import Single, Subject
from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.fit import Watch
    from fromfew.method import Learner
    from fromfew.references import References

__all__ = ["CONTROLS", "PRIOR_FROM", "Contestant", "Control", "Drawing", "Ready", "contestant", "pictures_of"]

PRIOR_FROM = 10_000
"""Numbers of the pictures of the plain noun, away from those of the prompts."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is to be drawn of one subject."""

    subject: Subject
    number: int
    """Number of the picture: prompt times pictures a prompt, plus which of them."""
    prompt: int
    seed: int


class Ready(ABC):
    """Someone who has learned a subject and can draw."""

    bytes: int = 0
    """Size of what was learned."""
    learned: int = 0
    """How many numbers were learned."""
    seconds: float = 0.0
    """Time that learning took, also if it was found learned."""
    together: bool = False
    """Whether all pictures must be drawn in one go."""

    @abstractmethod
    def draw(self, wanted: Sequence[Drawing]) -> Tensor:
        """[B, 3, H, W] in [-1, 1]."""

    def prior(self, count: int, seed: int) -> Tensor | None:
        """Pictures of the plain noun, with the concept attached; None if that means nothing."""
        return None


class Contestant(ABC):
    """A method with its settings, or a control."""

    name: str
    settings: Mapping[str, Any]
    """Those that were given."""

    @property
    def label(self) -> str:
        """Its name, with the settings that were given."""
        told = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name} ({told})" if told else self.name

    def resolved(self, bb: Backbone) -> dict[str, Any]:
        """All settings, as they are for a base."""
        return dict(self.settings)

    @abstractmethod
    def suits(self, bb: Backbone, role: str, subject: Subject) -> list[str]:
        """Why it cannot take part; empty if it can."""

    @abstractmethod
    def learn(
        self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None
    ) -> Ready:
        """Learn a subject; what is learned is kept in the folder and found there again."""


def pictures_of(refs: References, side: int) -> tuple[Tensor, Tensor | None]:
    """Photos as [R, 3, side, side] in [-1, 1], and their masks [R, 1, side, side] in {0, 1} if all have one."""
    from PIL import Image

    images, masks = [], []
    for photo in refs.photos:
        small = _square(photo.image.convert("RGB"), side, Image.Resampling.LANCZOS)
        images.append(torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 127.5 - 1)
        if photo.mask is not None:
            mask = _square(photo.mask.convert("L"), side, Image.Resampling.NEAREST)
            masks.append((torch.from_numpy(np.array(mask)) > 127).float()[None])
    return torch.stack(images), torch.stack(masks) if len(masks) == len(images) else None


def _square(image: Any, side: int, how: Any) -> Any:
    """The centre square, made ``side`` px."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge))
    return square if edge == side else square.resize((side, side), how)


class Drawer(Ready):
    """Draws with concepts attached to a base; with none, it is the base."""

    def __init__(self, bb: Backbone, concepts: Sequence[Concept], options: Mapping[str, Any]) -> None:
        self.bb, self.concepts, self.options = bb, list(concepts), dict(options)
        self.bytes = sum(one.card.bytes for one in concepts)
        self.learned = sum(one.card.learned for one in concepts)
        self.seconds = sum(one.card.seconds for one in concepts)
        parts = [part for one in concepts for part in one.parts]
        self.together = any(getattr(part, "couples_images", False) for part in parts)

    def prompt(self, one: Drawing) -> str:
        """With every concept's word, or in plain words for one that has none."""
        asked, nouns = one.subject.prompts[one.prompt], one.subject.nouns
        words = [concept.placeholder for concept in self.concepts]
        if not words or None in words:
            return asked.without(nouns)
        if nouns == ("style",):
            return asked.filled([str(word) for word in words])
        return asked.filled([f"{word} {noun}" for word, noun in zip(words, nouns, strict=True)])

    def draw(self, wanted: Sequence[Drawing]) -> Tensor:
        """Runs of following numbers, each in one call of `make`."""
        return torch.cat([self._draw(run) for run in _runs(wanted)])

    def _draw(self, run: Sequence[Drawing]) -> Tensor:
        from fromfew.make import make

        said = [self.prompt(one) for one in run]
        first = run[0]
        return make(self.bb, said, self.concepts, seed=first.seed, first=first.number, **self.options).tensor

    def prior(self, count: int, seed: int) -> Tensor | None:
        """What the plain noun has become."""
        from fromfew.make import make
        from fromfew.templates import with_article

        nouns = {one.noun for one in self.concepts}
        if len(nouns) != 1 or None in nouns or not count:
            return None
        said = [with_article(str(nouns.pop()))] * count
        return make(self.bb, said, self.concepts, seed=seed, first=PRIOR_FROM, **self.options).tensor


def _runs(wanted: Sequence[Drawing]) -> list[list[Drawing]]:
    runs: list[list[Drawing]] = []
    for one in wanted:
        if runs and runs[-1][-1].number + 1 == one.number:
            runs[-1].append(one)
        else:
            runs.append([one])
    return runs


class Method(Contestant):
    """A method of the registry."""

    def __init__(self, name: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        from fromfew.registry import find

        self.name, self.options = name, options
        self.learner: Learner = find(name).of(settings)
        self.settings = dict(settings)

    def resolved(self, bb: Backbone) -> dict[str, Any]:
        """All settings, those left open filled in for the base."""
        return self.learner.resolved(bb).settings()

    def suits(self, bb: Backbone, role: str, subject: Subject) -> list[str]:
        """Its card and its needs decide."""
        card = self.learner.card()
        learns = card.get("learns", ("subject",))
        why = [] if role in learns else [f"it learns {', '.join(learns)}, not {role}"]
        tiny = bb.name.removeprefix("tiny-")
        if bb.name.startswith("tiny-") and tiny not in card.get("backbones", ()):
            why.append(f"it does not work on {bb.name}")
        return why + self.learner.resolved(bb).needs(bb)

    def learn(
        self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None
    ) -> Drawer:
        """Every part apart; a concept that is in the folder already is loaded."""
        concepts = [
            self._one(bb, part, subject.placeholder(i), seed=seed, folder=folder, watch=watch)
            for i, part in enumerate(subject.parts)
        ]
        return Drawer(bb, concepts, self.options)

    def _one(
        self, bb: Backbone, part: Single, word: str, *, seed: int, folder: Path, watch: Watch | None
    ) -> Concept:
        import shutil
        from dataclasses import replace

        from fromfew.concept import Concept

        home = folder / f"{_file(part.name)}{word.strip('<>')}-{seed}"
        if (home / "concept.json").exists():
            return Concept.load(home)
        refs = part.load(word)
        # Learners get what people have: photos without masks.
        refs = replace(refs, photos=tuple(replace(photo, mask=None) for photo in refs.photos))
        most = self.learner.card()["photos"][1]
        given = replace(refs, photos=refs.photos[:most]) if most else None
        work = home.with_name(f".{home.name}.work")
        work.mkdir(parents=True, exist_ok=True)
        concept = self.learner.learn(bb, given, seed=seed, watch=watch, work=work)
        concept.save(home)
        shutil.rmtree(work, ignore_errors=True)
        return concept


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
    photos: Tensor

    def draw(self, wanted: Sequence[Drawing]) -> Tensor:
        return self.photos[[one.number % len(self.photos) for one in wanted]]


class Paste(Control):
    """A cheat: returns a photo, whatever the prompt says."""

    name = "paste"

    def learn(
        self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None
    ) -> _Paster:
        """Keeps the photos."""
        return _Paster(pictures_of(subject.parts[0].load("<v>"), bb.default_size)[0])


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
        scene = Scene(tuple(items), want.context or "white", want.style or "plain", want.relation)
        return pictures_of(References.of(draw(scene, rng).picture, noun="picture"), self.side)[0][0]


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


def contestant(name: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Contestant:
    """A method or a control by name.

    Args:
        name: of a method of the registry, or ``base``, ``paste``, ``real``.
        settings: of the method.
        options: of drawing: guidance, steps, sampler.

    Raises:
        FromfewError: There is none of that name, or a setting is wrong.
    """
    if name in CONTROLS:
        if settings:
            raise FromfewError(f"'{name}' is a control and has no settings.")
        return CONTROLS[name](options)
    return Method(name, settings, options)


def _file(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
