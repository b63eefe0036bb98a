"""The text port: vectors where a word stands, without touching the vocabulary.

In the token ids a word's place is held by carriers, ordinary ids, and a hook on the embedding writes the
vectors there. Nothing is added to the tokenizer and no table is resized; models that find the end of the
text at the largest id keep finding it.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.ports.part import Handle, Part, attached

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone, Text
    from fromfew.backbones.text import TextEncoder
    from fromfew.ports.place import Place

__all__ = [
    "END", "Spliced", "StatesPart", "WordPart",
    "attached_states", "attached_words", "first_ids", "respelled", "splice", "writing",
]  # fmt: skip


END = "</end>"
"""The name under which the place of every prompt's end token is found, beside its words."""


class WordPart(Part):
    """A word of a concept: its placeholder in prompts, and what stands for it."""

    port = "text"
    placeholder: str
    alias: str | None
    """Plain text that takes the placeholder's place; None if vectors do."""

    @abstractmethod
    def carriers(self, tokenizer: Any) -> list[int]:
        """Ordinary ids that hold the word's place; none if its place is that of the token behind it."""

    @abstractmethod
    def written(self, key: str, base: Tensor, strength: float) -> Tensor | None:
        """Vectors ``[n, width]`` for encoder ``key``, given the carriers' own ``base``; None for none."""

    def write(self, key: str, bases: Sequence[Tensor], strength: float, places: Sequence[Place]) -> list[Tensor | None]:
        """`written` for several prompts, each with the place that reads it; most words do not care who reads."""
        return [self.written(key, base, strength) for base in bases]

    def inside(self, encoder: TextEncoder, rows: Sequence[bool], strength: float) -> Handle:
        """Act inside an encoder while it reads; ``rows`` says which prompts hold the placeholder."""
        return Handle()

    def same_encoders(self, bb: Backbone, widths: Mapping[str, int]) -> None:
        """Refuse a backbone whose text encoders are others, or of other widths.

        Raises:
            FromfewError: With both.
        """
        there = {key: encoder.width for key, encoder in bb.text_encoders.items()}
        if there != widths:
            raise FromfewError(f"{self!r} does not fit {bb.name}: its text encoders are {there}, not {widths}.")

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Nothing to install: encoding a prompt asks which words are attached."""
        return Handle()


class StatesPart(Part):
    """Edits encoded prompts."""

    port = "text"

    @abstractmethod
    def edit(self, text: Text, strength: float) -> Text:
        """The text with other states."""

    def edit_whole(self, bb: Backbone, text: Text, strength: float) -> Text:
        """The text with other states and, where values are not made from those, likewise edited values."""
        values = text.values
        if values is not None:
            values = self.edit(replace(text, states=values, values=None), strength).states
        return replace(self.edit(text, strength), values=values)

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Nothing to install: encoding a prompt asks which parts edit."""
        return Handle()


def attached_words(bb: Backbone) -> list[tuple[WordPart, float]]:
    """Words now attached, with strength. At strength 0 a word's carriers stand for themselves."""
    return [(entry.part, entry.strength) for entry in attached(bb) if isinstance(entry.part, WordPart)]


def attached_states(bb: Backbone) -> list[tuple[StatesPart, float]]:
    """Parts that edit states, with strength other than 0."""
    return [(e.part, e.strength) for e in attached(bb) if isinstance(e.part, StatesPart) and e.strength != 0]


def respelled(bb: Backbone, prompts: Sequence[str | None]) -> list[str | None]:
    """Prompts with the plain text of attached aliases in the place of their placeholders."""
    plain = [(word.placeholder, word.alias) for word, _ in attached_words(bb) if word.alias is not None]
    return [prompt if prompt is None else _spelled(prompt, plain) for prompt in prompts]


def _spelled(prompt: str, plain: Sequence[tuple[str, str]]) -> str:
    for placeholder, alias in plain:
        if not alias:  # nothing stands for it: it takes the space behind it along
            prompt = prompt.replace(f"{placeholder} ", "")
        prompt = prompt.replace(placeholder, alias)
    return prompt


@dataclass(eq=False)
class Spliced:
    """Prompts as ids.

    Args:
        ids: ``[B, L]`` long.
        mask: ``[B, L]`` long, 1 where a token is not padding.
        where: For each prompt, the positions of every placeholder and of every plain word (lower case, no
            marks).
        cut: For each prompt, the text that did not fit; empty if all did.
    """

    ids: Tensor
    mask: Tensor
    where: list[dict[str, list[int]]]
    cut: list[str]


