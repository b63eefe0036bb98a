"""LoRA's relatives as PEFT keeps them: LoHa, LoKr, DoRA, OFT and (IA)³, with a configuration of their own kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.forms.names import component, owner
from fromfew.parts._over import Over
from fromfew.parts.channels import Channels
from fromfew.parts.hadamard import Hadamard
from fromfew.parts.kronecker import Kronecker
from fromfew.parts.rotation import Rotation
from fromfew.parts.weight_decomposed import WeightDecomposed
from fromfew.ports.text import WordPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.ports.part import Part

__all__ = ["holds", "write"]

_HEAD = "base_model.model."
Written = tuple[dict[str, Any], dict[str, Tensor]]


def _weights(part: Over) -> list[str]:
    return [path for path in part.shapes() if path.endswith(".weight")]


def _loha(part: Any) -> Written:
    names = {"hada_w1_a": "up1", "hada_w1_b": "down1", "hada_w2_a": "up2", "hada_w2_b": "down2"}
    tensors = {
        f"{path.removesuffix('.weight')}.{key}": part.own(path)[name]
        for path in _weights(part) for key, name in names.items()
    }  # fmt: skip
    return {"peft_type": "LOHA", "r": part.rank, "alpha": part.alpha, "use_effective_conv2d": False}, tensors


def _lokr(part: Any) -> Written:
    tensors: dict[str, Tensor] = {}
    for path in _weights(part):
        own, head = part.own(path), path.removesuffix(".weight")
        tensors[f"{head}.lokr_w1"] = own["small"]
        if "whole" in own:  # PEFT scales a whole second factor too; here its scale is 1
            tensors[f"{head}.lokr_w2"] = part.second(path) * (part.rank / part.alpha)
        else:
            tensors |= {f"{head}.lokr_w2_a": own["up"], f"{head}.lokr_w2_b": own["down"]}
    about = {"peft_type": "LOKR", "r": part.rank, "alpha": part.alpha, "decompose_factor": part.factor,
             "decompose_both": False, "use_effective_conv2d": False}  # fmt: skip
    return about, tensors


def _dora(part: Any) -> Written:
    tensors: dict[str, Tensor] = {}
    for path in _weights(part):
        own, head, shape = part.own(path), path.removesuffix(".weight"), part.shapes()[path]
        more = part.rank - own["down"].shape[0]
        down = _padded(own["down"], more, 0).view(part.rank, *shape[1:])
        up, size = _padded(own["up"], more, 1), own["sizes"]
        if len(shape) == 4:
            up, size = up[..., None, None], size.view(1, -1, 1, 1)
        tensors |= {f"{head}.lora_A.weight": down, f"{head}.lora_B.weight": up}
        tensors[f"{head}.lora_magnitude_vector"] = size
    return {"peft_type": "LORA", "r": part.rank, "lora_alpha": part.alpha, "use_dora": True, "bias": "none"}, tensors


def _padded(value: Tensor, more: int, axis: int) -> Tensor:
    if more <= 0:
        return value
    shape = list(value.shape)
    shape[axis] = more
    return torch.cat([value, value.new_zeros(shape)], axis)


def _oft(part: Any) -> Written:
    blocks = {part.blocks[path][1] for path in _weights(part)}
    if part.scaled or any(part.blocks[path][0] != 1 for path in _weights(part)) or len(blocks) > 1:
        raise FromfewError(
            "PEFT's OFT has one number of blocks for all maps and one factor each; this rotation has others. "
            "Export it as 'full'."
        )
    tensors = {f"{path.removesuffix('.weight')}.oft_R.weight": part.own(path)["angles"][0] for path in _weights(part)}
    # Its default is a series that is not orthogonal and turns the other way.
    return {"peft_type": "OFT", "r": blocks.pop(), "oft_block_size": 0, "use_cayley_neumann": False}, tensors


def _ia3(part: Any) -> Written:
    tensors = {}
    for path in _weights(part):
        factor = 1 + part.factor(path)
        tensors[f"{path.removesuffix('.weight')}.ia3_l"] = factor[None] if path in part.inputs else factor[:, None]
    inner = sorted(owner(path.removesuffix(".weight"))[1] for path in part.inputs)
    return {"peft_type": "IA3", "feedforward_modules": inner}, tensors


_KINDS: dict[type, Callable[[Any], Written]] = {
    Hadamard: _loha, Kronecker: _lokr, WeightDecomposed: _dora, Rotation: _oft, Channels: _ia3,
}  # fmt: skip


def _changing(concept: Concept) -> list[Part]:
    return [part for part in concept.parts if not isinstance(part, WordPart)]


def holds(concept: Concept) -> bool:
    """Whether all that a concept changes is of one of these kinds."""
    parts = _changing(concept)
    return bool(parts) and all(type(part) in _KINDS for part in parts)


def write(
    concept: Concept, bb: Backbone, targets: Callable[[list[str], Backbone, str], Sequence[str] | str]
) -> dict[str, Written]:
    """Configuration and tensors by sub-folder: the component's name, or ``"."`` if only the denoiser changes.

    Args:
        concept: At strength 1, since these kinds have no smaller one.
        bb: The base.
        targets: What names the modules in a configuration.

    Raises:
        FromfewError: If PEFT has no such form.
    """
    if concept.strength != 1:
        raise FromfewError("Only LoRA can be written at another strength than 1.")
    found: dict[str, Written] = {}
    for part in _changing(concept):
        about, tensors = _KINDS[type(part)](part)
        module = owner(next(iter(tensors)))[0]
        spelled = {f"{_HEAD}{owner(path)[1]}": value.detach().cpu() for path, value in tensors.items()}
        rests = sorted({owner(path.removesuffix(".weight"))[1] for path in _weights(part)})  # type: ignore[arg-type]
        about |= {
            "task_type": None, "inference_mode": True, "target_modules": targets(rests, bb, module),
            "base_model_name_or_path": f"{bb.name}/{component(bb, module)}",
        }  # fmt: skip
        found[component(bb, module)] = (about, spelled)
    return {".": found[component(bb, "denoiser")]} if list(found) == [component(bb, "denoiser")] else found
