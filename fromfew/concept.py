"""Concept: what was learned, as people keep, share and combine it: one safetensors file and one JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from fromfew import __version__
from fromfew.errors import FromfewError, unknown
from fromfew.io.files import read_regular, replace_folder, write_atomic
from fromfew.io.tensors import read_tensors, write_tensors
from fromfew.ports.part import Part, Parts

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["Card", "Concept", "kinds", "load", "versions"]

SCHEMA = 1
_TENSORS, _JSON = "concept.safetensors", "concept.json"
_JSON_LIMIT = 64 * 2**20
_MOST_PARTS = 64


def kinds() -> list[str]:
    """Names of the parts a concept may consist of: the files of ``fromfew/parts``, and nothing else."""
    folder = Path(__file__).with_name("parts")
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"fromfew": __version__, "python": platform.python_version(), **found}


@dataclass(frozen=True)
class Card:
    """Where a concept comes from; all plain JSON."""

    method: str
    """Name of the method."""
    settings: Mapping[str, Any]
    """Its settings, as resolved for the base."""
    base: Mapping[str, str]
    """Name, family and fingerprint of the base it was learned on."""
    photos: tuple[str, ...] = ()
    """SHA-256 of every photo."""
    seed: int = 0
    """Seed of learning."""
    steps: int = 0
    """Optimiser steps over all stages."""
    loss: float | None = None
    """Mean loss of the last steps."""
    seconds: float = 0.0
    """Time spent learning."""
    learned: int = 0
    """How many numbers were learned."""
    bytes: int = 0
    """Their size."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the software."""
    rights: str = "The photos' owner decides; ask people shown in them before you share this concept."
    """Who may use it for what."""

    @classmethod
    def of(cls, bb: Backbone, parts: Parts, **told: Any) -> Card:
        """The card of finished parts: base, size and versions are looked up, the rest is told."""
        return cls(
            base={"name": bb.name, "family": bb.family, "fingerprint": bb.fingerprint()},
            learned=parts.count(),
            bytes=sum(value.numel() * value.element_size() for value in parts.state_dict().values()),
            versions=versions(),
            **told,
        )


