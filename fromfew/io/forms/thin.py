"""What every LoRA form holds, form aside: for each map, two thin matrices and a scale."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.parts.light_low_rank import LightLowRank
from fromfew.parts.low_rank_conv import LowRankConv
from fromfew.ports.linear import DeltaPart, LinearPart, flat
from fromfew.ports.text import WordPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.ports.part import Part, Parts

__all__ = ["Thin", "Thinned", "even", "parts_of", "thin"]

MOST_RANK = 1024


@dataclass(frozen=True, eq=False)
class Thin:
    """One map's change, ``scale · up @ down``.

    Args:
        down: ``[r, in]`` for a linear map, ``[r, in, h, w]`` for a convolution.
        up: ``[out, r]``, or ``[out, r, 1, 1]``.
        scale: Factor of the product.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return int(self.down.shape[0])

    def delta(self) -> Tensor:
        """The change as a weight, ``[out, in]`` or ``[out, in, h, w]``."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return self.scale * product.view(self.up.shape[0], *self.down.shape[1:])

    def shaped(self, like: Tensor) -> Thin:
        """The same numbers for a linear map or a 1x1 convolution, whichever ``like`` is the weight of."""
        if like.dim() == 2 and self.down.dim() == 4 and self.down.shape[2:] == (1, 1):
            return replace(self, down=self.down.flatten(1), up=self.up.flatten(1))
        if like.dim() == 4 and self.down.dim() == 2:
            return replace(self, down=self.down[..., None, None], up=self.up.flatten(1)[..., None, None])
        return self

    def padded(self, rank: int) -> Thin:
        """The same change with a wider bottleneck, filled up with zeros."""
        more = rank - self.rank
        if more <= 0:
            return self
        down = torch.cat([self.down, self.down.new_zeros(more, *self.down.shape[1:])])
        up = torch.cat([self.up, self.up.new_zeros(self.up.shape[0], more, *self.up.shape[2:])], 1)
        return replace(self, down=down, up=up)

    def narrowed(self, rank: int) -> Thin:
        """The same change in a bottleneck no wider than ``rank``; zeros at its end are cut off first."""
        used = self.rank
        while used > max(1, rank) and not self.down[used - 1].any() and not self.up[:, used - 1].any():
            used -= 1
        cut = replace(self, down=self.down[:used], up=self.up[:, :used])
        return cut if used <= rank else split(cut.delta(), rank)


def split(delta: Tensor, rank: int) -> Thin:
    """The nearest product of two thin matrices, by singular values (Eckart and Young, 1936)."""
    rows = delta.flatten(1).float()
    rank = min(rank, *rows.shape)
    u, s, v = torch.linalg.svd(rows, full_matrices=False)
    root = s[:rank].sqrt()
    down, up = root[:, None] * v[:rank], u[:, :rank] * root
    if delta.dim() == 4:
        return Thin(down.view(rank, *delta.shape[1:]), up[..., None, None])
    return Thin(down, up)


@dataclass(eq=False)
class Thinned:
    """A concept's weight changes as thin maps, and what that cost.

    Args:
        maps: Module path to thin change.
        errors: Module path to relative Frobenius error, for changes that were approximated.
        missing: Parameters whose change no LoRA can hold (norms, biases, embeddings).
        error: Relative Frobenius error over all changes, those missing included.
    """

    maps: dict[str, Thin] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    error: float = 0.0


def thin(concept: Concept, bb: Backbone, rank: int | None, form: str, names: Collection[str] | None = None) -> Thinned:
    """The weight changes of a concept as thin maps.

    Args:
        concept: Whose linear parts are taken, at its strength; words are left to the embedding forms.
        bb: The base, which says what is a linear map or a convolution.
        rank: Bottleneck of changes that are no product yet; None keeps products as they are and needs none.
        form: Name of the form, for messages.
        names: Module paths that the form has names for; None for all. With a rank, changes of others are left out
            and counted as missing.

    Raises:
        FromfewError: If a part is of another kind, or a rank is needed and none is given, or the form has no name
            for a map and there is no rank, which says that an approximation will do.
    """
    if rank is not None and not 1 <= rank <= MOST_RANK:
        raise FromfewError(f"The rank of a LoRA is 1 to {MOST_RANK}, not {rank}.")
    found, lost, whole = Thinned(), 0.0, 0.0
    nameless: list[str] = []
    for name, part in concept.parts.items():
        if isinstance(part, WordPart):
            continue
        if not isinstance(part, LinearPart | DeltaPart):
            raise FromfewError(f"The form '{form}' holds changes of weights; it cannot hold {name}: {part!r}.")
        for path, one, delta in _changes(part, bb, rank, form):
            if one is not None and names is not None and path not in names:
                nameless, one = [*nameless, path], None
            whole += float(delta.square().sum())
            gone = float(delta.square().sum()) if one is None else float((delta - one.delta()).square().sum())
            lost += gone
            if one is None:
                found.missing.append(path)
                continue
            if rank is not None:
                found.errors[path] = (gone / max(float(delta.square().sum()), 1e-30)) ** 0.5
            one = replace(one, scale=one.scale * concept.strength)
            found.maps[path] = _sum(found.maps[path], one) if path in found.maps else one
    found.error = (lost / max(whole, 1e-30)) ** 0.5
    if nameless and rank is None:
        raise FromfewError(_no_names(nameless, form, 100 * found.error))
    return found


_NEAREST = {"kohya": "'diffusers', which ComfyUI reads as well", "diffusers": "'peft' or 'full'"}


def _no_names(paths: Sequence[str], form: str, share: float) -> str:
    some = ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
    return (
        f"The form '{form}' has no names for {len(paths)} of the maps that learned: {some}. Use the form "
        f"{_NEAREST.get(form, 'full')}; or say with --rank how wide a LoRA may be, and they are left out "
        f"({share:.1f} % of the change, as a root of squares)."
    )


def _changes(part: Part, bb: Backbone, rank: int | None, form: str) -> Any:
    """Module path, thin change (None if no LoRA can hold it) and full change of every map of a part."""
    if isinstance(part, LinearPart):
        for path in part.targets():
            delta = part.delta(path).detach().float().cpu()
            name = flat(path)
            if rank is None and isinstance(part, LightLowRank):
                up, down = part.thin(path)
                yield path, Thin(down.detach().cpu()[None], up.detach().cpu()[:, None]), delta
            elif rank is None and hasattr(part, "down") and hasattr(part, "up"):
                down, up = part.down[name].detach().cpu(), part.up[name].detach().cpu()  # type: ignore[index]
                yield path, Thin(down, up, float(part.scale)), delta  # type: ignore[arg-type]
            else:
                yield path, split(delta, _needed(rank, form)), delta
        return
    assert isinstance(part, DeltaPart)
    for full_path in part.shapes():
        delta = part.delta_of(full_path, bb.parameter(full_path)).detach().float().cpu()
        path, _, kind = full_path.rpartition(".")
        if not delta.any():
            continue
        if rank is None and isinstance(part, LowRankConv):
            down, up = (one[flat(full_path)].detach().cpu() for one in (part.down, part.up))
            yield path, Thin(down, up, part.scale), delta
            continue
        fits = kind == "weight" and isinstance(bb.module(path), nn.Linear | nn.Conv2d)
        yield (path if fits else full_path), split(delta, _needed(rank, form)) if fits else None, delta


def _needed(rank: int | None, form: str) -> int:
    if rank is None:
        raise FromfewError(
            f"This concept changes whole weights; say with --rank how wide a LoRA of the form '{form}' may be "
            "(64 is common), or export it as 'full'."
        )
    return rank


def _sum(a: Thin, b: Thin) -> Thin:
    """Two changes of one map, side by side in one bottleneck."""
    return Thin(torch.cat([a.down, b.down]), torch.cat([a.up * a.scale, b.up * b.scale], 1))


def even(maps: Mapping[str, Thin]) -> tuple[dict[str, Thin], int, float]:
    """The same changes with one rank and one alpha for all: many loaders get mixed ones wrong.

    Returns:
        The maps, their rank, and alpha (``scale · rank``).
    """
    if not maps:
        raise FromfewError("There is no change of weights to write.")
    rank = max(one.rank for one in maps.values())
    scales = {one.scale for one in maps.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    same = {
        path: one if one.scale == scale else Thin(one.down, one.up * (one.scale / scale), scale)
        for path, one in maps.items()
    }
    return {path: one.padded(rank) for path, one in same.items()}, rank, scale * rank


def parts_of(maps: Mapping[str, Thin], bb: Backbone) -> Parts:
    """Parts that make these changes: low-rank beside linear maps, full differences over convolutions.

    Raises:
        FromfewError: If a map's sizes are not those of the base.
    """
    from fromfew.parts.full import FullDelta
    from fromfew.parts.low_rank import LowRank
    from fromfew.ports.part import Parts

    linear: dict[str, Thin] = {}
    convs: dict[str, Tensor] = {}
    for path, given in maps.items():
        weight = bb.module(path).weight
        assert isinstance(weight, Tensor)
        one = given.shaped(weight)
        there = (one.up.shape[0], *one.down.shape[1:])
        if tuple(weight.shape) != there:
            raise FromfewError(f"'{path}' of '{bb.name}' is {tuple(weight.shape)}, in the file {there}.")
        if isinstance(bb.module(path), nn.Linear):
            linear[path] = one.narrowed(min(weight.shape))
        else:
            convs[f"{path}.weight"] = one.delta()
    low, delta = None, None
    if linear:
        # Not `even`: a map narrower than the rank keeps its own width in LowRank.
        scales = {one.scale for one in linear.values()}
        scale, rank = scales.pop() if len(scales) == 1 else 1.0, max(one.rank for one in linear.values())
        low = LowRank({path: (one.up.shape[0], one.down.shape[1]) for path, one in linear.items()},
                      rank, scale * rank)  # fmt: skip
        for path, one in linear.items():
            width = low.down[flat(path)].shape[0]
            low.down[flat(path)].data = one.padded(width).down.float().clone()
            low.up[flat(path)].data = one.padded(width).up.float() * (one.scale / scale)
    if convs:
        delta = FullDelta({path: tuple(value.shape) for path, value in convs.items()})
        for path, value in convs.items():
            delta.deltas[flat(path)].data = value.clone()
    return Parts(maps=low, convolutions=delta)
