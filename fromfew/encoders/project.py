"""From an image encoder's features to a few tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Projector", "Resampler"]


class Projector(nn.Module):
    """A pooled vector to ``tokens`` tokens: one linear map, a layer norm (IP-Adapter, arXiv:2308.06721)."""

    def __init__(self, wide: int, width: int, tokens: int) -> None:
        super().__init__()
        self.proj, self.norm, self.tokens = nn.Linear(wide, width * tokens), nn.LayerNorm(width), tokens

    def forward(self, seen: Tensor) -> Tensor:
        """``[B, wide]`` to ``[B, tokens, width]``."""
        return self.norm(self.proj(seen).unflatten(1, (self.tokens, -1)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_q = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        asked = self.norm_q(q)
        k, v = self.to_kv(torch.cat([self.norm_x(x), asked], 1)).chunk(2, -1)
        split = [z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (self.to_q(asked), k, v)]
        q = q + self.out(scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))
        return q + self.mlp(q)


class Resampler(nn.Module):
    """Learned queries that read all patches, block after block (IP-Adapter Plus, arXiv:2308.06721).

    The defaults give heads of 64 and four blocks, which is what other tools expect in a file.
    """

    def __init__(self, wide: int, width: int, tokens: int, *, inner: int = 128, depth: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, tokens, inner) / inner**0.5)
        self.proj_in, self.blocks = (
            nn.Linear(wide, inner),
            nn.ModuleList(_Block(inner, heads) for _ in range(depth)),
        )
        self.proj_out, self.norm = nn.Linear(inner, width), nn.LayerNorm(width)

    def forward(self, seen: Tensor) -> Tensor:
        """``[B, N, wide]`` to ``[B, tokens, width]``."""
        x, q = self.proj_in(seen), self.queries.expand(len(seen), -1, -1)
        for block in self.blocks:
            q = block(x, q)
        return self.norm(self.proj_out(q))
