"""Whose picture a row shows, said in its prompt: sources of many things, each row with a word in front of its noun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from fromfew.templates import worded

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.data import Batch, Source

__all__ = ["with_words"]


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
