"""LoRA as diffusers writes and reads it: ``unet.….to_q.lora_A.weight``, factors folded into the numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.forms.names import changeable, component, flattened, owner, wrapped
from fromfew.io.forms.relatives import Held, decomposed, scaled
from fromfew.io.forms.thin import Thin, even

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["is_form", "names", "read", "write"]

_OLD = {"to_q_lora": "q", "to_k_lora": "k", "to_v_lora": "v", "to_out_lora": "out"}


def names(bb: Backbone) -> dict[str, str]:
    """Module path to name in the file.

    Diffusers has no loader for LoRA of T5, so its maps have no name.
    """
    found = {}
    for path in changeable(bb):
        module, rest = owner(path)
        if module == "denoiser":
            found[path] = f"{component(bb, module)}.{rest}"
        elif "layers." in rest or rest == "text_projection":
            found[path] = f"{component(bb, module)}.{wrapped(rest)}"
    return found


def write(maps: Mapping[str, Thin], bb: Backbone) -> dict[str, Tensor]:
    """The tensors of a file; every reader scales ``lora_B @ lora_A`` by 1, so alpha is folded in.

    Raises:
        FromfewError: If a map has no place in this form.
    """
    known = names(bb)
    same, rank, alpha = even(maps)
    tensors = {}
    for path, one in same.items():
        if path not in known:
            raise FromfewError(f"diffusers loads no LoRA into '{path}'; leave it out when learning.")
        tensors[f"{known[path]}.lora_A.weight"] = one.down
        tensors[f"{known[path]}.lora_B.weight"] = one.up * (alpha / rank)
    return tensors


def is_form(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of a LoRA for diffusers, of today's or earlier spelling."""
    endings = (".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".lora_linear_layer.down.weight")
    return any(name.endswith(endings) for name in tensors)


def _plain(name: str) -> str:
    """A key of any earlier spelling as it is spelled today."""
    name = name.replace(".processor.", ".").removeprefix("base_model.model.")
    encoder = name.startswith("text_encoder")
    for old, short in _OLD.items():
        new = {"out": "out_proj" if encoder else "to_out.0"}.get(short)
        name = name.replace(f".{old}.", f".{new or (f'{short}_proj' if encoder else f'to_{short}')}.lora.")
    # Text encoders of one early release name the projection twice.
    name = re.sub(r"\.(q_proj|k_proj|v_proj|out_proj)\.\1\.", r".\1.", name)
    name = name.replace(".lora_linear_layer.", ".lora.")
    return name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def read(tensors: Mapping[str, Tensor], bb: Backbone) -> tuple[dict[str, Thin | Held], list[str]]:
    """Changes by module path, DoRA's too, and the keys that have no place in this base.

    Raises:
        FromfewError: If the file lacks half of a pair.
    """
    places = {name.removeprefix(prefix): path for path, name in names(bb).items() for prefix in ("", "unet.")}
    places |= {
        f"{component(bb, owner(path)[0])}.{flattened(owner(path)[1])}": path
        for path in names(bb)
        if path.startswith("encoder.")
    }
    plain = {_plain(name): name for name in tensors}
    maps: dict[str, Thin | Held] = {}
    used = set()
    for name, original in plain.items():
        base, mark, _ = name.rpartition(".lora_A.weight")
        if not mark or base not in places:
            continue
        other, alpha = plain.get(f"{base}.lora_B.weight"), plain.get(f"{base}.alpha")
        if other is None:
            raise FromfewError(f"The file has '{original}' and no lora_B beside it.")
        down, up = tensors[original], tensors[other]
        scale = 1.0 if alpha is None else float(tensors[alpha]) / down.shape[0]
        maps[places[base]] = one = Thin(down.float(), up.float(), scale)
        endings = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
        sizes = next((plain[base + end] for end in endings if base + end in plain), None)
        if sizes is not None:
            rank = down.shape[0]
            maps[places[base]] = decomposed(base, one, *scaled(base, scale * rank, rank), tensors[sizes])
        used |= {original, other, alpha, sizes}
    return maps, [name for name in tensors if name not in used]
