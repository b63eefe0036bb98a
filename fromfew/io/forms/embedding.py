"""Learned words (textual inversion) as files: diffusers' ``{placeholder: tensor}`` and A1111's layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.forms.names import file_name

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.parts.word import Word
    from fromfew.ports.part import Part

__all__ = ["SEVERAL", "is_form", "keys", "read", "vectors", "words", "write"]

SEVERAL = ("clip_l", "clip_g", "t5xxl")
"""Keys of a file for several text encoders."""
_MOST_VECTORS = 75


def keys(bb: Backbone) -> dict[str, str]:
    """Text encoder of the backbone to its key in a file for several; empty for a base that has only one."""
    if len(bb.text_encoders) == 1:
        return {}
    long = {"one": "clip_l", "two": "clip_g", "three": "t5xxl"}
    if bb.family == "flux":
        long["two"] = "t5xxl"
    return {key: long[key] for key in bb.text_encoders}


def words(concept: Concept) -> list[Word]:
    """The learned words of a concept; aliases, which are plain text, left out."""
    from fromfew.parts.word import Word

    return [part for part in concept.parts if isinstance(part, Word) and part.alias is None]


def vectors(word: Word, concept: Concept, bb: Backbone) -> dict[str, Tensor]:
    """A word's vectors ``[n, width]`` by text encoder, at the concept's strength."""
    found = {}
    for key, encoder in bb.text_encoders.items():
        start = encoder.table[word.carriers(encoder.tokenizer)]
        written = word.written(key, start, concept.strength)
        found[key] = (start if written is None else written).detach().float().cpu().clone()
    return found


def write(held: Mapping[str, Tensor], bb: Backbone, placeholder: str, *, a1111: bool) -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        held: Vectors by text encoder.
        bb: The base, which says how many encoders there are.
        placeholder: The word in prompts, which diffusers reads from the file; A1111 reads it off the name.
        a1111: Whether a file for one encoder names its vectors ``emb_params``.
    """
    several = keys(bb)
    if several:
        return {several[key]: tensor for key, tensor in held.items()}
    tensor = held["one"]
    return {"emb_params": tensor} if a1111 else {placeholder: tensor}


def is_form(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds a learned word."""
    if not tensors or any(not one.is_floating_point() for one in tensors.values()):
        return False
    if set(tensors) <= {*SEVERAL, "t5"}:
        return all(one.dim() in (1, 2) for one in tensors.values())
    only = next(iter(tensors.values()))
    shaped = only.dim() == 1 or (only.dim() == 2 and only.shape[0] <= _MOST_VECTORS)
    return len(tensors) == 1 and shaped and "." not in next(iter(tensors))


@dataclass(frozen=True, eq=False)
class _Held:
    name: str | None
    by_key: dict[str, Tensor]


def _held(tensors: Mapping[str, Tensor]) -> _Held:
    """The name in the file, if it says one, and vectors by file key ("" for a file of one)."""
    rows = {name: one.float().view(-1, one.shape[-1]) for name, one in tensors.items()}
    if set(rows) <= {*SEVERAL, "t5"}:
        return _Held(None, {"t5xxl" if name == "t5" else name: one for name, one in rows.items()})
    name, only = next(iter(rows.items()))
    return _Held(None if name in ("emb_params", "*") else name, {"": only})


def fits(tensors: Mapping[str, Tensor]) -> str:
    """Which bases a file's widths belong to, in words."""
    held = _held(tensors).by_key
    if "clip_g" in held:
        return "Stable Diffusion 3" if "t5xxl" in held else "Stable Diffusion XL"
    if "t5xxl" in held:
        return "FLUX"
    width = next(iter(held.values())).shape[-1]
    return {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}.get(width, f"a base of width {width}")


def read(tensors: Mapping[str, Tensor], bb: Backbone, *, name: str, placeholder: str | None, start: str) -> Part:
    """A word from the tensors of a file.

    Args:
        tensors: As in the file.
        bb: The base.
        name: What the word is called if neither ``placeholder`` nor the file says so.
        placeholder: How prompts are to call it.
        start: Plain text that it replaces at strength 0.

    Raises:
        FromfewError: If the file belongs to a base of other encoders.
    """
    from torch import nn

    from fromfew.parts.word import Word

    held = _held(tensors)
    several = keys(bb)
    wanted = {key: several.get(key, "") for key in bb.text_encoders}
    widths = {key: encoder.width for key, encoder in bb.text_encoders.items()}
    got = {name or "its only key": one.shape[-1] for name, one in held.by_key.items()}
    if {held_key: widths[key] for key, held_key in wanted.items()} != {
        key: one.shape[-1] for key, one in held.by_key.items()
    }:
        raise FromfewError(
            f"The word does not fit '{bb.name}', whose encoders are {list(widths.values())} wide: "
            f"the file has {got} and belongs to {fits(tensors)}."
        )
    counts = {len(one) for one in held.by_key.values()}
    if len(counts) != 1:
        raise FromfewError(f"The file has {sorted(counts)} vectors for its encoders; they must be as many.")
    called = placeholder or held.name or name
    word = Word(called, start, widths, counts.pop())
    word.vectors = nn.ParameterDict({key: held.by_key[file_key].clone() for key, file_key in wanted.items()})
    return word.requires_grad_(False)


def default_name(path: Path) -> str:
    """A placeholder from a file's name, as A1111 does it, in fromfew's brackets."""
    return f"<{file_name(path.stem, 'v')}>"
