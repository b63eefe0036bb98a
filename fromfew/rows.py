"""Rows: what every row of a batch is, so that no part ever guesses the batch's size or order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """The guidance branch, image, time and (optionally) concept of each of ``B`` rows.

    Args:
        branch: Name of each row's guidance branch, such as ``"cond"`` or ``"uncond"``.
        image: ``[B]`` long, index of the picture each row belongs to.
        t: ``[B]`` times in (0, 1).
        concept: Placeholder of the one concept a row speaks of; None for rows that speak of all.

    Raises:
        ValueError: If the lengths differ.
    """

    branch: tuple[str, ...]
    image: Tensor
    t: Tensor
    concept: tuple[str | None, ...] | None = field(default=None)

    def __post_init__(self) -> None:
        if not len(self.branch) == len(self.image) == len(self.t):
            raise ValueError(
                f"rows disagree: {len(self.branch)} branches, {len(self.image)} images, {len(self.t)} times"
            )

    @classmethod
    def plain(cls, n: int, t: Tensor) -> "Rows":
        """``n`` rows of ``n`` different pictures, all of the branch ``"cond"``."""
        return cls(("cond",) * n, torch.arange(n, device=t.device), t.expand(n))

    @classmethod
    def of(cls, images: Tensor, branches: Sequence[str], t: Tensor) -> "Rows":
        """All ``images`` ``[I]`` once per branch, branch after branch; ``t`` is one time for all."""
        n = len(images)
        names = tuple(name for name in branches for _ in range(n))
        return cls(names, images.repeat(len(branches)), t.expand(len(names)))

    def __len__(self) -> int:
        return len(self.branch)

    def is_(self, branch: str) -> Tensor:
        """``[B]`` bool: which rows belong to this branch."""
        return torch.tensor([name == branch for name in self.branch], device=self.image.device)

    def speaks_of(self, placeholder: str) -> Tensor:
        """``[B]`` bool: which rows may show this concept."""
        concepts = self.concept or (None,) * len(self)
        return torch.tensor([name in (None, placeholder) for name in concepts], device=self.image.device)

    def first_of_branch(self) -> Tensor:
        """``[B]`` long: in each row's own branch, the row that holds the first picture."""
        image = self.image.tolist()
        first: dict[str, int] = {}
        for row, name in enumerate(self.branch):
            if name not in first or image[row] < image[first[name]]:
                first[name] = row
        return torch.tensor([first[name] for name in self.branch], device=self.image.device)

    def give(self, value: Tensor, branch: str = "cond", else_: float = 0.0) -> Tensor:
        """``value`` ``[1 or B, ...]`` on the rows of a branch and ``else_`` elsewhere, ``[B, ...]``."""
        whole = value.expand(len(self), *value.shape[1:])
        mask = self.is_(branch).view(-1, *[1] * (whole.dim() - 1))
        return torch.where(mask, whole, torch.full_like(whole, else_))

    def at(self, t: Tensor) -> "Rows":
        """The same rows at another time, one for all or ``[B]``."""
        return replace(self, t=t.expand(len(self)))

    def select(self, index: Sequence[int]) -> "Rows":
        """The rows at these positions."""
        at = torch.tensor(list(index), dtype=torch.long, device=self.image.device)
        concept = tuple(self.concept[i] for i in index) if self.concept else None
        return Rows(tuple(self.branch[i] for i in index), self.image[at], self.t[at], concept)

    def __repr__(self) -> str:
        rows = ", ".join(f"{name}:{image}" for name, image in zip(self.branch, self.image.tolist(), strict=True))
        return f"Rows({rows})"


@dataclass(frozen=True, eq=False)
class Now:
    """What the denoiser is looking at during one call of `predict`; parts read it, the backbone writes it.

    Args:
        rows: What every row of the batch is.
        text_tokens: Length of the text's states, as the denoiser receives them.
        latent: Height and width of the image's token grid at its finest (after patches, where the model has
            them).
        t: ``[B]`` times in (0, 1).
        contexts: By name of a cross site, what keys and what values are projected from, ``[B, L, C]`` each, where
            it is not the text itself.
        words: For every row, where the words and placeholders of its prompt stand (see `Text.where`).
    """

    rows: Rows
    text_tokens: int
    latent: tuple[int, int]
    t: Tensor
    contexts: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    words: tuple[Mapping[str, list[int]], ...] = ()
