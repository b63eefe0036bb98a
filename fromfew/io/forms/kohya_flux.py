"""The kohya form of FLUX: blocks named as in the model's original code, where some maps are one map together.

``lora_unet_double_blocks_N_img_attn_qkv`` changes the three maps of attention at once: their downs stand one above the
other, their ups along a diagonal of blocks, so that nothing is lost. Readers take the diagonal apart again. The maps
outside of the blocks (embedders, the last layer) have no names that diffusers would read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.forms.names import owner, wrapped
from fromfew.io.forms.thin import Thin, even

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["names", "read", "write"]

_DOUBLE = {
    "img_attn_proj": ("attn.to_out.0",), "img_mlp_0": ("ff.net.0.proj",), "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",), "txt_attn_proj": ("attn.to_add_out",), "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",), "txt_mod_lin": ("norm1_context.linear",),
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}  # fmt: skip
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}  # fmt: skip
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


def names(bb: Backbone) -> dict[str, str]:
    """Module path to the name of the map it is (part of); maps outside of the blocks get none."""
    found = {}
    for group in _groups(bb).values():
        found.update(dict.fromkeys(group[1], group[0]))
    return found


def _groups(bb: Backbone) -> dict[str, tuple[str, list[str]]]:
    """Name in the form to itself and the module paths that it joins, in their order."""
    found: dict[str, tuple[str, list[str]]] = {}
    for path, _ in bb.denoiser.named_modules():
        match = _BLOCK.fullmatch(path)
        for theirs, ours in (_SINGLE if match and match[1] else _DOUBLE).items():
            if match and match[3] == ours[0]:
                kind = "single" if match[1] else "double"
                name = f"lora_unet_{kind}_blocks_{match[2]}_{theirs}"
                head = f"denoiser.{match[1] or ''}transformer_blocks.{match[2]}."
                found[name] = name, [head + one for one in ours]
    for path in bb.select("encoder.attention", "encoder.mlp"):
        module, rest = owner(path)
        if module == "encoder.one":
            name = f"lora_te1_{wrapped(rest).replace('.', '_')}"
            found[name] = name, [path]
    return found


def _shape(bb: Backbone, path: str) -> tuple[int, int]:
    """Numbers that a linear map gives and takes."""
    weight = bb.module(path).weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0]), int(weight.shape[1])


def write(maps: Mapping[str, Thin], bb: Backbone) -> dict[str, Tensor]:
    """The tensors of a file; every alpha is its map's rank, factors folded into the ups."""
    same, rank, alpha = even(maps)
    tensors: dict[str, Tensor] = {}
    for name, paths in _groups(bb).values():
        if not any(path in same for path in paths):
            continue
        downs, ups = [], []
        for path in paths:
            out, wide = _shape(bb, path)
            one = same.get(path) or Thin(torch.zeros(rank, wide), torch.zeros(out, rank))
            downs.append(one.down)
            ups.append(one.up * (alpha / rank) if path in same else one.up)
        tensors[f"{name}.lora_down.weight"] = torch.cat(downs)
        tensors[f"{name}.lora_up.weight"] = torch.block_diag(*ups)
        tensors[f"{name}.alpha"] = torch.tensor(float(rank * len(paths)))
    return tensors


def read(tensors: Mapping[str, Tensor], bb: Backbone) -> tuple[dict[str, Thin], list[str]]:
    """Thin maps by module path, and the keys that have no place in this base.

    Raises:
        FromfewError: If the file has half a pair, or a map of another size.
    """
    maps: dict[str, Thin] = {}
    used = set()
    for name, paths in _groups(bb).values():
        down, up = tensors.get(f"{name}.lora_down.weight"), tensors.get(f"{name}.lora_up.weight")
        if down is None and up is None:
            continue
        if down is None or up is None:
            raise FromfewError(f"The file has '{name}' with only one of lora_down and lora_up.")
        alpha = tensors.get(f"{name}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        sides = [_shape(bb, path)[0] for path in paths]
        if sum(sides) != up.shape[0] or up.shape[1] != down.shape[0]:
            raise FromfewError(f"'{name}' does not fit '{bb.name}': it gives {up.shape[0]} numbers, not {sum(sides)}.")
        for path, one in zip(paths, _apart(down.float(), up.float(), sides), strict=True):
            if one.up.any():
                maps[path] = Thin(one.down, one.up, scale)
        used |= {f"{name}.{ending}" for ending in ("lora_down.weight", "lora_up.weight", "alpha")}
    return maps, [name for name in tensors if name not in used]


def _apart(down: Tensor, up: Tensor, sides: list[int]) -> list[Thin]:
    """The maps of one joined map: each with its own block of the diagonal, or all with the whole down."""
    rows, count = torch.split(up, sides), len(sides)
    if count > 1 and down.shape[0] % count == 0:
        rank = down.shape[0] // count
        blocks = [row[:, i * rank : (i + 1) * rank] for i, row in enumerate(rows)]
        if all(int(block.count_nonzero()) == int(row.count_nonzero()) for block, row in zip(blocks, rows, strict=True)):
            return [Thin(d, b.contiguous()) for d, b in zip(down.split(rank), blocks, strict=True)]
    return [Thin(down, row.contiguous()) for row in rows]
