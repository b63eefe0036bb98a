"""LoRA as sd-scripts writes it and A1111 and ComfyUI read it: ``lora_unet_….lora_down.weight`` and alpha.

The form's rules, for Stable Diffusion 1 and 2: ``lora_unet_`` and the module's diffusers path, dots as
underscores; ``lora_te_text_model_…`` for the text encoder. SDXL: the blocks of the denoiser are numbered as in
its original code (``input_blocks``, ``middle_block``, ``output_blocks``), the encoders are ``lora_te1_`` and
``lora_te2_``. Every map has ``lora_down.weight``, ``lora_up.weight`` and a scalar ``alpha``; the change is
``alpha / rank · up @ down``. LyCORIS extends it: `fromfew.io.forms.lycoris`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.forms import kohya_flux, lycoris
from fromfew.io.forms.names import changeable, flattened, owner, wrapped
from fromfew.io.forms.relatives import Held
from fromfew.io.forms.thin import Thin, even

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept

__all__ = ["is_form", "names", "read", "sgm", "training", "write"]

_ENCODERS = {"one": "lora_te1", "two": "lora_te2"}
_RESNET = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
           "conv_shortcut": "skip_connection"}  # fmt: skip
_OUTSIDE = {
    "conv_in": "input_blocks_0_0", "conv_out": "out_2", "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2", "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}  # fmt: skip

_HAS_NAME = re.compile(
    r"conv_(in|out)|time_embedding\.linear_[12]|add_embedding\.linear_[12]"
    r"|(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.("
    r"resnets\.\d+\.(conv[12]|time_emb_proj|conv_shortcut)"
    r"|(down|up)samplers\.0\.conv"
    r"|attentions\.\d+\.(proj_(in|out)|transformer_blocks\.\d+\.(attn[12]\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2))))"
)
"""The maps of a denoiser of Stable Diffusion 1, 2 and XL; readers turn underscores back into dots by this list, so
that maps of other UNets (such as the embedded base's embedding of the text's mean) cannot be called at all."""


def sgm(rest: str, layers: int, attentive: Mapping[str, bool]) -> str:
    """A module of an SDXL UNet, numbered as in its original code.

    Args:
        rest: Its path in diffusers, such as ``down_blocks.1.attentions.0.proj_in``.
        layers: Residual layers per block on the way down.
        attentive: Whether a block ("up_blocks.0") attends; it moves the upsampler's number.
    """
    if rest in _OUTSIDE:
        return _OUTSIDE[rest]
    pieces = rest.split(".")
    if pieces[0] == "mid_block":
        kind, number, tail = pieces[1], int(pieces[2]), pieces[3:]
        head = "middle_block_1" if kind == "attentions" else f"middle_block_{2 * number}"
        return f"{head}_{_inner(kind, tail)}"
    side, block, kind, number, tail = pieces[0], int(pieces[1]), pieces[2], int(pieces[3]), pieces[4:]
    if kind == "downsamplers":
        return f"input_blocks_{(block + 1) * (layers + 1)}_0_op"
    if kind == "upsamplers":
        inside = 2 if attentive.get(f"{side}.{block}", False) else 1
        return f"output_blocks_{block * (layers + 1) + layers}_{inside}_conv"
    inside = 1 if kind == "attentions" else 0
    if side == "down_blocks":
        return f"input_blocks_{1 + block * (layers + 1) + number}_{inside}_{_inner(kind, tail)}"
    return f"output_blocks_{block * (layers + 1) + number}_{inside}_{_inner(kind, tail)}"


def _inner(kind: str, tail: list[str]) -> str:
    inside = "_".join(tail)
    return _RESNET.get(inside, inside) if kind == "resnets" else inside


def names(bb: Backbone) -> dict[str, str]:
    """Module path to the name this form gives it; maps that Stable Diffusion does not have get none.

    Raises:
        FromfewError: If the base is no Stable Diffusion 1, 2 or XL, and no FLUX.
    """
    if bb.family == "flux":
        return kohya_flux.names(bb)
    if bb.family != "unet":
        raise FromfewError(
            f"The kohya form is written for Stable Diffusion 1, 2 and XL, and FLUX; '{bb.name}' is of the family "
            f"{bb.family}, for which diffusers reads no such file. Use the form 'diffusers', which ComfyUI reads too."
        )
    large = "two" in bb.text_encoders
    attentive = {".".join(path.split(".")[:2]): True for path, _ in bb.denoiser.named_modules()
                 if ".attentions." in path}  # fmt: skip
    layers = int(bb.denoiser.config.layers_per_block)
    found = {}
    for path in changeable(bb):
        module, rest = owner(path)
        if module == "denoiser":
            if not _HAS_NAME.fullmatch(rest):
                continue
            found[path] = "lora_unet_" + (sgm(rest, layers, attentive) if large else rest.replace(".", "_"))
        else:
            prefix = _ENCODERS[module.removeprefix("encoder.")] if large else "lora_te"
            found[path] = f"{prefix}_{wrapped(rest).replace('.', '_')}"
    return found


def write(maps: Mapping[str, Thin], bb: Backbone) -> dict[str, Tensor]:
    """The tensors of a file: one rank and one alpha for all maps (FLUX: for all that are joined alike)."""
    if bb.family == "flux":
        return kohya_flux.write(maps, bb)
    known = names(bb)
    same, _, alpha = even(maps)
    tensors = {}
    for path, one in same.items():
        tensors[f"{known[path]}.lora_down.weight"] = one.down
        tensors[f"{known[path]}.lora_up.weight"] = one.up
        tensors[f"{known[path]}.alpha"] = torch.tensor(alpha)
    return tensors


def training(concept: Concept, bb: Backbone, rank: int, alpha: float) -> dict[str, str]:
    """What sd-scripts notes about training in a file's metadata (``ss_…``), as far as it applies."""
    if bb.family == "flux":
        return _notes(concept, bb, rank, alpha) | {
            "ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux1",
            "modelspec.architecture": "flux-1-dev/lora",
        }  # fmt: skip
    large = "two" in bb.text_encoders
    second = not large and bb.text_encoders["one"].width >= 1024
    base = "sdxl_base_v1-0" if large else "sd_v2" if second else "sd_v1"
    arch = "stable-diffusion-xl-v1-base" if large else "stable-diffusion-v2" if second else "stable-diffusion-v1"
    return _notes(concept, bb, rank, alpha) | {
        "ss_network_module": "networks.lora",
        "ss_base_model_version": base,
        "ss_v2": str(second),
        "modelspec.architecture": f"{arch}/lora",
        "modelspec.prediction_type": "v" if bb.path.kind == "v" else "epsilon",
    }


