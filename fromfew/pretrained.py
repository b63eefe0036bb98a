"""Methods with modules that were trained beforehand.

Encoded methods are `Pretrained`; a tuned one may be so as well, and then tunes from what its modules read.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fromfew.errors import FromfewError
from fromfew.method import Learner

if TYPE_CHECKING:
    from torch import nn

    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.data import Source
    from fromfew.fit import Watch
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

__all__ = ["Encoded", "Pretrained"]


@dataclass(frozen=True, kw_only=True)
class Pretrained(Learner):
    """Has modules that were trained beforehand, on pictures of many things; photos are read by them."""

    weights: str | None = None
    """File of the pre-trained weights; those that come with fromfew for this base if left open."""

    @abstractmethod
    def modules(self, bb: Backbone) -> nn.Module:
        """What pre-training trains and weights fill."""

    @abstractmethod
    def pretrain(self, bb: Backbone, modules: nn.Module, batches: Source, *, steps: int, lr: float) -> Stage:
        """Training of the modules on pictures of many things; every row shows itself to the adapter."""

    def file(self, bb: Backbone) -> Path:
        """Where the weights for this base lie."""
        if self.weights is not None:
            return Path(self.weights)
        return Path(__file__).parent / "weights" / self.name() / f"{bb.name}.safetensors"

    def needs(self, bb: Backbone) -> list[str]:
        """Also: weights for this base."""
        file = self.file(bb)
        where = f"at '{file}'" if self.weights is not None else "that come with fromfew"
        missing = [] if file.is_file() else [f"there are no weights for this base {where} (set weights=...)"]
        return [*super().needs(bb), *missing]

    def fresh(self, bb: Backbone, seed: int = 0) -> nn.Module:
        """The modules with their first numbers, the same for a seed; torch's random state is put back."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.modules(bb)

    def filled(self, bb: Backbone) -> nn.Module:
        """The modules with their weights; on a base without numbers, without.

        Raises:
            FromfewError: If the file belongs to another base or other settings.
        """
        from fromfew.io.tensors import read_tensors

        modules = self.fresh(bb)
        if bb.device.type == "meta":
            return modules.eval()
        tensors = read_tensors(self.file(bb))
        wanted = {name: tuple(value.shape) for name, value in modules.state_dict().items()}
        if wanted != {name: tuple(value.shape) for name, value in tensors.items()}:
            raise FromfewError(f"The weights at '{self.file(bb)}' do not fit '{bb.name}' and these settings.")
        modules.load_state_dict(tensors)
        return modules.requires_grad_(False).eval().to(bb.device)


@dataclass(frozen=True, kw_only=True)
class Encoded(Pretrained):
    """A pre-trained adapter: one forward pass reads the photos."""

    @abstractmethod
    def read(self, bb: Backbone, refs: References, modules: nn.Module) -> Parts:
        """The photos, read."""

    def learn(
        self,
        bb: Backbone,
        refs: References | None,
        *,
        seed: int = 0,
        watch: Watch | None = None,
        work: Path | None = None,
    ) -> Concept:
        """Photos to a concept in one pass; ``seed`` and ``work`` change nothing."""
        import torch

        if refs is None:
            raise FromfewError(f"{self.name()} reads photos; none were given.")
        me = self.resolved(bb)
        me.refuse(bb, refs)
        with torch.no_grad():
            parts = me.read(bb, refs, me.filled(bb))
        if watch is not None:
            watch(1, 1, "read")
        return me._concept(bb, refs, parts, seed)
