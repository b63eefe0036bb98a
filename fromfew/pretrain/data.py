"""Scenes for training, drawn once and kept: shards of pictures with their labels, addressed by (seed, number)."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fromfew.io.files import replacing
from fromfew.world.backgrounds import SIZE
from fromfew.world.scenes import Scene, caption, draw, random_item, random_scene
from fromfew.world.vocabulary import (
    COLOURS,
    CONTEXTS,
    CORE,
    HELD_OUT,
    HELD_OUT_STYLES,
    STYLES,
    WIDE,
    names,
)

SHARD = 1024
OBJECTS = tuple(sorted([*names(CORE), *names(WIDE), *names(HELD_OUT)]))
"""Every object name in alphabetical order, the classes of the judge."""
CONTEXT_NAMES = tuple(CONTEXTS)
STYLE_NAMES = (*STYLES, *HELD_OUT_STYLES)
COLOUR_NAMES = COLOURS
NOTHING = -100
"""Label of what is not there (the index that cross entropy leaves out)."""


@dataclass(frozen=True)
class Labels:
    """Ground truth of a batch; each [B] int64, ``NOTHING`` where it does not apply."""

    object: Tensor
    second: Tensor
    context: Tensor
    style: Tensor
    colour: Tensor
    who: Tensor


def _labels(scene: Scene) -> list[int]:
    first, rest = scene.items[0], scene.items[1:]
    return [
        OBJECTS.index(first.name) if first.who < 0 else NOTHING,
        OBJECTS.index(rest[0].name) if rest else NOTHING,
        CONTEXT_NAMES.index(scene.context),
        STYLE_NAMES.index(scene.style),
        COLOUR_NAMES.index(first.colour) if first.colour else NOTHING,
        first.who if first.who >= 0 else NOTHING,
    ]


@dataclass(frozen=True)
class Shard:
    """1,024 scenes: pictures [1024, 128, 128, 3] uint8, labels [1024, 6], captions, and where the things are.

    ``masks`` is [1024, 16, 16] uint8, 0 to 255: how much of each cell of the latent grid things cover.
    """

    pictures: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    captions: tuple[str, ...]


class Scenes:
    """An endless stream of scenes, kept on disk by shards once they have been drawn.

    Args:
        folder: where shards are kept.
        seed: another seed is another stream; the base and its evaluators never share one.
        shards: after so many shards the stream begins again.
        held_out: share of scenes that show held-out objects or styles (only for evaluators).
    """

    def __init__(self, folder: Path, seed: int, shards: int, *, held_out: float = 0.0, crowd: int = 2000) -> None:
        self.folder, self.seed, self.shards, self.held_out, self.crowd = folder, seed, shards, held_out, crowd
        folder.mkdir(parents=True, exist_ok=True)
        self.shard = lru_cache(maxsize=8)(self._shard)

    def scene(self, number: int) -> tuple[Scene, np.random.Generator]:
        """The specification of scene ``number`` and the generator that goes on to draw it."""
        rng = np.random.default_rng([self.seed, number])
        scene = random_scene(rng)
        if self.held_out and rng.random() < self.held_out:
            scene = self._with_held_out(scene, rng)
        return scene, rng

    def _with_held_out(self, scene: Scene, rng: np.random.Generator) -> Scene:
        style = str(rng.choice(list(HELD_OUT_STYLES))) if rng.random() < 0.5 else scene.style
        items = tuple(i if i.who >= 0 else random_item(rng, names_=tuple(names(HELD_OUT))) for i in scene.items)
        scene = replace(scene, style=style, items=items)
        return replace(scene, caption=caption(scene))

    def _write(self, number: int) -> None:
        drawn, rows, captions, masks = [], [], [], []
        for k in range(number * SHARD, (number + 1) * SHARD):
            scene, rng = self.scene(k)
            done = draw(scene, rng)
            drawn.append(np.asarray(done.picture))
            masks.append(np.max(done.alphas, axis=0).reshape(16, 8, 16, 8).mean((1, 3)).astype(np.uint8))
            rows.append(_labels(scene))
            captions.append(scene.caption)
        with replacing(self._path(number)) as new, new.open("wb") as file:
            np.savez(
                file,
                pictures=np.stack(drawn),
                labels=np.array(rows),
                masks=np.stack(masks),
                captions=np.array(json.dumps(captions)),
            )

    def _shard(self, number: int) -> Shard:
        if not self._path(number).exists():
            self._write(number)
        with np.load(self._path(number), allow_pickle=False) as held:
            return Shard(held["pictures"], held["labels"], held["masks"], tuple(json.loads(str(held["captions"]))))

    def prepare(self, workers: int) -> None:
        """Draw all shards that are not there yet, ``workers`` at a time; their bits are those drawn one by one."""
        missing = [k for k in range(self.shards) if not self._path(k).exists()]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(self._write, missing))

    def _path(self, number: int) -> Path:
        return self.folder / f"scenes-{self.seed}-{number}.npz"

    def __getstate__(self) -> dict[str, Any]:
        """Without the shards in memory, which no other process needs."""
        return {k: v for k, v in vars(self).items() if k != "shard"}

    def at(self, step: int, size: int) -> tuple[Shard, np.ndarray]:
        """The shard and the rows of it that make the batch of a step."""
        number, rows = self.place(step, size)
        return self.shard(number), rows

    def place(self, step: int, size: int) -> tuple[int, np.ndarray]:
        """Which shard and which rows of it make the batch of a step; every pass has an order of its own.

        ``size`` must divide 1,024, so that no batch lies in two shards.
        """
        per = SHARD // size
        turn, place = divmod(step, per)
        epoch, number = divmod(turn, self.shards)
        order = np.random.default_rng([self.seed, epoch, number, 5]).permutation(SHARD)
        return number, order[place * size : (place + 1) * size]


def to_tensor(pictures: np.ndarray) -> Tensor:
    """[B, H, W, 3] uint8 to [B, 3, H, W] float32 in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_labels(rows: np.ndarray) -> Labels:
    """[B, 6] to the labels of a batch."""
    return Labels(*torch.from_numpy(rows.astype(np.int64)).unbind(1))


def half(pictures: Tensor) -> Tensor:
    """[B, 3, 128, 128] to [B, 3, 64, 64] by averaging: what every evaluator looks at."""
    return torch.nn.functional.interpolate(pictures, size=(SIZE // 2, SIZE // 2), mode="area")