def _notes(concept: Concept, bb: Backbone, rank: int, alpha: float) -> dict[str, str]:
    """What is noted alike for every base."""
    card = concept.card
    return {
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_sd_model_name": bb.name,
        "ss_output_name": concept.name,
        "ss_num_train_images": str(len(card.photos)),
        "ss_steps": str(card.steps),
        "ss_seed": str(card.seed),
        "ss_training_comment": f"{card.method} by fromfew",
        "modelspec.title": concept.name,
    }


def is_form(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are keys of this form, or of LyCORIS, which extends it."""
    return any(name.startswith(("lora_unet_", "lora_te", "lycoris_")) and "." in name for name in tensors)


def _places(bb: Backbone) -> dict[str, str]:
    """Every spelling seen in files to module path: with and without text_model, SDXL by either numbering."""
    places: dict[str, str] = {}
    for path, name in names(bb).items():
        module, rest = owner(path)
        spelled = {name}
        if module == "denoiser":
            spelled |= {f"{prefix}_{rest.replace('.', '_')}" for prefix in ("lora_unet", "lycoris")}
        else:
            first = {"lora_te", "lora_te1"} if module == "encoder.one" else set()
            prefixes = {name.partition("_text_")[0]} | first
            spelled |= {f"{p}_{r.replace('.', '_')}" for p in prefixes for r in (wrapped(rest), flattened(rest))}
        places |= dict.fromkeys(spelled, path)
    return places


def read(tensors: Mapping[str, Tensor], bb: Backbone) -> tuple[dict[str, Thin | Held], list[str]]:
    """Changes by module path, and the keys that have no place in this base.

    Raises:
        FromfewError: If the file holds a kind of change that no concept can, half a pair, or one map twice.
    """
    if bb.family == "flux":
        kind = lycoris.beyond(tensors)
        if kind is not None:
            raise FromfewError(f"The file holds '{kind}': of kohya's files for FLUX only plain LoRA is read.")
        maps, ignored = kohya_flux.read(tensors, bb)
        return dict(maps), ignored
    places = _places(bb)
    found: dict[str, Thin | Held] = {}
    used: set[str] = set()
    for base, given in lycoris.by_base(tensors).items():
        if base not in places:
            continue
        one, names = lycoris.change(base, given)
        if one is None:
            continue
        if places[base] in found:
            raise FromfewError(f"The file changes '{places[base]}' twice, the second time as '{base}'.")
        found[places[base]] = one
        used |= {f"{base}.{name}" for name in names}
    return found, [name for name in tensors if name not in used]


def rank_alpha(tensors: Mapping[str, Tensor]) -> tuple[int, float]:
    """Rank and alpha of a file that has one of each."""
    down = next(value for name, value in tensors.items() if name.endswith(".lora_down.weight"))
    alpha = next(value for name, value in tensors.items() if name.endswith(".alpha"))
    return int(down.shape[0]), float(alpha)
