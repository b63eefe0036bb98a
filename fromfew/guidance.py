"""Guidance: how the predictions of a picture's branches become one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fromfew.backbones.text import Text


class Guide(Protocol):
    """Names the branches that every picture is predicted in, and joins their predictions."""

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches; "cond" reads the prompt and "uncond" the negative prompt."""
        ...

    def prompt(self, branch: str, prompt: str, negative: str | None) -> str | None:
        """What a branch reads; None is no prompt at all."""
        ...

    def dress(self, text: Text) -> Text:
        """The text with whatever the model must be told about the guidance."""
        ...

    def __call__(self, preds: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """One prediction ``[I, C, h, w]`` from one per branch."""
        ...


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance: ``uncond + scale (cond - uncond)`` (Ho & Salimans, arXiv:2207.12598).

    Args:
        scale: 1 is the plain conditional prediction, which then costs one branch instead of two.
    """

    scale: float = 7.5

    @property
    def branches(self) -> tuple[str, ...]:
        """Two branches, or one where the scale is 1."""
        return ("cond",) if self.scale == 1 else ("uncond", "cond")

    def prompt(self, branch: str, prompt: str, negative: str | None) -> str | None:
        """The prompt, or the negative prompt on the branch "uncond"."""
        return negative if branch == "uncond" else prompt

    def dress(self, text: Text) -> Text:
        """Nothing to tell."""
        return text

    def __call__(self, preds: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """Step from the unconditional prediction through the conditional one."""
        if self.scale == 1:
            return preds["cond"]
        return preds["uncond"] + self.scale * (preds["cond"] - preds["uncond"])


@dataclass(frozen=True)
class Rescaled(CFG):
    """CFG whose result is given back the spread of the conditional prediction (Lin et al., arXiv:2305.08891).

    Args:
        scale: Guidance scale.
        phi: How much of the rescaling to apply, 0 to 1.
    """

    phi: float = 0.7

    def __call__(self, preds: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """``phi`` of the rescaled and ``1 - phi`` of the plain guided prediction."""
        guided, cond = super().__call__(preds, t), preds["cond"]
        axes = list(range(1, cond.dim()))
        spread = cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp_min(1e-8)
        return guided * (self.phi * spread + 1 - self.phi)


@dataclass(frozen=True)
class Distilled(CFG):
    """For models distilled from guidance, which read its scale as a number: one branch only."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The one branch."""
        return ("cond",)

    def dress(self, text: Text) -> Text:
        """The text with the scale beside it."""
        scale = torch.full((len(text),), self.scale, device=text.states.device)
        return replace(text, extra={**text.extra, "guidance": scale})

    def __call__(self, preds: Mapping[str, Tensor], t: Tensor) -> Tensor:
        """The prediction as it is."""
        return preds["cond"]
