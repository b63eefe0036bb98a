"""The linear port: add to a linear map, by what it returns or by a difference of its weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.ports.part import Handle, Part

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["DeltaPart", "LinearPart", "flat", "full"]


def flat(path: str) -> str:
    """A module path as a parameter name: torch allows no dots in one."""
    return path.replace(".", "/")


def full(name: str) -> str:
    """The inverse of `flat`."""
    return name.replace("/", ".")


class LinearPart(Part):
    """Adds to the output of linear maps; `delta` is the same change as a weight, for merging and export."""

    port = "linear"

    @abstractmethod
    def targets(self) -> Mapping[str, tuple[int, ...]]:
        """Path of every map it acts on and the shape of that map's weight, ``(out, in)``."""

    @abstractmethod
    def apply_to(self, path: str, x: Tensor) -> Tensor:
        """What is added, at strength 1, to the output of the map at ``path`` for ``x`` ``[..., in]``."""

    def apply_on(self, path: str, x: Tensor, weight: Tensor) -> Tensor:
        """The same for parts that need the map's own ``weight`` ``[out, in]``; by default `apply_to`."""
        return self.apply_to(path, x)

    @abstractmethod
    def delta(self, path: str) -> Tensor:
        """The change of the weight at strength 1, ``[out, in]``."""

    @property
    def touches_text(self) -> bool:
        """True if a text encoder is among the targets."""
        return any(path.startswith("encoder.") for path in self.targets())

    def check(self, bb: Backbone) -> None:
        """Every target must exist and have the shape that was learned."""
        for path, shape in self.targets().items():
            _same_shape(self, bb, path, "weight", shape)

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Hook every map: ``y + strength * apply_to(x)``."""
        handle = Handle()
        for path in self.targets():
            handle.also(bb.module(path).register_forward_hook(self._hook(path, strength)).remove)
        return handle

    def _hook(self, path: str, strength: float) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            more = self.apply_on(path, args[0], module._parameters["weight"])  # type: ignore[arg-type]
            return y + (more if strength == 1 else strength * more).to(y.dtype)

        return hook


@dataclass(eq=False)
class _Layer:
    """One parameter of the base, and the differences now laid over it."""

    over: list[tuple[DeltaPart, str, float]] = field(default_factory=list)
    kept: tuple[Any, Tensor] | None = None


class DeltaPart(Part):
    """Adds differences to parameters of any module: linear maps, convolutions, norms, embeddings.

    While a module runs, an ordinary tensor of the same name hides the parameter, which itself is never
    written: taking the part off cannot leave a trace. Several differences over one parameter sum.
    """

    port = "linear"
    last: ClassVar[bool] = False
    """Whether the difference is one from what all others have left, such as a factor, not from the base."""

    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Path of every parameter it changes (module path, dot, parameter name) and its shape."""

    def delta(self, path: str) -> Tensor:
        """The difference at strength 1, in the parameter's shape, where the base does not matter for it.

        A part overrides either this or `delta_of`, which everyone asks.

        Raises:
            FromfewError: If the part has no difference without a base.
        """
        raise FromfewError(f"{self!r} changes '{path}' by what it is: ask delta_of with the base's own numbers.")

    def delta_of(self, path: str, base: Tensor) -> Tensor:
        """The difference at strength 1 from the base's own parameter ``base``, in its shape."""
        return self.delta(path)

    def sources(self, path: str) -> Sequence[Tensor]:
        """The numbers that the difference of one parameter is made of; while they stay, it is computed once."""
        return [*self.parameters(), *self.buffers()]

    @property
    def touches_text(self) -> bool:
        """True if a text encoder is among the targets."""
        return any(path.startswith("encoder.") for path in self.shapes())

    def check(self, bb: Backbone) -> None:
        """Every parameter must exist and have the shape that was learned."""
        for path, shape in self.shapes().items():
            module, _, name = path.rpartition(".")
            _same_shape(self, bb, module, name, shape)

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Lay the differences over the parameters."""
        handle = Handle()
        for path in self.shapes():
            module_path, _, name = path.rpartition(".")
            handle.also(_lay(bb.module(module_path), name, (self, path, strength)))
        return handle


def _lay(module: nn.Module, name: str, what: tuple[DeltaPart, str, float]) -> Any:
    """Register a difference over one parameter; returns what takes it off."""
    layers: dict[str, _Layer] = module.__dict__.setdefault("_fromfew_layers", {})
    if not layers:
        before = module.register_forward_pre_hook(_show)
        after = module.register_forward_hook(_hide, always_call=True)
        module.__dict__["_fromfew_hooks"] = (before, after)
    layers.setdefault(name, _Layer()).over.append(what)

    def remove() -> None:
        layer = layers[name]
        layer.over[:] = [one for one in layer.over if one is not what]
        layer.kept = None
        if not layer.over:
            del layers[name]
            module.__dict__.pop(name, None)
        if not layers:
            for hook in module.__dict__.pop("_fromfew_hooks"):
                hook.remove()
            del module.__dict__["_fromfew_layers"]

    return remove


def _show(module: nn.Module, args: Any) -> None:
    for name, layer in module.__dict__["_fromfew_layers"].items():
        module.__dict__[name] = _changed(module._parameters[name], layer)


def _hide(module: nn.Module, args: Any, y: Any) -> None:
    for name in module.__dict__["_fromfew_layers"]:
        module.__dict__.pop(name, None)


def _changed(base: Tensor | None, layer: _Layer) -> Tensor:
    """The base's parameter plus all differences; kept between calls while nothing of it changes."""
    assert base is not None
    sources = [one for part, path, _ in layer.over for one in part.sources(path)]
    learning = torch.is_grad_enabled() and any(one.requires_grad for one in sources)
    states = [(one._version, one.data_ptr()) for one in sources]
    mark = (base._version, base.data_ptr(), states, torch.is_inference_mode_enabled())
    if not learning and layer.kept is not None and layer.kept[0] == mark:
        return layer.kept[1]
    value: Tensor = base
    for part, path, strength in sorted(layer.over, key=lambda one: one[0].last):
        delta = part.delta_of(path, value if part.last else base)
        value = value + (delta if strength == 1 else strength * delta).to(value.device, value.dtype)
    layer.kept = None if learning else (mark, value)
    return value


def _same_shape(part: Part, bb: Backbone, path: str, name: str, shape: tuple[int, ...]) -> None:
    try:
        there = bb.module(path)._parameters.get(name)
    except FromfewError:
        there = None
    if there is None:
        raise FromfewError(f"{part!r} does not fit {bb.name}: it has no '{path}.{name}'.")
    if tuple(there.shape) != tuple(shape):
        raise FromfewError(
            f"{part!r} does not fit {bb.name}: '{path}.{name}' is {tuple(there.shape)}, learned on {tuple(shape)}."
        )
