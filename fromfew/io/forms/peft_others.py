"""LoRA and its relatives as PEFT keeps them: LoHa, LoKr, DoRA, OFT, BOFT and (IA)³, each by a configuration.

What PEFT makes of a map, with s = alpha / r: LoHa, LoKr and DoRA are LyCORIS's (`fromfew.io.forms.lycoris`), but that a
LoKr is scaled by s even where both factors are whole. OFT and BOFT turn inputs, OFT by a series that is no rotation
unless ``use_cayley_neumann`` is false. (IA)³ has factors ``[out, 1]`` of outputs or, in ``feedforward_modules``,
``[1, in]`` of inputs; of convolutions ``[1, out, 1, 1]`` or ``[1, in, 1, 1]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.io.forms.names import component, owner
from fromfew.io.forms.relatives import HADA, LOKR, Held, decomposed, hadamard, kronecker, scaled
from fromfew.io.forms.thin import Thin
from fromfew.parts._over import Over
from fromfew.parts.channels import Channels
from fromfew.parts.hadamard import Hadamard
from fromfew.parts.kronecker import Kronecker
from fromfew.parts.rotation import Rotation, skew
from fromfew.parts.weight_decomposed import WeightDecomposed
from fromfew.ports.text import WordPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.ports.part import Part

__all__ = ["READ", "check", "holds", "read", "suffixes", "write"]

_HEAD = "base_model.model."
Written = tuple[dict[str, Any], dict[str, Tensor]]


def _weights(part: Over) -> list[str]:
    return [path for path in part.shapes() if path.endswith(".weight")]


def _loha(part: Any) -> Written:
    tensors = {
        f"{path.removesuffix('.weight')}.{key}": part.own(path)[name]
        for path in _weights(part) for key, name in HADA.items()
    }  # fmt: skip
    return {"peft_type": "LOHA", "r": part.rank, "alpha": part.alpha, "use_effective_conv2d": False}, tensors


def _lokr(part: Any) -> Written:
    if part.odd:
        raise FromfewError(f"PEFT has one rule for the sides of a LoKr's factors; that of '{next(iter(part.odd))}' "
                           "follows another. Use the form 'kohya', or 'full'.")  # fmt: skip
    tensors: dict[str, Tensor] = {}
    unscaled = {}
    for path in _weights(part):
        own, head = part.own(path), path.removesuffix(".weight")
        tensors[f"{head}.lokr_w1"] = own["small"]
        if "whole" in own:  # PEFT scales a whole second factor too; here its scale is 1
            tensors[f"{head}.lokr_w2"] = part.second(path)
            unscaled[_exactly(head)] = part.rank
        else:
            tensors |= {f"{head}.lokr_w2_a": own["up"], f"{head}.lokr_w2_b": own["down"]}
    about = {"peft_type": "LOKR", "r": part.rank, "alpha": part.alpha, "decompose_factor": part.factor,
             "decompose_both": False, "use_effective_conv2d": False}  # fmt: skip
    if unscaled and part.alpha != part.rank:
        about["alpha_pattern"] = unscaled
    return about, tensors


def _exactly(path: str) -> str:
    """A module as PEFT's patterns name it alone."""
    return "^" + owner(path)[1].replace(".", r"\.")


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


