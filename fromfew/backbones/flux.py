"""FLUX: a flow transformer over text tokens, then image tokens packed two by two."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fromfew.backbones.base import Backbone
from fromfew.backbones.mmdit import joint_labels
from fromfew.backbones.text import Text
from fromfew.ports.attention import Site


class FluxBackbone(Backbone):
    """Double blocks keep text and image apart but for attention; single blocks receive them joined.

    Only T5's states are attended to; CLIP is pooled. Models distilled from guidance read its scale as a
    number, ``text.extra["guidance"]``, by default the backbone's own.
    """

    family = "flux"
    patch = 2
    even_times = True

    @property
    def distilled(self) -> bool:  # type: ignore[override]
        """Whether guidance is told to the model as a number instead of being computed from two branches."""
        return bool(self.denoiser.config.guidance_embeds)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.denoiser.config.in_channels) // 4

    def _find_sites(self) -> dict[str, Site]:
        blocks = ("transformer_blocks", "single_transformer_blocks")
        found: list[tuple[str, Any]] = [
            (f"denoiser.{group}.{number}.attn", block.attn)
            for group in blocks
            for number, block in enumerate(getattr(self.denoiser, group))
        ]
        return {
            name: Site(
                name=name,
                module=module,
                kind="joint",
                depth=index / max(1, len(found) - 1),
                heads=module.heads,
                width=module.inner_dim,
                index=index,
                layout="text+image",
                context_width=None,
            )
            for index, (name, module) in enumerate(found)
        }

    def _labels(self, path: str) -> Sequence[str]:
        return joint_labels(path) if path.startswith(("transformer_blocks", "single_transformer_blocks")) else ("all",)

    def _compose(self, prompts: Sequence[str | None]) -> Text:
        clip, short = self._read("one", prompts)
        out, spliced = self._read("two", prompts)
        # CLIP only pools, so what it cut off is still read by T5 and no reason to warn.
        del short
        text = Text(tuple(prompts), out.last_hidden_state, clip.pooler_output, words=tuple(spliced.where))
        return self._edited(replace(text, warnings=self._warn(spliced)))

    def _call(self, xt: Tensor, t: Tensor, text: Text) -> Tensor:
        height, width = self._grid(xt)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        image_ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).to(xt)
        guidance = None
        if self.distilled:
            default = torch.full((len(xt),), self.defaults.guidance, device=xt.device)
            guidance = text.extra.get("guidance", default).float()
        packed = self.denoiser(
            hidden_states=_pack(xt),
            timestep=(self.path.index(t.to(xt.device)) / 1000).to(xt.dtype),
            guidance=guidance,
            pooled_projections=text.pooled,
            encoder_hidden_states=text.states,
            txt_ids=xt.new_zeros(text.states.shape[1], 3),
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return _unpack(packed, height, width)

    def _grid(self, xt: Tensor) -> tuple[int, int]:
        return xt.shape[-2] // 2, xt.shape[-1] // 2


def _pack(x: Tensor) -> Tensor:
    """``[B, C, 2h, 2w]`` to ``[B, h w, 4 C]``."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), c * 4)


def _unpack(x: Tensor, height: int, width: int) -> Tensor:
    """``[B, h w, 4 C]`` to ``[B, C, 2h, 2w]``."""
    b, _, c = x.shape
    x = x.view(b, height, width, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, c // 4, height * 2, width * 2)
