"""Is it the same person? Face metrics are columns of their own, never mixed with those of things."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fromfew.metrics.base import Case, Metric
from fromfew.metrics.networks import Sight, WorldFace, seen

__all__ = ["ATTRIBUTES", "AttributePreservation", "FaceSimilarity", "IdentityPreservation", "IdentityStability"]

ATTRIBUTES = ("woman", "beard", "bald", "long hair", "dark hair", "dark skin", "round jaw", "wide eyes")
"""Yes-or-no features of the world's people that no change of look alters."""


class _Face(Metric):
    def __init__(self, sight: Sight) -> None:
        self.sight = sight

    @property
    def network(self) -> str:
        """The face network."""
        return self.sight.name

    def alike(self, case: Case) -> Tensor:
        """[B, R]: cosine of every picture to every photo."""
        return seen(case, self.sight, case.images) @ seen(case, self.sight, case.photos).T


class FaceSimilarity(_Face):
    """Cosine to the mean embedding of the photos, brought to unit length."""

    name, source = "face-id", "arXiv 1801.07698 (cosine to the mean photo, as ISM in 2303.15433)"

    def __call__(self, case: Case) -> Tensor:
        """[B] in [-1, 1]; NaN if no face is learned."""
        if case.role != "face":
            return self._nothing(case)
        mean = seen(case, self.sight, case.photos).mean(0)
        return seen(case, self.sight, case.images) @ (mean / mean.norm().clamp(min=1e-12))


class IdentityPreservation(_Face):
    """Cosine to the first photo, never below 0 (IPS)."""

    name, source = "ips", "arXiv 2312.06116"

    def __call__(self, case: Case) -> Tensor:
        """[B] in [0, 1]; NaN if no face is learned."""
        return self.alike(case)[:, 0].clamp(min=0) if case.role == "face" else self._nothing(case)


class IdentityStability(_Face):
    """The worst IPS over the other photos of the person (SIS)."""

    name, source = "sis", "arXiv 2312.06116"

    def __call__(self, case: Case) -> Tensor:
        """[B] in [0, 1]; NaN if no face is learned or there is one photo only."""
        if case.role != "face" or len(case.photos) < 2:
            return self._nothing(case)
        return self.alike(case)[:, 1:].amin(1).clamp(min=0)


class AttributePreservation(_Face):
    """Share of yes-or-no attributes, read off the face embedding by linear probes, that agree with the photos (APS).

    The probes are fitted to the world's own people; for another face network there are none.
    """

    name, source = "aps", "arXiv 2312.06116 (linear probes on the face embedding; the world's attributes)"

    def __call__(self, case: Case) -> Tensor:
        """[B] in [0, 1]; NaN if no face is learned."""
        if case.role != "face" or not isinstance(self.sight, WorldFace):
            return self._nothing(case)
        probe, bias = probes(self.sight)
        drawn = seen(case, self.sight, case.images) @ probe + bias > 0
        truth = (seen(case, self.sight, case.photos) @ probe + bias).mean(0) > 0
        return (drawn == truth).float().mean(1)


@lru_cache(maxsize=2)
def probes(sight: WorldFace, people: int = 320) -> tuple[Tensor, Tensor]:
    """Ridge regression from embeddings to the attributes of ``people`` drawn persons: [D, A] and [A]."""
    import numpy as np

    from fromfew.pretrain.data import to_tensor
    from fromfew.world.faces import identity, look
    from fromfew.world.scenes import Item, Scene, draw

    pictures, truth = [], []
    for i in range(people):
        rng = np.random.default_rng([301, i])
        who = 30_000 + i
        person = identity(who)
        pictures.append(np.asarray(draw(Scene((Item("face", who=who, how=look(rng)),), "white"), rng).picture))
        truth.append(
            [person.noun == "woman", person.beard, person.cut == "bald", person.cut == "long",
             person.hair in ("black", "brown"), person.skin >= 3, person.jaw > 0.87, person.eye_gap > 0.41]
        )  # fmt: skip
    with torch.no_grad():
        x = torch.cat([sight.see(part) for part in to_tensor(np.stack(pictures)).split(64)]).double()
    y = torch.tensor(truth).double() * 2 - 1
    mean, level = x.mean(0), y.mean(0)
    centred = x - mean
    ridge = torch.eye(x.shape[1], dtype=torch.float64) * 0.01 * len(x) / x.shape[1]
    weights = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (y - level))
    return weights.float(), (level - mean @ weights).float()
