"""ShareFirst: every picture of a batch also reads the first one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fromfew.ports.attention import AttentionPart, Call, Site

__all__ = ["ShareFirst", "adain"]


def adain(z: Tensor, like: Tensor) -> Tensor:
    """``z`` with the mean and spread of ``like`` over tokens, per head and channel; both ``[B, H, L, D]``."""
    mean, spread = z.mean(2, keepdim=True), (z.var(2, keepdim=True) + 1e-5).sqrt()
    other, wide = like.mean(2, keepdim=True), (like.var(2, keepdim=True) + 1e-5).sqrt()
    return (z - mean) / spread * wide + other


class ShareFirst(AttentionPart):
    """Self-attention reads the first picture of the row's own branch too (StyleAligned, arXiv:2312.02133).

    Picture queries and keys first take the first picture's statistics (AdaIN); its keys and values are then
    added. The first picture itself stays as it is, bit for bit.

    Args:
        scale: Factor of the first picture's keys.
        shift: Added to the scores of the first picture's keys; log 2 doubles its weight.
        match: Whether queries and keys take its statistics.
        from_depth: Only sites at least this deep share, 0 (all) to 1.
    """

    kind = "share"
    couples_images = True

    def __init__(self, scale: float = 1.0, shift: float = 0.0, match: bool = True, from_depth: float = 0.0) -> None:
        super().__init__()
        self.scale, self.shift, self.match, self.from_depth = scale, shift, match, from_depth

    def where(self, site: Site) -> bool:
        """Where pictures read pictures."""
        return site.kind in ("self", "joint") and site.depth >= self.from_depth

    def qkv(self, call: Call) -> Call:
        """Statistics of the first picture, and its keys and values beside each row's own.

        At strength s below 1, log s more is added to the scores, so that its weight falls to nothing at 0.
        The first rows' own bits are put back in `settle`.
        """
        first = call.rows.first_of_branch().to(call.q.device)
        image = call.image
        q, k = call.q, call.k
        if self.match:
            blend = min(1.0, call.strength)
            q, k = _matched(q, first, image, blend), _matched(k, first, image, blend)
        k = torch.cat([k, self.scale * call.k[first][:, :, image]], dim=2)
        v = torch.cat([call.v, call.v[first][:, :, image]], dim=2)
        call.state[call.site.name] = call
        new = call.replace(q=q, k=k, v=v)
        shift = self.shift + math.log(max(call.strength, 1e-9))
        if shift:
            added = torch.zeros(1, 1, 1, k.shape[2], device=k.device, dtype=k.dtype)
            added[..., call.k.shape[2] :] = shift
            new.bias = added if new.bias is None else new.bias + added
        return new

    def settle(self, call: Call, y: Tensor) -> Tensor:
        """The shared reading; rows of first pictures read as they would alone."""
        plain: Call = call.state.pop(call.site.name)
        first = plain.rows.first_of_branch().to(y.device)
        alone = (first == torch.arange(len(first), device=y.device)).nonzero().flatten()
        bias = plain.bias
        if bias is not None and bias.dim() == 4 and len(bias) == len(first):
            bias = bias[alone]
        own = scaled_dot_product_attention(plain.q[alone], plain.k[alone], plain.v[alone], attn_mask=bias)
        return y.index_copy(0, alone, own.to(y.dtype))

    def config(self) -> dict[str, Any]:
        """All settings."""
        return {"scale": self.scale, "shift": self.shift, "match": self.match, "from_depth": self.from_depth}

    def __repr__(self) -> str:
        return f"ShareFirst(scale={self.scale:g}, shift={self.shift:g})"


def _matched(z: Tensor, first: Tensor, image: slice, blend: float) -> Tensor:
    """Picture tokens with the first picture's statistics; text tokens as they are."""
    own = z[:, :, image]
    new = adain(own, own[first])
    new = new if blend >= 1 else own + blend * (new - own)
    return torch.cat([z[:, :, : image.start], new, z[:, :, image.stop :]], dim=2)
