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
    """``W' = W ∘ (1 - h(m))``: a gate ``m`` on every entry, of which the highest above 0 are shut, ``h(m) = 1``.

    The gradient passes ``h`` as if it were not there (arXiv:1308.3432), and is ``-W ∘ ∂L/∂W``: gradient descent adds
    up how much shutting each entry lowers the loss, beside those that are shut so far. None is at the start.

    Args:
        shapes: Path of each weight to its shape.
        density: Share of entries of every weight that are shut at most.
    """

    kind = "search"

    def __init__(self, shapes: Mapping[str, Sequence[int]], density: float) -> None:
        super().__init__(shapes)
        self.density = density
        self.gates = nn.ParameterDict({flat(path): torch.zeros(shape) for path, shape in self._shapes.items()})

    @classmethod
    def of(cls, maps: Mapping[str, nn.Module], density: float) -> Search:
        """Over these maps."""
        return cls(weights_of(maps), density)

    def count(self, path: str) -> int:
        """How many entries of one weight are shut at most."""
        return max(1, round(self.density * prod(self._shapes[path])))

    def best(self, path: str) -> tuple[Tensor, Tensor]:
        """The highest gates of one weight and their flat places, each ``[n]``."""
        found = self.gates[flat(path)].detach().flatten().topk(self.count(path))
        return found.values, found.indices

    def delta_of(self, path: str, base: Tensor) -> Tensor:
        """``-W`` where entries are shut, 0 elsewhere."""
        gates, (values, places) = self.gates[flat(path)], self.best(path)
        shut = torch.zeros(gates.numel(), device=gates.device).scatter(0, places, (values > 0).float())
        # The brackets: a gate less itself is 0 to the bit, so an entry is shut whole or not at all.
        return -base.detach().float() * (shut.view(gates.shape) + (gates - gates.detach()))

    def settings(self) -> dict[str, Any]:
        """The density."""
        return {"density": self.density}


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
    def found(cls, search: Search) -> Neurons:
        """The entries of every weight that a search shuts.

        Where fewer than it may shut have a gate above 0, places are repeated: the number does not depend on luck.
        """
        part = cls(search.shapes(), {path: search.count(path) for path in search.shapes()})
        for path in part.counts:
            values, places = search.best(path)
            part.get_buffer(flat(path)).copy_(torch.where(values > 0, places, places[:1]).sort().values)
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
