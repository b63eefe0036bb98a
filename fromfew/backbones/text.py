"""Text: what the denoiser reads, and where every word of the prompt stands in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One text encoder of a backbone.

    Args:
        key: Its name among the backbone's encoders: "one", "two", "three".
        tokenizer: The transformers tokenizer that belongs to it.
        model: The frozen encoder.
        embedding: Its token embedding, where learned words are written.
        width: Width of the token embedding.
        length: Tokens of a prompt, with its marks and padding.
    """

    key: str
    tokenizer: Any
    model: nn.Module
    embedding: nn.Module
    width: int
    length: int

    @property
    def table(self) -> Tensor:
        """``[V, width]`` the vectors of all its tokens, detached, as float on the CPU; to be read only."""
        weight: Any = self.embedding.weight
        return weight.detach().float().cpu()


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded prompts.

    Args:
        prompts: The prompts as asked for; None stands for "no prompt".
        states: ``[B, L, C]`` what attention reads.
        pooled: ``[B, P]`` what modulates the whole picture, where the model has such a thing.
        extra: Whatever else the denoiser needs, each with ``B`` first.
        words: Per prompt, positions in ``states`` of every word (lower case, without punctuation) and
            placeholder.
        warnings: What the reader should know, such as words cut off at the encoder's length.
        values: ``[B, L, C]`` what attention takes values from, where it is not ``states``.
        seen: What `fromfew.ports.place` has encoded for places that read otherwise; lives as long as the text.
    """

    prompts: tuple[str | None, ...]
    states: Tensor
    pooled: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    words: tuple[dict[str, list[int]], ...] = ()
    warnings: tuple[str, ...] = ()
    values: Tensor | None = None
    seen: dict[Any, "Text"] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.states)

    def where(self, i: int, word: str) -> list[int]:
        """Positions in ``states`` of a word or placeholder of prompt ``i``; empty where it does not occur."""
        places = self.words[i]
        for name in (word, word.lower(), f"<{word}>", word.strip("<>")):
            if name in places:
                return list(places[name])
        return []

    def select(self, index: Sequence[int]) -> "Text":
        """The prompts at these positions, repeats allowed."""
        at = torch.tensor(list(index), dtype=torch.long, device=self.states.device)
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in index),
            states=self.states[at],
            pooled=None if self.pooled is None else self.pooled[at],
            extra={name: value[at] for name, value in self.extra.items()},
            words=tuple(self.words[i] for i in index),
            values=None if self.values is None else self.values[at],
        )

    @staticmethod
    def join(texts: Sequence["Text"]) -> "Text":
        """One text of all rows, in order."""
        first = texts[0]
        return Text(
            prompts=tuple(p for text in texts for p in text.prompts),
            states=torch.cat([text.states for text in texts]),
            pooled=None if first.pooled is None else torch.cat([t.pooled for t in texts if t.pooled is not None]),
            extra={name: torch.cat([text.extra[name] for text in texts]) for name in first.extra},
            words=tuple(w for text in texts for w in text.words),
            warnings=tuple(dict.fromkeys(w for text in texts for w in text.warnings)),
            values=None
            if all(text.values is None for text in texts)
            else torch.cat([text.states if text.values is None else text.values for text in texts]),
            seen={key: found for text in texts for key, found in text.seen.items()},
        )
