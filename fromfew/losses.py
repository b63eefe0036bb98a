"""Loss terms: functions of a `Step` that return one number per row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from fromfew.fit import Step, Term

__all__ = ["aligned", "anchored", "classed", "denoise", "focused", "masked", "only"]


def denoise(step: Step) -> Tensor:
    """Squared error of the prediction, mean over channels and places: ``[B]``."""
    return (step.pred.float() - step.target.float()).square().flatten(1).mean(1)


def masked(step: Step, outside: float = 0.0) -> Tensor:
    """Squared error inside each row's mask, ``Σ m e² / (C Σ m)``: ``[B]``; rows without a mask count whole.

    The mean over channels keeps the scale of `denoise` whatever the mask's area. With ``outside`` above 0 the mean
    over the rest ``r`` of the frame is weighed in, whatever its area too: ``(inside + outside · Σ r e² / (C Σ r)) /
    (1 + outside)``, so that 1 makes subject and surroundings equal.
    """
    if step.batch.masks is None:
        return denoise(step)
    error = (step.pred.float() - step.target.float()).square().mean(1, keepdim=True)
    m = _small(step.batch.masks, error)
    inside = _mean_in(error, m)
    if not outside:
        return inside
    frames = step.batch.frames
    rest = (torch.ones_like(m) if frames is None else _small(frames, error)) - m
    rest = rest.clamp_min(0.0)
    weight = outside * (rest.flatten(1).sum(1) > 1e-3).to(error)
    return (inside + weight * _mean_in(error, rest)) / (1 + weight)


def _small(masks: Tensor, like: Tensor) -> Tensor:
    """Masks ``[B, 1, H, W]`` as shares of the places of ``like`` ``[B, ?, h, w]``."""
    return F.adaptive_avg_pool2d(masks.to(like), (like.shape[-2], like.shape[-1]))


def _mean_in(error: Tensor, m: Tensor) -> Tensor:
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


def classed(word: str, states: Tensor) -> Term:
    """``1 - cos`` between the mean state of a word in each prompt and the state of its class: ``[B]``.

    Rows whose prompt lacks the word give 0.

    Args:
        word: Placeholder, or plain word, as it stands in the encoded prompts.
        states: ``[C]`` what the untouched base reads where the plain noun stands.
    """

    def pull(step: Step) -> Tensor:
        values = []
        for row in range(len(step.text)):
            at = step.text.where(row, word)
            mean = step.text.states[row, at].float().mean(0) if at else None
            there = states.to(step.text.states.device).float()
            values.append(step.x0.new_zeros(()) if mean is None else 1 - F.cosine_similarity(mean, there, dim=0))
        return torch.stack(values)

    return pull


def focused(*words: str) -> Term:
    """How widely the words are read: ``[B]`` in [0, 1]; needs their recorded maps.

    Rows with a mask: the share of the words' attention that lies outside it. Rows without (or whose mask is the whole
    view): the entropy of that attention, divided by its greatest value. Rows that lack the words give 0.
    """

    def spread(step: Step) -> Tensor:
        seen = [step.maps[word] for word in words if word in step.maps]
        if not seen:
            return torch.zeros(len(step.x0), device=step.x0.device)
        maps = torch.stack(seen).sum(0).float()
        total = maps.flatten(1).sum(1)
        p = maps.flatten(1) / total.clamp_min(1e-8)[:, None]
        wide = -(p * p.clamp_min(1e-12).log()).sum(1) / math.log(p.shape[1])
        if step.batch.masks is not None:
            m = _small(step.batch.masks, maps[:, None]).flatten(1)
            wide = torch.where(m.amin(1) > 0.99, wide, (p * (1 - m)).sum(1))
        return torch.where(total > 0, wide, 0.0)

    return spread


def aligned(step: Step) -> Tensor:
    """Squared distance of each named thing's map, divided by its peak, from that thing's mask: ``[B]``.

    ``Σ_i mean (A_i / max A_i - M_i)²`` over the things in `Batch.regions`, whose maps must be recorded
    (Break-A-Scene, arXiv:2305.16311). Rows that name nothing give 0.
    """
    regions = step.batch.regions or [{}] * len(step.x0)
    values = []
    for row, things in enumerate(regions):
        value = step.x0.new_zeros((), dtype=torch.float32)
        for word, mask in things.items():
            a = step.maps[word][row].float()
            m = F.adaptive_avg_pool2d(mask[None].to(a), (a.shape[-2], a.shape[-1]))[0, 0]
            value = value + (a / a.amax().clamp_min(1e-8) - m).square().mean()
        values.append(value)
    return torch.stack(values)