def splice(tokenizer: Any, prompts: Sequence[str], words: Sequence[tuple[WordPart, float]], *, length: int) -> Spliced:
    """Tokenise prompts, with carriers where placeholders stand.

    Args:
        tokenizer: CLIP-like (begin and end tokens) or T5-like (end token only).
        prompts: Plain text with placeholders of attached words.
        words: Attached words and their strengths.
        length: Ids per prompt, padding included.

    Raises:
        FromfewError: If a prompt is so long that a placeholder falls off its end, or is no proper text.
    """
    if any("\ud800" <= letter <= "\udfff" for prompt in prompts for letter in prompt):
        raise FromfewError("A prompt holds half a letter (a lone surrogate), which is no text.")
    head, tail = _ends(tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tail[-1]
    rows, masks, where, cut = [], [], [], []
    for prompt in prompts:
        ids, places = _tokens(tokenizer, prompt, words)
        room = length - len(head) - len(tail)
        for word, _ in words:
            if word.alias is None and max(places.get(word.placeholder) or [0]) >= room:
                raise FromfewError(f"The prompt is too long: '{word.placeholder}' falls off its end ({length} tokens).")
        row = [*head, *ids[:room], *tail]
        rows.append(row + [pad] * (length - len(row)))
        masks.append([1] * len(row) + [0] * (length - len(row)))
        cut.append(tokenizer.decode(ids[room:]).strip() if len(ids) > room else "")
        found = {name: [len(head) + i for i in at if i < room] for name, at in places.items()}
        where.append({**found, END: [len(row) - len(tail)]})
    return Spliced(torch.tensor(rows), torch.tensor(masks), where, cut)


@contextmanager
def writing(
    encoder: TextEncoder,
    spliced: Spliced,
    words: Sequence[tuple[WordPart, float]],
    places: Sequence[Place] | None = None,
) -> Iterator[None]:
    """While active, the encoder's token embedding returns the words' vectors where they stand.

    Args:
        encoder: The encoder about to read.
        spliced: The ids being encoded.
        words: Attached words and their strengths.
        places: Who reads each prompt; nobody in particular if left out.
    """
    from fromfew.ports.place import NOWHERE

    who = places or [NOWHERE] * len(spliced.where)

    def hook(module: nn.Module, args: Any, y: Tensor) -> Tensor | None:
        rows: list[int] = []
        columns: list[int] = []
        vectors: list[Tensor] = []
        for word, strength in words:
            found = [where.get(word.placeholder, []) if word.alias is None else [] for where in spliced.where]
            here = [row for row, at in enumerate(found) if at]
            if not here:
                continue
            bases = [y[row, found[row]] for row in here]
            for row, new in zip(here, word.write(encoder.key, bases, strength, [who[r] for r in here]), strict=True):
                if new is not None:
                    rows += [row] * len(found[row])
                    columns += found[row]
                    vectors.append(new.to(y.dtype))
        if not vectors:
            return None
        index = (torch.tensor(rows, device=y.device), torch.tensor(columns, device=y.device))
        return y.index_put(index, torch.cat(vectors))

    with ExitStack() as stack:
        stack.callback(encoder.embedding.register_forward_hook(hook).remove)
        for word, strength in words:
            rows = [word.placeholder in where for where in spliced.where]
            if strength != 0 and any(rows):
                stack.callback(word.inside(encoder, rows, strength).remove)
        yield


def first_ids(tokenizer: Any, start: str, count: int, placeholder: str) -> list[int]:
    """The first tokens of plain text, repeated to ``count``: what holds a word's place.

    Raises:
        FromfewError: If the tokenizer knows no token for ``start``.
    """
    ids = list(tokenizer(start, add_special_tokens=False).input_ids)
    if not ids:
        raise FromfewError(f"'{start}' has no tokens to begin the word '{placeholder}' from.")
    return [ids[i % len(ids)] for i in range(count)]


def _ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids before and after every prompt."""
    empty = list(tokenizer("").input_ids)
    first = getattr(tokenizer, "bos_token_id", None)
    return (empty[:1], empty[1:2]) if len(empty) > 1 and empty[0] == first else ([], empty[:1])


def _tokens(
    tokenizer: Any, prompt: str, words: Sequence[tuple[WordPart, float]]
) -> tuple[list[int], dict[str, list[int]]]:
    """Ids without begin and end, and where every word lies in them."""
    learned = {word.placeholder: word for word, _ in words if word.alias is None and word.placeholder in prompt}
    pattern = "|".join(re.escape(name) for name in sorted(learned, key=len, reverse=True))
    pieces = re.split(f"({pattern})", prompt) if learned else [prompt]
    ids: list[int] = []
    where: dict[str, list[int]] = {}
    for piece in pieces:
        if piece in learned:
            new = learned[piece].carriers(tokenizer)
            # A word without tokens of its own stands where the token behind it stands.
            where.setdefault(piece, []).extend(range(len(ids), len(ids) + max(1, len(new))))
        elif piece.strip() or len(pieces) == 1:
            new = _plain(tokenizer, piece, len(ids), where, {word.placeholder for word, _ in words})
        else:
            continue
        ids += new
    return ids, where


def _plain(tokenizer: Any, text: str, start: int, where: dict[str, list[int]], taken: set[str]) -> list[int]:
    """Ids of plain text; notes the place of every word, lower case and without marks, but for those ``taken``."""
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(coded.input_ids)
    spans = [(match.start(), match.end(), match.group()) for match in re.finditer(r"\S+", text)]
    for place, (begin, end) in enumerate(coded.offset_mapping):
        for low, high, word in spans:
            if low < end <= high and begin < end:
                name = word.strip(".,;:!?\"'()").lower()
                if name not in taken:  # "<V>" is plain text even where "<v>" is a word
                    where.setdefault(name, []).append(start + place)
                break
    return ids
