"""LoRA as PEFT keeps it: a folder of ``adapter_config.json`` and ``adapter_model.safetensors`` per model.

Its relatives lie in such folders too: `fromfew.io.forms.peft_others`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.files import read_regular
from fromfew.io.forms import peft_others
from fromfew.io.forms.names import changeable, component, flattened, owner, wrapped
from fromfew.io.forms.relatives import Held
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


def read(where: Path, bb: Backbone) -> tuple[dict[str, Thin | Held], list[str]]:
    """Changes by module path, and the keys that have no place in this base.

    Raises:
        FromfewError: If an adapter is of a kind that no concept holds, or its files are damaged.
    """
    maps: dict[str, Thin | Held] = {}
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
        used = set()
        for base, given in _by_base(tensors, peft_others.suffixes(config)).items():
            if base not in places or places[base] in maps:
                continue
            one = peft_others.read(base, given, config, bb.module(places[base]))
            if one is not None:
                maps[places[base]] = one
                used |= {f"{_HEAD}{base}.{suffix}" for suffix in given}
        ignored += [key if name == "." else f"{name}/{key}" for key in tensors if key not in used]
    return maps, ignored


def _by_base(tensors: Mapping[str, Tensor], suffixes: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Tensors by module and by their name there."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        suffix = next((one for one in suffixes if key.endswith(f".{one}")), None)
        if suffix is not None and key.startswith(_HEAD):
            found.setdefault(key.removeprefix(_HEAD).removesuffix(f".{suffix}"), {})[suffix] = value
    return found


def _checked(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_regular(path, 2**22).decode("utf-8"))
        peft_others.check(config)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise FromfewError(f"'{path}' is no configuration of a PEFT adapter that can be read: {error}") from error
    kind = config.get("peft_type")
    if kind not in peft_others.READ:
        known = ", ".join(peft_others.READ)
        raise FromfewError(f"'{path}' describes an adapter of the kind {kind!s:.40}; PEFT's {known} are read.")
    odd = next((name for name, plain in _PLAIN.items() if config.get(name, plain) not in (plain, None)), None)
    if odd is not None:
        raise FromfewError(f"'{path}' says {odd}: {config[odd]!s:.40}, which no LoRA and no relative of it here has.")
    return config


_PLAIN = {"bias": "none", "fan_in_fan_out": False, "layer_replication": None, "alora_invocation_tokens": None}
