"""FullDelta: a free difference of whole parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fromfew.ports.linear import DeltaPart, flat

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["FullDelta"]


class FullDelta(DeltaPart):
    """A difference ``W - W0`` of every named parameter, 0 at the start.

    Args:
        shapes: Parameter path to shape, as found in the backbone.
    """

    kind = "full"

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self._shapes = {path: tuple(shape) for path, shape in shapes.items()}
        self.deltas = nn.ParameterDict({flat(path): torch.zeros(shape) for path, shape in self._shapes.items()})

    @classmethod
    def of(cls, bb: Backbone, *paths: str) -> FullDelta:
        """Every parameter at or below these module paths, such as ``"denoiser"`` or one linear map."""
        shapes = {
            f"{path}.{name}": tuple(parameter.shape)
            for path in paths
            for name, parameter in bb.module(path).named_parameters()
        }
        return cls(shapes)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameter path to shape."""
        return self._shapes

    def delta(self, path: str) -> Tensor:
        """The difference of one parameter."""
        return self.deltas[flat(path)]

    def sources(self, path: str) -> Sequence[Tensor]:
        """That difference."""
        return [self.deltas[flat(path)]]

    def config(self) -> dict[str, Any]:
        """Paths and shapes."""
        return {"shapes": {path: list(shape) for path, shape in self._shapes.items()}}

    def __repr__(self) -> str:
        return f"FullDelta({len(self._shapes)} parameters)"
