"""RegionText: inside its region the picture reads another prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.ports.attention import AttentionPart, Call, Site
from fromfew.regions import inside

__all__ = ["RegionText"]


class RegionText(AttentionPart):
    """Picture tokens inside a region read that region's text and not the picture's (Mix-of-Show, arXiv:2305.18292).

    The region's keys and values are those of the same picture's row on the region's branch (`fromfew.regions.Regional`
    adds it), computed by the model itself: whatever is attached acts on them. Where several regions overlap, the
    texts of all of them are read; outside of all, the picture's own. What picture reads of picture stays as it is.

    Args:
        names: Branch of each region.
        side: Height and width of the masks.
        branch: Rows that are rewritten.
    """

    kind = "regions"

    def __init__(self, names: Sequence[str], side: tuple[int, int] = (128, 128), branch: str = "cond") -> None:
        super().__init__()
        if not names:
            raise FromfewError("Regions need at least one region.")
        self.names, self.side, self.branch = tuple(names), (int(side[0]), int(side[1])), branch
        self.register_buffer("masks", torch.zeros(len(names), *self.side))
        self.masks: Tensor

    @classmethod
    def of(cls, masks: Mapping[str, Tensor], branch: str = "cond") -> RegionText:
        """Regions from branch to mask ``[h, w]``, all of one size."""
        part = cls(list(masks), next(iter(masks.values())).shape[-2:], branch)  # type: ignore[arg-type]
        part.masks.copy_(torch.stack(list(masks.values())))
        return part

    def where(self, site: Site) -> bool:
        """Wherever text is read."""
        return site.reads_text

    def qkv(self, call: Call) -> Call:
        """Keys and values of the regions' texts behind the row's own, and a bias that says who reads which."""
        found = self._partners(call)
        if not found:
            return call
        own, old = call.text.stop - call.text.start, call.k.shape[2]
        index = torch.arange(len(call.rows), device=call.k.device).repeat(len(self.names), 1)
        for row, partners in found.items():
            index[:, row] = torch.tensor(partners, device=index.device)
        k, v = (torch.cat([z, *(z[:, :, call.text][at] for at in index)], 2) for z in (call.k, call.v))
        bias = k.new_zeros(len(call.rows), 1, call.q.shape[2], k.shape[2])
        low = torch.finfo(bias.dtype).min
        bias[..., old:] = low
        here = inside(self.masks, call.grid).flatten(1).to(bias.device)
        rows = torch.tensor(list(found), device=bias.device)
        block = bias[rows]
        picture = block[:, 0, call.image]
        picture[..., call.text].masked_fill_(here.any(0)[None, :, None], low)
        for number, cells in enumerate(here):
            at = slice(old + number * own, old + (number + 1) * own)
            picture[..., at].masked_fill_(cells[None, :, None], 0)
        bias[rows] = block
        call = call.replace(k=k, v=v)
        return call.replace(bias=bias if call.bias is None else call.bias + bias)

    def _partners(self, call: Call) -> dict[int, list[int]]:
        """For every row that is rewritten, the rows that hold its regions' texts."""
        where = {pair: row for row, pair in enumerate(zip(call.rows.branch, call.rows.image.tolist(), strict=True))}
        found = {}
        for (branch, image), row in where.items():
            partners = [where.get((name, image), -1) for name in self.names]
            if branch == self.branch and min(partners) >= 0:
                found[row] = partners
        return found

    def config(self) -> dict[str, Any]:
        """Branches and size of the masks."""
        return {"names": list(self.names), "side": list(self.side), "branch": self.branch}

    def __repr__(self) -> str:
        return f"RegionText({', '.join(self.names)})"
