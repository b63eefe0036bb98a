"""Tasks: subjects, the photos to learn them from, and what is to be drawn of them; plain data in TOML files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.errors import FromfewError, unknown
from fromfew.metrics.base import Want, plain_prompt

if TYPE_CHECKING:
    from fromfew.references import References, Role

__all__ = ["Prompt", "Single", "Subject", "Task", "open_task", "shipped"]

_FOLDER = Path(__file__).with_name("tasks")
_FACTORS = ("object", "second", "context", "style", "colour", "relation")


@dataclass(frozen=True)
class Prompt:
    """What is to be drawn; ``{}`` (or ``{0}``, ``{1}``) is where a subject's words go."""

    say: str
    plain: str | None = None
    """The prompt without any subject, where leaving out its word is not enough (styles)."""
    want: Want = field(default_factory=Want)
    alone: str | None = None
    """What the region of one of several things shows, such as "a {} on the beach"; the thing alone if left out."""

    def filled(self, words: Sequence[str]) -> str:
        """The prompt with the subjects' words in."""
        return _filled(self.say, words)

    def without(self, nouns: Sequence[str]) -> str:
        """The prompt in plain words: what the base is asked, and what text metrics read."""
        if self.plain is not None and "{" not in self.plain:
            return self.plain
        return plain_prompt(_filled(self.say if self.plain is None else self.plain, nouns))

    def regions(self, words: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
        """Where each of two things is to be: what its region shows, to its half of the picture."""
        left, right, top, bottom = (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.5), (0, 0.5, 1, 1)
        halves = {"right": (right, left), "above": (top, bottom)}.get(str(self.want.relation), (left, right))
        said = [(self.alone or "a {}").replace("{}", word) for word in words]
        return dict(zip(said, halves, strict=True))


def _filled(text: str, words: Sequence[str]) -> str:
    for i, word in enumerate(words):
        text = text.replace("{" + str(i) + "}", word)
    return text.replace("{}", words[0])


@dataclass(frozen=True, eq=False)
class Single:
    """One thing to learn: where its photos are and what it is called."""

    name: str
    noun: str
    load: Callable[[str], References]
    """Placeholder to the photos, with masks where there are any."""
    held: Callable[[], References] | None = None
    """Photos of it that are not learned from."""
    truth: str | None = None
    """Its name in the world."""
    role: str | None = None
    """What is learned of it; the task's role if left out."""
    shared: bool = False
    """Whether its photos show the other things too, so that nothing but a mask says which one it is."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One or two things that are drawn together, and the prompts for them."""

    name: str
    parts: tuple[Single, ...]
    prompts: tuple[Prompt, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        """The class nouns."""
        return tuple(part.noun for part in self.parts)

    def placeholder(self, part: int) -> str:
        """What stands for a part in prompts."""
        return "<v>" if len(self.parts) == 1 else f"<v{part + 1}>"


@dataclass(frozen=True, eq=False)
class Task:
    """A named, versioned set of subjects and prompts."""

    name: str
    version: int
    licence: str
    role: Role
    suite: str
    """Which metrics: "world" or "photos"."""
    subjects: tuple[Subject, ...]
    images: int = 1
    """Pictures of every prompt."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures in px; the base's own if left out."""
    prior: int = 2
    """Pictures of the plain noun, for prior drift."""
    problems: tuple[str, ...] = ()
    """What is missing in a folder of photos."""
    about: str = ""

    def only(self, subjects: int | None = None, prompts: int | None = None, images: int | None = None) -> Task:
        """A smaller task of the first subjects and prompts, or with other numbers of pictures."""
        kept = tuple(replace(one, prompts=one.prompts[:prompts]) for one in self.subjects[:subjects])
        return replace(self, subjects=kept, images=images or self.images)


def shipped() -> list[str]:
    """Names of the tasks that come with fromfew; those of photographs need a folder."""
    return sorted(path.stem.replace("-", "/", 1) for path in _FOLDER.glob("*.toml"))


def open_task(name: str, folder: Path | None = None) -> Task:
    """A task by its name.

    Args:
        name: such as ``world/objects`` or ``photos/dreambooth``.
        folder: where the published photos are, for tasks of photographs.

    Raises:
        FromfewError: There is no such task, or its photos are not where they should be.
    """
    if name not in shipped():
        raise unknown("task", name, shipped())
    about = tomllib.loads((_FOLDER / f"{name.replace('/', '-')}.toml").read_text(encoding="utf-8"))
    if about["suite"] == "world":
        return _world(about)
    if folder is None:
        raise FromfewError(
            f"'{name}' is about photographs, which are not shipped: {about['needs']} Give its folder with --data."
        )
    if not folder.is_dir():
        raise FromfewError(f"There is no folder '{folder}'.")
    from fromfew.bench.readers import READERS

    subjects, problems = READERS[about["reader"]](folder, about)
    if not subjects:
        told = "\n".join(f"  {line}" for line in problems[:12])
        raise FromfewError(f"'{folder}' does not hold '{name}': {about['needs']}\n{told}")
    return replace(_head(about), subjects=tuple(subjects), problems=tuple(problems))


def _head(about: Mapping[str, Any]) -> Task:
    known = {"name", "version", "licence", "role", "suite", "images", "prior", "about"}
    told = {key: value for key, value in about.items() if key in known}
    if "width" in about:
        told["size"] = (about["height"], about["width"])
    return Task(subjects=(), **told)


def _world(about: Mapping[str, Any]) -> Task:
    """A task of the synthetic world: pictures are drawn, nothing is read."""
    photos = int(about.get("photos", 5))
    subjects = []
    for entry in about["subjects"]:
        names = [entry] if isinstance(entry, str) else list(entry)
        parts = tuple(_world_single(name, photos) for name in names)
        if about.get("together"):
            parts = tuple(_world_shared(part, names, nth, photos) for nth, part in enumerate(parts))
        prompts = tuple(_world_prompt(one, parts, about["role"]) for one in about["prompts"])
        subjects.append(Subject(" + ".join(names), parts, prompts))
    return replace(_head(about), subjects=tuple(subjects))


def _world_single(name: str, photos: int) -> Single:
    from fromfew.world.cli import noun_of
    from fromfew.world.vocabulary import HELD_OUT_STYLES

    def load(placeholder: str) -> References:
        from fromfew.world.reference import references

        return references(name, n=photos, placeholder=placeholder, masks=True)

    def held() -> References:
        from fromfew.world.reference import references

        return references(name, n=photos, seed=1, masks=True)

    role = "style" if name in HELD_OUT_STYLES else None
    return Single(name, noun_of(name), load, held, truth=name, role=role)


def _world_shared(part: Single, names: Sequence[str], nth: int, photos: int) -> Single:
    """One of two things that are seen in the same photos."""

    def load(placeholder: str) -> References:
        from fromfew.world.reference import together

        mine = together(names[0], names[1], n=photos)[nth]
        return replace(mine, placeholder=placeholder)

    return replace(part, load=load, shared=True)


def _world_prompt(one: Mapping[str, Any], parts: Sequence[Single], role: str) -> Prompt:
    asked = {key: value for key, value in one.items() if key in _FACTORS}
    first = parts[0].truth
    if role == "style":
        asked["style"] = first
    elif role == "subject":
        asked["object"] = first
        if len(parts) > 1:
            asked["style" if parts[1].role == "style" else "second"] = parts[1].truth
    return Prompt(one["say"], one.get("plain"), Want(**asked), one.get("alone"))


def slotted(text: str, noun: str) -> str:
    """A prompt in bare words with ``{}`` in place of its noun; the prompt itself if it has no such word.

    >>> slotted("a chair and cat sitting on it", "cat")
    'a chair and {} sitting on it'
    """
    return re.sub(rf"(?<!\w){re.escape(noun)}(?!\w)", "{}", text, count=1, flags=re.IGNORECASE)
