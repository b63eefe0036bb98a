"""Messages that name the thing, the place and the nearest right answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

__all__ = ["FromfewError", "either", "nearest", "unknown"]


class FromfewError(ValueError):
    """Something the user can put right; its text says what was asked, what is there and what to type."""


def _likeness(asked: str, choice: str) -> float:
    """How alike two names are, 0 to 1; case and separators do not count."""

    def plain(text: str) -> str:
        return text.lower().replace("_", "-").replace(" ", "-")

    a, b = plain(asked), plain(choice)
    ratio = SequenceMatcher(None, a, b).ratio()
    # A beginning, or a word of the name, is a strong sign even when the lengths differ a lot.
    if len(a) >= 3 and (b.startswith(a) or a.startswith(b) or a in b.split("-")):
        ratio = max(ratio, 0.75)
    # So are the same letters in another order: neighbours that were swapped while typing.
    if sorted(a) == sorted(b):
        ratio = max(ratio, 0.9)
    return ratio


def nearest(name: str, choices: Iterable[str], count: int = 3, floor: float = 0.55) -> list[str]:
    """The up to ``count`` choices most like ``name``, best first; far ones are left out.

    >>> nearest("style-align", ["style-aligned", "lora", "dreambooth"])
    ['style-aligned']
    """
    scored = sorted((-_likeness(name, choice), choice) for choice in set(choices))
    best = -scored[0][0] if scored else 0.0
    return [choice for score, choice in scored[:count] if -score >= max(floor, best - 0.15)]


def either(names: Sequence[str]) -> str:
    """Names to choose from, in quotes.

    >>> print(either(["a", "b", "c"]))
    'a', 'b' or 'c'
    """
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} or {last}" if first else last


def unknown(kind: str, name: str, choices: Iterable[str]) -> FromfewError:
    """The error for a name that is not among ``choices``, with the nearest ones or else all.

    >>> print(unknown("method", "style-align", ["style-aligned", "lora"]))
    Unknown method 'style-align'. Did you mean 'style-aligned'?
    """
    names = sorted(set(choices))
    close = nearest(name, names)
    if close:
        return FromfewError(f"Unknown {kind} '{name}'. Did you mean {either(close)}?")
    if not names:
        return FromfewError(f"Unknown {kind} '{name}'. There are none.")
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return FromfewError(f"Unknown {kind} '{name}'. There is: {shown}.")
