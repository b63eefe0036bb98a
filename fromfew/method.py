"""Method: frozen settings and what to do with them; three kinds: tuned, free, and encoded (see ``pretrained``)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from fromfew.errors import FromfewError
from fromfew.recipes import recipe
from fromfew.registry import Named, cards, find, names

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.data import Source
    from fromfew.fit import History, Watch
    from fromfew.parts.word import Word
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

__all__ = ["Free", "Learner", "Tuned", "cards", "find", "names"]


@dataclass(frozen=True, kw_only=True)
class Learner(Named, ABC):
    """Frozen settings of one method; equal settings are equal methods."""

    def resolved(self, bb: Backbone) -> Self:
        """The same method with every setting that was left open filled in for this base."""
        usual = recipe(self.name(), bb.name)
        return replace(self, **{k: v for k, v in usual.items() if getattr(self, k, 0) is None})

    def needs(self, bb: Backbone) -> list[str]:
        """Why the method cannot work on this base; empty if it can."""
        ports = self.card().get("ports", ())
        return ["it acts on attention, and this base has no sites"] if "attention" in ports and not bb.sites else []

    def reasons(self, bb: Backbone, refs: References | None) -> list[str]:
        """Why it cannot learn these photos on this base; empty if it can."""
        reasons = list(self.needs(bb))
        least = self.card()["photos"][0]
        counts = [len(one) for one in refs.subjects] if refs is not None else [0]
        what = f"{least} photo{'s' if least > 1 else ''}"
        reasons += [f"it needs at least {what}, not {count}" for count in counts if count < least]
        if refs is not None and refs.also and not self.card().get("joint", False):
            reasons.append("it learns one thing at a time; learn each apart and combine them")
        if refs is not None and self.card().get("masks", False):
            bare = sum(photo.mask is None for one in refs.subjects for photo in one.photos)
            if bare:
                reasons.append(f"it needs a mask of every thing it learns, and {bare} of the photos have none")
        return reasons

    def refuse(self, bb: Backbone, refs: References | None) -> None:
        """Raise before any work is done if base or photos do not suit.

        Raises:
            FromfewError: With all reasons.
        """
        reasons = self.reasons(bb, refs)
        if reasons:
            raise FromfewError(f"{self.name()} cannot learn this on '{bb.name}': {'; '.join(reasons)}.")

    @abstractmethod
    def learn(
        self,
        bb: Backbone,
        refs: References | None,
        *,
        seed: int = 0,
        watch: Watch | None = None,
        work: Path | None = None,
    ) -> Concept:
        """Photos to a concept; the base is the same afterwards, bit for bit."""

    def _concept(
        self, bb: Backbone, refs: References | None, parts: Parts, seed: int, history: Iterable[History] = ()
    ) -> Concept:
        from fromfew.concept import Card, Concept

        history = list(history)
        losses = [loss for one in history for loss in one.losses]
        parts.requires_grad_(False)
        parts.eval()
        card = Card.of(
            bb,
            parts,
            method=self.name(),
            settings=self.settings(),
            photos=refs.hashes if refs is not None else (),
            seed=seed,
            steps=len(losses),
            loss=sum(losses[-20:]) / len(losses[-20:]) if losses else None,
            seconds=round(sum(one.seconds for one in history), 3),
        )
        if refs is None:
            return Concept(self.name(), None, None, parts, card)
        spoken = {getattr(part, "placeholder", None) for part in parts}
        name = "-".join(one.placeholder.strip("<>") for one in refs.subjects)
        also = {one.placeholder: one.noun for one in refs.also if one.placeholder in spoken}
        return Concept(name, refs.placeholder if spoken - {None} else None, refs.noun, parts, card, also=also)


@dataclass(frozen=True, kw_only=True)
class Tuned(Learner):
    """Learns at test time: names parts and stages; `learn` is final."""

    modifier: Literal["word", "rare", "text"] = "word"
    """What stands for the subject in prompts: a learned word, a rare token, or plain text (see text)."""
    text: str | None = None
    """The rare token, or the plain text; for a learned word, what it begins as; chosen if left open."""
    steps: int | None = None
    """Optimiser steps; chosen for the base if left open."""
    batch: int | None = None
    """Photos per step; chosen for the base if left open."""
    lr: float | None = None
    """Learning rate; chosen for the base if left open."""
    schedule: Literal["constant", "linear", "cosine"] | None = None
    """How the learning rate goes: constant, or down to 0 along a line or a cosine; chosen for the base if left open."""
    prior: float = 0.0
    """Weight of pictures of the plain noun, which keep its meaning; 0 leaves them out."""
    prior_from: Literal["pictures", "base"] = "pictures"
    """What keeps the noun's meaning: pictures the base draws, once; or, without any, what it says about the photos."""
    class_images: int | None = None
    """How many pictures of the plain noun the base draws, once; chosen for the base if left open."""
    masked: bool = True
    """Whether only the subject counts in photos that have a mask (and a little of the rest, see outside)."""
    outside: float = 0.1
    """Weight of what lies outside a mask, 0 to 1; at 0 nobody tells the model what a background is, and it decays."""
    class_anchor: float = 0.0
    """Pull of a learned word's encoded state towards the plain noun's, as a weight of 1 - cosine."""
    weight_decay: float = 0.0
    """Decay of what is added to the base's weights towards 0, which is the base: a share of lr a step."""
    attention_sparsity: float = 0.0
    """Weight of keeping attention to the word in few places: inside the mask, or where there is none, its entropy."""
    captions: bool = True
    """Whether photos that have a caption are learned with it instead of a template."""
    noun: bool = True
    """Whether the noun follows the word in templates, as in "a <v> cat"."""
    zoom: tuple[float, float] = (1.0, 1.25)
    """Least and greatest zoom of the views taken of every photo."""
    flip: bool = True
    """Whether half the views are mirrored; faces never are. It costs a thing that always faces one way its shape."""
    views: int = 16
    """How many views of every photo are used; 0 draws a new one every time."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        positive = {name: getattr(self, name) for name in ("steps", "batch", "lr", "class_images")}
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise FromfewError(f"{name} must be above 0, not {value}.")
        anything = (0, math.inf)
        self.within(prior=anything, views=anything, outside=(0, 1), class_anchor=anything)
        self.within(weight_decay=anything, attention_sparsity=anything)
        if self.modifier == "text" and not self.text:
            raise FromfewError("With modifier 'text' say which text: text='...'.")

    def reasons(self, bb: Backbone, refs: References | None) -> list[str]:
        """Also: a noun, where the method or its pictures of the plain noun need one."""
        reasons = super().reasons(bb, refs)
        own = self.card().get("noun", False)
        if (own or self.prior) and refs is not None and any(one.noun is None for one in refs.subjects):
            what = "it needs a noun" if own else "pictures of the plain noun need one (or a prior of 0)"
            reasons.append(f'{what}: say what the photos show with --noun "..."')
        return reasons

    @abstractmethod
    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """What is attached and learned; chance comes from ``rng`` only."""

    @abstractmethod
    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """What to minimise, stage after stage."""

    def learn(
        self,
        bb: Backbone,
        refs: References | None,
        *,
        seed: int = 0,
        watch: Watch | None = None,
        work: Path | None = None,
    ) -> Concept:
        """Photos to a concept.

        Args:
            bb: The frozen base.
            refs: The photos.
            seed: All chance follows from it.
            watch: Called as ``watch(done, total, note)``.
            work: Folder that keeps the state; the same call goes on from there after a kill, with the same
                bits.

        Raises:
            FromfewError: If base, photos or settings do not suit, or learning diverges.
        """
        from fromfew.fit import fit, generator
        from fromfew.regularise import regularised

        if refs is None:
            raise FromfewError(f"{self.name()} learns from photos; none were given.")
        me = self.resolved(bb)
        me.refuse(bb, refs)
        rng = generator(seed)
        parts = me.parts(bb, refs, rng)
        mark = f"{me!r} {refs.hashes} {[(one.noun, one.placeholder) for one in refs.subjects]} {seed}"
        history = []
        with_options = regularised(me, bb, refs, parts)
        for number, stage in enumerate(map(with_options, me.stages(bb, refs, parts, seed=seed))):
            kept = work / f"stage-{number}.safetensors" if work is not None else None
            history.append(fit(bb, parts, stage, rng=rng, watch=watch, resume=kept, mark=mark))
        return me._concept(bb, refs, me.keep(bb, parts), seed, history)

    def keep(self, bb: Backbone, parts: Parts) -> Parts:
        """What is kept of what was learned: all of it, unless a method says otherwise."""
        return parts

    def word(
        self, bb: Backbone, refs: References, rng: Generator, *, count: int = 1, start: str = "", nth: int = 0
    ) -> Word:
        """The concept's word, as ``modifier`` wants it; a learned one begins as ``text``, ``start`` or a rare word.

        Args:
            bb: The base.
            refs: What it stands for.
            rng: Chance.
            count: Vectors of a learned word.
            start: What a learned word begins as.
            nth: Which of the base's rare words is taken, so that several subjects get different ones.
        """
        from fromfew.parts.word import Word, rare

        if self.modifier == "text":
            return Word.plain(refs.placeholder, str(self.text))
        if self.modifier == "rare":
            return Word.plain(refs.placeholder, self.text or rare(bb, nth))
        return Word.learned(bb, refs.placeholder, self.text or start or rare(bb, nth), count, rng)

    def words(
        self, bb: Backbone, refs: References, rng: Generator, *, count: int = 1, nouns: bool = False
    ) -> dict[str, Word]:
        """A word for every subject, as `word` makes them: "word", then "word2" and so on; they may begin as nouns.

        Raises:
            FromfewError: If one ``text`` is to stand for several subjects.
        """
        if refs.also and self.modifier != "word" and self.text:
            raise FromfewError("One text cannot stand for several things: leave text open, or use modifier 'word'.")
        return {
            f"word{nth + 1}" if nth else "word": self.word(
                bb, one, rng, count=count, start=(one.noun or "") if nouns else "", nth=nth
            )
            for nth, one in enumerate(refs.subjects)
        }

    def photos(self, bb: Backbone, refs: References) -> Source:
        """Batches of the photos with their prompts, as the shared settings say; every subject gets its share."""
        from fromfew.data import joined

        each = [self._photos(bb, one, self._share(refs)) for one in refs.subjects]
        return joined(*each) if len(each) > 1 else each[0]

    def _share(self, refs: References) -> int:
        """Rows of each subject in a batch."""
        return math.ceil((self.batch or 1) / len(refs.subjects))

    def _photos(self, bb: Backbone, refs: References, batch: int, *, pairs: bool = False) -> Source:
        from fromfew.data import photo_batches

        if not self.masked:
            refs = replace(refs, photos=tuple(replace(photo, mask=None) for photo in refs.photos))
        return photo_batches(
            refs,
            size=bb.default_size,
            batch=batch,
            noun=self.noun,
            flip=self.flip,
            zoom=self.zoom,
            templates=bb.defaults.templates,
            captions=self.captions,
            variants=self.views,
            pairs=pairs,
        )

    def with_prior(self, bb: Backbone, refs: References, *, seed: int) -> Source:
        """The photos joined, if ``prior`` is above 0, by as many pictures of the plain noun (see ``prior_from``)."""
        from fromfew.class_images import class_images
        from fromfew.data import class_batches, joined, named

        photos = self.photos(bb, refs)
        if not self.prior:
            return photos
        nouns = {str(one.noun) for one in refs.subjects}
        if self.prior_from == "base":
            plain = [named(self._photos(bb, one, self._share(refs)), str(one.noun)) for one in refs.subjects]
            return joined(photos, *plain)
        plain, share = [], math.ceil((self.batch or 1) / len(nouns))
        for noun in sorted(nouns):
            drawn = class_images(bb, noun, self.class_images or 16, seed=seed)
            plain.append(class_batches(drawn, noun=noun, size=bb.default_size, batch=share))
        return joined(photos, *plain)

    def stage(
        self, bb: Backbone, refs: References, rates: Mapping[Any, float | None], *, seed: int,
        more: Iterable[tuple[float, Any]] = (), **how: Any,
    ) -> Stage:  # fmt: skip
        """The usual stage: all steps over `with_prior`, minimising `terms` and ``more``.

        Args:
            bb: The base.
            refs: The photos.
            rates: What learns, with its rate; one left open is 0.
            seed: Of the pictures of the plain noun.
            more: Further weighted terms.
            **how: As for `Stage`, instead of what is usual.
        """
        from fromfew.stage import Stage

        usual = {"steps": self.steps or 1, "terms": [*self.terms(), *more], "schedule": self.schedule or "constant"}
        how = {**usual, **how}
        if "batches" not in how:
            how["batches"] = self.with_prior(bb, refs, seed=seed)
        return Stage(train={part: rate or 0.0 for part, rate in rates.items()}, **how)

    def terms(self) -> list[tuple[float, Any]]:
        """Denoising of the photos (inside their masks) and, weighted by ``prior``, of class pictures."""
        from fromfew.losses import denoise, masked, only

        photo = partial(masked, outside=self.outside) if self.masked or self.zoom[0] < 1 else denoise
        if not self.prior:
            return [(1.0, photo)]
        return [(1.0, only("photo", photo)), (self.prior, only("class", denoise))]


@dataclass(frozen=True, kw_only=True)
class Free(Learner):
    """Nothing is learned: parts act on what is being drawn."""

    @abstractmethod
    def parts(self, bb: Backbone, refs: References | None) -> Parts:
        """What is attached."""

    def learn(
        self,
        bb: Backbone,
        refs: References | None = None,
        *,
        seed: int = 0,
        watch: Watch | None = None,
        work: Path | None = None,
    ) -> Concept:
        """A concept at once; ``seed`` and ``work`` change nothing."""
        import torch

        me = self.resolved(bb)
        me.refuse(bb, refs)
        with torch.no_grad():
            parts = me.parts(bb, refs)
        if watch is not None:
            watch(1, 1, "ready")
        return me._concept(bb, refs, parts, seed)
