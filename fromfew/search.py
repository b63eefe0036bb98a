"""Evolution: parameters found by trying, without gradients, in a small space around where they began."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fromfew.errors import FromfewError

__all__ = ["Evolution", "Search", "principal_directions", "random_directions"]


@dataclass(frozen=True, eq=False)
class Search:
    """Where to look: ``v = v₀ + D z`` for a point ``z`` with ``d`` coordinates.

    Args:
        directions: Parameter to its ``D``, the parameter's shape with ``d`` behind it.
        population: Points tried a step.
        spread: Standard deviation of the first points.
    """

    directions: Mapping[nn.Parameter, Tensor]
    population: int = 20
    spread: float = 1.0

    @property
    def dims(self) -> int:
        """How many coordinates a point has."""
        return int(next(iter(self.directions.values())).shape[-1])


class Evolution:
    """CMA-ES (Hansen & Ostermeier 2001) over a `Search`, with the face that a stage's state expects of an optimiser.

    All it keeps is the loss of every point tried so far: with the seed, that is all it is. So it is resumed by being
    told the same losses again, bit for bit.

    Args:
        search: Where to look.
        seed: Its chance.

    Raises:
        FromfewError: If the package cmaes is not installed.
    """

    def __init__(self, search: Search, seed: int) -> None:
        try:
            from cmaes import CMA
        except ImportError as error:
            raise FromfewError("Search without gradients needs cmaes: pip install 'fromfew[search]'.") from error
        import numpy as np

        self.search = search
        self.began = {value: value.detach().clone() for value in search.directions}
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.param_groups: list[dict[str, Any]] = []
        self._strategy = CMA(
            mean=np.zeros(search.dims), sigma=search.spread, population_size=search.population, seed=seed % 2**32
        )
        self._told = 0
        self._first = next(iter(search.directions))

    def step(self, loss: Callable[[], float]) -> float:
        """Try a population, learn from it, and put the parameters at the middle of what is left; its mean loss."""
        self._catch_up()
        points = self._ask()
        values = []
        for point in points:
            self._put(point)
            values.append(loss())
        self._tell(points, values)
        told = torch.tensor([values], dtype=torch.float64)
        before = self.state.get(self._first, {}).get("told")
        self.state[self._first] = {"told": told if before is None else torch.cat([before.cpu(), told])}
        self._put(self._strategy.mean)
        return sum(values) / len(values)

    def _ask(self) -> list[Any]:
        return [self._strategy.ask() for _ in range(self.search.population)]

    def _tell(self, points: list[Any], values: list[float]) -> None:
        self._strategy.tell(list(zip(points, values, strict=True)))
        self._told += 1

    def _catch_up(self) -> None:
        """Hear of all generations that a kept state knows and this object does not."""
        told = self.state.get(self._first, {}).get("told", torch.zeros(0, self.search.population))
        for values in told[self._told :].tolist():
            self._tell(self._ask(), values)

    def _put(self, point: Any) -> None:
        z = torch.tensor(point, dtype=torch.float32)
        with torch.no_grad():
            for value, directions in self.search.directions.items():
                value.copy_(self.began[value] + (directions @ z).to(value))


def random_directions(shape: torch.Size, dims: int, spread: float, rng: Generator) -> Tensor:
    """``[*shape, dims]`` from N(0, spread²/dims): a point of unit spread moves every number by about ``spread``."""
    return torch.randn(*shape, dims, generator=rng) * spread * dims**-0.5


def principal_directions(table: Tensor, shape: torch.Size, dims: int) -> Tensor:
    """``[n, width, dims]``: each vector gets an equal share of the coordinates, along the table's principal axes.

    Each axis has the length of the table's own spread along it. ``shape`` is ``[n, width]``.

    Raises:
        FromfewError: If a share would hold no axis, or more than the width.
    """
    count, width = shape
    share = dims // count
    if not 1 <= share <= width:
        raise FromfewError(f"{dims} dims for {count} vectors of width {width}: give each 1 to {width}.")
    centred = table.double() - table.double().mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / max(1, len(table) - 1))
    axes = (axes * variances.clamp_min(0).sqrt()).flip(1)[:, :share]
    # The sign of an eigenvector is the library's whim: the largest entry is made positive.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    whole = torch.zeros(count, width, dims)
    for i in range(count):
        whole[i, :, i * share : (i + 1) * share] = axes.float()
    return whole
