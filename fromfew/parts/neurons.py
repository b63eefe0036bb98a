"""Neurons: single entries of weights, found by what shutting them does, and shut (Cones)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fromfew.parts._over import Over, weights_of
from fromfew.ports.linear import flat

__all__ = ["Neurons", "Search"]


class Search(Over):
    """``W' = W ∘ (1 - m)`` with ``m = 0`` at the start: what to learn to find the entries whose shutting helps.

    The gradient of ``m`` is ``-W ∘ ∂L/∂W``: gradient descent adds up how much shutting each entry lowers the loss.

    Args:
        shapes: Path of each weight to its shape.
    """

    kind = "search"

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__(shapes)
        self.gates = nn.ParameterDict({flat(path): torch.zeros(shape) for path, shape in self._shapes.items()})

    @classmethod
    def of(cls, maps: Mapping[str, nn.Module]) -> Search:
        """Over these maps."""
        return cls(weights_of(maps))

    def delta_of(self, path: str, base: Tensor) -> Tensor:
        """``-W ∘ m``."""
        return -base.detach().float() * self.gates[flat(path)]


class Neurons(Over):
    """``W' = W`` but for a sparse set of entries, which are 0 (Cones, arXiv:2303.05125).

    What is kept are the entries' places. Sets of several concepts over one weight join: an entry is shut if any of
    them names it.

    Args:
        shapes: Path of each weight to its shape.
        counts: Path of each weight to the number of entries that are shut.
    """

    kind = "neurons"
    last = True

    def __init__(self, shapes: Mapping[str, Sequence[int]], counts: Mapping[str, int]) -> None:
        super().__init__(shapes)
        self.counts = {path: int(count) for path, count in counts.items()}
        for path, count in self.counts.items():
            self.register_buffer(flat(path), torch.zeros(count, dtype=torch.int32))

    @classmethod
    def found(cls, search: Search, density: float) -> Neurons:
        """The entries with the greatest gates over all weights, as large a share as ``density``; none below 0.

        Where fewer than that have a gate above 0, places are repeated, so that the number does not depend on luck.
        """
        shapes = search.shapes()
        part = cls(shapes, {path: max(1, round(density * prod(shape))) for path, shape in shapes.items()})
        for path, count in part.counts.items():
            gates = search.gates[flat(path)].detach().flatten()
            best = gates.topk(count)
            chosen = torch.where(best.values > 0, best.indices, best.indices[:1])
            part.get_buffer(flat(path)).copy_(chosen.sort().values)
        return part

    def places(self, path: str) -> Tensor:
        """``[n]`` flat indices of the entries of one weight that are shut."""
        return self.get_buffer(flat(path))

    def sources(self, path: str) -> Sequence[Tensor]:
        """The places."""
        return [self.places(path)]

    def delta_of(self, path: str, base: Tensor) -> Tensor:
        """``-W`` at the places, 0 elsewhere."""
        at = self.places(path).long()
        shut = torch.zeros(base.numel(), device=base.device).index_fill(0, at, -1.0)
        return base * shut.view(base.shape).to(base.dtype)

    def settings(self) -> dict[str, Any]:
        """How many entries of each weight are shut."""
        return {"counts": self.counts}
