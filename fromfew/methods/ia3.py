"""(IA)³: a factor for every key, value and inner channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromfew.weight_tuned import WeightTuned

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.ports.part import Part

CARD = {
    "title": "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
    "arxiv": "2205.05638",
    "year": 2022,
    "learns": ("subject", "style", "face"),
    "photos": (1, 100),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "one number per channel: some hundred kilobytes",
    "joint": True,
}


@dataclass(frozen=True, kw_only=True)
class IA3(WeightTuned):
    """Learn as LoRA does, but only how loud every channel of keys, values and inner layers is.

    ``y = (1 + s) ∘ (W x + b)`` for maps that widen or keep their width, ``y = W ((1 + s) ∘ x) + b`` for the maps
    back from an inner layer, with ``s = 0`` at the start.

    Departs from the paper: the learned factor is ``1 + s``, so that strength 0 is the base; and the word in front
    of the noun is DreamBooth's.

    >>> IA3().encoder
    False
    """

    def change(self, maps: Mapping[str, nn.Module], rng: Generator) -> Part:
        """Factors of inputs where a map narrows, of outputs elsewhere."""
        from fromfew.parts._over import weights_of
        from fromfew.parts.channels import Channels

        shapes = {path.removesuffix(".weight"): shape for path, shape in weights_of(maps).items()}
        narrow = {path for path, shape in shapes.items() if ".ff" in path and shape[1] > shape[0]}
        inputs = {path: module for path, module in maps.items() if path in narrow}
        return Channels.of({path: module for path, module in maps.items() if path not in narrow}, inputs)
