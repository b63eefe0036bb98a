"""The feature port: alter what a named module receives or returns."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fromfew.ports.part import Handle, Part
from fromfew.rows import Now

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["FeaturePart"]


class FeaturePart(Part):
    """Plain module hooks with handles: `places` says where, `after` says what."""

    port = "feature"

    @abstractmethod
    def places(self, bb: Backbone) -> dict[str, nn.Module]:
        """Path and module of every place this part acts on."""

    @abstractmethod
    def after(self, module: nn.Module, x: Tensor, y: Tensor, now: Now, strength: float) -> Tensor:
        """What the module returns instead of ``y``; ``x`` is its first argument."""

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Hook every module; a call outside `predict` passes unaltered."""

        def hook(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor | None:
            return None if bb.now is None else self.after(module, args[0], y, bb.now, strength)

        handle = Handle()
        for module in self.places(bb).values():
            handle.also(module.register_forward_hook(hook).remove)
        return handle
