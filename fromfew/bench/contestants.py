"""Who takes part: methods here, controls in `fromfew.bench.controls`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.bench.records import alone, key_of
from fromfew.bench.task import Single, Subject
from fromfew.errors import FromfewError, unknown

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.fit import Watch
    from fromfew.method import Learner
    from fromfew.references import References

__all__ = ["PRIOR_FROM", "Contestant", "Drawer", "Drawing", "Method", "Ready", "contestant", "spelled"]

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
    size: tuple[int, int] | None = None
    """Height and width in px; the base's own if left out."""


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
    def learner_name(self) -> str:
        """Under which name what it learns is kept: contestants that learn alike share it."""
        return self.name

    def weights(self, bb: Backbone) -> str | None:
        """A mark of trained weights that it brings along besides its settings; None if it has none."""
        return None

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
    def learn(self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None) -> Ready:
        """Learn a subject; what is learned is kept in the folder and found there again."""


class Drawer(Ready):
    """Draws with concepts attached to a base; with none, it is the base.

    Args:
        bb: The base.
        concepts: What is attached.
        options: Of drawing.
        regions: How things are kept in the regions that prompts give them (see `fromfew.make.make`); None for not
            at all.
    """

    def __init__(
        self, bb: Backbone, concepts: Sequence[Concept], options: Mapping[str, Any], regions: str | None = None
    ) -> None:
        self.bb, self.concepts, self.options, self.regions = bb, list(concepts), dict(options), regions
        self.bytes = sum(one.card.bytes for one in concepts)
        self.learned = sum(one.card.learned for one in concepts)
        self.seconds = sum(one.card.seconds for one in concepts)
        parts = [part for one in concepts for part in one.parts]
        self.together = any(getattr(part, "couples_images", False) for part in parts)

    def words(self, one: Drawing) -> list[str]:
        """What each of a subject's things is called; empty if any concept has no word."""
        words = [word for concept in self.concepts for word in concept.answers]
        if not words or any(not concept.answers for concept in self.concepts):
            return []
        pairs = zip(words, one.subject.nouns, strict=True)
        return [word if noun == "style" else f"{word} {noun}" for word, noun in pairs]

    def prompt(self, one: Drawing) -> str:
        """With every concept's word, or in plain words for one that has none."""
        asked, words = one.subject.prompts[one.prompt], self.words(one)
        return asked.filled(words) if words else asked.without(one.subject.nouns)

    def draw(self, wanted: Sequence[Drawing]) -> Tensor:
        """Runs of following numbers, each in one call of `make`; each picture in its own where it has regions."""
        runs = [[one] for one in wanted] if self.regions else _runs(wanted)
        return torch.cat([self._draw(run) for run in runs])

    def _draw(self, run: Sequence[Drawing]) -> Tensor:
        from fromfew.make import make

        said = [self.prompt(one) for one in run]
        first = run[0]
        how: dict[str, Any] = {"size": first.size} if first.size else {}
        if self.regions:
            regions = first.subject.prompts[first.prompt].regions(self.words(first))
            how |= {"regions": regions, "region_method": self.regions}
        drawn = make(self.bb, said, self.concepts, seed=first.seed, first=first.number, **how, **self.options)
        return drawn.tensor

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
    """A method of the registry, and for several things how they come together.

    Args:
        name: ``METHOD[/METHOD][+JOIN][@REGIONS]``: how each thing is learned, by one method or by one each; a combiner
            that joins what was learned apart, or "joint" to learn all things at once (attached side by side if left
            out); and a region method.
        settings: By method, those that are given of it.
        options: Of drawing.
    """

    def __init__(self, name: str, settings: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> None:
        from fromfew.registry import COMBINERS, find

        self.methods, self.join, self.regions = spelled(name)
        self.name, self.options = name, options
        self.learners: list[Learner] = [find(method).of(settings.get(method, {})) for method in self.methods]
        self.combiner = COMBINERS.find(self.join)() if self.join not in (None, "joint") else None
        self.settings = self._told([settings.get(method, {}) for method in self.methods])

    def _told(self, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Settings of every method in one; where there are several, each as ``METHOD.NAME``."""
        if len(own) == 1:
            return dict(own[0])
        return {f"{m}.{key}": value for m, some in zip(self.methods, own, strict=True) for key, value in some.items()}

    @property
    def learner_name(self) -> str:
        """The method's own name: a thing learned apart serves every way of joining."""
        return "/".join(self.methods)

    def learner(self, nth: int) -> Learner:
        """What learns the thing of this number."""
        return self.learners[nth if len(self.learners) > 1 else 0]

    def resolved(self, bb: Backbone) -> dict[str, Any]:
        """All settings, those left open filled in for the base."""
        return self._told([one.resolved(bb).settings() for one in self.learners])

    def weights(self, bb: Backbone) -> str | None:
        """Of what was trained beforehand: the beginning of its file's hash."""
        from fromfew.pretrained import Pretrained

        resolved = [one.resolved(bb) for one in self.learners]
        files = [one.file(bb) for one in resolved if isinstance(one, Pretrained)]
        return " ".join(_hash(file, file.stat().st_mtime_ns) for file in files if file.is_file()) or None

    def suits(self, bb: Backbone, role: str, subject: Subject) -> list[str]:
        """Cards and needs decide."""
        parts = subject.parts
        if len(self.learners) not in (1, len(parts)):
            return [f"it names {len(self.learners)} methods, but what is to be learned are {len(parts)}"]
        why: list[str] = []
        if self.join == "joint" and len(self.learners) > 1:
            why.append("what is learned at once is learned by one method")
        if len(parts) < 2 and (self.join or self.regions):
            why.append("there is one thing only, so nothing to join or to keep apart")
        if self.regions and any(part.role == "style" for part in parts):
            why.append("a style has no region")
        for i, part in enumerate(parts):
            why += self._misfits(bb, self.learner(i), part.role or role)
        if why:
            return list(dict.fromkeys(why))
        given = self._given(subject)
        return list(dict.fromkeys(one for i, refs in enumerate(given) for one in _lacks(bb, self.learner(i), refs)))

    def _misfits(self, bb: Backbone, learner: Learner, role: str) -> list[str]:
        """What a method's card says against one thing."""
        card, who = learner.card(), "it" if len(self.learners) == 1 else learner.name()
        learns, tiny = card.get("learns", ("subject",)), bb.name.removeprefix("tiny-")
        why = [] if role in learns else [f"{who} learns {', '.join(learns)}, not {role}"]
        if bb.name.startswith("tiny-") and tiny not in card.get("backbones", ()):
            why.append(f"{who} does not work on {bb.name}")
        if self.join == "joint" and not card.get("joint", False):
            why.append(f"{who} learns one thing at a time")
        return why

    def _given(self, subject: Subject) -> list[References]:
        """What is learned at once: every thing apart, or all of them."""
        refs = [self.refs(part, subject.placeholder(i), i) for i, part in enumerate(subject.parts)]
        return [replace(refs[0], also=tuple(refs[1:]))] if self.join == "joint" else refs

    def learn(self, bb: Backbone, subject: Subject, *, seed: int, folder: Path, watch: Watch | None) -> Drawer:
        """Every part apart (or all at once), then joined; a concept that is in the folder already is loaded."""
        parts = list(enumerate(subject.parts))
        if self.join == "joint":
            (together,) = self._given(subject)
            home = folder / f"{'-'.join(_file(part.name) for _, part in parts)}-joint-{seed}"
            concept = self._learned(bb, self.learner(0), together, home, seed, watch)
            return Drawer(bb, [concept], self.options, self.regions)
        concepts = [
            self._one(bb, part, i, len(parts), subject.placeholder(i), seed=seed, folder=folder, watch=watch)
            for i, part in parts
        ]
        if self.combiner is not None:
            how = f"{self.join}-{key_of(self.combiner.settings())[:6]}"
            home = folder / f"{'-'.join(_file(part.name) for _, part in parts)}-{how}-{seed}"
            concepts = [self._joined(bb, concepts, home, seed, watch)]
        return Drawer(bb, concepts, self.options, self.regions)

    def _one(
        self, bb: Backbone, part: Single, nth: int, count: int, word: str, *, seed: int, folder: Path,
        watch: Watch | None,
    ) -> Concept:  # fmt: skip
        """One thing; of several, each is spelled by another rare word where the method spells them so."""
        from fromfew.parts.word import rare

        learner: Any = self.learner(nth)
        if nth and count > 1 and getattr(learner, "modifier", None) == "rare" and learner.text is None:
            learner = replace(learner, text=rare(bb, nth))
        home = folder / f"{_file(part.name)}{word.strip('<>')}-{seed}"
        return self._learned(bb, learner, self.refs(part, word, nth), home, seed, watch)

    def refs(self, part: Single, word: str, nth: int = 0) -> References:
        """What people have: photos (with masks only where the method or the task needs some), as many as it takes."""
        refs = part.load(word)
        card = self.learner(nth).card()
        most, masks = card["photos"][1], part.shared or card.get("masks", False)
        photos = refs.photos if masks else tuple(replace(photo, mask=None) for photo in refs.photos)
        return replace(refs, photos=photos[:most] if most else photos)

    def _learned(
        self, bb: Backbone, learner: Learner, refs: References, home: Path, seed: int, watch: Watch | None
    ) -> Concept:
        import shutil

        from fromfew.concept import Concept

        with alone(home):
            if (home / "concept.json").exists():
                return Concept.load(home)
            given = refs if learner.card()["photos"][1] else None
            work = home.with_name(f".{home.name}.work")
            work.mkdir(parents=True, exist_ok=True)
            concept = learner.learn(bb, given, seed=seed, watch=watch, work=work)
            concept.save(home)
            shutil.rmtree(work, ignore_errors=True)
            return concept

    def _joined(self, bb: Backbone, concepts: Sequence[Concept], home: Path, seed: int, watch: Watch | None) -> Concept:
        from fromfew.concept import Concept

        assert self.combiner is not None
        with alone(home):
            if (home / "concept.json").exists():
                return Concept.load(home)
            joined = self.combiner.combine(bb, concepts, seed=seed, watch=watch)
            seconds = sum(one.card.seconds for one in concepts)  # learning counts whoever joins
            joined = replace(joined, card=replace(joined.card, seconds=joined.card.seconds + seconds))
            joined.save(home)
            return joined


def _lacks(bb: Backbone, learner: Learner, refs: References) -> list[str]:
    """What a method lacks to learn from these photos."""
    me = learner.resolved(bb)
    return me.reasons(bb, refs) if learner.card()["photos"][1] else me.needs(bb)


@lru_cache(maxsize=64)
def _hash(file: Path, changed: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def spelled(name: str) -> tuple[tuple[str, ...], str | None, str | None]:
    """A contestant's name taken apart: methods, how things are joined, and how they are kept in regions.

    >>> spelled("lora+zip-lora@noise"), spelled("lora/style-aligned")
    ((('lora',), 'zip-lora', 'noise'), (('lora', 'style-aligned'), None, None))

    Raises:
        FromfewError: One of them does not exist.
    """
    from fromfew.bench.controls import CONTROLS
    from fromfew.regions import METHODS
    from fromfew.registry import COMBINERS, names

    left, _, regions = name.partition("@")
    told, _, join = left.partition("+")
    methods = tuple(told.split("/"))
    for method in methods:
        if method not in names():
            raise unknown("method", method, [*names(), *CONTROLS])
    if join and join != "joint" and join not in COMBINERS.names():
        raise unknown("way of joining", join, ["joint", *COMBINERS.names()])
    if regions and regions not in METHODS:
        raise unknown("region method", regions, METHODS)
    return methods, join or None, regions or None


def contestant(name: str, settings: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Contestant:
    """A method or a control by name.

    Args:
        name: of a method of the registry, with how several things are joined and kept in regions (see `Method`), or
            ``base``, ``paste``, ``real``.
        settings: by method, those that are given of it; methods that the name does not hold are passed over.
        options: of drawing: guidance, steps, sampler.

    Raises:
        FromfewError: There is none of that name, or a setting is wrong.
    """
    from fromfew.bench.controls import CONTROLS

    if name in CONTROLS:
        if settings.get(name):
            raise FromfewError(f"'{name}' is a control and has no settings.")
        return CONTROLS[name](options)
    return Method(name, settings, options)


def _file(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
