"""RankOne: maps that read the text answer otherwise where they read one concept, and stay as they are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fromfew.errors import FromfewError
from fromfew.ports.linear import LinearPart, flat

__all__ = ["RankOne"]


class RankOne(LinearPart):
    """``h = W e - (s/n) W i + σ((s/n - β)/τ) o`` with ``s = eᵀ C⁻¹ i`` and ``n = iᵀ C⁻¹ i`` (arXiv:2305.01644).

    ``i`` is the concept's encoding and C the second moment of encodings. Keys are locked: their ``o`` is ``W e`` of
    the class word, computed from the base. Values have a learned ``o`` each. While it learns, β and τ are others than
    afterwards. Parts of several concepts add up, each taking its own direction out of ``e``.

    Args:
        keys: Path of each map that makes keys to its ``(out, in)``.
        values: Path of each map that makes values to its ``(out, in)``.
        gate: β and τ.
        learning_gate: β and τ while it learns.
        locked: Whether keys are edited when drawing; False where they are then made from another text.
    """

    kind = "rank_one"

    def __init__(
        self, keys: Mapping[str, Sequence[int]], values: Mapping[str, Sequence[int]],
        gate: Sequence[float] = (0.7, 0.15), learning_gate: Sequence[float] = (0.75, 0.1), locked: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self._keys = {path: (int(shape[0]), int(shape[1])) for path, shape in keys.items()}
        self._values = {path: (int(shape[0]), int(shape[1])) for path, shape in values.items()}
        (self.beta, self.tau), self.learning_gate = map(float, gate), (float(learning_gate[0]), float(learning_gate[1]))
        self.locked = locked
        width = next(iter(self._values.values()))[1]
        self.outputs = nn.ParameterDict({flat(path): torch.zeros(shape[0]) for path, shape in self._values.items()})
        self.concept: Tensor
        self.dual: Tensor
        self.noun: Tensor
        for name in ("concept", "dual", "noun"):
            self.register_buffer(name, torch.zeros(width))

    @classmethod
    def of(
        cls, keys: Mapping[str, nn.Linear], values: Mapping[str, nn.Linear], noun: Tensor, moment: Tensor, **gates: Any
    ) -> RankOne:
        """Over these maps: the concept begins as the encoding of its class word, values as what they make of it.

        Args:
            keys: Maps that make keys.
            values: Maps that make values.
            noun: ``[C]`` encoding of the class word.
            moment: ``[C, C]`` second moment of encodings.
            **gates: As for the part.
        """
        shapes = [{path: tuple(m.weight.shape) for path, m in maps.items()} for maps in (keys, values)]
        part = cls(shapes[0], shapes[1], **gates)
        with torch.no_grad():
            noun = noun.detach().float().cpu()
            part.noun.copy_(noun)
            part.meet(noun, moment)
            for path, module in values.items():
                part.outputs[flat(path)].copy_(linear(noun, module.weight.detach().float().cpu()))
        return part

    @torch.no_grad()
    def meet(self, encoding: Tensor, moment: Tensor, keep: float = 0.0) -> None:
        """Move the concept's encoding: ``keep`` of what it was, the rest from ``encoding`` ``[C]``."""
        self.concept.copy_(keep * self.concept + (1 - keep) * encoding.to(self.concept))
        self.dual.copy_(torch.linalg.solve(moment.double().cpu(), self.concept.double().cpu()))

    def targets(self) -> Mapping[str, tuple[int, ...]]:
        """Keys and values."""
        return {**self._keys, **self._values}

    def share(self, x: Tensor) -> Tensor:
        """``s/n`` of encodings ``[..., C]``: 1 at the concept, 0 at what is orthogonal to it."""
        x = x.float()
        return (x @ self.dual) / (self.concept @ self.dual).clamp_min(1e-12)

    def open(self, share: Tensor) -> Tensor:
        """The gate's value."""
        beta, tau = self.learning_gate if self.training else (self.beta, self.tau)
        return torch.sigmoid((share - beta) / tau)

    def apply_on(self, path: str, x: Tensor, weight: Tensor) -> Tensor:
        """What is added to ``W x``."""
        share = self.share(x)[..., None]
        if path in self._keys and not self.locked and not self.training:
            return x.new_zeros(())
        weight = weight.detach().float()
        output = linear(self.noun, weight) if path in self._keys else self.outputs[flat(path)]
        return self.open(share) * output - share * linear(self.concept, weight)

    def apply_to(self, path: str, x: Tensor) -> Tensor:
        """Not without the map's weight.

        Raises:
            FromfewError: Always.
        """
        raise FromfewError(f"{self!r} needs the weight of '{path}': ask apply_on.")

    def delta(self, path: str) -> Tensor:
        """There is none: what is added depends on what is read.

        Raises:
            FromfewError: Always.
        """
        raise FromfewError(f"{self!r} is gated by what is read; no change of weights can hold it.")

    def config(self) -> dict[str, Any]:
        """Shapes and gates."""
        return {
            "keys": {path: list(shape) for path, shape in self._keys.items()},
            "values": {path: list(shape) for path, shape in self._values.items()},
            "gate": [self.beta, self.tau], "learning_gate": list(self.learning_gate), "locked": self.locked,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"RankOne({len(self._keys)} keys, {len(self._values)} values, beta={self.beta:g}, tau={self.tau:g})"
