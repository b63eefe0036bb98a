"""Loss terms: functions of a `Step` that return one number per row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fromfew.ports.part import bare
from fromfew.templates import plain_of

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.parts.residual import Residual
    from fromfew.stage import Step, Term

__all__ = [
    "aligned", "alike", "anchored", "apart", "besides", "classed", "denoise", "focused", "held_first", "held_rest",
    "mapped_as", "masked", "only", "unmixed",
]  # fmt: skip


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


def anchored(part: nn.Module, *, squared: bool = True, to: nn.Module | None = None) -> Term:
    """Distance of a part's numbers from another's, or from what they were when this term was made: ``[B]``.

    ``‖v - v0‖²`` over all numbers, or, not ``squared``, the mean of ``‖v - v0‖`` over all vectors.
    """
    began = [value.detach().clone() for value in (to or part).parameters()]

    def pull(step: Step) -> Tensor:
        moved = [value - start.to(value.device) for value, start in zip(part.parameters(), began, strict=True)]
        if squared:
            return torch.stack([value.square().sum() for value in moved]).sum().expand(len(step.x0))
        return torch.cat([value.norm(dim=-1).flatten() for value in moved]).mean().expand(len(step.x0))

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


def mapped_as(word: str, other: str) -> Term:
    """Squared distance of two words' maps, each divided by its peak, ``[B]``; the second is taken as constant.

    ``mean (A_w / max A_w - A_o / max A_o)²`` (ViCo, arXiv:2306.00971); both must be recorded. Rows that lack either
    give 0.
    """

    def pull(step: Step) -> Tensor:
        own, like = step.maps[word].float(), step.maps[other].detach().float()
        peaks = own.flatten(1).amax(1), like.flatten(1).amax(1)
        own, like = (a / peak.clamp_min(1e-8).view(-1, 1, 1) for a, peak in zip((own, like), peaks, strict=True))
        far = (own - like).square().flatten(1).mean(1)
        return torch.where((peaks[0] > 0) & (peaks[1] > 0), far, 0.0)

    return pull


def besides(bb: Backbone, more: Callable[[Step], Tensor], term: Term) -> Term:
    """The term as it is when ``more`` ``[B, C]`` is added to every state of each row's prompt, at the same noise."""

    def on(step: Step) -> Tensor:
        states = step.text.states + more(step)[:, None].to(step.text.states)
        text = replace(step.text, states=states)
        return term(replace(step, text=text, pred=bb.predict(step.xt, step.t, text, step.rows)))

    return on


def apart(more: Callable[[Step], Tensor]) -> Term:
    """Cosine between the mean state of each row's prompt and ``more`` ``[B, C]``: ``[B]``."""

    def on(step: Step) -> Tensor:
        return F.cosine_similarity(step.text.states.float().mean(1), more(step).float(), dim=1)

    return on


def unmixed(names: Mapping[str, str]) -> Term:
    """What each thing's map, divided by its peak, has outside its own region: ``[B]``.

    ``Σ_i mean ((1 - M_i) A_i / max A_i)²`` over the things in `Batch.regions` (the unmix term of SVDiff,
    arXiv:2303.11305). Rows that name nothing give 0.

    Args:
        names: Name of each thing in ``regions`` to the word by which its map is recorded.
    """

    def spilled(step: Step) -> Tensor:
        values = []
        for row, things in enumerate(step.batch.regions or [{}] * len(step.x0)):
            value = step.x0.new_zeros((), dtype=torch.float32)
            for thing, mask in things.items():
                a = step.maps[names[thing]][row].float()
                m = _small(mask[None], a[None, None])[0, 0]
                value = value + ((1 - m) * a / a.amax().clamp_min(1e-8)).square().mean()
            values.append(value)
        return torch.stack(values)

    return spilled


def alike(word: str, noun: str, *, mean: float, variance: float) -> Term:
    """``mean (μ_v - μ_c)² + variance (σ²_v - σ²_c)²`` of the recorded maps of a word and its noun: ``[B]``.

    Means and variances are over all places (AttnDreamBooth, arXiv:2406.05000). Rows that lack one of them give 0.

    Args:
        word: The word, as its map is recorded.
        noun: The noun behind it, likewise.
        mean: Weight of equal means.
        variance: Weight of equal variances.
    """

    def apart(step: Step) -> Tensor:
        one, other = (step.maps[name].flatten(1).float() for name in (word, noun))
        far = mean * (one.mean(1) - other.mean(1)).square() + variance * (one.var(1) - other.var(1)).square()
        return torch.where((one.sum(1) > 0) & (other.sum(1) > 0), far, 0.0)

    return apart


def held_first(bb: Backbone, word: Residual) -> Term:
    """Distance of the state of each prompt's first token from what the untouched base makes of the noun: ``[B]``.

    Of Cones 2 (arXiv:2305.19327), as `held_rest`, which holds all that stands behind the noun.
    """
    return _held(bb, word, lambda last: slice(0, 1))


def held_rest(bb: Backbone, word: Residual) -> Term:
    """Distance of the states behind each prompt's noun from those of the untouched base: ``[B]``."""
    return _held(bb, word, lambda last: slice(last + 1, None))


def _held(bb: Backbone, word: Residual, where: Callable[[int], slice]) -> Term:
    def far(step: Step) -> Tensor:
        values = []
        with torch.no_grad(), bare(bb):
            still = bb.embed([plain_of(caption, word.placeholder, word.noun) for caption in step.batch.captions])
        for row in range(len(step.text)):
            at = where(max(word.places(step.text, row), default=0))
            values.append((step.text.states[row, at] - still.states[row, at]).float().norm())
        return torch.stack(values)

    return far
