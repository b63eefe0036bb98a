"""The last stage: IP-Adapter on the frozen base, trained by the house's own loop on pairs of scenes.

Every row shows the adapter one thing in one scene and asks for the same thing in another, called by its category
only: so what the thing looks like must come from the picture, and where it is from the text.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from fromfew.data import Batch
from fromfew.io.files import replacing
from fromfew.pretrain.data import to_tensor
from fromfew.world.scenes import CATEGORY, Scene, article, draw, random_item
from fromfew.world.vocabulary import CONTEXTS, STYLES

STEPS, BATCH, RATE = 800, 16, 6e-4


def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str]:
    """A picture of a thing, another one of it, and the other's caption."""
    item = random_item(rng, core=0.4)
    style = "plain" if rng.random() < 0.8 else str(rng.choice([s for s in STYLES if s != "plain"]))
    here, there = rng.permutation(list(CONTEXTS))[:2]
    shown = draw(Scene((item,), str(there)), rng).picture
    target = draw(Scene((item,), str(here), style), rng).picture
    said = f"{article(CATEGORY[item.name])} {CONTEXTS[str(here)]} {STYLES[style]}".strip()
    lead = "a photo of " if rng.random() < 0.4 else ""
    return np.asarray(shown), np.asarray(target), lead + said


class PairSource:
    """Batches of pairs; what is drawn depends on the generator only."""

    def __call__(self, rng: Generator) -> Batch:
        """Targets as ``images``, what the adapter sees as ``shown``."""
        seed = int(torch.randint(2**62, (1,), generator=rng))
        rows = [pair(np.random.default_rng([seed, k])) for k in range(BATCH)]
        shown, targets = (to_tensor(np.stack([row[i] for row in rows])) for i in (0, 1))
        captions = [row[2] for row in rows]
        return Batch(targets, None, captions, ["photo"] * BATCH, [None] * BATCH, shown)


def train_adapter(folder: Path, *, steps: int = STEPS, device: str = "cpu") -> Path:
    """Train, or go on training, and write the weights into the package.

    Args:
        folder: holds the resumable state.
        steps: optimiser steps in all.
        device: cpu or cuda.

    Returns:
        The file of weights.
    """
    from fromfew.backbones.open import open_backbone
    from fromfew.fit import fit
    from fromfew.methods.ip_adapter import IPAdapter
    from fromfew.ports.part import Parts

    bb = open_backbone("world", device=device)
    method = IPAdapter().resolved(bb)
    modules = method.fresh(bb, seed=3).to(device)
    stage = method.pretrain(bb, modules, PairSource(), steps=steps, lr=RATE)
    stage = replace(stage, schedule="linear", warmup=50, name="ip-adapter")
    state = folder / "ip-adapter" / "state.safetensors"
    state.parent.mkdir(parents=True, exist_ok=True)

    def show(done: int, total: int, note: str = "") -> None:
        if done % 50 == 0 or done == total:
            sys.stderr.write(f"ip-adapter {done} of {total}, {note}\n")

    fit(bb, Parts(), stage, rng=torch.Generator().manual_seed(3), watch=show, resume=state, every=60)
    target = method.file(bb)
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {k: v.detach().half().cpu().contiguous() for k, v in modules.state_dict().items()}
    with replacing(target) as new:
        save_file(tensors, new)
    return target
