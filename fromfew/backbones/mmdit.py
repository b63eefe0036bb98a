"""Stable Diffusion 3 and 3.5: a transformer that attends to text and image together."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fromfew.backbones.base import Backbone
from fromfew.backbones.text import Text
from fromfew.ports.attention import Site

_PIECES = {"q": "query", "k": "key", "v": "value"}


class MMDiTBackbone(Backbone):
    """Joint attention over image tokens, then text tokens (Esser et al., arXiv:2403.03206).

    Two CLIP encoders are joined by width and padded; T5's tokens follow them, or zeros where T5 was left out.
    """

    family = "mmdit"

    @property
    def patch(self) -> int:  # type: ignore[override]
        """Latents per side that the transformer joins to one token."""
        return int(self.denoiser.config.patch_size)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.denoiser.config.in_channels)

    def _find_sites(self) -> dict[str, Site]:
        found: list[tuple[str, Any, Literal["joint", "self"]]] = []
        for number, block in enumerate(self.denoiser.transformer_blocks):
            found.append((f"denoiser.transformer_blocks.{number}.attn", block.attn, "joint"))
            if getattr(block, "attn2", None) is not None:
                found.append((f"denoiser.transformer_blocks.{number}.attn2", block.attn2, "self"))
        return {
            name: Site(
                name=name,
                module=module,
                kind=kind,
                depth=index / max(1, len(found) - 1),
                heads=module.heads,
                width=module.inner_dim,
                index=index,
                layout="image+text" if kind == "joint" else "image",
                context_width=None,
            )
            for index, (name, module, kind) in enumerate(found)
        }

    def _labels(self, path: str) -> Sequence[str]:
        return joint_labels(path)

    def _compose(self, prompts: Sequence[str | None]) -> Text:
        first, spliced = self._read("one", prompts)
        second, _ = self._read("two", prompts)
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        pooled = torch.cat([first.text_embeds, second.text_embeds], -1)
        words, warnings = spliced.where, self._warn(spliced)
        width = self.denoiser.config.joint_attention_dim
        if "three" in self.text_encoders:
            out, long = self._read("three", prompts)
            tail = out.last_hidden_state
            words = [_merged(a, b, clip.shape[1]) for a, b in zip(words, long.where, strict=True)]
        else:
            tail = clip.new_zeros(len(prompts), self.defaults.long_text, width)
        states = torch.cat([nn.functional.pad(clip, (0, width - clip.shape[-1])), tail], 1)
        return self._edited(Text(tuple(prompts), states, pooled, words=tuple(words), warnings=warnings))

    def _call(self, xt: Tensor, t: Tensor, text: Text) -> Tensor:
        return self.denoiser(
            hidden_states=xt,
            timestep=self.path.index(t.to(xt.device)),
            encoder_hidden_states=text.states,
            pooled_projections=text.pooled,
            return_dict=False,
        )[0]

    def _grid(self, xt: Tensor) -> tuple[int, int]:
        return xt.shape[-2] // self.patch, xt.shape[-1] // self.patch


def joint_labels(path: str) -> Sequence[str]:
    """Select names of a linear in a transformer whose attention reads text and image together."""
    if match := re.search(r"\.attn2?\.add_([qkv])_proj$", path):
        return "all", "attention", "text", f"text.{_PIECES[match[1]]}"
    if path.endswith(".attn.to_add_out"):
        return "all", "attention", "text", "text.out"
    if match := re.search(r"\.attn2?\.to_([qkv])$", path):
        return "all", "attention", "self", f"self.{_PIECES[match[1]]}"
    if re.search(r"\.attn2?\.to_out\.0$", path):
        return "all", "attention", "self", "self.out"
    return ("all", "mlp") if re.search(r"\.ff(_context)?\.net\.|\.proj_(mlp|out)$", path) else ("all",)


def _merged(first: dict[str, list[int]], second: dict[str, list[int]], offset: int) -> dict[str, list[int]]:
    """Positions in two encoders' tokens that follow each other."""
    keys = dict.fromkeys([*first, *second])
    return {key: [*first.get(key, []), *(at + offset for at in second.get(key, []))] for key in keys}
