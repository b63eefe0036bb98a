"""What a metric is, and what it may look at."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["Case", "Metric", "Want", "plain_prompt", "score"]

_SLOT = re.compile(r"<[^<>\s]+>|\bsks\b|\*")


@dataclass(frozen=True)
class Want:
    """What a prompt asks for, in the world's own words; None where it asks for nothing."""

    object: str | None = None
    second: str | None = None
    context: str | None = None
    style: str | None = None
    colour: str | None = None
    relation: str | None = None
    things: tuple[str, ...] = ()
    """What a detector of photographs is to look for."""

    def known(self) -> dict[str, str]:
        """Only the factors that are asked for."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "things"}


@dataclass(frozen=True, eq=False)
class Case:
    """Pictures to score, with everything they are compared with."""

    images: Tensor
    """[B, 3, H, W] in [-1, 1]"""
    prompts: tuple[str, ...]
    """What each was to show, in plain words: no placeholder, the class noun kept."""
    photos: Tensor
    """[R, 3, H, W] in [-1, 1]: the photos that were learned from."""
    masks: Tensor | None = None
    """[R, 1, H, W] in {0, 1}: the subject in the photos."""
    held: Tensor | None = None
    """[K, 3, H, W]: photos of the same subject that were not learned from."""
    wants: tuple[Want, ...] = ()
    """Ground truth of each prompt, in the world; empty for photographs."""
    things: tuple[Tensor, ...] = ()
    """[R_i, 3, H, W] a thing: the photos of each, where several were learned; empty for one."""
    group: tuple[int, ...] = ()
    """Rows of one group were drawn from one prompt, with other noise."""
    noun: str | None = None
    """The class noun."""
    role: str = "subject"
    """subject, style or face"""
    cache: dict[tuple[int, str], Tensor] = field(default_factory=dict, repr=False)
    """Features that several metrics share."""

    def __len__(self) -> int:
        return len(self.images)


class Metric(ABC):
    """One number per picture; NaN where the question makes no sense."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Goes up whenever a number would change."""
    source: ClassVar[str]
    """Where it is defined; "ours" if nowhere else."""
    higher: ClassVar[bool] = True
    """Whether more is better."""

    @abstractmethod
    def __call__(self, case: Case) -> Tensor:
        """[B] float32."""

    @property
    def network(self) -> str:
        """The networks behind it, with what tells them from others of that name."""
        return ""

    def about(self) -> str:
        """Version, source and network on one line, as every record keeps it."""
        return " | ".join(part for part in (f"v{self.version}", self.source, self.network) if part)

    def _nothing(self, case: Case) -> Tensor:
        return torch.full((len(case),), torch.nan)


def plain_prompt(prompt: str, noun: str | None = None) -> str:
    """A prompt without its placeholder, the class noun kept, as the papers score it.

    Args:
        prompt: such as "a <v> dog on the beach", "a sks dog" or "a photo of *".
        noun: put in place of a placeholder that no noun follows.

    >>> plain_prompt("a <rex> dog in the snow"), plain_prompt("a <v> on the beach", "animal")
    ('a dog in the snow', 'an animal on the beach')
    """
    words = _SLOT.sub("\0", prompt)
    if noun:
        words = re.sub(rf"\0(?!\s*{re.escape(noun)}\b)", noun, words)
    words = " ".join(words.replace("\0", " ").split())
    return re.sub(r"\b([Aa])n? (?=(\w))", _article, words)


def _article(found: re.Match[str]) -> str:
    return f"{found[1]}{'n' if found[2].lower() in 'aeiou' else ''} "


def score(case: Case, metrics: Iterable[Metric]) -> dict[str, list[float | None]]:
    """All metrics of a case: name to one number per picture, rounded to five digits; None for no answer."""
    found: dict[str, list[float | None]] = {}
    with torch.no_grad():
        for metric in metrics:
            found[metric.name] = _plain(metric(case).tolist())
    return found


def _plain(values: Sequence[float]) -> list[float | None]:
    return [round(v, 5) if v == v else None for v in values]
