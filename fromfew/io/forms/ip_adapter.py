"""IP-Adapter checkpoints: ``image_proj.…`` and ``ip_adapter.N.to_k_ip.weight``, plain and Plus.

N counts the denoiser's attentions as diffusers lists them, way down, way up, middle, self and cross in turn,
so that cross-attentions have odd numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.ports.linear import flat

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["is_form", "notes", "numbers", "plus", "read", "settings", "write"]

_SIDES = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
_BLOCK = {
    "norm_x": "0.norm1", "norm_q": "0.norm2", "to_q": "0.to_q", "to_kv": "0.to_kv", "out": "0.to_out",
    "mlp.0": "1.0", "mlp.1": "1.1", "mlp.3": "1.3",
}  # fmt: skip
_HEAD, _DEPTH = 64, 4
"""Width of a head and number of layers of the resampler, fixed by the form."""
_OFFICIAL = {768: 768, 2048: 1280}
"""Width of the text to the width of the published resamplers, which A1111 and ComfyUI expect."""


def numbers(bb: Backbone) -> dict[str, int]:
    """Site of every cross-attention to its number in a checkpoint.

    Raises:
        FromfewError: If the base has no cross-attention.
    """
    if bb.family != "unet":
        raise FromfewError("IP-Adapter checkpoints of this form are for Stable Diffusion 1, 2 and XL.")
    cross = [site.name for site in bb.sites.values() if site.kind == "cross"]
    cross.sort(key=lambda name: _SIDES[name.split(".")[1]])  # stable: inside a side, order of execution
    return {name: 2 * place + 1 for place, name in enumerate(cross)}


def plus(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint (of either spelling) reads patches through a resampler."""
    return any(name in ("image_proj.latents", "project.queries") for name in tensors)


_FIXED = {
    "proj": "proj", "queries": "latents", "proj_in": "proj_in", "proj_out": "proj_out",
}  # fmt: skip
_BLOCKS = re.compile(r"(?:blocks|layers)\.(\d+)\.(.+)")


def _rename(name: str, resampled: bool, *, new: bool) -> str | None:
    """An image projection's tensor of ours as the form spells it (``new``), or the other way round.

    Args:
        name: Without ``project.`` or ``image_proj.`` before it.
        resampled: Whether it is a Plus adapter, whose last norm has a name of its own.
        new: Which way.
    """
    fixed = {**_FIXED, "norm": "norm_out" if resampled else "norm"}
    inner = _BLOCK
    if not new:
        fixed, inner = ({value: key for key, value in table.items()} for table in (fixed, inner))
    base, dot, ending = name.rpartition(".")
    if ending not in ("weight", "bias"):
        base, dot, ending = name, "", ""
    if match := _BLOCKS.fullmatch(base):
        block = inner.get(match[2])
        return f"{'layers' if new else 'blocks'}.{match[1]}.{block}{dot}{ending}" if block else None
    return f"{fixed[base]}{dot}{ending}" if base in fixed else None


def write(ours: Mapping[str, Tensor], bb: Backbone) -> dict[str, Tensor]:
    """A checkpoint from an adapter's weights (``project.…``, ``stream.…``).

    Raises:
        FromfewError: If the form has no place for something in them.
    """
    resampled = plus(ours)
    tensors = {}
    for name, value in ours.items():
        if not name.startswith("project."):
            continue
        new = _rename(name.removeprefix("project."), resampled, new=True)
        if new is None:
            raise FromfewError(f"An IP-Adapter checkpoint has no place for '{name}'.")
        if re.fullmatch(r"layers\.\d+\.1\.[13]\.bias", new):
            if value.any():
                raise FromfewError("An IP-Adapter Plus checkpoint has no biases in its feed-forward maps.")
            continue
        tensors[f"image_proj.{new}"] = value
    for site, number in numbers(bb).items():
        for role in ("key", "value"):
            tensors[f"ip_adapter.{number}.to_{role[0]}_ip.weight"] = ours[f"stream.{role}.{flat(site)}"]
    _check(tensors, resampled)
    return tensors


