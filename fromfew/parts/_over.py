"""What parts share that change whole weights: each weight has numbers of its own under its flattened path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fromfew.ports.linear import DeltaPart, flat

__all__ = ["Over", "weights_of"]


def weights_of(maps: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Path and shape of the weight of every linear map or convolution, by the module's path."""
    return {f"{path}.weight": tuple(module.weight.shape) for path, module in maps.items()}  # type: ignore[union-attr, misc, arg-type]


class Over(DeltaPart):
    """A change of whole parameters.

    Args:
        shapes: Parameter path to shape, as found in the backbone.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self._shapes = {path: tuple(shape) for path, shape in shapes.items()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameter path to shape."""
        return self._shapes

    def sources(self, path: str) -> Sequence[Tensor]:
        """The numbers under this path."""
        return list(self.own(path).values())

    def own(self, path: str) -> dict[str, Tensor]:
        """What was learned for one parameter, by the name of the set it lies in."""
        name = flat(path)
        sets = {key: found for key, found in self.named_children() if isinstance(found, nn.ParameterDict)}
        return {key: found[name] for key, found in sets.items() if name in found}

    def settings(self) -> dict[str, Any]:
        """What else `build` needs."""
        return {}

    def config(self) -> dict[str, Any]:
        """Shapes and settings."""
        return {"shapes": {path: list(shape) for path, shape in self._shapes.items()}, **self.settings()}

    def __repr__(self) -> str:
        told = "".join(f", {key}={value:g}" if isinstance(value, float) else f", {key}={value}"
                       for key, value in self.settings().items() if not isinstance(value, dict | list))  # fmt: skip
        return f"{type(self).__name__}({len(self._shapes)} parameters{told})"
