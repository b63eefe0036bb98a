"""Ground truth of the world: was what the prompt asks for really drawn? The judge, who never met the base, says."""

from __future__ import annotations

import torch
from torch import Tensor

from fromfew.metrics.base import Case, Metric, Want
from fromfew.metrics.networks import WorldJudge
from fromfew.world.evaluators import side_views

__all__ = ["Bleeding", "Drawn", "Everything", "RelationFidelity", "sides", "truths"]

_FACTORS = ("object", "second", "context", "style", "colour", "relation")


class _Judged(Metric):
    def __init__(self, judge: WorldJudge) -> None:
        self.judge = judge

    @property
    def network(self) -> str:
        """The judge."""
        return self.judge.name


def sides(judge: WorldJudge, image: Tensor, want: Want) -> Tensor:
    """Where the two things are: [2, 2] probabilities, thing by (first side, second side).

    Args:
        judge: who names things.
        image: [3, H, W].
        want: names both things and their relation.
    """
    return judge.find(side_views(image, want.relation), [str(want.object), str(want.second)]).T


def _relation(judge: WorldJudge, image: Tensor, want: Want) -> tuple[float, bool]:
    """How surely both are on their sides, and whether they are."""
    table = sides(judge, image, want)
    if want.relation == "right":
        table = table.flip(1)
    here, there = float(table[0, 0]), float(table[1, 1])
    right = bool(table[0, 0] > table[0, 1] and table[1, 1] > table[1, 0])
    if want.relation == "and":  # either order will do
        swapped = (float(table[0, 1]), float(table[1, 0]))
        right = right or bool(table[0, 1] > table[0, 0] and table[1, 0] > table[1, 1])
        here, there = max((here, there), swapped, key=min)
    return min(here, there), right


class RelationFidelity(_Judged):
    """How surely both things are where the relation puts them: the lesser of the two probabilities (RFS).

    The paper's relation detector was not released; this one looks at one side of the picture at a time.
    """

    name, source = "rfs", "idea of arXiv 2312.06116, detector ours (one side of the picture at a time)"

    def __call__(self, case: Case) -> Tensor:
        """[B] in [0, 1]; NaN where no relation is asked for."""
        values = self._nothing(case)
        for i, want in enumerate(case.wants):
            if want.relation:
                values[i] = _relation(self.judge, case.images[i], want)[0]
        return values


class Bleeding(_Judged):
    """How much of each thing is seen on the other's side: the greater of the two probabilities there."""

    name, source, higher = "bleeding", "ours: the world's judge, the other thing on a thing's side", False

    def __call__(self, case: Case) -> Tensor:
        """[B] in [0, 1]; NaN where there are no two things with a relation. Of "and" the better order counts."""
        values = self._nothing(case)
        for i, want in enumerate(case.wants):
            if want.relation and want.second:
                table = sides(self.judge, case.images[i], want)
                table = table.flip(1) if want.relation == "right" else table
                wrong = torch.maximum(table[0, 1], table[1, 0])
                if want.relation == "and":
                    wrong = torch.minimum(wrong, torch.maximum(table[0, 0], table[1, 1]))
                values[i] = wrong
        return values


class Drawn(_Judged):
    """1 where one factor of the prompt was really drawn, 0 where not."""

    source = "ours: the world's judge"

    def __init__(self, judge: WorldJudge, factor: str) -> None:
        super().__init__(judge)
        self.factor = factor
        self.name = f"{factor}-drawn"  # type: ignore[misc]

    def __call__(self, case: Case) -> Tensor:
        """[B] of 0 and 1; NaN where the prompt does not ask for this factor."""
        values = self._nothing(case)
        asked = [i for i, want in enumerate(case.wants) if self.factor in want.known()]
        if not asked:
            return values
        if self.factor == "relation":
            for i in asked:
                values[i] = float(_relation(self.judge, case.images[i], case.wants[i])[1])
            return values
        told = _told(case, self.judge)
        for i in asked:
            want = case.wants[i]
            if want.second and self.factor in ("object", "second"):
                values[i] = float(_among(self.judge, case.images[i], want, str(getattr(want, self.factor))))
            else:
                values[i] = float(_said(told, i, self.factor, want))
        return values


def _told(case: Case, judge: WorldJudge) -> dict[str, Tensor]:
    keys = {name: (id(case.images), f"{judge.name} {name}") for name in judge.net.heads}
    if not all(key in case.cache for key in keys.values()):
        parts = [judge.told(part) for part in case.images.split(64)]
        case.cache.update({key: torch.cat([p[name] for p in parts]) for name, key in keys.items()})
    return {name: case.cache[key] for name, key in keys.items()}


def _among(judge: WorldJudge, image: Tensor, want: Want, thing: str) -> bool:
    """Whether the judge names a thing when it looks at the whole picture or at one of its two sides."""
    from fromfew.pretrain.data import OBJECTS

    told = torch.cat([judge.told(some)["object"] for some in (image[None], side_views(image, want.relation))])
    return OBJECTS.index(thing) in told.argmax(1).tolist()


def _said(told: dict[str, Tensor], row: int, factor: str, want: Want) -> bool:
    """Whether the judge names what is wanted."""
    from fromfew.pretrain.data import COLOUR_NAMES, CONTEXT_NAMES, OBJECTS, STYLE_NAMES

    classes = {"object": OBJECTS, "context": CONTEXT_NAMES, "style": STYLE_NAMES, "colour": COLOUR_NAMES}[factor]
    return classes[int(told[factor][row].argmax())] == getattr(want, factor)


class Everything(_Judged):
    """1 where every factor that the prompt asks for was drawn, else 0."""

    name, source = "all-drawn", "ours: the world's judge, all factors at once"

    def __call__(self, case: Case) -> Tensor:
        """[B] of 0 and 1; NaN where the prompt asks for nothing."""
        each = torch.stack([Drawn(self.judge, factor)(case) for factor in _FACTORS])
        asked = ~each.isnan()
        right = (each.nan_to_num(1) > 0.5).all(0).float()
        return torch.where(asked.any(0), right, torch.full_like(right, torch.nan))


def truths(judge: WorldJudge) -> list[Metric]:
    """One metric a factor, and all factors at once."""
    return [*(Drawn(judge, factor) for factor in _FACTORS), Everything(judge), RelationFidelity(judge), Bleeding(judge)]
