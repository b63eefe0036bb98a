"""LoRA as PEFT keeps it: a folder of ``adapter_config.json`` and ``adapter_model.safetensors`` per model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.files import read_regular
from fromfew.io.forms.names import changeable, component, flattened, owner, wrapped
from fromfew.io.forms.thin import Thin, even
from fromfew.io.tensors import read_tensors

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["CONFIG", "NUMBERS", "folders", "read", "targets", "write"]

CONFIG, NUMBERS = "adapter_config.json", "adapter_model.safetensors"
_HEAD = "base_model.model."


def write(maps: Mapping[str, Thin], bb: Backbone) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Configuration and tensors by sub-folder: the component's name, or ``"."`` if only the denoiser changes."""
    same, rank, alpha = even(maps)
    owners = dict.fromkeys(owner(path)[0] for path in same)
    found = {}
    for module in owners:
        mine = {owner(path)[1]: one for path, one in same.items() if owner(path)[0] == module}
        tensors = {}
        for rest, one in mine.items():
            tensors[f"{_HEAD}{rest}.lora_A.weight"] = one.down
            tensors[f"{_HEAD}{rest}.lora_B.weight"] = one.up
        where = "." if list(owners) == ["denoiser"] else component(bb, module)
        found[where] = (_config(sorted(mine), rank, alpha, bb, module), tensors)
    return found


def _config(rests: list[str], rank: int, alpha: float, bb: Backbone, module: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": f"{bb.name}/{component(bb, module)}",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_dora": False,
        "use_rslora": False,
        "target_modules": targets(rests, bb, module),
    }


def targets(rests: list[str], bb: Backbone, module: str) -> list[str] | str:
    """A list of paths; or, since PEFT takes a path for an ending too, a pattern where that would hit others."""
    others = {owner(path)[1] for path in changeable(bb) if owner(path)[0] == module} - set(rests)
    if any(other.endswith(f".{rest}") for other in others for rest in rests):
        return "|".join(rest.replace(".", r"\.") for rest in rests)
    return rests


def folders(where: Path) -> dict[str, Path]:
    """The adapters in a folder by component: itself (``"."``), or one sub-folder each."""
    if (where / CONFIG).is_file():
        return {".": where}
    return {one.parent.name: one.parent for one in sorted(where.glob(f"*/{CONFIG}"))}


def read(where: Path, bb: Backbone) -> tuple[dict[str, Thin], list[str]]:
    """Thin maps by module path, and the keys that have no place in this base.

    Raises:
        FromfewError: If an adapter is no plain LoRA, or its files are damaged.
    """
    maps: dict[str, Thin] = {}
    ignored: list[str] = []
    modules = {component(bb, module): module for module in bb.modules_() if module != "vae"}
    for name, folder in folders(where).items():
        module = "denoiser" if name == "." else modules.get(name)
        tensors, config = read_tensors(folder / NUMBERS), _checked(folder / CONFIG)
        if module is None:
            ignored += [f"{name}/{key}" for key in tensors]
            continue
        places = {spelled: path for path in changeable(bb) if owner(path)[0] == module
                  for spelled in (owner(path)[1], wrapped(owner(path)[1]), flattened(owner(path)[1]))}  # fmt: skip
        for key, down in tensors.items():
            base = key.removeprefix(_HEAD).removesuffix(".lora_A.weight")
            up = tensors.get(key.replace(".lora_A.", ".lora_B."))
            if key.endswith(".lora_A.weight") and base in places and up is not None:
                maps[places[base]] = Thin(down.float(), up.float(), _scale(config, base, down.shape[0]))
            elif not key.endswith(".lora_B.weight") or base.removesuffix(".lora_B.weight") not in places:
                ignored.append(key if name == "." else f"{name}/{key}")
    return maps, ignored


def _checked(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_regular(path, 2**22).decode("utf-8"))
        float(config["r"]), float(config.get("lora_alpha", 1))
        dict(config.get("alpha_pattern") or {}), dict(config.get("rank_pattern") or {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FromfewError(f"'{path}' is no configuration of a PEFT LoRA.") from error
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise FromfewError(f"'{path}' describes no plain LoRA; other PEFT adapters are not read.")
    return config


def _scale(config: Mapping[str, Any], base: str, rank: int) -> float:
    """Alpha over rank, or over its root where the adapter says so."""
    alpha = float(config.get("lora_alpha", 1))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if base == pattern or base.endswith(f".{pattern}"):
            alpha = float(value)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
