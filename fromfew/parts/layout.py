"""Layout: every word is read in its region, and no other region's word is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.noise import NoisePath
from fromfew.ports.attention import AttentionPart, Call, Site
from fromfew.ports.part import Handle
from fromfew.regions import inside

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["Layout"]

_FARTHEST = 15.0  # noise to signal, where a flow begins with noise alone; models with steps begin about there


class Layout(AttentionPart):
    """Attention of the picture to words is raised inside their regions and cut off in the others' (arXiv:2305.19327).

    ``softmax(Q Kᵀ/√d + g w log(1 + σ²) std(Q Kᵀ/√d))`` with σ the noise-to-signal ratio of the moment, w = 2.5 for a
    word inside its own region, -∞ for it inside the region of another word and outside its own, 0 elsewhere.

    Args:
        words: The subjects' placeholders, or plain words of the prompt.
        nouns: For each, how many tokens behind its last one belong to it too.
        side: Height and width of the masks.
        scale: g, how strongly words are drawn into their regions, 0 to 10.
        branch: Rows that are guided.
    """

    kind = "layout"

    def __init__(
        self, words: Sequence[str], nouns: Sequence[int] = (), side: tuple[int, int] = (128, 128), scale: float = 0.08,
        branch: str = "cond",
    ) -> None:  # fmt: skip
        super().__init__()
        if not words or not 0 <= scale <= 10:
            raise FromfewError("A layout needs at least one word, and a scale from 0 to 10.")
        self.words, self.side, self.scale = tuple(words), (int(side[0]), int(side[1])), float(scale)
        self.nouns, self.branch = tuple(nouns) or (0,) * len(self.words), branch
        self.register_buffer("masks", torch.zeros(len(self.words), *self.side))
        self.masks: Tensor
        self._path: NoisePath | None = None

    @classmethod
    def of(cls, masks: Mapping[str, Tensor], nouns: Sequence[int] = (), **how: Any) -> Layout:
        """A layout from word to mask ``[h, w]``, all of one size."""
        part = cls(list(masks), nouns, next(iter(masks.values())).shape[-2:], **how)  # type: ignore[arg-type]
        part.masks.copy_(torch.stack(list(masks.values())))
        return part

    def where(self, site: Site) -> bool:
        """Wherever text is read."""
        return site.reads_text

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Also learn how the model mixes picture and noise."""
        self._path = bb.path
        return super().attach(bb, strength)

    def bias(self, call: Call) -> Tensor | None:
        """The words' columns of the scores, on the rows that are guided."""
        rows = [row for row, branch in enumerate(call.rows.branch) if branch == self.branch]
        columns = {row: [self._columns(call, row, i) for i in range(len(self.words))] for row in rows}
        if not any(at for places in columns.values() for at in places):
            return None
        assert self._path is not None
        here = inside(self.masks, call.grid).flatten(1).to(call.q.device)
        others = torch.stack([torch.cat([here[:i], here[i + 1 :]]).any(0) for i in range(len(here))]) & ~here
        signal, noise = (level.flatten() for level in self._path.levels(call.rows.t))
        far = (noise / signal.clamp_min(1e-6)).clamp(max=_FARTHEST).square().log1p()
        scores = call.q[:, :, call.image] @ call.k[:, :, call.text].transpose(-1, -2) * call.q.shape[-1] ** -0.5
        spread = scores.float().flatten(1).std(1)
        bias = call.q.new_zeros(len(call.rows), 1, call.q.shape[2], call.k.shape[2])
        for row, places in columns.items():
            pull = 2.5 * self.scale * call.strength * float(far[row] * spread[row])
            for word, at in enumerate(places):
                value = torch.where(here[word], pull, 0.0).masked_fill(others[word], torch.finfo(bias.dtype).min)
                picture = bias[row, 0, call.image]
                for column in at:
                    picture[:, call.text.start + column] = value.to(bias.dtype)
        return bias

    def _columns(self, call: Call, row: int, word: int) -> list[int]:
        """Text positions of a word and of the noun behind it."""
        at = sorted(call.words[row].get(self.words[word], ())) if row < len(call.words) else []
        more = [place + 1 + i for place in at if place + 1 not in at for i in range(self.nouns[word])]
        return [place for place in (*at, *more) if place < call.text.stop - call.text.start]

    def config(self) -> dict[str, Any]:
        """Words, tokens behind them, size of the masks, scale and branch."""
        return {
            "words": list(self.words), "nouns": list(self.nouns), "side": list(self.side), "scale": self.scale,
            "branch": self.branch,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"Layout({', '.join(self.words)}, scale={self.scale:g})"
