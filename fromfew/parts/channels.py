"""Channels: a factor for every output, or every input, of a map ((IA)³)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fromfew.parts._over import Over
from fromfew.ports.linear import flat

__all__ = ["Channels"]


class Channels(Over):
    """``y = (1 + s) ∘ (W x + b)``, or ``y = W ((1 + s) ∘ x) + b``, with ``s = 0`` at the start (arXiv:2205.05638).

    Args:
        shapes: Path of each weight and bias to its shape.
        inputs: Weights whose inputs are scaled; those of all others scale their outputs.
    """

    kind = "channels"

    def __init__(self, shapes: Mapping[str, Sequence[int]], inputs: Sequence[str] = ()) -> None:
        super().__init__(shapes)
        self.inputs = tuple(inputs)
        weights = {path: shape for path, shape in self._shapes.items() if path.endswith(".weight")}
        self.factors = nn.ParameterDict(
            {flat(path): torch.zeros(shape[1] if path in self.inputs else shape[0]) for path, shape in weights.items()}
        )

    @classmethod
    def of(cls, outputs: Mapping[str, nn.Module], inputs: Mapping[str, nn.Module]) -> Channels:
        """Over the outputs of some maps (weight and bias) and the inputs of others."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, module in {**outputs, **inputs}.items():
            kept = ("weight",) if path in inputs else ("weight", "bias")
            for name, value in module.named_parameters(recurse=False):
                if name in kept:
                    shapes[f"{path}.{name}"] = tuple(value.shape)
        return cls(shapes, [f"{path}.weight" for path in inputs])

    def factor(self, path: str) -> Tensor:
        """The factors that belong to a weight or bias."""
        return self.factors[flat(f"{path.rpartition('.')[0]}.weight")]

    def sources(self, path: str) -> Sequence[Tensor]:
        """Those factors; a bias has those of its weight."""
        return [self.factor(path)]

    def delta_of(self, path: str, base: Tensor) -> Tensor:
        """``s ∘ W`` along the axis that is scaled."""
        axis = 1 if path in self.inputs else 0
        shape = [1] * base.dim()
        shape[axis] = -1
        return base.detach().float() * self.factor(path).view(shape)

    def settings(self) -> dict[str, list[str]]:
        """Which weights scale their inputs."""
        return {"inputs": list(self.inputs)}
