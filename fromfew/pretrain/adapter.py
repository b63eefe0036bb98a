"""The last stage: methods that are trained beforehand, on the frozen base, by the house's own loop on pairs of scenes.

Every row shows the method one thing in one scene and asks for the same thing in another, called by its category
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
from fromfew.errors import FromfewError
from fromfew.io.files import replacing
from fromfew.pretrain.data import to_tensor
from fromfew.world.scenes import CATEGORY, Scene, article, draw, random_item
from fromfew.world.vocabulary import CONTEXTS, STYLES

BATCH = 16
USUAL: dict[str, tuple[int, float]] = {
    "ip-adapter": (800, 6e-4), "e4t": (2000, 6e-4), "hyperdreambooth": (2000, 6e-4),
}  # fmt: skip
"""Steps and learning rate by method; those of others are the first's."""


def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str, str]:
    """A picture of a thing, another one of it, the other's caption, and the thing's category."""
    item = random_item(rng, core=0.4)
    style = "plain" if rng.random() < 0.8 else str(rng.choice([s for s in STYLES if s != "plain"]))
    here, there = rng.permutation(list(CONTEXTS))[:2]
    shown = draw(Scene((item,), str(there)), rng).picture
    target = draw(Scene((item,), str(here), style), rng).picture
    noun = CATEGORY[item.name]
    said = f"{article(noun)} {CONTEXTS[str(here)]} {STYLES[style]}".strip()
    lead = "a photo of " if rng.random() < 0.4 else ""
    return np.asarray(shown), np.asarray(target), lead + said, noun


class PairSource:
    """Batches of pairs; what is drawn depends on the generator only."""

    def __init__(self, batch: int = BATCH) -> None:
        self.batch = batch

    def __call__(self, rng: Generator) -> Batch:
        """Targets as ``images``, what the method sees as ``shown``."""
        seed = int(torch.randint(2**62, (1,), generator=rng))
        rows = [pair(np.random.default_rng([seed, k])) for k in range(self.batch)]
        shown, targets = (to_tensor(np.stack([np.asarray(row[i]) for row in rows])) for i in (0, 1))
        captions, nouns = [row[2] for row in rows], [row[3] for row in rows]
        count = self.batch
        return Batch(targets, None, captions, ["photo"] * count, [None] * count, shown, nouns=nouns)


def train_adapter(  # noqa: PLR0913 - a stage's own knobs
    folder: Path, name: str = "ip-adapter", *, steps: int | None = None, device: str = "cpu", batch: int | None = None,
    lr: float | None = None, until: int | None = None, base: str = "world", target: Path | None = None,
    start: str | None = None,
) -> Path:  # fmt: skip
    """Train a method's modules, or go on training them, and write the weights into the package.

    Args:
        folder: Holds the resumable state, in a folder of the method's name.
        name: The method.
        steps: Optimiser steps in all; the method's own if left out.
        device: cpu or cuda.
        batch: Rows a step; 16 if left out.
        lr: Learning rate; the method's own if left out.
        until: Stop after this step all the same; a later call goes on.
        base: What it is trained on.
        target: File of the weights; where the method looks for them if left out.
        start: Begin from weights: "world" for those that come with fromfew, or a file; from chance if left out.

    Returns:
        The file of weights; the state's, if it was stopped before its last step.

    Raises:
        FromfewError: If the method is not one that is trained beforehand, or the weights to begin from do not fit.
    """
    from fromfew.backbones.open import open_backbone
    from fromfew.fit import fit
    from fromfew.method import find
    from fromfew.ports.part import Parts
    from fromfew.pretrain.cli import adapters
    from fromfew.pretrained import Pretrained

    kind = find(name)
    if not issubclass(kind, Pretrained):
        raise FromfewError(f"'{name}' is not trained beforehand; there are {', '.join(adapters())}.")
    bb = open_backbone(base, device=device)
    method = kind(weights=None if start == "world" else start).resolved(bb)
    usual, rate = USUAL.get(name, USUAL["ip-adapter"])
    total = steps or usual
    if start is not None and (missing := method.needs(bb)):
        raise FromfewError(f"'{name}' cannot begin from '{start}': {missing[0]}")
    modules = method.fresh(bb, seed=3) if start is None else method.filled(bb).requires_grad_(True).train()
    modules = modules.to(device)
    stage = method.pretrain(bb, modules, PairSource(batch or BATCH), steps=total, lr=lr or rate)
    stage = replace(stage, schedule="linear", warmup=min(50, total), name=name)
    state = folder / name / "state.safetensors"
    state.parent.mkdir(parents=True, exist_ok=True)

    def show(done: int, total: int, note: str = "") -> None:
        if done % 50 == 0 or done == total:
            sys.stderr.write(f"{name} {done} of {total}, {note}\n")
        if until is not None and done >= until:
            raise _Enough

    try:
        fit(bb, Parts(), stage, rng=torch.Generator().manual_seed(3), watch=show, resume=state, every=60)
    except _Enough:
        sys.stderr.write(f"{name} stopped at step {until} of {total}; the same call goes on from there\n")
        return state
    file = target or kind().file(bb)
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {k: v.detach().half().cpu().contiguous() for k, v in modules.state_dict().items()}
    with replacing(file) as new:
        save_file(tensors, new)
    return file


class _Enough(KeyboardInterrupt):
    """Ends a stage before its last step, with its state kept."""
