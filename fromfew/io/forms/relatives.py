"""What files of LoRA's relatives hold, form aside: for each map, the numbers of the part that makes the same change.

LoHa is `Hadamard`, LoKr `Kronecker`, DoRA `WeightDecomposed`, OFT and BOFT `Rotation`, (IA)³ `Channels`. A part has
one rank and one alpha, a file has them for every map: maps that differ in them become parts of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.forms.thin import MOST_RANK, Thin
from fromfew.io.forms.thin import parts_of as thin_parts
from fromfew.parts._over import Over
from fromfew.parts.channels import Channels
from fromfew.parts.hadamard import Hadamard
from fromfew.parts.kronecker import Kronecker
from fromfew.parts.rotation import Rotation
from fromfew.parts.weight_decomposed import WeightDecomposed
from fromfew.ports.linear import flat
from fromfew.ports.part import Parts

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["HADA", "LOKR", "Held", "decomposed", "hadamard", "kinds_in", "kronecker", "parts_of", "scaled"]

HADA = {"hada_w1_a": "up1", "hada_w1_b": "down1", "hada_w2_a": "up2", "hada_w2_b": "down2"}
"""Names of a LoHa's matrices in files, and in the part."""
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
"""Names of a LoKr's matrices in files."""
_MARKS = {".hada_": "LoHa", ".lokr_": "LoKr", ".dora_scale": "DoRA", ".lora_magnitude_vector": "DoRA",
          ".oft_R": "OFT", ".boft_R": "BOFT", ".ia3_l": "(IA)3", ".lora_": "LoRA"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Held:
    """One map's change, of another kind than a product of two thin matrices.

    Args:
        kind: The part that makes it.
        own: Numbers by the name that the part has for them.
        rank: Width of its bottleneck; 0 if nothing in it is thin.
        alpha: ``alpha / rank`` is the factor of the product.
        about: What else must be alike in one part.
    """

    kind: type[Over]
    own: dict[str, Tensor]
    rank: int = 0
    alpha: float = 0.0
    about: tuple[tuple[str, Hashable], ...] = ()


def kinds_in(names: Mapping[str, Any]) -> str:
    """What keys belong to, such as "LoHa" or "LoHa and LoRA"; "LoRA" if they do not tell."""
    found = {kind for mark, kind in _MARKS.items() if any(mark in name for name in names)}
    if "DoRA" in found:
        found.discard("LoRA")
    return " and ".join(kind for kind in dict.fromkeys(_MARKS.values()) if kind in found) or "LoRA"


def scaled(base: str, alpha: float | None, rank: int) -> tuple[int, float]:
    """Rank and alpha of a map, checked; an alpha of None or 0 means a factor of 1.

    Raises:
        FromfewError: If either is no such number.
    """
    if not 1 <= rank <= MOST_RANK:
        raise FromfewError(f"'{base}' has the rank {rank}; 1 to {MOST_RANK} are read.")
    if alpha is not None and not isfinite(alpha):
        raise FromfewError(f"'{base}' has an alpha that is not finite.")
    return rank, float(alpha or rank)


def hadamard(base: str, given: Mapping[str, Tensor], alpha: float | None) -> Held:
    """A LoHa's map: two products, each of two matrices or (a Tucker core beside them) three.

    Raises:
        FromfewError: If a matrix is missing, or their sizes do not fit one another.
    """
    _all_there(base, given, HADA)
    own: dict[str, Tensor] = {}
    for number in ("1", "2"):
        up, down = given[f"hada_w{number}_a"].float(), given[f"hada_w{number}_b"].float()
        core = given.get(f"hada_t{number}")
        if core is not None:
            up, down = _opened(base, core, up, down)
        own |= {f"up{number}": up.flatten(1), f"down{number}": down.flatten(1)}
    ranks = {own["up1"].shape[1], own["down1"].shape[0], own["up2"].shape[1], own["down2"].shape[0]}
    if len(ranks) != 1:
        raise FromfewError(f"The LoHa of '{base}' has matrices of the ranks {sorted(ranks)}; they must be alike.")
    return Held(Hadamard, own, *scaled(base, alpha, ranks.pop()))


def kronecker(base: str, given: Mapping[str, Tensor], alpha: float | None, rank: int | None = None) -> Held:
    """A LoKr's map; factors that are products of their own are multiplied, but for the second one's thin pair.

    Args:
        base: Its name, for messages.
        given: Its matrices by name.
        alpha: Of the file.
        rank: What alpha is divided by; if None, the rank of what is thin, and a file in which nothing is thin has no
            factor (LyCORIS's rule).

    Raises:
        FromfewError: If a matrix is missing, or their sizes do not fit one another.
    """
    small, ranks = given.get("lokr_w1"), set()
    if small is None:
        _all_there(base, given, ("lokr_w1_a", "lokr_w1_b"))
        ranks.add(given["lokr_w1_b"].shape[0])
        small = _product(base, given["lokr_w1_a"], given["lokr_w1_b"])
    whole, thin_pair = given.get("lokr_w2"), None
    if whole is None:
        _all_there(base, given, ("lokr_w2_a", "lokr_w2_b"))
        up, down = given["lokr_w2_a"].float(), given["lokr_w2_b"].float()
        if "lokr_t2" in given:
            up, down = _opened(base, given["lokr_t2"], up, down)
        thin_pair = (up.flatten(1), down.flatten(1))
        ranks.add(down.shape[0])
        if up.shape[1] != down.shape[0]:
            raise FromfewError(f"The LoKr of '{base}' has matrices of the ranks {sorted({*up.shape[1:2], *ranks})}.")
    if len(ranks) > 1:
        raise FromfewError(f"The LoKr of '{base}' has matrices of the ranks {sorted(ranks)}; they must be alike.")
    if small.dim() != 2 or (whole is not None and whole.dim() < 2):
        raise FromfewError(f"The LoKr of '{base}' has a factor that is no matrix.")
    by = rank or (ranks.pop() if ranks else None)
    width, top = (1, 1.0) if by is None else scaled(base, alpha, by)
    if thin_pair is not None:
        return Held(Kronecker, {"small": small.float(), "up": thin_pair[0], "down": thin_pair[1]}, width, top)
    factor = top / width
    assert whole is not None
    # A whole second factor has no scale of its own in the part.
    held = whole.float().flatten(1) if factor == 1 else whole.float().flatten(1) * factor
    return Held(Kronecker, {"small": small.float(), "whole": held})


def decomposed(base: str, change: Thin, rank: int, alpha: float, sizes: Tensor) -> Held:
    """A DoRA's map: a thin change and the length of every row.

    Raises:
        FromfewError: If the lengths are not those of rows.
    """
    rows = change.up.shape[0]
    if sizes.numel() != rows:
        raise FromfewError(f"The DoRA of '{base}' has {sizes.numel()} sizes for {rows} outputs.")
    own = {"up": change.up.flatten(1).float(), "down": change.down.flatten(1).float(), "sizes": sizes.float().flatten()}
    return Held(WeightDecomposed, own, *scaled(base, alpha, rank))


def _all_there(base: str, given: Mapping[str, Tensor], names: Any) -> None:
    missing = next((name for name in names if name not in given), None)
    if missing is not None:
        raise FromfewError(f"The file has '{base}.{next(iter(given))}' and no {missing} beside it.")
    flat_one = next((name for name in names if given[name].dim() < 2), None)
    if flat_one is not None:
        raise FromfewError(f"'{base}.{flat_one}' is {tuple(given[flat_one].shape)}, no matrix.")


def _product(base: str, up: Tensor, down: Tensor) -> Tensor:
    if up.dim() != 2 or down.dim() != 2 or up.shape[1] != down.shape[0]:
        raise FromfewError(f"'{base}' has a pair of {tuple(up.shape)} and {tuple(down.shape)}, which do not multiply.")
    return up.float() @ down.float()


def _opened(base: str, core: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """A Tucker product ``[r, r, …] x [r, out] x [r, in]`` as ``[out, r]`` and ``[r, in, …]``: the same numbers."""
    if core.dim() < 3 or up.dim() != 2 or down.dim() != 2 or core.shape[:2] != (up.shape[0], down.shape[0]):
        sizes = f"{tuple(core.shape)}, {tuple(up.shape)} and {tuple(down.shape)}"
        raise FromfewError(f"'{base}' has a Tucker core and matrices of {sizes}, which do not multiply.")
    return up.T.contiguous(), torch.einsum("ij...,jn->in...", core.float(), down)


def parts_of(maps: Mapping[str, Thin | Held], bb: Backbone) -> Parts:
    """Parts that make these changes.

    Raises:
        FromfewError: If a map's sizes are not those of the base.
    """
    parts: dict[str, Any] = dict(thin_parts({p: one for p, one in maps.items() if isinstance(one, Thin)}, bb).items())
    groups: dict[Hashable, dict[str, Held]] = {}
    for path, one in maps.items():
        if isinstance(one, Held):
            groups.setdefault(_group(one), {})[path] = one
    for group in _joined(groups).values():
        kind = next(iter(group.values())).kind
        count = sum(name.startswith(kind.kind) for name in parts)
        parts[f"{kind.kind}{count + 1 if count else ''}"] = _BUILDERS[kind](group, bb)
    return Parts(**parts)


def _group(one: Held) -> Hashable:
    """What is alike in one part; a factor of every input or output stands for itself."""
    return (one.kind.kind, one.rank, one.alpha, () if one.kind is Channels else one.about)


def _joined(groups: dict[Hashable, dict[str, Held]]) -> dict[Hashable, dict[str, Held]]:
    """Maps of LoKr in which nothing is thin go with others, whose scale does not touch them."""
    whole = ("kronecker", 0, 0.0, ())
    others = [key for key in groups if isinstance(key, tuple) and key[0] == "kronecker" and key != whole]
    if whole in groups and others:
        groups[others[0]] |= groups.pop(whole)
    return groups


def _shapes(group: Mapping[str, Held], bb: Backbone) -> dict[str, tuple[int, ...]]:
    return {f"{path}.weight": tuple(bb.module(path).weight.shape) for path in group}  # type: ignore[union-attr, arg-type]


def _filled(part: Over, group: Mapping[str, Held], bb: Backbone) -> Over:
    """The part with the file's numbers, which must have its sizes."""
    for path, one in group.items():
        there = part.own(f"{path}.weight")
        got = {name: tuple(value.shape) for name, value in one.own.items()}
        wanted = {name: tuple(value.shape) for name, value in there.items()}
        if got != wanted:
            raise FromfewError(
                f"'{path}' of '{bb.name}' is {tuple(bb.module(path).weight.shape)}: the file's {part.kind} of it would "  # type: ignore[union-attr, arg-type]
                f"be {wanted}, and is {got}."
            )
        for name, value in one.own.items():
            getattr(part, name)[flat(f"{path}.weight")].data = value.clone().contiguous()
    return part


def _hadamard(group: Mapping[str, Held], bb: Backbone) -> Over:
    first = next(iter(group.values()))
    return _filled(Hadamard(_shapes(group, bb), first.rank, first.alpha), group, bb)


def _kronecker(group: Mapping[str, Held], bb: Backbone) -> Over:
    shapes = _shapes(group, bb)
    sides: dict[str, tuple[int, int, bool]] = {}
    widest = 1
    for path, one in group.items():
        shape, (u, p) = shapes[f"{path}.weight"], one.own["small"].shape
        second = one.own["whole" if "whole" in one.own else "up"].shape[0]
        if not u or not p or shape[0] != u * second or shape[1] % p:
            raise FromfewError(
                f"'{path}' of '{bb.name}' is {shape}; the file's LoKr of it has a first factor of {(u, p)} and a "
                f"second of {second} rows."
            )
        sides[f"{path}.weight"] = (u, p, "whole" in one.own)
        widest = max(widest, second, shape[1] // p)
    thin = next((one for one in group.values() if one.rank), None)
    # Where nothing is thin, the rank from which the part keeps every second factor whole.
    rank, alpha = (thin.rank, thin.alpha) if thin else ((widest + 1) // 2, float((widest + 1) // 2))
    guesses = [-1, max(max(u, p) for u, p, _ in sides.values())]

    def odd(factor: int) -> dict[str, tuple[int, int, bool]]:
        return {path: one for path, one in sides.items() if one != Kronecker.usual(shapes[path], rank, factor)}

    factor = min(guesses, key=lambda one: len(odd(one)))
    return _filled(Kronecker(shapes, rank, alpha, factor, odd(factor)), group, bb)


def _decomposed(group: Mapping[str, Held], bb: Backbone) -> Over:
    first, shapes = next(iter(group.values())), _shapes(group, bb)
    part = WeightDecomposed(shapes, first.rank, first.alpha)
    fitted = {}
    for path, one in group.items():
        # The part has no bottleneck wider than the map.
        width = min(first.rank, shapes[f"{path}.weight"][0], prod(shapes[f"{path}.weight"][1:]))
        narrow = Thin(one.own["down"], one.own["up"]).narrowed(width).padded(width)
        fitted[path] = Held(one.kind, {"up": narrow.up, "down": narrow.down, "sizes": one.own["sizes"]})
    return _filled(part, fitted, bb)


def _rotation(group: Mapping[str, Held], bb: Backbone) -> Over:
    shapes, about = _shapes(group, bb), dict(next(iter(group.values())).about)
    blocks = {}
    for path, one in group.items():
        width, angles = prod(shapes[f"{path}.weight"][1:]), one.own["angles"]
        n = angles.shape[1]
        side = width // n if n else 0
        levels = len(angles)
        butterflies = levels == 1 or (side % 2 == 0 and width % (side * 2 ** (levels - 1)) == 0)
        if n * side != width or angles.shape[2] != side * (side - 1) // 2 or not butterflies:
            raise FromfewError(
                f"'{path}' of '{bb.name}' has {width} inputs; the file turns {levels} times {n} blocks of "
                f"{angles.shape[2]} angles, which do not fit."
            )
        blocks[f"{path}.weight"] = (levels, n, side)
    series: Any = about.get("series", 0)
    return _filled(Rotation(shapes, blocks, bool(about.get("scaled", False)), series), group, bb)


def _channels(group: Mapping[str, Held], bb: Backbone) -> Over:
    inner = {path: bb.module(path) for path, one in group.items() if dict(one.about)["inner"]}
    outer = {path: bb.module(path) for path in group if path not in inner}
    return _filled(Channels.of(outer, inner), group, bb)


_BUILDERS: dict[type[Over], Callable[[Mapping[str, Held], Any], Over]] = {
    Hadamard: _hadamard, Kronecker: _kronecker, WeightDecomposed: _decomposed, Rotation: _rotation,
    Channels: _channels,
}  # fmt: skip