def _check(tensors: Mapping[str, Tensor], resampled: bool) -> None:
    """The form fixes four tokens in a plain adapter, and four layers and heads of 64 in a resampler."""
    if resampled:
        _sizes(tensors)
        return
    wide, width = tensors["image_proj.proj.weight"].shape[0], tensors["image_proj.norm.weight"].shape[0]
    if wide != 4 * width:
        raise FromfewError(f"Other tools read four tokens from a plain IP-Adapter; this one has {wide // width}.")


def _sizes(tensors: Mapping[str, Tensor]) -> int:
    """Width of a checkpoint's resampler.

    Raises:
        FromfewError: If its heads or layers are not those of the form.
    """
    inner = int(tensors["image_proj.latents"].shape[-1])
    asked = tensors.get("image_proj.layers.0.0.to_q.weight")
    depth = len({match[1] for name in tensors if (match := re.match(r"image_proj\.layers\.(\d+)\.", name))})
    if asked is None or inner % _HEAD or asked.shape[0] != inner:
        raise FromfewError(f"A resampler of width {inner} has no whole heads of {_HEAD}, as the form has them.")
    if depth != _DEPTH:
        raise FromfewError(f"An IP-Adapter Plus has {_DEPTH} layers in its resampler, this one {depth}.")
    return inner


def notes(tensors: Mapping[str, Tensor]) -> list[str]:
    """What one must know to use a checkpoint elsewhere."""
    if not plus(tensors):
        return []
    inner, width = _sizes(tensors), int(tensors["image_proj.proj_out.weight"].shape[0])
    official = _OFFICIAL.get(width)
    if inner == official:
        return []
    usual = f"{official}, the published width for this base" if official else "the published widths, 768 and 1280"
    return [f"Its resampler is {inner} wide: diffusers reads any width; A1111 and ComfyUI read only {usual}."]


def is_form(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of an IP-Adapter checkpoint."""
    return any(name.startswith("ip_adapter.") and name.endswith("_ip.weight") for name in tensors)


def settings(tensors: Mapping[str, Tensor]) -> dict[str, int | bool]:
    """Settings of the method ip-adapter that fit a checkpoint."""
    if plus(tensors):
        return {"plus": True, "tokens": int(tensors["image_proj.latents"].shape[1]), "inner": _sizes(tensors)}
    norm, proj = tensors.get("image_proj.norm.weight"), tensors.get("image_proj.proj.weight")
    if norm is None or proj is None:
        raise FromfewError("This IP-Adapter is of a kind beyond plain and Plus (FaceID, full face): not read.")
    return {"plus": False, "tokens": proj.shape[0] // norm.shape[0]}


def read(tensors: Mapping[str, Tensor], bb: Backbone) -> tuple[dict[str, Tensor], list[str]]:
    """An adapter's weights as the method ip-adapter reads them, and keys without a place.

    Raises:
        FromfewError: If the checkpoint belongs to another base or is of another kind.
    """
    known, found, ignored = settings(tensors), {}, []
    width = 0
    for name, value in tensors.items():
        if name.startswith("ip_adapter."):
            continue
        new = _rename(name.removeprefix("image_proj."), bool(known["plus"]), new=False)
        if new is None:
            ignored.append(name)
        else:
            found[f"project.{new}"] = value.float()
    places = numbers(bb)
    for site, number in places.items():
        for role in ("key", "value"):
            name = f"ip_adapter.{number}.to_{role[0]}_ip.weight"
            held = tensors.get(name)
            if held is None or held.shape[0] != bb.sites[site].width:
                raise FromfewError(f"The adapter does not fit '{bb.name}': '{name}' is missing or of another size.")
            width = held.shape[1]
            found[f"stream.{role}.{flat(site)}"] = held.float()
    used = {f"ip_adapter.{n}.to_{r}_ip.weight" for n in places.values() for r in "kv"}
    ignored += [name for name in tensors if name.startswith("ip_adapter.") and name not in used]
    blank = torch.zeros(1, int(known["tokens"]), width)
    return {**found, "stream.tokens": blank, "stream.nothing": blank.clone()}, ignored
