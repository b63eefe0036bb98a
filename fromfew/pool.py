"""Pool: many photos of unequal worth, of which the best are learned from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts

__all__ = ["BEST", "Pool", "Scorer", "drawn_worth", "worth"]

BEST = 10.0
"""The highest score and label."""


@dataclass
class Pool:
    """Which photos are learned from, with the worth each was given, and which still wait.

    Args:
        labels: Number of a photo to its worth, 0 to 10.
        waiting: Numbers of the photos not learned from.
    """

    labels: dict[int, float] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, count: int, initial: int) -> Pool:
        """The first ``initial`` of ``count`` photos are chosen, with the best label; the others wait."""
        return cls(dict.fromkeys(range(min(initial, count)), BEST), list(range(min(initial, count), count)))

    def take(self, scores: Tensor, worths: Tensor, count: int, share: float) -> list[int]:
        """Choose the ``count`` waiting photos of the highest score; returns their numbers, best first.

        Args:
            scores: ``[W]`` score of every waiting photo.
            worths: ``[W]`` its worth, 0 to 10.
            count: How many.
            share: How much the worth is believed, 0 to 1: the label is ``10 - share (10 - worth)``.
        """
        order = torch.argsort(scores, descending=True, stable=True)[:count].tolist()
        taken = [self.waiting[i] for i in order]
        for i, number in zip(order, taken, strict=True):
            self.labels[number] = BEST - share * (BEST - float(worths[i]))
        self.waiting = [number for number in self.waiting if number not in taken]
        return taken

    def grow(self, scorer: Scorer, photos: Tensor, other: Tensor, count: int, share: float) -> list[int]:
        """Teach the scorer what is chosen, let it judge what waits, and take the best; returns their numbers.

        Args:
            scorer: Learns from the chosen photos against ``other``.
            photos: ``[N, width]`` features of all photos.
            other: ``[M, width]`` features of what is not the concept.
            count: How many are taken.
            share: As for `take`.
        """
        chosen = sorted(self.labels)
        scorer.learn(photos[chosen], other, torch.tensor([self.labels[i] for i in chosen]))
        if not self.waiting:
            return []
        quality, match = scorer.quality(photos[self.waiting]), scorer.match(photos[self.waiting])
        return self.take(quality + match, quality, count, share)


class Scorer:
    """Two heads on frozen features: is this the concept, and how good a picture is it (COTI, arXiv:2304.05265).

    The first is ``width → hidden[0] → hidden[1] → 2`` with batch norms and a ReLU; the second one linear map, since
    maps without an activation between them are one. Without weights for it, every picture is as good as another.

    Args:
        width: Width of the features, which are brought to length 1.
        hidden: Widths of the first head's layers.
        judge: File with ``weight [1, width]`` and ``bias [1]`` of a predictor of quality, 0 to 10.
        seed: All chance follows from it.

    Raises:
        FromfewError: If the file holds something else.
    """

    def __init__(self, width: int, hidden: tuple[int, int], *, judge: str | None = None, seed: int = 0) -> None:
        self.seed, self.width, self.hidden = seed, width, hidden
        self.judge = None if judge is None else _judge(Path(judge), width)
        self.matcher: nn.Module = nn.Identity()

    def learn(self, good: Tensor, other: Tensor, labels: Tensor, *, epochs: int = 50, batch: int = 64) -> None:
        """Fit both heads: ``good`` ``[G, width]`` shows the concept and is worth ``labels``, ``other`` does not.

        The first head is learned anew, the second goes on from where it was.
        """
        x = F.normalize(torch.cat([good, other]).float(), dim=-1)
        y = torch.cat([torch.ones(len(good)), torch.zeros(len(other))]).long().to(x.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            first, second = self.hidden
            self.matcher = nn.Sequential(
                nn.Linear(self.width, first), nn.BatchNorm1d(first),
                nn.Linear(first, second), nn.BatchNorm1d(second), nn.ReLU(), nn.Linear(second, 2),
            ).to(x.device)  # fmt: skip
        self._fit(self.matcher, x, y, F.cross_entropy, 3e-4, epochs, batch)
        if self.judge is not None:
            self._fit(self.judge, x[: len(good)], labels.to(x), _squares, 1e-3, epochs, batch)

    def _fit(
        self,
        head: nn.Module,
        x: Tensor,
        y: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        rate: float,
        epochs: int,
        batch: int,
    ) -> None:
        rng = torch.Generator().manual_seed(self.seed)
        optimiser = torch.optim.Adam(head.parameters(), lr=rate)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
        head.train()
        with torch.enable_grad():
            for _ in range(epochs):
                order = torch.randperm(len(x), generator=rng).to(x.device)
                for rows in order.split(max(2, batch)):
                    if len(rows) < 2 and len(x) > 1:  # a batch norm has no statistics of one row
                        continue
                    optimiser.zero_grad()
                    loss(head(x[rows]), y[rows]).backward()
                    optimiser.step()
                fall.step()
        head.eval()

    @torch.no_grad()
    def match(self, features: Tensor) -> Tensor:
        """How surely each picture shows the concept, 0 to 10, ``[N]``."""
        return BEST * self.matcher(F.normalize(features.float(), dim=-1)).softmax(-1)[:, 1]

    @torch.no_grad()
    def quality(self, features: Tensor) -> Tensor:
        """How good each picture is, 0 to 10, ``[N]``; 10 for all without a predictor."""
        if self.judge is None:
            return torch.full((len(features),), BEST, device=features.device)
        return self.judge(F.normalize(features.float(), dim=-1))[:, 0].clamp(0, BEST)


def _squares(scores: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(scores[:, 0], labels)


def worth(quality: Tensor, match: Tensor) -> float:
    """One score of several pictures: ``10 sin(π a / 20) sin(π c / 20)`` of the mean quality and the mean match."""
    a, c = float(quality.mean().clamp(0, BEST)), float(match.mean().clamp(0, BEST))
    return BEST * math.sin(math.pi * a / 20) * math.sin(math.pi * c / 20)


def drawn_worth(
    bb: Backbone, prompts: list[str], parts: Parts, scorer: Scorer, see: Callable[[Tensor], Tensor], *, seed: int
) -> float:
    """The worth of pictures drawn with parts as they are.

    Args:
        bb: The base.
        prompts: What is drawn.
        parts: What is judged.
        scorer: Who judges.
        see: Pictures ``[B, 3, H, W]`` to the features that the scorer knows.
        seed: Of the pictures.
    """
    from fromfew.make import make

    features = see(make(bb, prompts, parts, seed=seed).tensor)
    return worth(scorer.quality(features), scorer.match(features))


def _judge(file: Path, width: int) -> nn.Linear:
    from fromfew.io.tensors import read_tensors

    tensors = read_tensors(file)
    if {name: tuple(value.shape) for name, value in tensors.items()} != {"weight": (1, width), "bias": (1,)}:
        raise FromfewError(f"'{file}' is no predictor of quality for features of width {width}.")
    with torch.device("meta"):
        head = nn.Linear(width, 1)
    head.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return head
