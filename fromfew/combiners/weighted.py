"""Weighted: the changes of weights are added, each times its strength; the baseline of all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fromfew.combine import Combiner, deltas, whole_parts

if TYPE_CHECKING:
    from torch import Tensor

    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.fit import Watch
    from fromfew.ports.part import Part

CARD = {
    "title": "Model soups: averaging weights of multiple fine-tuned models",
    "arxiv": "2203.05482",
    "year": 2022,
    "kind": "combiner",
    "joins": "any changes of weights, words and other parts",
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "the sum of the thin changes, or as much as the base where whole weights were changed",
}


@dataclass(frozen=True, kw_only=True)
class Weighted(Combiner):
    """Add the changes: ``W = W0 + sum_i s_i (W_i - W0)``, or their mean.

    With ``mean`` off this is what attaching all concepts does. Low-rank changes stay apart and thin; all others become
    one difference of whole parameters.

    >>> Weighted(mean=True).mean
    True
    """

    mean: bool = False
    """Whether the sum is divided by the number of concepts, as when checkpoints are averaged."""

    def join(
        self, bb: Backbone, concepts: Sequence[Concept], *, seed: int, watch: Watch | None, work: Path | None
    ) -> Mapping[str, Part]:
        """Low-rank parts, each weighed, and the sum of all other changes."""
        from fromfew.combine import delta_at
        from fromfew.concept import Concept as Whole
        from fromfew.parts.low_rank import LowRank
        from fromfew.ports.part import Parts

        share = 1 / len(concepts) if self.mean else 1.0
        found: dict[str, Part] = {}
        rest = []
        for one in concepts:
            thin = {name: part for name, part in one.parts.items() if type(part) is LowRank}
            for name, part in thin.items():
                found[f"{name}_{len(found) + 1}"] = _weighed(part, one.strength * share)
            other = Parts(**{name: part for name, part in one.parts.items() if name not in thin})
            rest.append(Whole(one.name, None, None, other, one.card, one.strength * share))
        sums: dict[str, Tensor] = {}
        for path in deltas(rest):
            each = [delta for one in rest if (delta := delta_at(bb, one, path)) is not None]
            sums[path] = sum(each[1:], each[0])
        if watch is not None:
            watch(1, 1, "added")
        return {**found, **whole_parts(sums)}


def _weighed(part: Part, weight: float) -> Part:
    """A low-rank part whose change is this much as large."""
    from fromfew.parts.low_rank import LowRank

    assert isinstance(part, LowRank)
    new = LowRank.build(part.config())
    new.load_state_dict(part.state_dict())
    for up in new.up.values():
        up.data.mul_(weight)
    return new
