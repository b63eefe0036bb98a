"""ImageStream: a picture as a few tokens, read beside the text by keys and values of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fromfew.errors import FromfewError
from fromfew.ports.attention import AttentionPart, Call, Site, Stream
from fromfew.ports.linear import flat

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["ImageStream"]


class ImageStream(AttentionPart):
    """``y + scale · softmax(Q K'ᵀ) V'`` with ``K', V'`` from its tokens (IP-Adapter, arXiv:2308.06721).

    Queries are the picture's own. Rows of other branches than "cond" read the tokens of no picture.

    Args:
        sites: Name of each site to the width of its queries.
        width: Width of the picture's tokens.
        tokens: How many there are.
        scale: Weight of the stream.
    """

    kind = "image_stream"

    def __init__(self, sites: Mapping[str, int], width: int, tokens: int, scale: float = 1.0) -> None:
        super().__init__()
        self._sites, self.width, self.count, self.scale = dict(sites), width, tokens, scale
        self.key = nn.ParameterDict({flat(name): torch.zeros(out, width) for name, out in sites.items()})
        self.value = nn.ParameterDict({flat(name): torch.zeros(out, width) for name, out in sites.items()})
        self.tokens: Tensor
        self.nothing: Tensor
        self.register_buffer("tokens", torch.zeros(1, tokens, width))
        self.register_buffer("nothing", torch.zeros(1, tokens, width))
        self.rows: Tensor | None = None

    @classmethod
    def of(cls, bb: Backbone, width: int, tokens: int) -> ImageStream:
        """A pair of maps per site that reads text, copies of the text's own where their widths agree."""
        sites = {site.name: site.width for site in bb.sites.values() if site.reads_text}
        part = cls(sites, width, tokens)
        text = {**bb.select("text.key"), **bb.select("text.value")}
        with torch.no_grad():
            for name in sites:
                for role, into in (("k", part.key), ("v", part.value)):
                    own = [
                        m for path, m in text.items() if path.startswith(name + ".") and f"_{role}" in path[len(name) :]
                    ]
                    target = into[flat(name)]
                    if own and own[0].weight.shape == target.shape:
                        target.copy_(own[0].weight)
                    else:
                        target.copy_(_spread(target.shape, name + role))
        return part

    def holding(self, tokens: Tensor, nothing: Tensor, scale: float = 1.0) -> ImageStream:
        """The same maps (shared, not copied) with a picture's tokens.

        Args:
            tokens: ``[1, tokens, width]`` one picture for all rows, or ``[B, tokens, width]`` one a row.
            nothing: ``[1, tokens, width]`` what rows without a picture read.
            scale: Weight of the stream.
        """
        with torch.device("meta"):
            part = ImageStream(self._sites, self.width, self.count, scale)
        part.key, part.value = self.key, self.value
        part.tokens = tokens[:1].detach()
        part.rows = tokens if tokens.requires_grad or len(tokens) > 1 else None
        part.nothing = nothing
        return part

    def where(self, site: Site) -> bool:
        """The sites it has maps for."""
        return site.name in self._sites

    def extra(self, call: Call) -> Iterable[Stream]:
        """One stream: the picture's tokens, projected."""
        name = flat(call.site.name)
        held = self.tokens if self.rows is None else self.rows
        on = call.rows.is_("cond").view(-1, 1, 1)
        tokens = torch.where(on, held.to(call.q), self.nothing.to(call.q))
        heads = (len(tokens), self.count, call.site.heads, -1)
        k = linear(tokens, self.key[name].to(call.q)).view(heads).transpose(1, 2)
        v = linear(tokens, self.value[name].to(call.q)).view(heads).transpose(1, 2)
        yield Stream(k, v, weight=self.scale * call.strength, queries=call.image)

    def check(self, bb: Backbone) -> None:
        """Every site must exist with the width that was learned."""
        for name, width in self._sites.items():
            site = bb.sites.get(name)
            if site is None or site.width != width:
                raise FromfewError(f"{self!r} does not fit {bb.name}: it has no attention '{name}' of width {width}.")

    def config(self) -> dict[str, Any]:
        """Sites, widths, number of tokens and scale."""
        return {"sites": self._sites, "width": self.width, "tokens": self.count, "scale": self.scale}

    def __repr__(self) -> str:
        return f"ImageStream({len(self._sites)} sites, tokens={self.count}, scale={self.scale:g})"


def _spread(shape: torch.Size, name: str) -> Tensor:
    """Fixed small numbers for maps that have nothing to be copied from; the same on every machine."""
    seed = sum((i + 1) * byte for i, byte in enumerate(name.encode()))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[1] ** -0.5
