"""ReferenceBlocks: the picture reads, place by place, what the same model sees in a photo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from fromfew.errors import FromfewError
from fromfew.ports.attention import AttentionPart, Call, Site
from fromfew.ports.linear import flat
from fromfew.ports.part import Handle, entry_of
from fromfew.rows import Now

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["ReferenceBlocks", "otsu"]

_LEVELS = 10


def otsu(values: Tensor, levels: int = _LEVELS) -> Tensor:
    """``[N]`` truth values: above the threshold that parts ``values`` ``[N]`` best (Otsu, 1979); all if they are equal.

    >>> otsu(torch.tensor([0.0, 0.1, 0.9, 1.0])).tolist()
    [False, False, True, True]
    """
    low, high = values.amin(), values.amax()
    level = ((values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny) * levels).long()
    level = level.clamp(max=levels - 1)
    counts = values.new_zeros(levels, dtype=torch.float32).index_add(0, level, torch.ones_like(level).float())
    centres = torch.arange(levels, device=values.device, dtype=torch.float32)
    below, sums = counts.cumsum(0)[:-1], (counts * centres).cumsum(0)[:-1]
    above, rest = counts.sum() - below, (counts * centres).sum() - sums
    between = below * above * (sums / below.clamp_min(1) - rest / above.clamp_min(1)).square()
    return (level > between.argmax()) | (high == low)


class ReferenceBlocks(AttentionPart):
    """Whole transformer blocks behind the text's blocks, whose context is a photo (ViCo, arXiv:2306.00971).

    Before every prediction the model looks at the photo's clean latents, at the same time and under the same prompts,
    without gradient. At each site the block's features become the context of a block of its own: self-attention,
    attention to those features where the photo shows the subject, and a feed-forward map, each added to what it
    reads. Where the subject is, the attention paid to its word says, cut at Otsu's threshold. Rows whose prompt lacks
    the word take the mask of their picture's other branch, or all of the photo.

    The maps that add are 0 at the start, so that nothing changes.

    Args:
        sites: Name of each cross site to the width of its block.
        heads: Name of each cross site to the number of heads.
        word: The placeholder whose attention shows where the subject is.
        latents: ``[C, h, w]`` of the photo's latents.
    """

    kind = "reference_blocks"

    def __init__(self, sites: Mapping[str, int], heads: Mapping[str, int], word: str, latents: list[int]) -> None:
        super().__init__()
        self._sites, self._heads, self.word, self._latents = dict(sites), dict(heads), word, list(latents)
        self.blocks = nn.ModuleDict(
            {
                flat(name): nn.ParameterDict({key: torch.zeros(shape) for key, shape in _shapes(width).items()})
                for name, width in self._sites.items()
            }
        )
        self.photo: Tensor
        self.register_buffer("photo", torch.zeros(1, *self._latents))
        self.shown: Tensor | None = None

    @classmethod
    def of(cls, bb: Backbone, word: str, photo: Tensor, rng: Generator) -> Self:
        """Behind every second block that reads text, from the middle of the model on.

        On Stable Diffusion 1.x these are the blocks 8, 10, 12 and 14 of 16.

        Args:
            bb: The base.
            word: The placeholder.
            photo: ``[1, C, h, w]`` latents of the photo that is kept.
            rng: Chance.

        Raises:
            FromfewError: If the base has no blocks that read text apart.
        """
        cross = sorted((site for site in bb.sites.values() if site.kind == "cross"), key=lambda site: site.index)
        chosen = cross[len(cross) // 2 :: 2]
        if not chosen:
            raise FromfewError(f"A photo is read behind blocks that read text apart, and {bb.name} has none.")
        names = {site.name: site.width for site in chosen}
        part = cls(names, {site.name: site.heads for site in chosen}, word, list(photo.shape[1:]))
        part.photo.copy_(photo.detach().cpu())
        with torch.no_grad():
            for block in part.blocks.values():
                assert isinstance(block, nn.ParameterDict)
                for name, value in block.items():
                    if name.startswith("norm") and name.endswith("weight"):
                        value.fill_(1.0)
                    elif value.dim() == 2 and name not in _ADDING:
                        value.copy_(torch.randn(value.shape, generator=rng) * value.shape[1] ** -0.5)
        return part

    def show(self, latents: Tensor) -> None:
        """While it learns: what each row looks at, ``[B, C, h, w]``, instead of the photo that is kept."""
        self.shown = latents.detach()

    def train(self, mode: bool = True) -> Self:
        """Forget what was shown for learning when learning ends."""
        if not mode:
            self.shown = None
        return super().train(mode)

    def where(self, site: Site) -> bool:
        """The sites it has blocks for."""
        return site.name in self._sites

    def probs(self, call: Call, p: Tensor) -> Tensor:
        """Notes what is read of the text while the model looks at the photo."""
        if call.state.get("looking"):
            call.state["maps"][call.site.name] = p[:, :, call.image, call.text].mean(1).detach()
        return p

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Look before every prediction; read behind every block."""
        handle, state = super().attach(bb, strength), entry_of(bb, self).state
        for name in self._sites:
            block = bb.module(name.rpartition(".")[0])
            handle.also(block.register_forward_hook(self._reading(bb, name, state, strength)).remove)
        looking = bb.denoiser.register_forward_pre_hook(self._looking(bb, state), with_kwargs=True)
        handle.also(looking.remove)
        return handle

    def _looking(self, bb: Backbone, state: MutableMapping[str, Any]) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now = bb.now
            if now is None or state.get("looking"):
                return
            latents = self.photo if self.shown is None or len(self.shown) != len(args[0]) else self.shown
            latents = latents.to(args[0]).expand(len(args[0]), -1, -1, -1)
            state.update(looking=True, maps={}, seen={})
            bb.now = replace(now, latent=bb._grid(latents))
            try:
                with torch.no_grad():
                    module(latents, *args[1:], **kwargs)
            finally:
                bb.now, state["looking"] = now, False

        return look

    def _reading(
        self, bb: Backbone, name: str, state: MutableMapping[str, Any], strength: float
    ) -> Callable[..., Tensor | None]:
        def read(module: nn.Module, args: Any, y: Tensor) -> Tensor | None:
            if bb.now is None or "seen" not in state:
                return None
            if state["looking"]:
                state["seen"][name] = y.detach()
                return None
            keep = self.mask(state["maps"][name], bb.now)
            new = self._block(name, y, state["seen"][name], keep)
            on = bb.now.rows.speaks_of(self.word).view(-1, 1, 1).to(y.device)
            return torch.where(on, y + strength * (new - y), y)

        return read

    def mask(self, maps: Tensor, now: Now) -> Tensor:
        """``[B, N]`` where the photo shows the subject, from the text's maps ``[B, N, L]`` at one site."""
        places = [words.get(self.word, []) for words in now.words] or [[]] * len(maps)
        image = now.rows.image.tolist()
        own = {image[row]: otsu(maps[row][:, at].float().mean(1)) for row, at in enumerate(places) if at}
        whole = torch.ones(maps.shape[1], dtype=torch.bool, device=maps.device)
        return torch.stack([own.get(number, whole) for number in image])

    def _block(self, name: str, y: Tensor, seen: Tensor, keep: Tensor) -> Tensor:
        w: Any = self.blocks[flat(name)]
        heads, width = self._heads[name], (self._sites[name],)

        def attend(kind: str, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
            def split(z: Tensor) -> Tensor:
                return z.unflatten(-1, (heads, -1)).transpose(1, 2)

            q, k, v = (split(F.linear(z, w[f"{kind}_{r}"])) for r, z in (("q", x), ("k", context), ("v", context)))
            read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
            return F.linear(read, w[f"{kind}_out"], w[f"{kind}_bias"])

        x, seen = y.to(w["self_q"].dtype), seen.to(w["self_q"].dtype)
        h = F.layer_norm(x, width, w["norm1_weight"], w["norm1_bias"])
        x = x + attend("self", h, h, None)
        h = F.layer_norm(x, width, w["norm2_weight"], w["norm2_bias"])
        x = x + attend("photo", h, seen, keep[:, None, None, :])
        h = F.layer_norm(x, width, w["norm3_weight"], w["norm3_bias"])
        a, gate = F.linear(h, w["wide"], w["wide_bias"]).chunk(2, -1)
        return (x + F.linear(a * F.gelu(gate), w["narrow"], w["narrow_bias"])).to(y.dtype)

    def check(self, bb: Backbone) -> None:
        """Every site must exist, with the width and heads that were learned, and latents have their channels."""
        for name, width in self._sites.items():
            site = bb.sites.get(name)
            if site is None or site.kind != "cross" or (site.width, site.heads) != (width, self._heads[name]):
                raise FromfewError(f"{self!r} does not fit {bb.name}: no block '{name}' of width {width} reads text.")
        if self._latents[0] != bb.latent_channels:
            raise FromfewError(f"{self!r} does not fit {bb.name}: its photo has {self._latents[0]} channels.")

    def config(self) -> dict[str, Any]:
        """Sites, heads, word, and the shape of the photo's latents."""
        return {"sites": self._sites, "heads": self._heads, "word": self.word, "latents": self._latents}

    def __repr__(self) -> str:
        return f"ReferenceBlocks({len(self._sites)} blocks, {self.word})"


_ADDING = ("self_out", "photo_out", "narrow")


def _shapes(d: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of everything in one block of width ``d``: about ``20 d²`` numbers."""
    square = (f"{kind}_{role}" for kind in ("self", "photo") for role in ("q", "k", "v", "out"))
    norms = (f"norm{i}_{what}" for i in (1, 2, 3) for what in ("weight", "bias"))
    return {
        **dict.fromkeys(square, (d, d)),
        **dict.fromkeys(("self_bias", "photo_bias", "narrow_bias", *norms), (d,)),
        "wide": (8 * d, d), "wide_bias": (8 * d,), "narrow": (d, 4 * d),
    }  # fmt: skip
