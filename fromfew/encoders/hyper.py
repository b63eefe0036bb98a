"""A network that looks at a picture and says numbers for every layer of another (HyperDreamBooth, arXiv:2307.06949)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["HyperNetwork"]


class HyperNetwork(nn.Module):
    """``θ_k = θ_{k-1} + T(f, θ_{k-1})`` from ``θ_0 = 0``: a transformer decoder with one token a layer, asked again.

    The last map is 0 at the start, so that all numbers are.

    Args:
        seen: Width of the picture's features.
        layers: Layers that get numbers.
        numbers: Numbers a layer.
        width: Width of the tokens.
        depth: Blocks of the decoder.
        heads: Heads of its attention.
        passes: How often it is asked.
    """

    def __init__(
        self, seen: int, layers: int, numbers: int, *, width: int = 128, depth: int = 2, heads: int = 4, passes: int = 4
    ) -> None:
        super().__init__()
        self.passes, self.layers, self.numbers = passes, layers, numbers
        self.look, self.enter = nn.Linear(seen, width), nn.Linear(numbers, width)
        self.place = nn.Parameter(torch.randn(layers, width) * 0.02)
        block = nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.decode = nn.TransformerDecoder(block, depth, nn.LayerNorm(width))
        self.leave = nn.Linear(width, numbers)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, seen: Tensor, passes: int | None = None) -> Tensor:
        """``[B, N, seen]`` features to ``[B, layers, numbers]``; ``passes`` other than the usual on demand."""
        memory = self.look(seen)
        found = memory.new_zeros(len(seen), self.layers, self.numbers)
        for _ in range(self.passes if passes is None else passes):
            # Small steps: all numbers of all passes add up in one change of a weight.
            said = self.leave(self.decode(self.enter(found) + self.place, memory))
            found = found + said / (self.numbers * self.passes)
        return found
