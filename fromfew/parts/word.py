"""Word: vectors, or plain text, where a placeholder stands in a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from fromfew.errors import FromfewError
from fromfew.ports.text import WordPart, first_ids

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["Word", "rare"]


class Word(WordPart):
    """One new word: ``count`` vectors per text encoder, or an alias of plain text with nothing to learn.

    At strength s a learned word writes ``start + s (vectors - start)``: at 0 it is the word it began as.

    Args:
        placeholder: What stands for it in prompts, such as ``"<v>"``.
        start: Plain text whose first tokens hold the word's place and give its first vectors.
        widths: Encoder name to width of its token vectors; empty for an alias.
        count: Vectors per encoder, 1 to 16.
        alias: Plain text that takes the placeholder's place instead of vectors.

    Raises:
        FromfewError: If the placeholder is empty or ``count`` is out of range.
    """

    kind = "word"

    def __init__(
        self,
        placeholder: str,
        start: str,
        widths: Mapping[str, int] | None = None,
        count: int = 1,
        alias: str | None = None,
    ) -> None:
        super().__init__()
        if not placeholder.strip() or not 1 <= count <= 16:
            raise FromfewError("A word needs a placeholder and 1 to 16 vectors.")
        self.placeholder, self.start, self.count, self.alias = placeholder, start, count, alias
        self._widths = dict(widths or {}) if alias is None else {}
        self.shown = count  # how many of its vectors stand in prompts; fewer only while they are learned one by one
        self.vectors = nn.ParameterDict({key: torch.zeros(count, width) for key, width in self._widths.items()})

    @classmethod
    def learned(cls, bb: Backbone, placeholder: str, start: str, count: int, rng: Generator) -> Word:
        """A word to be learned on this backbone, beginning as the tokens of ``start``, repeated to ``count``.

        Second and later copies of a token are moved by a hundredth of its size, so that they can part.
        """
        encoders = bb.text_encoders
        word = cls(placeholder, start, {key: encoder.width for key, encoder in encoders.items()}, count)
        with torch.no_grad():
            for key, encoder in encoders.items():
                ids = word.carriers(encoder.tokenizer)
                table = encoder.table
                for i, token in enumerate(ids):
                    vector = table[token]
                    noise = torch.randn(vector.shape, generator=rng) * 0.01 * vector.std()
                    word.vectors[key][i] = vector + noise if token in ids[:i] else vector
        return word

    @torch.no_grad()
    def randomised(self, bb: Backbone, rng: Generator, *, last: str = "") -> Word:
        """The same word with vectors drawn from N(0, σ²), σ the spread of all numbers of the encoder's own table.

        Args:
            bb: The base.
            rng: Chance.
            last: A word whose first token the last vector is instead.
        """
        for key, encoder in bb.text_encoders.items():
            table = encoder.table
            self.vectors[key].copy_(torch.randn(self.vectors[key].shape, generator=rng) * float(table.std()))
            if last:
                self.vectors[key][-1] = table[first_ids(encoder.tokenizer, last, 1, self.placeholder)[0]]
        return self

    @torch.no_grad()
    def crossed(self, bb: Backbone) -> Word:
        """The same word with what the encoder makes of its first vectors, read alone (arXiv:2312.15905).

        A learned vector drifts towards the encoder's outputs, far from the table's own; so it may as well begin
        there.
        """
        from fromfew.ports.text import splice, writing

        for key, encoder in bb.text_encoders.items():
            spliced = splice(encoder.tokenizer, [self.placeholder], [(self, 1.0)], length=encoder.length)
            with writing(encoder, spliced, [(self, 1.0)]):
                states = encoder.model(spliced.ids.to(bb.device)).last_hidden_state
            self.vectors[key].copy_(states[0, spliced.where[0][self.placeholder]].float().cpu())
        return self

    @classmethod
    def plain(cls, placeholder: str, alias: str) -> Word:
        """A word that is only another spelling: the placeholder stands for ``alias``."""
        return cls(placeholder, alias, alias=alias)

    @property
    def touches_text(self) -> bool:
        """False for an alias: its prompts are respelled before they are encoded."""
        return self.alias is None

    def carriers(self, tokenizer: Any) -> list[int]:
        """The first tokens of ``start``, repeated to ``count``; raises `FromfewError` if it has none."""
        return first_ids(tokenizer, self.start, self.shown, self.placeholder)

    def written(self, key: str, base: Tensor, strength: float) -> Tensor | None:
        """The vectors at this strength, once per occurrence in ``base`` ``[m · count, width]``."""
        if strength == 0:
            return None
        vectors = self.vectors[key][: self.shown].to(base.device).repeat(len(base) // self.shown, 1)
        return vectors if strength == 1 else base + strength * (vectors - base)

    def check(self, bb: Backbone) -> None:
        """The backbone must have the same text encoders, of the same widths."""
        if self.alias is None:
            self.same_encoders(bb, self._widths)

    def config(self) -> dict[str, Any]:
        """Everything but the vectors."""
        return {
            "placeholder": self.placeholder,
            "start": self.start,
            "widths": self._widths,
            "count": self.count,
            "alias": self.alias,
        }

    def __repr__(self) -> str:
        what = f"vectors={self.count}" if self.alias is None else f"alias={self.alias!r}"
        return f"Word({self.placeholder!r}, {what})"


def rare(bb: Backbone, nth: int = 0) -> str:
    """A short word that means nothing to people, and that the base's first tokenizer knows as one token.

    ``nth`` picks the first, second or later of them; where the tokenizer knows too few, longer ones follow.
    """
    tokenizer = next(iter(bb.text_encoders.values())).tokenizer
    words = ("ktn", "pll", "ucd", "sks", "olis", "zwx", "qx", "zq", "x")
    short = [word for word in words if len(tokenizer(word, add_special_tokens=False).input_ids) == 1]
    long = [word for word in words if word not in short]
    return [*short, *long][nth % len(words)]
