"""Writes a twin's weights under the names of the original Stable Diffusion 1.x checkpoints."""

import re

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str, layers: int) -> str:
    for ours, theirs in OUTER.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}.{inner(match[3], match[1])}"
    match = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    side, block, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.{rest.replace('conv', 'op')}"
        place = (layers + 1) * block + number + 1
        return f"input_blocks.{place}.{int(kind == 'attentions')}.{inner(rest, kind)}"
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * block + layers}.1.{rest}"
    return f"output_blocks.{(layers + 1) * block + number}.{int(kind == 'attentions')}.{inner(rest, kind)}"


def inner(rest: str, kind: str) -> str:
    first, _, last = rest.partition(".")
    return f"{RESNET[first]}.{last}" if kind == "resnets" else rest


def vae_name(name: str, blocks: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    for ours, theirs in ATTENTION.items():
        name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return name.replace("conv_shortcut", "nin_shortcut")


def original_names(bb) -> dict:
    """The weights of an SD 1.x backbone as one original checkpoint."""
    held = {}
    for name, value in bb.denoiser.state_dict().items():
        held[f"model.diffusion_model.{unet_name(name, 1)}"] = value
    for name, value in bb.vae.state_dict().items():
        new = vae_name(name, 2)
        is_map = "attn_1" in new and new.endswith("weight") and value.dim() == 2
        held[f"first_stage_model.{new}"] = value[..., None, None] if is_map else value
    for name, value in bb.text_encoders["one"].model.state_dict().items():
        held[f"cond_stage_model.transformer.text_model.{name}"] = value
    return {name: value.contiguous() for name, value in held.items()}
