"""The evaluators' stages: judge, pair and face identity, each on a stream of scenes of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fromfew.pretrain.data import NOTHING, Labels, Scenes, half, to_labels, to_tensor
from fromfew.pretrain.loop import Trainee
from fromfew.world import faces
from fromfew.world.evaluators import FaceId, Judge, Pair, side_views, words
from fromfew.world.scenes import Item, Scene, draw
from fromfew.world.vocabulary import CONTEXTS, STYLES

HELD_OUT = 0.2
"""Share of scenes with held-out objects or styles: a judge must know what it is to recognise."""


def mirrored(pictures: Tensor, step: int) -> Tensor:
    """Half of a batch mirrored, as the step decides."""
    flip = torch.from_numpy(np.random.default_rng([step, 9]).random(len(pictures)) < 0.5)
    return torch.where(flip.view(-1, 1, 1, 1), pictures.flip(-1), pictures)


def one_side(pictures: Tensor, labels: Labels, captions: Sequence[str], step: int) -> None:
    """Of two pairs in three keep one side, in place: the judge must name each thing of a pair where it stands."""
    which = np.random.default_rng([step, 10]).integers(3, size=len(captions))
    for i in map(int, np.flatnonzero((labels.second != NOTHING).numpy() & (which < 2))):
        relation = "above" if " above " in captions[i] else None
        pictures[i] = side_views(pictures[i], relation)[which[i]]
        if which[i] != (" to the right of " in captions[i]):  # this side shows the second thing
            labels.object[i], labels.colour[i] = labels.second[i], NOTHING
        labels.second[i] = NOTHING


class JudgeStage(Trainee):
    """Cross entropy on every factor of the scene."""

    name: ClassVar[str] = "judge"
    steps = 2500
    batch_size = 64
    lr = 2e-3
    weight_decay = 0.02
    average = 0.995
    seed = 101

    def __init__(self, folder: Path, *, shards: int = 24) -> None:
        self.scenes = Scenes(folder / "scenes", seed=101, shards=shards, held_out=HELD_OUT)
        self.held = Scenes(folder / "scenes", seed=103, shards=1, held_out=HELD_OUT)

    def build(self) -> Judge:
        """The judge, untrained."""
        return Judge()

    def config(self) -> dict[str, Any]:
        """Arguments of the network."""
        return {}

    def batch(self, step: int) -> tuple[Tensor, Labels]:
        """Pictures [B, 3, 64, 64] and their labels."""
        shard, rows = self.scenes.at(step, self.batch_size)
        pictures, labels = to_tensor(shard.pictures[rows]), to_labels(shard.labels[rows])
        one_side(pictures, labels, [shard.captions[r] for r in rows], step)
        return mirrored(half(pictures), step), labels

    def loss(self, model: Any, batch: tuple[Tensor, Labels], rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Sum over the factors; the objects, of which there are most, count double."""
        pictures, labels = batch
        told = model(pictures.to(next(model.parameters()).device))
        weight = dict(object=2.0, second=0.3, context=0.5, style=0.5, colour=0.5)
        total = torch.zeros((), device=pictures.device)
        for name, logits in told.items():
            truth = getattr(labels, name)
            if (truth != NOTHING).any():
                total = total + weight[name] * F.cross_entropy(logits, truth, label_smoothing=0.05)
        return total, {"object": round(_right(told["object"], labels.object), 3)}

    def measure(self, model: Any) -> dict[str, float]:
        """Accuracy of every factor on 1,024 scenes of another seed."""
        shard = self.held.shard(0)
        labels = to_labels(shard.labels)
        with torch.no_grad():
            told = [model(half(to_tensor(part))) for part in np.split(shard.pictures, 8)]
        return {f"held_{k}": round(_right(torch.cat([t[k] for t in told]), getattr(labels, k)), 4) for k in told[0]}


def _right(logits: Tensor, truth: Tensor) -> float:
    there = truth != NOTHING
    return float((logits.argmax(1)[there] == truth[there]).float().mean()) if there.any() else float("nan")


