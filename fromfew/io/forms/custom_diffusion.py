"""Custom Diffusion as diffusers keeps it: whole key and value maps of every cross-attention, words beside.

Its loader needs an entry for every attention of the UNet, those without a change too, and takes an empty
tensor for one; without them a safetensors file, unlike the ``.bin`` of old, does not load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.ports.linear import DeltaPart, LinearPart
from fromfew.ports.text import WordPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.ports.part import Part

__all__ = ["FILE", "is_form", "read", "write"]

FILE = "pytorch_custom_diffusion_weights.safetensors"
_MAPS = {"to_k": "to_k_custom_diffusion", "to_v": "to_v_custom_diffusion", "to_q": "to_q_custom_diffusion",
         "to_out.0": "to_out_custom_diffusion.0"}  # fmt: skip


def _weight(bb: Backbone, path: str, name: str) -> Tensor:
    return getattr(bb.module(path), name).detach().float().cpu()


def write(concept: Concept, bb: Backbone) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        FromfewError: If the concept changes anything but keys and values of cross-attention.
    """
    if bb.family != "unet":
        raise FromfewError("diffusers keeps Custom Diffusion for Stable Diffusion 1, 2 and XL only.")
    changes = _changes(concept, bb)
    sites = [site for site in bb.sites.values() if site.kind == "cross"]
    known = {f"{site.name}.{name}" for site in sites for name in ("to_k", "to_v")}
    beyond = sorted(set(changes) - known)
    if beyond:
        raise FromfewError(
            f"The form 'custom-diffusion' holds keys and values that read the text; '{concept.name}' also "
            f"changes '{beyond[0]}'. Use --form diffusers --rank N, or full."
        )
    tensors = {f"{site.name.removeprefix('denoiser.')}.processor": torch.empty(0)
               for site in bb.sites.values() if site.kind != "cross"}  # fmt: skip
    for site in sites:
        for name in ("to_k", "to_v"):
            path = f"{site.name}.{name}"
            whole = _weight(bb, path, "weight")
            if path in changes:
                whole = whole + concept.strength * changes[path]
            key = f"{site.name.removeprefix('denoiser.')}.processor.{_MAPS[name]}.weight"
            tensors[key] = whole.contiguous()
    return tensors


def _changes(concept: Concept, bb: Backbone) -> dict[str, Tensor]:
    """Change of every weight by module path, summed over parts."""
    found: dict[str, Tensor] = {}
    for name, part in concept.parts.items():
        if isinstance(part, WordPart):
            continue
        if isinstance(part, LinearPart):
            deltas = {path: part.delta(path) for path in part.targets()}
        elif isinstance(part, DeltaPart):
            deltas = {path.removesuffix(".weight"): part.delta_of(path, bb.parameter(path)) for path in part.shapes()}
        else:
            raise FromfewError(f"The form 'custom-diffusion' cannot hold {name}: {part!r}.")
        for path, delta in deltas.items():
            delta = delta.detach().float().cpu()
            if delta.any():
                found[path] = found[path] + delta if path in found else delta
    return found


def is_form(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of Custom Diffusion."""
    return any("_custom_diffusion" in name for name in tensors)


def read(tensors: Mapping[str, Tensor], bb: Backbone) -> tuple[Part, list[str]]:
    """The difference of the file's maps from the base's own, and keys that have no place in this base."""
    from fromfew.parts.full import FullDelta
    from fromfew.ports.linear import flat

    back = {new: old for old, new in _MAPS.items()}
    deltas, ignored = {}, []
    for key, value in tensors.items():
        site, mark, rest = key.partition(".processor")
        name, _, kind = rest.removeprefix(".").rpartition(".")
        path = f"denoiser.{site}.{back.get(name, '')}"
        if mark and not rest and value.numel() == 0:
            continue
        if name not in back or f"denoiser.{site}" not in bb.sites or kind not in ("weight", "bias"):
            ignored.append(key)
            continue
        base = _weight(bb, path, kind)
        if base.shape != value.shape:
            sizes = f"{tuple(base.shape)}, in the file {tuple(value.shape)}"
            raise FromfewError(f"'{path}' of '{bb.name}' is {sizes}.")
        deltas[f"{path}.{kind}"] = value.float() - base
    part = FullDelta({path: tuple(value.shape) for path, value in deltas.items()})
    for path, value in deltas.items():
        part.deltas[flat(path)].data = value
    return part, ignored
