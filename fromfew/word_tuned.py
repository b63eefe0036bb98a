"""What methods share that make something of a word, and so have no use for a rare token or plain text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fromfew.errors import FromfewError
from fromfew.method import Tuned

__all__ = ["WordTuned"]


@dataclass(frozen=True, kw_only=True)
class WordTuned(Tuned):
    """A word that is learned, alone or with more."""

    modifier: Literal["word", "rare", "text"] = "word"
    """Always a word: what it stands for is learned."""

    def __post_init__(self) -> None:
        """Also refuse a modifier with nothing to learn.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        if self.modifier != "word":
            raise FromfewError(f"{self.name()} learns what a word stands for: leave modifier at 'word'.")
