"""ZipLoRA: which input column of every weight follows which concept is learned, so that they stay out of each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fromfew.combine import Combiner, delta_at, deltas, kept, whole_parts
from fromfew.errors import FromfewError
from fromfew.ports.linear import DeltaPart, flat

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.data import Batch, Source
    from fromfew.fit import Watch
    from fromfew.ports.part import Part
    from fromfew.stage import Stage, Step, Term

CARD = {
    "title": "ZipLoRA: Any Subject in Any Style by Effectively Merging LoRAs",
    "arxiv": "2311.13600",
    "year": 2023,
    "kind": "combiner",
    "joins": "any changes of weights, words and other parts; made for a subject and a style",
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "a difference of every weight that any of the concepts changes",
}


class Zipped(DeltaPart):
    """``sum_i ΔW_i diag(m_i)``: changes of several concepts with one coefficient a concept and input column.

    Only the coefficients are parameters; it lives while they are learned, and is folded into plain differences then.

    Args:
        changes: For every parameter, ``[n, *shape]`` the concepts' own changes.
    """

    kind = "zipped"

    def __init__(self, changes: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.changes = dict(changes)
        columns = {path: value for path, value in self.changes.items() if value.dim() > 2}
        self.mergers = nn.ParameterDict({flat(p): torch.ones(len(v), v.shape[2]) for p, v in columns.items()})

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameter path to shape."""
        return {path: tuple(value.shape[1:]) for path, value in self.changes.items()}

    def delta(self, path: str) -> Tensor:
        """The weighed sum; parameters without columns (biases, norms) are summed as they are."""
        value = self.changes[path]
        if flat(path) not in self.mergers:
            return value.sum(0)
        m = self.mergers[flat(path)].to(value.device)
        return (value * m.view(*m.shape[:1], 1, m.shape[1], *[1] * (value.dim() - 3))).sum(0)

    def overlap(self) -> Tensor:
        """``sum over weights and pairs, mean over columns of |m_i m_j|``."""
        total = torch.zeros(())
        for m in self.mergers.values():
            for i in range(len(m)):
                for j in range(i):
                    total = total.to(m.device) + (m[i] * m[j]).abs().mean()
        return total

    def config(self) -> dict[str, Any]:
        """Shapes; it is never saved."""
        return {"shapes": {path: list(shape) for path, shape in self.shapes().items()}}

    def __repr__(self) -> str:
        return f"Zipped({len(self.changes)} parameters)"


@dataclass(frozen=True, kw_only=True)
class ZipLoRA(Combiner):
    """Learn coefficients m of ``ΔW = sum_i ΔW_i diag(m_i)``, one a concept and input column, from 1 on.

    Minimises ``sum_i E ‖f_merged(x_t, t, c_i) - f_i(x_t, t, c_i)‖² + overlap · sum_layers mean |m_i m_j|`` over
    pictures that each concept draws of itself: the merged model is to do what each alone does, with as few columns in
    common as can be.

    Departs from the paper: the overlap is the mean product of the coefficients instead of their cosine, and more than
    two concepts may be joined.

    >>> ZipLoRA(overlap=0.1).overlap
    0.1
    """

    steps: int = 100
    """Optimiser steps."""
    lr: float = 0.01
    """Learning rate of the coefficients."""
    batch: int = 2
    """Pictures a step, shared among the concepts."""
    overlap: float = 0.01
    """Weight of what the concepts' columns have in common."""
    pictures: int = 4
    """How many pictures each concept draws of itself to learn from."""
    drawing: int = 20
    """Sampling steps of those pictures."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        self.within(**dict.fromkeys(("steps", "batch", "pictures", "drawing"), (1, math.inf)), overlap=(0, math.inf))
        if not self.lr > 0:
            raise FromfewError(f"lr must be above 0, not {self.lr:g}.")

    def needs(self, bb: Backbone, concepts: Sequence[Concept]) -> list[str]:
        """Something must be there to be merged."""
        return [] if deltas(concepts) else ["none of them changes a weight; use weighted, which joins words"]

    def join(
        self, bb: Backbone, concepts: Sequence[Concept], *, seed: int, watch: Watch | None, work: Path | None
    ) -> Mapping[str, Part]:
        """Coefficients learned, then folded into differences."""
        from fromfew.fit import fit, generator
        from fromfew.ports.part import Parts

        zipped = self.zipped(bb, concepts)
        stage = self.stage(bb, concepts, zipped, seed)
        told = [(one.name, one.strength, one.card.seed, one.card.settings) for one in concepts]
        kept_at = work / "zip.safetensors" if work is not None else None
        fit(bb, Parts(), stage, rng=generator(seed), watch=watch, resume=kept_at, mark=f"{self!r} {told} {seed}")
        with torch.no_grad():
            return whole_parts({path: zipped.delta(path).detach() for path in zipped.shapes()})

    def zipped(self, bb: Backbone, concepts: Sequence[Concept]) -> Zipped:
        """All concepts' changes with coefficients of 1: their plain sum."""
        changes = {}
        for path in deltas(concepts):
            each = [delta_at(bb, one, path) for one in concepts]
            like = next(one for one in each if one is not None)
            changes[path] = torch.stack([torch.zeros_like(like) if one is None else one for one in each])
        return Zipped(changes)

    def stage(self, bb: Backbone, concepts: Sequence[Concept], zipped: Zipped, seed: int) -> Stage:
        """What is minimised: each concept's own predictions, and the overlap."""
        from fromfew.ports.part import Parts
        from fromfew.stage import Stage

        share = math.ceil(self.batch / len(concepts))
        merged = Parts(**kept(concepts), zipped=zipped)

        def apart(step: Step) -> Tensor:
            return zipped.overlap().expand(len(step.x0))

        def attach(batch: Batch, rng: Generator) -> Parts:
            return merged

        terms: list[tuple[float, Term]] = [(1.0, _as_alone(bb, concepts, share))]
        return Stage(
            steps=self.steps,
            batches=_drawn(bb, concepts, self.pictures, share, self.drawing, seed),
            terms=[*terms, (self.overlap, apart)] if self.overlap else terms,
            train={zipped: self.lr},
            attach=attach,
            name="zip",
        )


def _as_alone(bb: Backbone, concepts: Sequence[Concept], share: int) -> Term:
    """Squared distance to what each concept, alone on the base, says about its own rows."""

    def term(step: Step) -> Tensor:
        wanted = []
        with torch.no_grad():
            for i, one in enumerate(concepts):
                rows = slice(i * share, (i + 1) * share)
                with bb.attach(one):
                    text = bb.embed(step.batch.captions[rows])
                    wanted.append(bb.predict(step.xt[rows], step.t[rows], text))
        return (step.pred.float() - torch.cat(wanted).float()).square().flatten(1).mean(1)

    return term


def _drawn(bb: Backbone, concepts: Sequence[Concept], count: int, share: int, steps: int, seed: int) -> Source:
    """Pictures that each concept draws of itself, as many of each in every batch."""
    from fromfew.data import joined, photo_batches
    from fromfew.make import make
    from fromfew.references import References

    each = []
    for one in concepts:
        said = [f"a {thing}" for thing in islice(cycle(one.things), count)]
        with torch.no_grad():
            drawn = list(make(bb, said, one, steps=steps, seed=seed))
        refs = References.of(*drawn, captions=said)
        each.append(
            photo_batches(refs, size=bb.default_size, batch=share, word="", flip=False, zoom=(1.0, 1.0), variants=1)
        )
    return joined(*each)