def _rotation(part: Any) -> Written:
    """OFT if each map has one factor, otherwise BOFT; so too for wide convolutions, whose pixels OFT would turn."""
    paths = _weights(part)
    levels, counts, sides = ({part.blocks[path][i] for path in paths} for i in range(3))
    wide = any(prod(part.shapes()[path][2:]) > 1 for path in paths)
    butterfly = part.scaled or levels != {1} or wide
    if len(levels) > 1 or min(len(counts), len(sides)) > 1 or (part.series and butterfly):
        raise FromfewError(
            "PEFT's OFT and BOFT have one number of factors for all maps, and of blocks or of their sides; this "
            "rotation has several. Export it as 'full'."
        )
    by_count = len(counts) == 1
    heads = {path: path.removesuffix(".weight") for path in paths}
    if butterfly:
        tensors = {}
        for path, head in heads.items():
            own, shape = part.own(path), part.shapes()[path]
            size = 1 + own["sizes"] if part.scaled else own["angles"].new_ones(shape[0])
            tensors[f"{head}.boft_R"] = skew(own["angles"], part.blocks[path][2])
            tensors[f"{head}.boft_s"] = size[:, None] if len(shape) == 2 else size[None]
        about = {"peft_type": "BOFT", "boft_n_butterfly_factor": levels.pop(), "bias": "none",
                 "boft_block_num": counts.pop() if by_count else 0,
                 "boft_block_size": 0 if by_count else sides.pop()}  # fmt: skip
        return about, tensors
    # Its default is a series that is not orthogonal and turns the other way.
    about = {"peft_type": "OFT", "r": counts.pop() if by_count else 0, "oft_block_size": 0 if by_count else sides.pop(),
             "use_cayley_neumann": bool(part.series)}  # fmt: skip
    if part.series:
        about["num_cayley_neumann_terms"] = part.series
    return about, {f"{head}.oft_R.weight": part.own(path)["angles"][0] for path, head in heads.items()}


def _ia3(part: Any) -> Written:
    tensors = {}
    for path in _weights(part):
        factor, dims = 1 + part.factor(path), len(part.shapes()[path])
        across = factor.view(1, -1, *[1] * (dims - 2))
        by_row = dims == 2 and path not in part.inputs
        tensors[f"{path.removesuffix('.weight')}.ia3_l"] = factor[:, None] if by_row else across
    inner = sorted(owner(path.removesuffix(".weight"))[1] for path in part.inputs)
    return {"peft_type": "IA3", "feedforward_modules": inner}, tensors


