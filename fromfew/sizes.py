"""How much a method adds per concept, computed from shapes alone: no weights are read and no numbers made."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.method import Learner
    from fromfew.ports.part import Parts

__all__ = ["bytes_of", "parts_on", "sd15_shape", "shapes_only"]

_STAY = (Tensor.cpu, Tensor.cuda, Tensor.numpy)


class shapes_only(TorchFunctionMode):
    """While active, everything that is made has a shape and a type, and no numbers: it lies on the device "meta"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make tensors without numbers, whatever generator or device was asked for."""
        kwargs = dict(kwargs or {})
        if func in _STAY:
            return args[0]
        if func in (Tensor.item, Tensor.__float__):
            return 1.0
        if func is Tensor.to:
            args = tuple("meta" if isinstance(one, torch.device) else one for one in args)
        generator = kwargs.pop("generator", None)
        if generator is not None or "device" in kwargs or func in _MAKERS:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


_MAKERS = {
    torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm,
    torch.eye, torch.arange, torch.linspace, torch.tensor, torch.triu_indices,
}  # fmt: skip


@lru_cache(maxsize=1)
def sd15_shape() -> Backbone:
    """Stable Diffusion 1.5 without its weights: every module, name and shape, on the device "meta"."""
    from fromfew.backbones.shapes import sd15

    return sd15()


def parts_on(method: Learner, bb: Backbone) -> Parts:
    """The parts a method would keep of a cat learned on a base of this shape; only their shapes are meant.

    Raises:
        FromfewError: If the method cannot say it without numbers, such as weights that nobody trained.
    """
    from PIL import Image

    from fromfew.fit import generator
    from fromfew.method import Tuned
    from fromfew.pretrained import Encoded
    from fromfew.references import References

    me: Any = method.resolved(bb)
    if "eye" in me.settings():
        me = replace(me, eye="shape")
    photos = [Image.new("RGB", (40, 40), (i, i, i)) for i in range(max(1, me.card()["photos"][0]))]
    refs = References.of(*photos, noun="cat")
    with shapes_only(), torch.no_grad():
        if isinstance(me, Tuned):
            return me.keep(bb, me.parts(bb, refs, generator(0)))
        if isinstance(me, Encoded):
            return me.read(bb, refs, me.fresh(bb))
        return me.parts(bb, refs)


def bytes_of(parts: Parts) -> int:
    """Size of everything that is saved of the parts."""
    return sum(value.numel() * value.element_size() for value in parts.state_dict().values())
