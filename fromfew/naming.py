"""What a picture shows, said in its prompt: a word in front of each row's noun, a description in place of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from fromfew.templates import with_article, worded

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.data import Batch, Source
    from fromfew.references import References

__all__ = ["described", "with_words"]


def with_words(source: Source, word: Callable[[int], str], *, keep_noun: bool = True) -> Source:
    """The same rows, with ``word(i)`` in front of row ``i``'s noun, or in its place.

    Rows whose noun the source does not tell have the word in front of the whole prompt.

    Args:
        source: Pictures of many things.
        word: What stands for the thing of each row.
        keep_noun: Whether the noun stays.
    """

    def of(rng: Generator) -> Batch:
        batch = source(rng)
        nouns = batch.nouns or [None] * len(batch)
        rows = enumerate(zip(batch.captions, nouns, strict=True))
        return replace(batch, captions=[worded(said, word(i), noun, keep_noun=keep_noun) for i, (said, noun) in rows])

    return of


def described(refs: References, description: str) -> References:
    """The same photos under captions in which a description stands where the noun would.

    A photo's own caption keeps what else it says; one without becomes "a photo of a <v> ..."; class pictures, which are
    drawn from the noun, stay as they are.
    """
    thing = f"{refs.placeholder} {description}"
    photos = [
        replace(photo, caption=worded(photo.caption, thing, refs.noun, keep_noun=False) if photo.caption
                else f"a photo of {with_article(thing)}")
        for photo in refs.photos
    ]  # fmt: skip
    return replace(refs, photos=tuple(photos))
