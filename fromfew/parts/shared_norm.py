"""SharedNorm: group norms see the first picture of the batch too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm

from fromfew.ports.feature import FeaturePart
from fromfew.rows import Now

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["SharedNorm"]


class SharedNorm(FeaturePart):
    """Group norms of the denoiser take their statistics over a row and the first picture of its branch.

    Layer norms work within one token, so sharing them would change nothing (StyleAligned's code does it all
    the same); a base without group norms is left as it is.
    """

    kind = "shared_norm"
    couples_images = True

    def places(self, bb: Backbone) -> dict[str, nn.Module]:
        """All group norms of the denoiser."""
        return {name: m for name, m in bb.denoiser.named_modules() if isinstance(m, nn.GroupNorm)}

    def after(self, module: nn.Module, x: Tensor, y: Tensor, now: Now, strength: float) -> Tensor:
        """The norm over both; first pictures keep their own, bit for bit."""
        assert isinstance(module, nn.GroupNorm)
        first = now.rows.first_of_branch().to(x.device)
        both = torch.cat([x.flatten(2), x[first].flatten(2)], dim=2)
        shared = group_norm(both, module.num_groups, module.weight, module.bias, module.eps)
        shared = shared[:, :, : x[0, 0].numel()].view_as(y)
        if strength != 1:
            shared = y + strength * (shared - y)
        alone = first == torch.arange(len(first), device=x.device)
        return torch.where(alone.view(-1, *[1] * (y.dim() - 1)), y, shared)

    def config(self) -> dict[str, Any]:
        """Nothing to configure."""
        return {}

    def __repr__(self) -> str:
        return "SharedNorm()"
