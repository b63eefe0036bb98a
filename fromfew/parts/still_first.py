"""StillFirst: the text's first token gives no gradient to the maps that read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fromfew.ports.attention import AttentionPart, Call, Site

__all__ = ["StillFirst"]


class StillFirst(AttentionPart):
    """Keys and values of the first text token are taken as constants (Custom Diffusion, arXiv:2212.04488).

    The first token is the same in every prompt; what it carries belongs to all of them. Values do not change.
    """

    kind = "still_first"

    def where(self, site: Site) -> bool:
        """Wherever text is read."""
        return site.reads_text

    def qkv(self, call: Call) -> Call:
        """The same call, its first text key and value detached."""
        at = call.text.start
        return call.replace(k=_still(call.k, at), v=_still(call.v, at))

    def config(self) -> dict[str, Any]:
        """Nothing to configure."""
        return {}

    def __repr__(self) -> str:
        return "StillFirst()"


def _still(z: Tensor, at: int) -> Tensor:
    return torch.cat([z[:, :, :at], z[:, :, at : at + 1].detach(), z[:, :, at + 1 :]], dim=2)
