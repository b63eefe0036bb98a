"""Record: where chosen words of the prompt are read from, as one map a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fromfew.ports.attention import AttentionPart, Call, Site

if TYPE_CHECKING:
    from fromfew.backbones.base import Text
    from fromfew.ports.part import Attached

__all__ = ["Record"]


class Record(AttentionPart):
    """Keeps the attention that picture tokens pay to the text; changes nothing beyond rounding.

    Recording asks for probabilities, so the fused kernel is not used at the sites recorded.

    Args:
        words: Words or placeholders whose maps are wanted.
        least: Only grids with at least this many tokens per side are kept.
        side: Only the grids whose shorter side is nearest to this many tokens are read; all if None.
    """

    kind = "record"

    def __init__(self, words: Sequence[str], least: int = 2, side: int | None = None) -> None:
        super().__init__()
        self.words, self.least, self.side = tuple(words), least, side

    def where(self, site: Site) -> bool:
        """Wherever text is read."""
        return site.reads_text

    def probs(self, call: Call, p: Tensor) -> Tensor:
        """Notes the mean over heads of what picture queries read from text keys."""
        if min(call.grid) >= self.least:
            seen = p[:, :, call.image, call.text].mean(1)
            call.state.setdefault("seen", []).append((seen, call.grid))
        return p

    def read(self, there: Attached, text: Text) -> Mapping[str, Tensor]:
        """Each word's map ``[B, h, w]`` on the finest grid, mean over sites; 0 where the word is missing.

        Args:
            there: The attachment this part belongs to; its record is emptied.
            text: What was read.
        """
        entry = next(entry for entry in there.entries if entry.part is self)
        seen = entry.state.pop("seen", [])
        if not seen:
            return {}
        if self.side is not None:
            near = min({abs(min(grid) - self.side) for _, grid in seen})
            seen = [one for one in seen if abs(min(one[1]) - self.side) == near]
        size = max((grid for _, grid in seen), key=lambda grid: grid[0] * grid[1])
        return {word: torch.stack([_map(seen, size, text.where(i, word), i) for i in range(len(text))])
                for word in self.words}  # fmt: skip

    def config(self) -> dict[str, Any]:
        """Words, least side and the side wanted."""
        return {"words": list(self.words), "least": self.least, "side": self.side}

    def __repr__(self) -> str:
        return f"Record({', '.join(self.words)})"


def _map(seen: list[tuple[Tensor, tuple[int, int]]], size: tuple[int, int], at: list[int], row: int) -> Tensor:
    """One row's map of the tokens at ``at``, mean over sites."""
    if not at:
        return torch.zeros(size, device=seen[0][0].device, dtype=seen[0][0].dtype)
    maps = [p[row, :, at].mean(-1).view(1, 1, *grid) for p, grid in seen]
    return torch.stack([F.interpolate(one, size, mode="bilinear")[0, 0] for one in maps]).mean(0)
