"""check_method and check_part: what methods and parts promise, checked on one backbone, offline.

``fromfew check METHOD`` runs every check on every tiny model that the method's card names. The test suite does so on
the first of them and runs `ON_EVERY_BASE` on the others: all but what no base can change, which is settings and card,
the same bits from the same seed and after a kill, files, several subjects, the forecast of memory, and that nothing is
printed or written.
Learning is what costs time, so what one check has learned the others look at (`Bench.once`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fromfew.backbones.base import Backbone
from fromfew.concept import Concept
from fromfew.make import make
from fromfew.method import Learner, Tuned
from fromfew.ports.part import Part, Parts
from fromfew.pretrained import Pretrained
from fromfew.references import References
from fromfew.rows import Rows
from fromfew.testing.eye import tiny_eye

__all__ = ["PROMPT", "SHOWN", "Bench", "Report", "check_method", "check_part", "few_photos", "predict", "quick"]

T = TypeVar("T")
PROMPT = "a <v> cat"
SHOWN = [PROMPT, "a <v> dog", "a <v> lamp"]


@dataclass
class Report:
    """Which checks ran, and which could not and why."""

    subject: str
    backbone: str
    ran: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def row(self) -> str:
        """One line of the table of executed checks."""
        return f"{self.subject} on {self.backbone}: {len(self.ran)} checks"


class Skip(Exception):
    """A check does not apply; the text says why."""


def few_photos(count: int = 3, noun: str = "cat", masks: bool = False) -> References:
    """Small pictures of a red square on other grounds, the same every time."""
    chance = np.random.Generator(np.random.PCG64(7))
    images, inside = [], []
    for _ in range(count):
        pixels = np.broadcast_to(chance.integers(0, 255, 3, dtype=np.uint8), (40, 40, 3)).copy()
        mask = np.zeros((40, 40), np.uint8)
        top, left = chance.integers(4, 16, 2)
        pixels[top : top + 20, left : left + 20] = (220, 30, 30)
        mask[top : top + 20, left : left + 20] = 255
        images.append(Image.fromarray(pixels))
        inside.append(Image.fromarray(mask))
    return References.of(*images, noun=noun, masks=inside if masks else ())


def quick(method: Learner, bb: Backbone, folder: Path) -> Learner:
    """The same method, made to finish in a moment: few steps, high rates; adapters get quick weights."""
    if isinstance(method, Tuned):
        whole = any(one.name == "encoder" for one in fields(method)) and "rank" not in method.settings()
        rate = 2e-3 if whole else 2e-2
        given: dict[str, Any] = {"steps": 6, "batch": 2, "lr": rate, "class_images": 2, "views": 2}
        given |= {one.name: rate for one in fields(method) if one.name.endswith("_lr")}
        given |= {one.name: 3 for one in fields(method) if one.name.endswith("_steps")}
        if "population" in method.settings():
            given |= {"population": 6, "spread": 1.0}
        if "cycles" in method.settings():
            given |= {"cycles": 1, "ladder": (1.0, 0.5), "checks": 1, "previews": 1, "initial": 2, "hidden": (8, 8)}
        if "eye" in method.settings():
            given["eye"] = tiny_eye(folder / "eye")
        method = replace(method, **given)
    if isinstance(method, Pretrained):
        return _with_weights(method, bb, folder)
    return method


def _with_weights(method: Pretrained, bb: Backbone, folder: Path) -> Pretrained:
    from fromfew.data import photo_batches
    from fromfew.fit import fit, generator
    from fromfew.io.tensors import write_tensors

    method = replace(
        method,
        weights=str(folder / f"{method.name()}.safetensors"),
        **({"eye": tiny_eye(folder / "eye")} if "eye" in method.settings() else {}),
    )
    modules = method.fresh(bb)
    batches = photo_batches(few_photos(), size=bb.default_size, batch=2, word="")
    fit(bb, Parts(), method.pretrain(bb, modules, batches, steps=4, lr=1e-2), rng=generator(0))
    write_tensors(Path(str(method.weights)), modules.state_dict())
    return method


def predict(bb: Backbone, *, rows: int = 2, prompt: str = PROMPT, branches: tuple[str, ...] = ("cond",)) -> Tensor:
    """One prediction at fixed noise: the shortest look at what is attached."""
    rng = torch.Generator().manual_seed(3)
    image = torch.arange(rows, device=bb.device)
    noise = torch.randn(rows, *bb.latent_shape(), generator=rng).to(bb.device, bb.dtype)
    here = Rows.of(image, branches, torch.tensor(0.6, device=bb.device))
    with torch.no_grad():
        text = bb.embed([prompt if name == "cond" else "" for name in here.branch])
        return bb.predict(noise.repeat(len(branches), 1, 1, 1), here.t, text, here)


class Bench:
    """What the checks share: the base, the method made quick, photos, a folder, and one learned concept."""

    def __init__(self, method: Learner, bb: Backbone, folder: Path) -> None:
        self.bb, self.folder = bb, folder
        self.method = quick(method, bb, folder)
        most = self.method.card()["photos"][1]
        self.masks = bool(method.card().get("masks", False))
        self.refs = few_photos(min(3, most), masks=self.masks)
        self._known: dict[str, Any] = {}

    def once(self, what: str, call: Callable[[], T]) -> T:
        """What a call gives; it is called once, however many checks ask."""
        if what not in self._known:
            self._known[what] = call()
        return self._known[what]

    def learn(self, seed: int = 0, **how: Any) -> Concept:
        """A concept learned anew."""
        return self.method.learn(self.bb, self.refs, seed=seed, **how)

    @property
    def concept(self) -> Concept:
        """The concept of seed 0, learned once."""
        return self.once("concept", self.learn)

    @property
    def shown(self) -> Tensor:
        """What it draws of `SHOWN`, drawn once."""
        return self.once("shown", lambda: self.make(SHOWN, self.concept))

    def make(self, prompts: list[str], concepts: Any = (), **how: Any) -> Tensor:
        """Latents of small quick pictures; latents, since decoding rounds nothing but costs time."""
        drawn = make(self.bb, prompts, concepts, **{"steps": 2, **how})
        assert drawn.latents is not None
        return drawn.latents

    @property
    def couples(self) -> bool:
        """Whether pictures of a batch depend on each other, as the card says."""
        return bool(self.method.card().get("couples_images", False))


def check_method(method: Learner, bb: Backbone, *, only: tuple[str, ...] = ()) -> Report:
    """Run the contract on one method and one backbone.

    Args:
        method: Any settings; steps and rates are replaced by quick ones.
        bb: A tiny backbone.
        only: Names of checks; all if empty.

    Returns:
        Which checks ran, and which were skipped and why.

    Raises:
        AssertionError: With the name of the check that failed and the reason.
    """
    from fromfew.testing.checks import CHECKS

    with tempfile.TemporaryDirectory(prefix="fromfew-check-") as folder:
        bench = Bench(method, bb, Path(folder))
        checks = {name: partial(check, bench) for name, check in CHECKS.items() if not only or name in only}
        return _run(Report(method.name(), bb.name), method.name(), checks)


def _run(report: Report, subject: str, checks: Mapping[str, Callable[[], None]]) -> Report:
    """Run the checks one after the other; the first that fails is named.

    Raises:
        AssertionError: With ``subject``, the base and the name of the check.
    """
    for name, check in checks.items():
        try:
            check()
        except Skip as why:
            report.skipped[name] = str(why)
        except AssertionError as error:
            raise AssertionError(f"{subject} on {report.backbone}, {name}: {error}") from error
        else:
            report.ran.append(name)
    return report


def check_part(part: Part, bb: Backbone, *, acts: bool = True, prompt: str = PROMPT) -> Report:
    """Run what a lone part promises: exact detach, strength 0, gradients, branches, round trip.

    Args:
        part: A part that fits the backbone, with numbers that make it act.
        bb: A tiny backbone.
        acts: Whether it changes a single prediction (parts that act on several pictures or on a drawing may
            not).
        prompt: A prompt that shows the part.

    Raises:
        AssertionError: With the name of the check that failed.
    """
    from fromfew.testing.part_checks import PART_CHECKS

    checks = {name: partial(check, part, bb, acts, prompt) for name, check in PART_CHECKS.items()}
    return _run(Report(part.kind, bb.name), repr(part), checks)