class PairStage(Trainee):
    """Symmetric contrastive loss between pictures and captions."""

    name: ClassVar[str] = "pair"
    steps = 700
    batch_size = 64
    lr = 1.5e-3
    average = 0.99
    seed = 102

    def __init__(self, folder: Path, *, shards: int = 24) -> None:
        self.scenes = Scenes(folder / "scenes", seed=101, shards=shards, held_out=HELD_OUT)
        self.held = Scenes(folder / "scenes", seed=103, shards=1, held_out=HELD_OUT)

    def config(self) -> dict[str, Any]:
        """The vocabulary: every word of 20,000 captions of the stream."""
        seen = {w for k in range(20_000) for w in words(self.scenes.scene(k)[0].caption)}
        return {"vocabulary": sorted(seen)}

    def build(self) -> Pair:
        """The pair, untrained."""
        return Pair(**self.config())

    def batch(self, step: int) -> tuple[Tensor, list[str]]:
        """Pictures [B, 3, 64, 64] and captions."""
        shard, rows = self.scenes.at(step, self.batch_size)
        return half(to_tensor(shard.pictures[rows])), [shard.captions[r] for r in rows]

    def loss(
        self, model: Any, batch: tuple[Tensor, list[str]], rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Contrast of the batch's pictures and captions."""
        pictures, captions = batch
        logits = model.see(pictures.to(model.temperature.device)) @ model.read(captions).T
        logits = logits * model.temperature.exp().clamp(max=60)
        target = torch.arange(len(logits), device=logits.device)
        hits = (logits.argmax(1) == target).float().mean()
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return loss, {"match": round(float(hits), 3)}

    def measure(self, model: Any) -> dict[str, float]:
        """Share of 64 held scenes whose own caption fits best among the 64."""
        shard = self.held.shard(0)
        with torch.no_grad():
            fit = model.see(half(to_tensor(shard.pictures[:64]))) @ model.read(list(shard.captions[:64])).T
        return {"held_match": round(float((fit.argmax(1) == torch.arange(64)).float().mean()), 4)}


class FaceStage(Trainee):
    """Which of 120 people is it? A classifier whose classes are thrown away afterwards."""

    name: ClassVar[str] = "face"
    steps = 1000
    batch_size = 48
    lr = 2e-3
    average = 0.99
    seed = 104
    people = 120
    first = 20_000

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config(self) -> dict[str, Any]:
        """Arguments of the network."""
        return {}

    def build(self) -> nn.Module:
        """The embedding and, for training only, one direction a person."""
        return nn.ModuleDict({"face": FaceId(), "people": nn.Linear(128, self.people)})

    def portrait(self, who: int, rng: np.random.Generator) -> np.ndarray:
        """A picture of a person, [128, 128, 3]."""
        style = "plain" if rng.random() < 0.9 else str(rng.choice(list(STYLES)))
        scene = Scene((Item("face", who=who, how=faces.look(rng)),), str(rng.choice(list(CONTEXTS))), style)
        return np.asarray(draw(scene, rng).picture)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, 64, 64] and who they show [B]."""
        rng = np.random.default_rng([104, step])
        who = rng.integers(self.people, size=self.batch_size)
        pictures = np.stack([self.portrait(self.first + int(w), rng) for w in who])
        return half(to_tensor(pictures)), torch.from_numpy(who)

    def loss(self, model: Any, batch: tuple[Tensor, Tensor], rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of a linear classifier on the embedding."""
        pictures, who = batch
        found = model["face"](pictures.to(next(model.parameters()).device))
        logits = model["people"](found * 12)  # a unit vector alone would cap the logits
        return F.cross_entropy(logits, who), {"who": round(_right(logits, who), 3)}

    def measure(self, model: Any) -> dict[str, float]:
        """On 60 people never seen: share whose two pictures find each other among all."""
        rng = np.random.default_rng(105)
        first, second = (
            torch.cat([half(to_tensor(self.portrait(40_000 + w, rng)[None])) for w in range(60)]) for _ in range(2)
        )
        with torch.no_grad():
            alike = model["face"](first) @ model["face"](second).T
        return {"held_match": round(float((alike.argmax(1) == torch.arange(60)).float().mean()), 4)}