@dataclass(frozen=True, eq=False)
class Concept:
    """A few parts, and the card that says where they come from.

    Args:
        name: What people call it.
        placeholder: What stands for it in prompts, or None if it needs no word.
        noun: The plain noun of what it is, or None.
        parts: What is attached to a model.
        card: Where it comes from.
        strength: Factor of everything it does; 0 is the base itself.
        also: Further placeholders it answers to, each with its noun or None, if several things were learned or
            joined in one concept.

    Raises:
        FromfewError: If it is to answer twice to one placeholder.
    """

    name: str
    placeholder: str | None
    noun: str | None
    parts: Parts
    card: Card
    strength: float = 1.0
    also: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.placeholder in self.also:
            raise FromfewError(f"'{self.name}' answers twice to {self.placeholder}; give one another placeholder.")

    @property
    def answers(self) -> dict[str, str | None]:
        """Every placeholder it answers to, with its noun."""
        return {**({self.placeholder: self.noun} if self.placeholder is not None else {}), **self.also}

    @property
    def things(self) -> list[str]:
        """What prompts call, never empty: each word with its noun (``<rex> cat``); without words, the noun alone."""
        found = [f"{word} {noun}" if noun else word for word, noun in self.answers.items()]
        return found or [self.noun or "picture"]

    def spelled(self, word: str) -> str:
        """What stands in an encoded prompt for one of its placeholders: itself, or the last word of its plain text.

        A word of no text of its own is called by its noun.
        """
        for part in self.parts:
            if getattr(part, "placeholder", None) == word and getattr(part, "alias", None) is not None:
                text = str(part.alias).split() or str(self.answers.get(word) or word).split()
                return text[-1].lower()
        return word

    def scaled(self, strength: float) -> Concept:
        """The same concept, this much as strong as it is now."""
        return replace(self, strength=self.strength * strength)

    def check(self, bb: Backbone) -> None:
        """Raise `FromfewError` if the concept does not fit a backbone; nothing is touched."""
        try:
            for part in self.parts:
                part.check(bb)
        except FromfewError as error:
            base = self.card.base
            raise FromfewError(
                f"Concept '{self.name}' was learned on '{base.get('name')}' ({base.get('family')}) "
                f"and cannot be used with '{bb.name}' ({bb.family}). {error}"
            ) from error

    def same_base(self, bb: Backbone) -> bool:
        """Whether this is, to the bit, the base the concept was learned on."""
        return self.card.base.get("fingerprint") == bb.fingerprint()

    def save(self, folder: Path | str) -> Path:
        """Write ``concept.safetensors`` and ``concept.json``, both or neither; returns the folder."""
        folder = Path(folder)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.parts.state_dict().items()}
        about = {
            "schema": SCHEMA,
            "name": self.name,
            "placeholder": self.placeholder,
            "noun": self.noun,
            "also": dict(self.also),
            "strength": self.strength,
            "parts": [{"name": n, "kind": part.kind, "config": part.config()} for n, part in self.parts.items()],
            "card": asdict(self.card),
        }
        with replace_folder(folder) as fresh:
            write_tensors(fresh / _TENSORS, tensors)
            write_atomic(fresh / _JSON, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a concept; runs nothing that the folder brings along.

        Raises:
            FromfewError: If the folder is no concept, is damaged, or was written by a newer version.
        """
        folder = Path(folder)
        if not (folder / _JSON).exists():
            raise FromfewError(f"'{folder}' holds no concept: there is no {_JSON} in it.")
        try:
            about = json.loads(read_regular(folder / _JSON, _JSON_LIMIT).decode("utf-8"))
            if not isinstance(about, dict):
                raise ValueError("it is not an object")
            _check_schema(about, folder)
            parts = _parts(about["parts"])
            _fill(parts, read_tensors(folder / _TENSORS))
            strength = float(about.get("strength", 1.0))
            return cls(*_naming(about), parts, _card(about["card"]), strength, _also(about.get("also", {})))
        except FromfewError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
            raise FromfewError(f"'{folder}' is damaged: {_reason(error)}.") from error

    def __repr__(self) -> str:
        return f"Concept({self.name!r}, {self.placeholder!r}, {self.parts!r})"


def load(folder: Path | str) -> Concept:
    """Read a concept from its folder."""
    return Concept.load(folder)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _check_schema(about: Mapping[str, Any], folder: Path) -> None:
    schema = about.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise ValueError("it has no schema version")
    if schema > SCHEMA:
        raise FromfewError(f"'{folder}' was written by a newer fromfew (schema {schema}, known: {SCHEMA}). Upgrade.")


def _naming(about: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    name, placeholder, noun = about["name"], about["placeholder"], about["noun"]
    if not isinstance(name, str) or not all(value is None or isinstance(value, str) for value in (placeholder, noun)):
        raise ValueError("name, placeholder or noun is not text")
    return name, placeholder, noun


def _also(told: Any) -> dict[str, str | None]:
    if not isinstance(told, dict) or not all(noun is None or isinstance(noun, str) for noun in told.values()):
        raise ValueError("its further placeholders have no proper nouns")
    return told


def _parts(described: Any) -> Parts:
    """Empty parts (on the meta device: nothing is allocated) as the JSON describes them."""
    if not isinstance(described, list) or len(described) > _MOST_PARTS:
        raise ValueError(f"its parts are not a list of at most {_MOST_PARTS}")
    found: dict[str, Part] = {}
    for one in described:
        name, kind, config = one["name"], one["kind"], one["config"]
        if not isinstance(name, str) or not name.isidentifier() or name in found or not isinstance(config, dict):
            raise ValueError("a part has no proper name or configuration")
        with torch.device("meta"):
            found[name] = _class_of(kind).build(config)
    return Parts(**found)


def _class_of(kind: Any) -> type[Part]:
    """The part class of a kind, from the allow-list."""
    if not isinstance(kind, str) or kind not in kinds():
        raise unknown("part", str(kind)[:60], kinds())
    module = import_module(f"fromfew.parts.{kind}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Part) and value.__dict__.get("kind") == kind:
            return value
    raise FromfewError(f"fromfew/parts/{kind}.py defines no part of that kind.")


def _fill(parts: Parts, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put the numbers in; names and shapes must be exactly those described."""
    wanted = parts.state_dict()
    if set(wanted) != set(tensors):
        odd = sorted(set(wanted) ^ set(tensors))[0]
        raise ValueError(f"its two files disagree about '{odd[:80]}'")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape or value.dtype.is_floating_point != wanted[name].dtype.is_floating_point:
            raise ValueError(f"'{name[:80]}' is {tuple(value.shape)}, described as {tuple(wanted[name].shape)}")
        if value.dtype.is_floating_point and not bool(torch.isfinite(value).all()):
            raise ValueError(f"'{name[:80]}' holds a number that is not finite")
    parts.load_state_dict(dict(tensors), strict=True, assign=True)
    parts.requires_grad_(False)
    parts.eval()


def _card(described: Any) -> Card:
    known = {one.name for one in fields(Card)}
    card = Card(**{name: value for name, value in described.items() if name in known})
    if not isinstance(card.method, str) or not isinstance(card.base, dict):
        raise ValueError("its card names no method or base")
    return replace(card, photos=tuple(card.photos))
