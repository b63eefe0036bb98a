"""WordTable: a word with vectors of its own for every layer, or for every stage of denoising."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fromfew.errors import FromfewError, unknown
from fromfew.ports.place import Place, PlacedWord, layers_of
from fromfew.ports.text import first_ids

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.parts.word import Word

__all__ = ["WordTable", "outgrown"]


class WordTable(PlacedWord):
    """``vectors[key][i, row]`` is the i-th vector that encoder ``key`` is given for a row of the table.

    Rows are cross-attention layers in order of execution (P+, arXiv:2303.09522), or equal spans of time from clean
    (row 0) to noise (ProSpect, arXiv:2305.16225). Where the place is not known, as for pooled vectors that read no
    layer, the word is the mean of its rows.

    Args:
        placeholder: What stands for it in prompts.
        start: Plain text whose first tokens hold the word's place and give its first vectors.
        widths: Encoder name to width of its token vectors.
        by: What a row is.
        rows: How many there are.
        count: Vectors per row and encoder, 1 to 16.

    Raises:
        FromfewError: If a number or ``by`` is out of range.
    """

    kind = "word_table"

    def __init__(
        self,
        placeholder: str,
        start: str,
        widths: Mapping[str, int],
        by: Literal["layer", "stage"],
        rows: int,
        count: int = 1,
    ) -> None:
        super().__init__()
        if by not in ("layer", "stage"):
            raise unknown("rows of a word table", str(by), ("layer", "stage"))
        if not placeholder.strip() or not 1 <= count <= 16 or not 1 <= rows <= 1000:
            raise FromfewError("A word table needs a placeholder, 1 to 1000 rows and 1 to 16 vectors in each.")
        self.placeholder, self.start, self.by, self.rows, self.count = placeholder, start, by, rows, count
        self._widths = dict(widths)
        self.layers = rows if by == "layer" else None
        self.vectors = nn.ParameterDict({key: torch.zeros(count, rows, width) for key, width in widths.items()})

    @classmethod
    def of(cls, bb: Backbone, word: Word, by: Literal["layer", "stage"], rows: int | None = None) -> WordTable:
        """A table whose every row begins as ``word``; by default as many rows as the backbone has layers.

        Raises:
            FromfewError: If no layer of the backbone reads text apart from the picture.
        """
        if by == "layer":
            rows = len(layers_of(bb))
            if not rows:
                raise FromfewError(f"No layer of {bb.name} reads text apart from the picture: no word per layer.")
        widths = {key: value.shape[-1] for key, value in word.vectors.items()}
        table = cls(word.placeholder, word.start, widths, by, rows or 1, word.count)
        with torch.no_grad():
            for key, value in word.vectors.items():
                table.vectors[key].copy_(value[:, None])
        return table

    def row(self, place: Place) -> int | None:
        """The row a place reads; None where it cannot be known."""
        if self.by == "layer":
            return place.layer
        return None if place.t is None else min(self.rows - 1, int(place.t * self.rows))

    def key(self, place: Place) -> Hashable:
        """The row."""
        return self.row(place)

    def at(self, key: str, places: Sequence[Place]) -> Tensor:
        """Each place's row, or the mean of all."""
        table = self.vectors[key]
        rows = [self.row(place) for place in places]
        if None in rows:
            return torch.stack([table.mean(1) if row is None else table[:, row] for row in rows])
        return table[:, rows].transpose(0, 1)

    @torch.no_grad()
    def mixed(self, other: WordTable, rows: Sequence[int]) -> WordTable:
        """A new word that is ``other`` at these rows and this one elsewhere, such as its material or its shape.

        Raises:
            FromfewError: If the tables differ in kind or size, or there is no such row.
        """
        mine, its = self.config(), other.config()
        if any(mine[name] != its[name] for name in ("by", "rows", "count", "widths")):
            raise FromfewError(f"{self!r} and {other!r} cannot be mixed: their tables differ.")
        if not all(0 <= row < self.rows for row in rows):
            raise FromfewError(f"Rows are 0 to {self.rows - 1}, not {list(rows)}.")
        new = WordTable.build(mine)
        for key in new.vectors:
            new.vectors[key].copy_(self.vectors[key])
            new.vectors[key][:, list(rows)] = other.vectors[key][:, list(rows)].to(new.vectors[key])
        return new.requires_grad_(False)

    def carriers(self, tokenizer: Any) -> list[int]:
        """The first tokens of ``start``, repeated to ``count``."""
        return first_ids(tokenizer, self.start, self.count, self.placeholder)

    def check(self, bb: Backbone) -> None:
        """The same text encoders, of the same widths, and as many layers."""
        self.same_encoders(bb, self._widths)
        super().check(bb)

    def config(self) -> dict[str, Any]:
        """Everything but the vectors."""
        return {
            "placeholder": self.placeholder, "start": self.start, "widths": self._widths,
            "by": self.by, "rows": self.rows, "count": self.count,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"WordTable({self.placeholder!r}, {self.rows} {self.by}s, vectors={self.count})"


def outgrown(word: WordTable, bb: Backbone, times: float) -> Callable[[], bool]:
    """What tells whether a word's vectors are, in the mean, ``times`` as long as the base's own, in every encoder."""
    bounds = {key: times * float(encoder.table.norm(dim=1).mean()) for key, encoder in bb.text_encoders.items()}

    def long() -> bool:
        return all(float(word.vectors[key].detach().norm(dim=-1).mean()) >= bound for key, bound in bounds.items())

    return long
