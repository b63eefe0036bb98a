"""Which metrics are taken together: those of the world, offline, and those of photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fromfew.metrics.base import Metric
from fromfew.metrics.distances import SOURCES, cmmd, fid, inception_score, kid
from fromfew.metrics.networks import Detector, Reader, Sight

__all__ = ["FEW", "Suite", "hub", "world"]

FEW = 2000
"""Fewer pictures than this make FID and the Inception Score meaningless; see docs/metrics.md."""


@dataclass(frozen=True, eq=False)
class Suite:
    """Metrics of pictures, and the networks under distances of sets."""

    name: str
    metrics: list[Metric]
    features: Sight
    """Under FID and KID."""
    pair: Sight
    """Under CMMD."""
    classes: Callable[[Tensor], Tensor] | None = None
    """Pictures to probabilities, for the Inception Score."""
    prior: Sight | None = None
    """Under PRES; the metrics' own if left out."""

    def about(self) -> dict[str, str]:
        """Every metric's version, source and network."""
        told = {metric.name: metric.about() for metric in self.metrics}
        told["prior-drift"] = f"v1 | PRES of arXiv 2208.12242, lower is better | {self.features.name}"
        sets = {name: f"{text} | {self.features.name}" for name, text in SOURCES.items()}
        return told | sets | {"cmmd": f"{SOURCES['cmmd']} | {self.pair.name}"}

    @torch.no_grad()
    def between(self, made: Tensor, real: Tensor) -> dict[str, float]:
        """Distances of two sets of pictures, [N, 3, H, W] and [M, 3, H, W]; smaller is nearer."""
        a, b = (_looked(self.features.see, x) for x in (made, real))
        c, d = (a, b) if self.pair is self.features else (_looked(self.pair.see, x) for x in (made, real))
        found = {"fid": fid(a, b), "kid": kid(a, b), "cmmd": cmmd(c, d)}
        if self.classes is not None:
            found["inception-score"] = inception_score(_looked(self.classes, made))[0]
        return {name: round(value, 5) for name, value in found.items()}

    @torch.no_grad()
    def prior_drift(self, plain: Tensor, photos: Tensor) -> list[float]:
        """PRES: likeness to the photos of pictures of the plain noun drawn with the concept attached; [N]."""
        sight = self.prior or self.features
        alike = torch.nn.functional.normalize(sight.see(plain), dim=-1)
        there = torch.nn.functional.normalize(sight.see(photos), dim=-1)
        return [round(v, 5) for v in (alike @ there.T).mean(1).tolist()]


def _looked(look: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([look(part) for part in images.split(32)])


@lru_cache(maxsize=1)
def world() -> Suite:
    """The world's evaluators in every place; needs no network.

    Raises:
        FromfewError: The evaluators' weights are not there.
    """
    from fromfew.metrics.networks import WorldFace, WorldJudge, WorldPair

    return world_of(WorldPair(), WorldJudge(), WorldFace())


def world_of(pair: Reader, judge: Sight, face: Sight) -> Suite:
    """The world's metrics with given networks (a `WorldPair`, a `WorldJudge`, a `WorldFace`)."""
    from fromfew.metrics.networks import WorldJudge
    from fromfew.metrics.subject import Each
    from fromfew.metrics.text import GroundingObjects
    from fromfew.metrics.truth import truths

    assert isinstance(judge, WorldJudge)
    pairs = [Each(judge), Each(judge, other=True)]
    metrics = [*_common(pair, judge), GroundingObjects(judge), *truths(judge), *pairs, *_faces(face)]
    return Suite("world", metrics, judge, pair, lambda x: judge.told(x)["object"])


def hub(
    clip: str = "openai/clip-vit-base-patch32",
    dino: str = "facebook/dino-vits16",
    *,
    face: str | None = None,
    detector: str | None = None,
    inception: str | None = None,
    dreamsim: str | None = None,
) -> Suite:
    """Metrics for photographs; models come from folders or the hub's local store and are never downloaded here.

    Args:
        clip: CLIP, both towers.
        dino: DINO or DINOv2.
        face: A face embedding in TorchScript, for pictures of faces.
        detector: OWL-ViT, for grounding of objects.
        inception: torch-fidelity's Inception weights, for FID, KID and the Inception Score; DINO without it.
        dreamsim: Folder of DreamSim's weights, for its package.

    Raises:
        FromfewError: A model is not there.
    """
    from fromfew.metrics.hub import Clip, Dino, DreamSight, FaceNet, Inception, Owl
    from fromfew.metrics.subject import DreamSim
    from fromfew.metrics.text import GroundingObjects

    reader, sight = Clip(clip), Dino(dino)
    found: list[Detector] = [Owl(detector)] if detector else []
    metrics = [*_common(reader, sight), *(GroundingObjects(one) for one in found)]
    if dreamsim:
        metrics.append(DreamSim(DreamSight(dreamsim)))
    if face:
        metrics += _faces(FaceNet(face))
    if inception:
        net = Inception(inception)
        return Suite("photos", metrics, net, reader, net.classes, prior=sight)
    return Suite("photos", metrics, sight, reader)


def _common(reader: Reader, sight: Sight) -> list[Metric]:
    from fromfew.metrics import subject, text

    return [
        text.ClipT(reader),
        text.PenalisedClipT(reader),
        subject.ClipI(reader),
        subject.DinoI(sight),
        subject.HeldOut(sight),
        subject.MaskedSubject(sight),
        subject.Diversity(sight),
        subject.CopyRate(),
    ]


def _faces(sight: Sight) -> list[Metric]:
    from fromfew.metrics import face

    kinds = (face.FaceSimilarity, face.IdentityPreservation, face.IdentityStability, face.AttributePreservation)
    return [kind(sight) for kind in kinds]
