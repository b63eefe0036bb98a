"""References: the few photos to learn from, with their masks, captions, and what they show."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from fromfew.errors import FromfewError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

    from fromfew.io.layouts import Shot

__all__ = ["Reference", "References", "Role", "check_noun", "check_placeholder"]

Role = Literal["subject", "style", "face", "relation", "motion"]

_PLACEHOLDER = re.compile(r"<[a-z0-9][a-z0-9_-]{0,30}>")
_NOUN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*(?: [^\W_]+(?:['’-][^\W_]+)*){0,5}")
_ARTICLE = re.compile(r"^(?:a|an|the|my|your)\s+", re.IGNORECASE)


def check_placeholder(text: str) -> str:
    """``text`` if it can stand for the concept in prompts, such as ``<rex>``.

    Raises:
        FromfewError: It cannot; the message proposes the nearest that can.
    """
    if isinstance(text, str) and _PLACEHOLDER.fullmatch(text):
        return text
    core = re.sub(r"[^a-z0-9_-]+", "-", str(text).lower().strip("<>| \t\n")).strip("-_")[:31]
    raise FromfewError(
        f"'{text}' cannot stand for a concept: write lower-case letters, digits, - or _ between < and >, "
        f"such as '<{core or 'v'}>'."
    )


def check_noun(text: str) -> str:
    """``text`` stripped, if it is a plain noun of one to six words, such as ``cat``.

    Raises:
        FromfewError: It is not; the message proposes the nearest that is.
    """
    noun = " ".join(str(text).split())
    bare = _ARTICLE.sub("", noun)
    if not noun:
        raise FromfewError('The noun is empty: name what the photos show, such as --noun "cat".')
    if bare != noun:
        raise FromfewError(f"The noun is written without an article: '{bare}' instead of '{noun}'.")
    if _NOUN.fullmatch(noun) and len(noun) <= 60:
        return noun
    core = " ".join(re.findall(r"[^\W_]+", re.sub(r"<[^>]*>", " ", noun))[:6])[:60]
    raise FromfewError(
        f"'{noun}' is no plain noun: write one to six words that name what the photos show, such as '{core or 'cat'}'."
    )


@dataclass(frozen=True, eq=False)
class Reference:
    """One photo.

    Attributes:
        image: 8-bit RGB, upright, any size.
        mask: 8-bit greys of the same size, 255 on the subject and 0 elsewhere; None if it has none.
        caption: What it shows, as its owner wrote it; None if nothing was written.
        path: Where it came from; None for pictures that never were a file.
        sha256: Hash of the file's (else of the pixels') bytes.
        repeats: How often it counts among the others, 1 or more.
    """

    image: Image
    mask: Image | None = None
    caption: str | None = None
    path: Path | None = None
    sha256: str = ""
    repeats: int = 1


@dataclass(frozen=True, eq=False)
class References:
    """The photos to learn from and the words for them.

    Attributes:
        photos: The photos, in the order of their names.
        noun: The plain noun for what they show; None only if every photo has a caption.
        role: What is to be learnt from them.
        placeholder: What stands for it in prompts, such as ``<rex>``.
        notes: What was done or left out on reading, one sentence each.
        also: Further things that are to be learned together with this one, each with photos, noun, role and
            placeholder of its own; one photo may show several, with another mask for each.
    """

    photos: tuple[Reference, ...]
    noun: str | None
    role: Role = "subject"
    placeholder: str = "<v>"
    notes: tuple[str, ...] = ()
    also: tuple[References, ...] = ()

    def __post_init__(self) -> None:
        check_placeholder(self.placeholder)
        names = [self.placeholder, *(one.placeholder for one in self.also)]
        for name in names:
            if names.count(name) > 1:
                raise FromfewError(f"Two things to learn are both called {name}. Give each a placeholder of its own.")
        if any(one.also for one in self.also):
            raise FromfewError("List all further things to learn beside the first one, not beside each other.")
        if self.role not in get_args(Role):
            raise unknown("role", str(self.role), get_args(Role))
        if self.noun is not None:
            check_noun(self.noun)
        elif not all(photo.caption for photo in self.photos):
            raise FromfewError('Say what the photos show with --noun "...", or give every photo a caption.')

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def subjects(self) -> tuple[References, ...]:
        """Everything that is to be learned, this first, each apart."""
        return (replace(self, also=()), *self.also)

    @property
    def hashes(self) -> tuple[str, ...]:
        """The photos' SHA-256, in order, subject after subject."""
        return tuple(photo.sha256 for one in self.subjects for photo in one.photos)

    @property
    def words(self) -> str:
        """What a prompt calls it: placeholder and noun, such as ``<rex> cat``."""
        return f"{self.placeholder} {self.noun}" if self.noun else self.placeholder

    @classmethod
    def of(
        cls, *images: Image, noun: str | None = None, placeholder: str = "<v>", role: Role = "subject",
        masks: Sequence[Image | None] = (), captions: Sequence[str | None] = (),
    ) -> References:  # fmt: skip
        """References from PIL pictures in memory.

        Raises:
            FromfewError: There are none, or noun, placeholder or role are not allowed.
        """
        if not images:
            raise FromfewError("No pictures were given.")
        photos = []
        for index, image in enumerate(images):
            rgb = image.convert("RGB")
            photos.append(
                Reference(
                    rgb,
                    mask=masks[index] if index < len(masks) else None,
                    caption=captions[index] if index < len(captions) else None,
                    sha256=hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest(),
                )
            )
        return cls(tuple(photos), noun, role, placeholder)

    @classmethod
    def read(
        cls, where: Path | str | Sequence[Path | str], *, noun: str | None = None, placeholder: str = "<v>",
        role: Role = "subject", skip_bad: bool = False,
    ) -> References:  # fmt: skip
        """Read the photos of a folder or of a list of files, with captions, masks and repeats where present.

        Where masks name things (``scene.rex=cat.mask.png`` beside ``scene.jpg``), each of them becomes a subject of
        its own, called ``<rex>``; one of them alone if ``placeholder`` is its name.

        Args:
            where: A folder (plain, imagefolder with metadata.jsonl, or kohya's ``10_token class``), or files.
            noun: What they show; may be left out if the folder says it or every photo has a caption.
            placeholder: What stands for it in prompts.
            role: What is to be learnt.
            skip_bad: Go on without pictures that cannot be read, instead of stopping.

        Raises:
            FromfewError: The folder holds no pictures, or any of them cannot be read; all bad ones are named.
        """
        from fromfew.io.layouts import find_pictures

        check_placeholder(placeholder)
        layout = find_pictures(where)
        photos, things, bad, notes = _read_all(layout.shots)
        bad = [
            f"'{path}' is of a kind that is not read; save it as JPEG or PNG first." for path in layout.foreign
        ] + bad
        total = len(layout.shots) + len(layout.foreign)
        if bad and (not skip_bad or not photos):
            _refuse(bad, total)
        notes = [f"Left out: {line}" for line in bad] + notes
        if layout.ignored:
            notes.append(f"Ignored, no pictures: {_some(layout.ignored)}.")
        if any(things):
            return _scene(photos, things, noun, role, placeholder, notes)
        return cls(tuple(photos), noun if noun is not None else layout.noun, role, placeholder, tuple(notes))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _refuse(bad: Sequence[str], total: int) -> None:
    """Stop, naming every bad picture."""
    if total == 1:
        raise FromfewError(bad[0])
    some = len(bad) < total
    head = f"{len(bad)} of {total} pictures cannot be used:" if some else "None of the pictures can be used:"
    tail = ["Mend or remove them, or add --skip-bad to learn from the others."] if some else []
    raise FromfewError("\n".join([head, *(f"  {line}" for line in bad), *tail]))


