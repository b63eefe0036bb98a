"""Seeded changes of bytes and of plain data, with a taste for what breaks readers."""

from __future__ import annotations

import random
import struct
from typing import Any

__all__ = ["NUMBERS", "WORDS", "bent", "twisted"]

NUMBERS = (0, 1, -1, 2, 7, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 1e308)
WORDS = (
    "", "..", "../../x", "/etc/passwd", "\0", "a" * 5000, "<v>", "<", "é", "\u202e", "\ud83d", "\U0001f600", "NaN",
    "{}", "%s",
)  # fmt: skip
_BYTES = (b"\0", b"\xff" * 8, b"\x80\x04", b"PK\x03\x04", b"{", b"[[[[", b'"', b"\n", b"IDAT", b"\xff\xd8\xff")


def bent(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few places changed: flipped, cut, doubled, spliced, or overwritten with telling ones."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(found) + 1)
        way = rng.randrange(7)
        if way == 0 and found:
            found[at % len(found)] ^= 1 << rng.randrange(8)
        elif way == 1 and found:
            found[at % len(found)] = rng.randrange(256)
        elif way == 2:
            del found[at : at + rng.choice((1, 4, 50, 10**6))]
        elif way == 3:
            found[at:at] = rng.choice(_BYTES)
        elif way == 4:
            found[at:at] = found[max(0, at - rng.choice((1, 8, 300))) : at]
        elif way == 5 and len(found) >= 8:
            value = int(rng.choice(NUMBERS[:16])) & (2**64 - 1)
            found[at : at + 8] = struct.pack(rng.choice(("<Q", ">Q")), value)
        else:
            found[at : at + 4] = struct.pack(">I", int(rng.choice(NUMBERS[:16])) & (2**32 - 1))
    return bytes(found)


def _odd(rng: random.Random, depth: int = 0) -> Any:
    """Any plain value."""
    way = rng.randrange(9 if depth < 3 else 7)
    if way < 2:
        return rng.choice(NUMBERS)
    if way < 4:
        return rng.choice(WORDS)
    if way == 7:
        return [_odd(rng, depth + 1) for _ in range(rng.choice((0, 1, 3)))]
    if way == 8:
        return {rng.choice(WORDS): _odd(rng, depth + 1) for _ in range(rng.choice((0, 1, 3)))}
    return (None, True, float("inf"))[way - 4]


def twisted(value: Any, rng: random.Random) -> Any:
    """Plain data with one value somewhere replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        way = rng.randrange(8)
        if way == 0:
            return {k: v for k, v in value.items() if k != key}
        if way == 1:
            return {**value, rng.choice(WORDS): _odd(rng)}
        if way == 2:
            return {(rng.choice(WORDS) if k == key else k): v for k, v in value.items()}
        return {**value, key: twisted(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        way = rng.randrange(5)
        if way == 0:
            return value[:at] + value[at + 1 :]
        if way == 1:
            return value * rng.choice((2, 100))
        return [*value[:at], twisted(value[at], rng), *value[at + 1 :]]
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(WORDS) + value[at + 1 :]
    return _odd(rng)
