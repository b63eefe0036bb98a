"""Stable Diffusion 1.x (eps), 2.x (v) and SDXL: a UNet that reads text by cross-attention."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from fromfew.backbones.base import Backbone, Defaults
from fromfew.backbones.text import Text
from fromfew.errors import FromfewError
from fromfew.ports.attention import Site
from fromfew.ports.place import bypassed

_PIECES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}


class UNetBackbone(Backbone):
    """A UNet with one or two CLIP text encoders; raises `FromfewError` for one that edits pictures.

    With two (SDXL) the second-to-last hidden states of both are joined by width, the second encoder's
    projection is pooled, and the picture's size is told to the UNet as six numbers (Podell et al.,
    arXiv:2307.01952).
    """

    family = "unet"

    def __init__(self, name: str, components: Mapping[str, Any], defaults: Defaults) -> None:
        self._xl = components.get("text_encoder_2") is not None
        self._zeros_for_none = self._xl and components.get("force_zeros_for_empty_prompt", True)
        super().__init__(name, components, defaults)
        takes = self.denoiser.config.in_channels
        if takes != self.latent_channels:
            raise FromfewError(
                f"'{name}' reads {takes} channels where its latents have {self.latent_channels}: it is made "
                "for inpainting or editing, which fromfew does not do. Open the plain text-to-image model."
            )

    def _find_sites(self) -> dict[str, Site]:
        found = [(path, m) for path, m in self.denoiser.named_modules() if isinstance(m, Attention)]
        order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
        found.sort(key=lambda pair: order[pair[0].split(".")[0]])  # a stable sort: blocks are registered in order
        sites: dict[str, Site] = {}
        for index, (path, module) in enumerate(found):
            cross = path.endswith("attn2")
            sites[f"denoiser.{path}"] = Site(
                name=f"denoiser.{path}",
                module=module,
                kind="cross" if cross else "self",
                depth=index / max(1, len(found) - 1),
                heads=module.heads,
                width=module.inner_dim,
                index=index,
                layout="cross" if cross else "image",
                context_width=module.to_k.in_features if cross else None,
                value=module.to_v if cross else None,
            )
        return sites

    def _labels(self, path: str) -> Sequence[str]:
        if match := re.search(r"\.(attn[12])\.(to_q|to_k|to_v|to_out\.0)$", path):
            owner = "text" if match[1] == "attn2" else "self"
            return "all", "attention", owner, f"{owner}.{_PIECES[match[2]]}"
        return ("all", "mlp") if ".ff.net." in path else ("all",)

    def _compose(self, prompts: Sequence[str | None]) -> Text:
        out, spliced = self._read("one", prompts)
        text = Text(tuple(prompts), out.last_hidden_state, words=tuple(spliced.where), warnings=self._warn(spliced))
        if not self._xl:
            past = bypassed(self, "one", out.hidden_states[-1], spliced)
            norm: Any = self.text_encoders["one"].model.final_layer_norm if past is not None else None
            return self._edited(replace(text, values=None if past is None else norm(past)))
        second, other = self._read("two", prompts)
        states = (out.hidden_states[-2], second.hidden_states[-2])
        first = bypassed(self, "one", states[0], spliced)
        last = bypassed(self, "two", states[1], other)
        values = None
        if first is not None or last is not None:
            values = torch.cat([states[0] if first is None else first, states[1] if last is None else last], -1)
        text = replace(text, states=torch.cat(states, -1), pooled=second.text_embeds, values=values)
        return self._edited(self._blanked(text) if self._zeros_for_none else text)

    def _blanked(self, text: Text) -> Text:
        """No prompt at all is read as zeros, as SDXL was trained."""
        keep = torch.tensor([prompt is not None for prompt in text.prompts], device=self.device).view(-1, 1)
        assert text.pooled is not None
        values = None if text.values is None else text.values * keep[..., None]
        return replace(text, states=text.states * keep[..., None], pooled=text.pooled * keep, values=values)

    def _call(self, xt: Tensor, t: Tensor, text: Text) -> Tensor:
        added = None
        if self._xl:
            size = text.extra.get("size")
            if size is None:
                height, width = xt.shape[-2] * self.down, xt.shape[-1] * self.down
                size = xt.new_tensor([height, width, 0, 0, height, width]).expand(len(xt), 6)
            added = {"text_embeds": text.pooled, "time_ids": size}
        index = self.path.index(t.to(xt.device))
        return self.denoiser(xt, index, text.states, added_cond_kwargs=added, return_dict=False)[0]

    def _grid(self, xt: Tensor) -> tuple[int, int]:
        return xt.shape[-2], xt.shape[-1]