_KINDS: dict[type, Callable[[Any], Written]] = {
    Hadamard: _loha, Kronecker: _lokr, WeightDecomposed: _dora, Rotation: _rotation, Channels: _ia3,
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
    paths: dict[str, list[str]] = {}
    for part in _changing(concept):
        about, tensors = _KINDS[type(part)](part)
        module = owner(next(iter(tensors)))[0]
        spelled = {f"{_HEAD}{owner(path)[1]}": value.detach().cpu() for path, value in tensors.items()}
        rests = {owner(path.removesuffix(".weight"))[1] for path in _weights(part)}  # type: ignore[arg-type]
        if module in found:
            about = _together(found[module], (about, spelled), rests)
            spelled |= found[module][1]
        paths[module] = sorted({*paths.get(module, ()), *rests})
        found[module] = (about, spelled)
    for module, (about, _) in found.items():
        about |= {
            "task_type": None, "inference_mode": True, "target_modules": targets(paths[module], bb, module),
            "base_model_name_or_path": f"{bb.name}/{component(bb, module)}",
        }  # fmt: skip
    by_folder = {component(bb, module): one for module, one in found.items()}
    return {".": by_folder[component(bb, "denoiser")]} if list(found) == ["denoiser"] else by_folder


def _together(there: Written, more: Written, rests: set[str]) -> dict[str, Any]:
    """One configuration for two parts of one module, which may differ in rank and alpha only."""
    (about, tensors), (other, others) = there, more
    numbers = {"r": "rank_pattern", "alpha": "alpha_pattern", "lora_alpha": "alpha_pattern"}
    plain = [{k: v for k, v in one.items() if k not in {*numbers, *numbers.values()}} for one in (about, other)]
    differ = [key for key in numbers if about.get(key) != other.get(key)]
    if plain[0] != plain[1] or set(tensors) & set(others) or (differ and about["peft_type"] == "OFT"):
        raise FromfewError("A PEFT adapter is of one kind and changes a map once; this concept does not. Use 'full'.")
    about = dict(about)
    for key in differ:
        about[numbers[key]] = dict(about.get(numbers[key], {}))
        about[numbers[key]] |= {_exactly(f"denoiser.{rest}"): other[key] for rest in rests}
    about |= {key: {**about.get(key, {}), **other[key]} for key in ("rank_pattern", "alpha_pattern") if key in other}
    return about


READ = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3")
"""Kinds of adapters that are read."""
_SUFFIXES = {
    "LORA": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_magnitude_vector.weight"),
    "LOHA": (*HADA, "hada_t1", "hada_t2"), "LOKR": LOKR, "OFT": ("oft_R.weight",), "BOFT": ("boft_R", "boft_s"),
    "IA3": ("ia3_l",),
}  # fmt: skip


def suffixes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a map's numbers are called."""
    return _SUFFIXES[config["peft_type"]]


def check(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose numbers are none.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: Saying what is wrong.
    """
    kind = config["peft_type"]
    numbers = {"LORA": ("r", "lora_alpha"), "LOHA": ("r", "alpha"), "LOKR": ("r", "alpha"),
               "OFT": ("eps", "num_cayley_neumann_terms")}.get(kind, ())  # fmt: skip
    for key in numbers:
        if not isfinite(float(config.get(key, 1))):
            raise ValueError(f"{key} is not finite")
    for key in ("alpha_pattern", "rank_pattern"):
        for pattern, value in dict(config.get(key) or {}).items():
            if not isfinite(float(value)):
                raise ValueError(f"{key} of {pattern[:40]} is not finite")
            _literal(pattern)
    if kind in ("LORA", "LOHA", "LOKR"):
        int(config["r"])


def _literal(pattern: str) -> str:
    """A pattern of PEFT that is a path; others, which are programs of a kind, are not run."""
    plain = pattern.removeprefix("^").replace("\\.", ".")
    if any(letter in "\\^$*+?()[]{}|" for letter in plain):
        raise ValueError(f"the pattern '{pattern[:60]}' is more than the name of a module")
    return plain


def _of(config: Mapping[str, Any], key: str, base: str, otherwise: float) -> float:
    """A number that a pattern may set for some modules."""
    for pattern, value in (config.get(key) or {}).items():
        plain = _literal(pattern)
        if base == plain or (base.endswith(f".{plain}") and not pattern.startswith("^")):
            return float(value)
    return otherwise


def read(base: str, given: Mapping[str, Tensor], config: Mapping[str, Any], module: nn.Module) -> Thin | Held | None:
    """What an adapter says of one map.

    Args:
        base: The module's name in the file.
        given: Its numbers by name.
        config: Checked.
        module: The map.

    Raises:
        FromfewError: If something is missing, does not fit, or cannot be held.
    """
    if not isinstance(module.weight, Tensor):
        return None
    kind, shape = config["peft_type"], tuple(module.weight.shape)
    if kind in ("LOHA", "LOKR"):
        alpha = _of(config, "alpha_pattern", base, float(config.get("alpha", 8)))
        if kind == "LOHA":
            return hadamard(base, given, alpha)
        return kronecker(base, given, alpha, int(_of(config, "rank_pattern", base, config["r"])))
    if kind == "LORA":
        return _read_lora(base, given, config)
    if kind == "IA3":
        return _read_ia3(base, given["ia3_l"].float(), config, shape)
    if kind == "OFT":
        return _read_oft(base, given["oft_R.weight"].float(), config, shape)
    return _read_boft(base, given, shape)


def _read_lora(base: str, given: Mapping[str, Tensor], config: Mapping[str, Any]) -> Thin | Held:
    down, up = given.get("lora_A.weight"), given.get("lora_B.weight")
    if down is None or up is None:
        lacking = "A" if down is None else "B"
        raise FromfewError(f"The file has '{base}.{next(iter(given))}' and no lora_{lacking} beside it.")
    rank = down.shape[0]
    alpha = _of(config, "alpha_pattern", base, float(config.get("lora_alpha", 8)))
    alpha = alpha * rank**0.5 if config.get("use_rslora") else alpha
    change = Thin(down.float(), up.float(), alpha / max(rank, 1))
    sizes = next((value for name, value in given.items() if "magnitude" in name), None)
    if (sizes is not None) != bool(config.get("use_dora")):
        said = "a DoRA, which" if sizes is None else "no DoRA, and"
        raise FromfewError(f"The configuration says '{base}' is {said} has {'no ' if sizes is None else ''}magnitudes.")
    if sizes is None:
        return change
    if up.flatten(1).shape[1] != rank:
        raise FromfewError(f"'{base}' has a LoRA of {tuple(up.shape)} and {tuple(down.shape)}, which do not multiply.")
    return decomposed(base, change, *scaled(base, alpha, rank), sizes)


def _read_ia3(base: str, factor: Tensor, config: Mapping[str, Any], shape: tuple[int, ...]) -> Held:
    fed = config.get("feedforward_modules") or []
    inner = isinstance(fed, list) and any(base == one or base.endswith(f".{one}") for one in fed)
    if len(shape) == 2 and shape[0] > 1:  # a row scales inputs, a column outputs
        inner = factor.dim() == 2 and factor.shape[0] == 1
    axis = 1 if inner else 0
    outline = (shape[0], 1) if len(shape) == 2 and not inner else (1, shape[axis], *[1] * (len(shape) - 2))
    if tuple(factor.shape) != outline:
        raise FromfewError(f"'{base}.ia3_l' is {tuple(factor.shape)}; for a map of {shape} it would be {outline}.")
    return Held(Channels, {"factors": factor.flatten() - 1}, about=(("inner", inner),))


def _read_oft(base: str, angles: Tensor, config: Mapping[str, Any], shape: tuple[int, ...]) -> Held:
    if prod(shape[2:]) > 1:
        raise FromfewError(f"PEFT's OFT turns pixels, not the weight, of the convolution '{base}': that is not read.")
    if angles.dim() != 2:
        raise FromfewError(f"'{base}.oft_R.weight' is {tuple(angles.shape)}, no list of blocks.")
    if config.get("coft"):
        # As its layer does before every use; a skew matrix holds every number of its triangle twice.
        far = angles.norm(dim=1, keepdim=True) * 2**0.5
        most = float(config.get("eps", 6e-5)) / len(angles) ** 0.5
        angles = torch.where(far <= most, angles, angles * (most / far.clamp_min(1e-30)))
    if config.get("block_share"):
        side = round((1 + (1 + 8 * angles.shape[1]) ** 0.5) / 2)
        angles = angles.expand(max(1, prod(shape[1:]) // side), -1) if len(angles) == 1 else angles
    # Files before the series say nothing of it, and have none.
    terms = int(config.get("num_cayley_neumann_terms", 5)) if config.get("use_cayley_neumann", False) else 0
    if not 0 <= terms <= 64:
        raise FromfewError(f"The adapter's series has {terms} terms; 1 to 64 are read.")
    return Held(Rotation, {"angles": angles[None].contiguous()}, about=(("series", terms), ("scaled", False)))


def _read_boft(base: str, given: Mapping[str, Tensor], shape: tuple[int, ...]) -> Held:
    turns, sizes = given.get("boft_R"), given.get("boft_s")
    if turns is None or sizes is None:
        raise FromfewError(f"The file has '{base}.{next(iter(given))}' alone; a BOFT has boft_R and boft_s.")
    if turns.dim() != 4 or turns.shape[2] != turns.shape[3] or sizes.numel() != shape[0]:
        raise FromfewError(f"'{base}' has a BOFT of {tuple(turns.shape)} and {tuple(sizes.shape)}, which is none.")
    turns = turns.float()
    both = 0.5 * (turns - turns.transpose(-1, -2))
    rows, columns = torch.triu_indices(turns.shape[-1], turns.shape[-1], 1)
    own, scale = {"angles": both[..., rows, columns]}, sizes.float().flatten() - 1
    if not scale.any():  # what a rotation that has no factors is written with
        return Held(Rotation, own, about=(("series", 0), ("scaled", False)))
    return Held(Rotation, own | {"sizes": scale}, about=(("series", 0), ("scaled", True)))
