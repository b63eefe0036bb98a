"""Loss terms: functions of a `Step` that return one number per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from fromfew.fit import Step, Term

__all__ = ["anchored", "denoise", "masked", "only"]


def denoise(step: Step) -> Tensor:
    """Squared error of the prediction, mean over channels and places: ``[B]``."""
    return (step.pred.float() - step.target.float()).square().flatten(1).mean(1)


def masked(step: Step) -> Tensor:
    """Squared error inside each row's mask, ``Σ m e² / (C Σ m)``: ``[B]``; rows without a mask count whole.

    The mean over channels keeps the scale of `denoise` whatever the mask's area.
    """
    if step.batch.masks is None:
        return denoise(step)
    error = (step.pred.float() - step.target.float()).square().mean(1, keepdim=True)
    m = F.adaptive_avg_pool2d(step.batch.masks.to(error), (error.shape[-2], error.shape[-1]))
    return (error * m).flatten(1).sum(1) / m.flatten(1).sum(1).clamp_min(1e-6)


def only(of: str, term: Term) -> Term:
    """The term on the rows of one source (``"photo"``, ``"class"``), mean over those rows; 0 elsewhere."""

    def on(step: Step) -> Tensor:
        here = torch.tensor([source == of for source in step.batch.of], device=step.pred.device)
        values = torch.where(here, term(step), 0.0)
        # The loop takes the mean over all rows; scaling makes it the mean over this source's rows.
        return values * (len(here) / here.sum().clamp_min(1))

    return on


def anchored(part: nn.Module) -> Term:
    """Squared distance of a part's numbers from what they were when this term was made."""
    began = [value.detach().clone() for value in part.parameters()]

    def pull(step: Step) -> Tensor:
        moved = zip(part.parameters(), began, strict=True)
        far = torch.stack([(value - start.to(value.device)).square().sum() for value, start in moved]).sum()
        return far.expand(len(step.x0))

    return pull
