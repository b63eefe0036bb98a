"""KeyLock: keys are made from the prompt with a word's noun in its place, values from the prompt as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fromfew.ports.part import Handle, attached
from fromfew.ports.place import layers_of
from fromfew.ports.text import StatesPart, WordPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone, Text

__all__ = ["KeyLock"]


class KeyLock(StatesPart):
    """The global lock of Perfusion (arXiv:2305.01644): where anything is looked for is what it would be for the noun.

    The word's carriers, the first tokens of what it began as, are read in its place, so that positions agree. It acts
    when drawing only, not while something learns. A base whose text is mixed with the picture first is left as it is.

    Args:
        placeholder: The word.
    """

    kind = "key_lock"

    def __init__(self, placeholder: str) -> None:
        super().__init__()
        self.word = placeholder

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Let every cross-attention layer read keys and values apart."""
        from fromfew.ports.attention import read_contexts

        return read_contexts(bb, layers_of(bb))

    def edit(self, text: Text, strength: float) -> Text:
        """Nothing: what is locked is not what is read, see `edit_whole`."""
        return text

    def edit_whole(self, bb: Backbone, text: Text, strength: float) -> Text:
        """The states of the prompt with the noun; the values are made from what the states were."""
        rows = [i for i, prompt in enumerate(text.prompts) if prompt and self.word in prompt]
        if self.training or not rows or not layers_of(bb):
            return text
        muted = [entry for entry in attached(bb) if entry.part is self or _is_word(entry.part, self.word)]
        before = [entry.strength for entry in muted]
        try:
            for entry in muted:
                entry.strength = 0.0
            with torch.no_grad():
                plain = bb.compose([text.prompts[i] for i in rows], [bb.places[i] for i in rows] if bb.places else ())
        finally:
            for entry, was in zip(muted, before, strict=True):
                entry.strength = was
        at = torch.tensor(rows, device=text.states.device)
        moved = text.states[at] + strength * (plain.states - text.states[at])
        values = text.states if text.values is None else text.values
        return replace(text, states=text.states.index_copy(0, at, moved), values=values)

    def config(self) -> dict[str, Any]:
        """The word."""
        return {"placeholder": self.word}

    def __repr__(self) -> str:
        return f"KeyLock({self.word!r})"


def _is_word(part: object, placeholder: str) -> bool:
    return isinstance(part, WordPart) and part.placeholder == placeholder
