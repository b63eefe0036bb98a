"""LoRA's relatives as LyCORIS writes them: kohya's names of maps, with ``hada_…``, ``lokr_…`` or ``dora_scale``.

The form's rules, for a map of weight W ``[out, in, …]``, rank r and factor s = alpha / r (1 if alpha is 0 or missing):

- LoRA (LoCon): ``s · lora_up @ lora_down``; with a Tucker core ``lora_mid`` ``[r, r, h, w]`` between the two.
- LoHa: ``s · (hada_w1_a @ hada_w1_b) ∘ (hada_w2_a @ hada_w2_b)``; with cores ``hada_t1`` and ``hada_t2`` the ``_a`` are
  ``[r, out]`` and the ``_b`` ``[r, in]``.
- LoKr: ``s · kron(w1, w2)``, each ``lokr_wN`` or ``lokr_wN_a @ lokr_wN_b``, the second with a core ``lokr_t2``; s is 1
  where both are whole, whatever alpha says.
- DoRA: a LoRA and ``dora_scale`` ``[out, 1, …]``, the length of every row of the weight. Early files have lengths of
  columns instead, ``[1, in, …]``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.forms.relatives import HADA, LOKR, Held, decomposed, hadamard, kronecker, scaled
from fromfew.io.forms.thin import Thin
from fromfew.parts.hadamard import Hadamard
from fromfew.parts.kronecker import Kronecker
from fromfew.parts.weight_decomposed import WeightDecomposed
from fromfew.ports.text import WordPart

if TYPE_CHECKING:
    from fromfew.concept import Concept

__all__ = ["beyond", "by_base", "change", "holds", "write"]

_LORA = {"lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale"}
_NAMES = {"hada_": {*HADA, "hada_t1", "hada_t2", "alpha"}, "lokr_": {*LOKR, "alpha"}, "lora_": _LORA}
_STRANGE = ("oft_", "glora", "boft_", "a1.", "a2.", "b1.", "b2.")  # OFT, BOFT and GLoRA of LyCORIS
_ALGOS: dict[type, str] = {Hadamard: "loha", Kronecker: "lokr", WeightDecomposed: "lora"}


def by_base(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by map, as the file names it, and by their own name."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        base, dot, name = key.partition(".")
        if dot:
            found.setdefault(base, {})[name] = value
    return found


def beyond(names: Iterable[str]) -> str | None:
    """The first key that no plain LoRA has."""
    marks = ("hada_", "lokr_", "dora_scale", "lora_mid", *_STRANGE)
    return next((key for key in names if key.partition(".")[2].startswith(marks)), None)


def change(base: str, given: Mapping[str, Tensor]) -> tuple[Thin | Held | None, set[str]]:
    """What a file says of one map, and the names it says it by; None if it says nothing that is read.

    Raises:
        FromfewError: If it is of a kind that no concept holds, or something is missing or beside it.
    """
    strange = next((name for name in given if name.startswith(_STRANGE)), None)
    if strange is not None:
        raise FromfewError(f"'{base}.{strange}' is of a kind that is not read (LoRA, LoHa, LoKr and DoRA are).")
    kinds = [kind for kind in _NAMES if any(name.startswith(kind) for name in given)]
    if not kinds:
        return None, set()
    odd = sorted(set(given) - _NAMES[kinds[0]])
    if odd:
        raise FromfewError(f"'{base}.{odd[0]}' has no meaning beside '{kinds[0]}…': the file cannot be read exactly.")
    alpha = float(given["alpha"]) if "alpha" in given and given["alpha"].numel() == 1 else None
    if "alpha" in given and alpha is None:
        raise FromfewError(f"'{base}.alpha' is {tuple(given['alpha'].shape)}, no number.")
    if kinds[0] == "hada_":
        return hadamard(base, given, alpha), set(given)
    if kinds[0] == "lokr_":
        return kronecker(base, given, alpha), set(given)
    return _lora(base, given, alpha)


def _lora(base: str, given: Mapping[str, Tensor], alpha: float | None) -> tuple[Thin | Held | None, set[str]]:
    """A LoRA's map, or a DoRA's."""
    down, up = given.get("lora_down.weight"), given.get("lora_up.weight")
    if down is None:
        return None, set()
    if up is None:
        raise FromfewError(f"The file has '{base}.lora_down.weight' and no lora_up beside it.")
    down, up = down.float(), up.float()
    core, sizes = given.get("lora_mid.weight"), given.get("dora_scale")
    if core is not None:
        if core.dim() < 3 or core.shape[:2] != (up.shape[1], down.shape[0]):
            raise FromfewError(f"'{base}.lora_mid.weight' is {tuple(core.shape)}, which does not fit its neighbours.")
        down = torch.einsum("ij...,jn->in...", core.float(), down.flatten(1))
    if up.flatten(1).shape[1] != down.shape[0]:
        raise FromfewError(f"'{base}' has a LoRA of {tuple(up.shape)} and {tuple(down.shape)}, which do not multiply.")
    if sizes is None:
        # An alpha of 0 is a LoRA that was switched off, in every reader of plain LoRA.
        return Thin(down, up, 1.0 if alpha is None else alpha / down.shape[0]), set(given)
    if sizes.shape[:1] != up.shape[:1]:
        raise FromfewError(
            f"'{base}.dora_scale' is {tuple(sizes.shape)}: lengths of columns, as early files have them. A concept "
            f"holds those of rows, {(up.shape[0], 1)}."
        )
    rank, alpha = scaled(base, alpha, down.shape[0])
    return decomposed(base, Thin(down, up), rank, alpha, sizes), set(given)


def holds(concept: Concept) -> bool:
    """Whether all that a concept changes is a LoHa, LoKr or DoRA."""
    parts = [part for part in concept.parts if not isinstance(part, WordPart)]
    return bool(parts) and all(type(part) in _ALGOS for part in parts)


def write(concept: Concept, names: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str], int, float]:
    """The tensors of a file, what LyCORIS notes about them, and the first rank and alpha.

    Args:
        concept: At strength 1, since these kinds have no smaller one.
        names: Module path to the name in the file.

    Raises:
        FromfewError: If a map has no name, or is changed twice.
    """
    if concept.strength != 1:
        raise FromfewError("Only LoRA can be written at another strength than 1.")
    tensors: dict[str, Tensor] = {}
    parts: list[Any] = [part for part in concept.parts if type(part) in _ALGOS]
    for part in parts:
        for full_path, shape in part.shapes().items():
            path = full_path.removesuffix(".weight")
            if path not in names:
                raise FromfewError(f"The form 'kohya' has no name for '{path}', which learned. Use 'peft' or 'full'.")
            if f"{names[path]}.alpha" in tensors:
                raise FromfewError(f"'{path}' is changed by two parts; a file has room for one. Use 'full'.")
            held = {**_WRITERS[type(part)](part, full_path, shape), "alpha": torch.tensor(float(part.alpha))}
            tensors |= {f"{names[path]}.{name}": value.detach().cpu() for name, value in held.items()}
    about = {"algo": ",".join(dict.fromkeys(_ALGOS[type(part)] for part in parts))}
    if any(isinstance(part, WeightDecomposed) for part in parts):
        about["dora_wd"] = "True"
    notes = {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(about)}
    return tensors, notes, parts[0].rank, float(parts[0].alpha)


def _loha(part: Hadamard, path: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    own = part.own(path)
    return {name: own[mine] for name, mine in HADA.items()}


def _lokr(part: Kronecker, path: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    own = part.own(path)
    if "whole" in own:
        return {"lokr_w1": own["small"], "lokr_w2": part.second(path)}
    return {"lokr_w1": own["small"], "lokr_w2_a": own["up"], "lokr_w2_b": own["down"]}


def _dora(part: WeightDecomposed, path: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    own = part.own(path)
    one = Thin(own["down"], own["up"]).padded(part.rank)  # one rank for all maps, to which alpha belongs
    down = one.down.reshape(part.rank, *shape[1:])
    ones = [1] * (len(shape) - 1)
    up = one.up if len(shape) == 2 else one.up.reshape(shape[0], part.rank, *ones[1:])
    return {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": own["sizes"].view(-1, *ones)}


_WRITERS: dict[type, Any] = {Hadamard: _loha, Kronecker: _lokr, WeightDecomposed: _dora}
