"""OFT: every weight turned by an orthogonal matrix of a few blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from fromfew.weight_tuned import WeightTuned

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Part, Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
    "arxiv": "2306.07280",
    "year": 2023,
    "learns": ("subject", "style", "face"),
    "photos": (1, 100),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "in² / (2 · blocks) numbers a map: tens of megabytes",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class OFT(WeightTuned):
    """Learn a subject by turning weights, which keeps the length of every row and the angles between rows.

    ``W' = W Rᵀ`` with ``R = (I - S)(I + S)⁻¹``, S skew-symmetric in blocks and 0 at the start: the exact Cayley
    transform. With ``confined`` above 0, every block is kept within ``‖S‖ ≤ confined · side² / √blocks`` (COFT).

    Departs from the paper: only the triangle of ``S`` is learned, half as many numbers; ``confined`` bounds the
    norm of S itself, after every step.

    >>> OFT(blocks=8).blocks
    8
    """

    blocks: int = 4
    """Blocks a map, as near as its width allows; more are smaller and weaker."""
    confined: float = 0.0
    """Radius of the ball that every block stays in, in units of side²/√blocks; 0 leaves it free."""

    def __post_init__(self) -> None:
        """Also refuse blocks that are none.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        self.within(blocks=(1, inf), confined=(0, inf))

    def change(self, maps: Mapping[str, nn.Module], rng: Generator) -> Part:
        """A rotation of every map's inputs."""
        from fromfew.parts.rotation import Rotation

        return Rotation.of(maps, blocks=self.blocks)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; if confined, every update ends inside the ball."""
        from fromfew.parts.rotation import Rotation

        turned = [part for part in parts if isinstance(part, Rotation)]

        def confine(step: object) -> None:
            for part in turned:
                part.confine(self.confined)

        for stage in super().stages(bb, refs, parts, seed=seed):
            yield replace(stage, after=confine) if self.confined else stage
