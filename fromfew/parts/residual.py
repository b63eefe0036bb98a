"""Residual: what a word adds to the encoded state of the noun behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.ports.text import StatesPart, WordPart
from fromfew.templates import sentences

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone, Text
    from fromfew.ports.part import Part

__all__ = ["Residual"]


class Residual(WordPart, StatesPart):
    """``h[i] + s Δ`` at every token of the noun that follows the placeholder (Cones 2, arXiv:2305.19327).

    The placeholder itself has no token: "a <v> cat" is encoded as "a cat", and then its cat becomes another. Without a
    noun behind it, whatever token follows is taken.

    Args:
        placeholder: What stands for it in prompts.
        noun: The plain noun.
        width: Width of the encoded states.
        tokens: How many tokens the noun has.
    """

    kind = "residual"
    alias = None

    def __init__(self, placeholder: str, noun: str, width: int, tokens: int = 1) -> None:
        super().__init__()
        if not placeholder.strip() or not 1 <= tokens <= 16:
            raise FromfewError("A residual needs a placeholder, and a noun of 1 to 16 tokens.")
        self.placeholder, self.noun, self.tokens = placeholder, noun, tokens
        self.vectors = nn.ParameterDict({"states": torch.zeros(1, width)})

    @classmethod
    def of(cls, bb: Backbone, placeholder: str, noun: str) -> Residual:
        """A residual that adds nothing yet.

        Raises:
            FromfewError: If the base knows no token for the noun.
        """
        with torch.no_grad():
            width = bb.embed([noun]).states.shape[-1]
        tokenizer = next(iter(bb.text_encoders.values())).tokenizer
        count = len(tokenizer(noun, add_special_tokens=False).input_ids)
        if not count:
            raise FromfewError(f"'{noun}' has no tokens, so there is nothing for '{placeholder}' to be added to.")
        return cls(placeholder, noun, width, count)

    def carriers(self, tokenizer: Any) -> list[int]:
        """None: the noun behind it is its place."""
        return []

    def written(self, key: str, base: Tensor, strength: float) -> Tensor | None:
        """Nothing: it acts on what the encoders return."""
        return None

    def places(self, text: Text, row: int) -> list[int]:
        """Positions of the noun's tokens in one prompt."""
        begin = text.words[row].get(self.placeholder, []) if row < len(text.words) else []
        return [at + i for at in begin for i in range(self.tokens) if at + i < text.states.shape[1]]

    def edit(self, text: Text, strength: float) -> Text:
        """The text with the vector added where the noun stands."""
        places = [self.places(text, row) for row in range(len(text))]
        if not strength or not any(places):
            return text
        more = torch.zeros(text.states.shape[:2], device=text.states.device, dtype=text.states.dtype)
        for row, at in enumerate(places):
            more[row, at] = strength
        vector = self.vectors["states"][0].to(text.states)
        return replace(text, states=text.states + more[..., None] * vector)

    @torch.no_grad()
    def gained(self, bb: Backbone, change: Part) -> Residual:
        """A residual of what the noun's state gains by a change of the encoders: the mean over the base's sentences."""
        shifts = []
        for sentence in sentences(bb.defaults.templates):
            prompt = [sentence.replace("{}", f"{self.placeholder} {self.noun}")]
            with bb.attach(self):
                before = bb.embed(prompt)
                with bb.attach(change):
                    after = bb.embed(prompt)
            shifts.append((after.states - before.states)[0, self.places(before, 0)].float())
        kept = Residual.build(self.config())
        kept.vectors["states"].copy_(torch.cat(shifts).mean(0, keepdim=True).cpu())
        return kept

    def check(self, bb: Backbone) -> None:
        """The states must be of the width they were learned at."""
        with torch.no_grad():
            from fromfew.ports.part import bare

            with bare(bb):
                width = bb.embed([self.noun]).states.shape[-1]
        own = self.vectors["states"].shape[-1]
        if width != own:
            raise FromfewError(f"{self!r} does not fit {bb.name}: its states are {width} wide, learned on {own}.")

    def config(self) -> dict[str, Any]:
        """Placeholder, noun, width and tokens."""
        return {
            "placeholder": self.placeholder, "noun": self.noun, "width": self.vectors["states"].shape[-1],
            "tokens": self.tokens,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"Residual({self.placeholder!r}, {self.noun!r})"
