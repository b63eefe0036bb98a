"""What every tuned method can be told to hold on to: options of `Tuned`, as terms and decay of its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.losses import classed, focused, only
from fromfew.ports.part import Part, Parts, bare
from fromfew.templates import with_article

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.method import Tuned
    from fromfew.references import References
    from fromfew.stage import Stage, Term

__all__ = ["regularised", "state_of"]


def regularised(method: Tuned, bb: Backbone, refs: References, parts: Parts) -> Callable[[Stage], Stage]:
    """What turns a method's own stages into those with the options it was given.

    ``class_anchor`` adds ``1 - cos`` of a learned word's state and the noun's; ``attention_sparsity`` records the
    words' attention and adds its spread; ``weight_decay`` decays what is added to weights, and nothing else: a word
    has no 0 that would be the base.

    Raises:
        FromfewError: If there is nothing for one of them to act on.
    """
    terms: list[tuple[float, Term]] = []
    if method.class_anchor:
        terms += [(method.class_anchor, only("photo", pull)) for pull in _anchors(bb, refs, parts)]
    words = _shown(bb, parts) if method.attention_sparsity else ()
    if words:
        terms.append((method.attention_sparsity, only("photo", focused(*words))))
    added = [part for part in parts if part.port == "linear"]
    if method.weight_decay and not added:
        raise FromfewError("weight_decay acts on what is added to weights, and this method adds nothing to them.")

    def with_options(stage: Stage) -> Stage:
        more: dict[str, Any] = {}
        if terms:
            more["terms"] = [*stage.terms, *terms]
        if words:
            more["record"] = tuple(dict.fromkeys([*stage.record, *words]))
        if method.weight_decay:
            more["decay"] = dict.fromkeys(added, method.weight_decay)
        return replace(stage, **more) if more else stage

    return with_options


def state_of(bb: Backbone, noun: str) -> Tensor:
    """``[C]`` the mean state of a noun behind its article, as the untouched base reads it."""
    with torch.no_grad(), bare(bb):
        text = bb.embed([with_article(noun)])
    at = [place for word in noun.split() for place in text.where(0, word)]
    return text.states[0, at].mean(0)


def _anchors(bb: Backbone, refs: References, parts: Parts) -> list[Term]:
    """A pull for every subject with a learned word."""
    learned = {getattr(part, "placeholder", None) for part in parts if getattr(part, "alias", None) is None}
    pulled = [one for one in refs.subjects if one.placeholder in learned]
    if not pulled or any(one.noun is None for one in pulled):
        raise FromfewError("class_anchor pulls a learned word to its noun: use modifier 'word', and a noun.")
    return [classed(one.placeholder, state_of(bb, str(one.noun))) for one in pulled]


def _shown(bb: Backbone, parts: Parts) -> tuple[str, ...]:
    """What stands for the words in encoded prompts: placeholders, or the words of their aliases."""
    found = [piece for part in parts for piece in _spelled(part)]
    if not found or not any(site.reads_text for site in bb.sites.values()):
        raise FromfewError("attention_sparsity needs a word, and a base whose attention reads text.")
    return tuple(found)


def _spelled(part: Part) -> list[str]:
    name, alias = getattr(part, "placeholder", None), getattr(part, "alias", None)
    return [] if name is None else [name] if alias is None else alias.split()
