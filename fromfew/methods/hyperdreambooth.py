"""HyperDreamBooth: a network says the first change at a glance, a short tuning finishes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fromfew.method import Tuned
from fromfew.pretrained import Pretrained

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.backbones.base import Backbone
    from fromfew.data import Batch, Source
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "HyperDreamBooth: HyperNetworks for Fast Personalization of Text-to-Image Models",
    "arxiv": "2307.06949",
    "year": 2023,
    "learns": ("subject", "face"),
    "photos": (1, 8),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "150 numbers a map that the network says, and a low-rank change",
    "needs_weights": True,
}


@dataclass(frozen=True, kw_only=True)
class HyperDreamBooth(Tuned, Pretrained):
    """See the photo once, take a tiny change of rank 1 for every attention map from it, then tune a wider one.

    ``ΔW = (L l) ((r₀ + r) R) + alpha/rank · B A``: the first term's ``l`` and ``r`` come from a network that was
    trained by denoising pictures of many things, its frames ``L`` and ``R`` are fixed; ``B`` and ``A``, 0 at the
    start, minimise the denoising loss on the photos in a few steps.

    Departs from the paper: the network learns from denoising alone, not also towards changes that were optimised
    for thousands of people beforehand; text encoders get no change; several photos are averaged.

    >>> HyperDreamBooth(rank=4).rank
    4
    """

    modifier: Literal["word", "rare", "text"] = "rare"
    """What stands for the subject in prompts: a learned word, a rare token, or plain text (see text)."""
    word_lr: float | None = None
    """Learning rate of a learned word; that of the change if left open."""
    rank: int | None = None
    """Width of the change that is tuned; chosen for the base if left open."""
    eye: str | None = None
    """Frozen image encoder: world, a folder or a hub id; chosen for the base if left open."""
    inner: tuple[int, int] | None = None
    """Widths of the frames, as in the weights; chosen for the base if left open."""

    def modules(self, bb: Backbone) -> nn.Module:
        """The network."""
        from fromfew.encoders import open_eye
        from fromfew.encoders.hyper import HyperNetwork

        seen = open_eye(self.eye, device=str(bb.device)).patch_width
        return HyperNetwork(seen, len(bb.select("attention")), sum(self.inner or (100, 50)))

    def _light(self, bb: Backbone) -> Any:
        from fromfew.parts.light_low_rank import LightLowRank

        return LightLowRank.of(bb.select("attention"), self.inner or (100, 50))

    def pretrain(self, bb: Backbone, modules: Any, batches: Source, *, steps: int, lr: float) -> Stage:
        """Denoise every row with the change that the network says of its picture."""
        from fromfew.encoders import look_at
        from fromfew.losses import denoise
        from fromfew.naming import with_words
        from fromfew.parts.word import rare
        from fromfew.ports.part import Parts
        from fromfew.stage import Stage

        light, word = self._light(bb), self.text or rare(bb)

        def attach(batch: Batch, rng: Generator) -> Parts:
            seen = look_at(self.eye, batch.looked_at, bb.device, patches=True)
            return Parts(light=light.to(bb.device).holding(modules(seen)))

        said = with_words(batches, lambda row: word)
        return Stage(steps, said, [(1.0, denoise)], {modules: lr}, attach=attach, decay=0.01, name=self.name())

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, the change the network says, and a wider one to be tuned."""
        import torch

        from fromfew.encoders import look_at, squares
        from fromfew.parts.low_rank import LowRank
        from fromfew.ports.part import Parts

        rank = self.rank or 4
        network: Any = self.filled(bb)
        seen = look_at(self.eye, squares(refs, bb.default_size), bb.device, patches=True)
        with torch.no_grad():
            numbers = network(seen).mean(0, keepdim=True)
        tuned = LowRank.of(bb.select("attention"), rank, float(rank), rng)
        return Parts(word=self.word(bb, refs, rng), light=self._light(bb).to(bb.device).holding(numbers), tuned=tuned)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One short stage; what the network said stays."""
        yield self.stage(bb, refs, {parts.word: self.word_lr or self.lr, parts.tuned: self.lr}, seed=seed)
