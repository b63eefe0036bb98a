"""Words of a command line to values, with errors that say what to type instead."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fromfew.errors import FromfewError, unknown

__all__ = ["Parser", "number", "size", "strengthened", "whole"]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `FromfewError`, and whose unknown flags name the nearest known."""

    def __init__(self, verb: str, about: str, **how: Any) -> None:
        super().__init__(
            prog=f"fromfew {verb}", description=about, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter, **how,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        message = message.removeprefix("argument ")
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        if missing:
            message = f"{missing[1]} is missing"
        wrong = re.fullmatch(r"(?:-\w/)?--([\w-]+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong:
            raise unknown(wrong[1], wrong[2], [name.strip(" '") for name in wrong[3].split(",")])
        raise FromfewError(f"{message[:1].upper()}{message[1:]}. See '{self.prog} --help'.")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all of ``argv``.

        Raises:
            FromfewError: A word is unknown or a value is not allowed.
        """
        found, rest = self.parse_known_args(list(argv))
        for word in rest:
            if word.startswith("-"):
                flags = [flag for action in self._actions for flag in action.option_strings]
                raise unknown("option", word.partition("=")[0], [flag for flag in flags if flag.startswith("--")])
        if rest:
            raise FromfewError(f"'{rest[0]}' is one word too many. Put quotes around texts with spaces.")
        return found


def _limits(low: float, high: float) -> str:
    if not math.isfinite(low):
        return ""
    return f" from {low:,} to {high:,}" if math.isfinite(high) else f" of at least {low:,}"


def whole(low: float = -math.inf, high: float = math.inf) -> Callable[[str], int]:
    """A reader of whole numbers in a range."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None  # type: ignore[assignment]
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number{_limits(low, high)}")
        return value

    return read


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """A reader of numbers in a range; infinity and NaN are none."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"'{text}' is not a number{_limits(low, high)}")
        return value

    return read


def size(text: str) -> tuple[int, int]:
    """(height, width) in pixels from ``128`` or ``WIDTHxHEIGHT``."""
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 512 or 768x512 (width x height)")
    width, height = int(match[1]), int(match[2] or match[1])
    if not (16 <= width <= 8192 and 16 <= height <= 8192):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size: each side has 16 to 8192 pixels")
    return height, width


def strengthened(text: str) -> tuple[Path, float]:
    """A folder and a strength from ``concepts/rex`` or ``concepts/rex:0.8``."""
    folder, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists() or not folder or (len(folder) == 1 and tail.startswith(("\\", "/"))):
        return Path(text), 1.0
    try:
        return Path(folder), number(-4, 4)(tail)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"the strength {error}, in '{text}'") from None