def _thing(name: str, path: Path) -> tuple[str, str]:
    """Placeholder and noun of a mask called ``rex=cat`` or, if the name is the noun, ``cat``."""
    word, _, noun = name.partition("=")
    noun = (noun or word).replace("-", " ").replace("_", " ")
    try:
        return check_placeholder(f"<{word.lower()}>"), check_noun(noun)
    except FromfewError as error:
        raise FromfewError(f"'{path}' names no thing: {error} Call it NAME.WORD.mask.png.") from error


def _scene(
    photos: Sequence[Reference], things: Sequence[Mapping[tuple[str, str], Image]], noun: str | None, role: Role,
    placeholder: str, notes: list[str],
) -> References:  # fmt: skip
    """Every thing that masks name as a subject of its own, or the one that was asked for."""
    names = dict.fromkeys(key for one in things for key in one)
    told = ", ".join(f"{word} ({what})" for word, what in names)
    words = [word for word, _ in names]
    for word in words:
        if words.count(word) > 1:
            raise FromfewError(f"Masks give {word} different nouns: {told}. Give it the same in every photo.")
    asked = [key for key in names if key[0] == placeholder]
    if not asked and placeholder != "<v>":
        raise FromfewError(f"No mask names {placeholder}; masks name: {told}.")
    if not asked and noun is not None and len(names) > 1:
        raise FromfewError(f"The masks say what is shown: {told}. Leave the noun out, or pick one thing with --as.")
    bare = [p.path.name if p.path else "a photo" for p, one in zip(photos, things, strict=True) if not one]
    if bare:
        notes = [*notes, f"Left out, no mask names anything in them: {_some(bare)}."]
    if not asked and len(names) > 1:
        notes = [*notes, f"Masks name several things, learned together: {told}. To learn one alone, pick it with --as."]
    subjects = []
    for key in asked or names:
        own = [replace(p, mask=one[key]) for p, one in zip(photos, things, strict=True) if key in one]
        subjects.append(References(tuple(own), noun or key[1], role, key[0]))
    return replace(subjects[0], notes=tuple(notes), also=tuple(subjects[1:]))


def _read_all(
    shots: Sequence[Shot],
) -> tuple[list[Reference], list[dict[tuple[str, str], Image]], list[str], list[str]]:
    """Photos, masks of named things in each, what was wrong with the bad ones, and remarks."""
    from fromfew.io.pictures import read_mask, read_picture

    photos: list[Reference] = []
    things: list[dict[tuple[str, str], Image]] = []
    bad: list[str] = []
    notes: list[str] = []
    seen: dict[str, str] = {}
    for shot in shots:
        try:
            picture = read_picture(shot.path)
            mask = read_mask(shot.mask, picture.image.size) if shot.mask else picture.mask
            named = {_thing(name, path): read_mask(path, picture.image.size) for name, path in shot.things}
        except FromfewError as error:
            bad.append(str(error))
            continue
        notes += [f"{shot.path.name}: {note}." for note in picture.notes]
        if picture.sha256 in seen:
            notes.append(f"{shot.path.name} is the same picture as {seen[picture.sha256]}.")
        seen.setdefault(picture.sha256, shot.path.name)
        photos.append(Reference(picture.image, mask, shot.caption, shot.path, picture.sha256, shot.repeats))
        things.append(named)
    return photos, things, bad, notes
