"""Tensors in safetensors files, whose header is checked to the last number before anything is allocated."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fromfew.errors import FromfewError
from fromfew.io.files import open_regular, replacing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Entry", "Header", "read_header", "read_tensors", "refuse_pickle", "write_tensors"]

_BITS = {
    "BOOL": (8, "bool"), "U8": (8, "uint8"), "I8": (8, "int8"), "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"), "U16": (16, "uint16"), "I16": (16, "int16"), "F16": (16, "float16"),
    "BF16": (16, "bfloat16"), "U32": (32, "uint32"), "I32": (32, "int32"), "F32": (32, "float32"),
    "U64": (64, "uint64"), "I64": (64, "int64"), "F64": (64, "float64"), "C64": (64, "complex64"),
}  # fmt: skip
_HEADER_LIMIT = 100_000_000
_RANK_LIMIT = 16
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type, shape, and the bytes ``start:stop`` of the data that hold it."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds: entries by name, metadata, and the byte where the data begins."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    offset: int = 8


def refuse_pickle(path: Path | str) -> None:
    """Refuse a file whose ending, or first bytes, say that reading it could run code.

    Raises:
        FromfewError: It is a pickle (``.bin``, ``.pt``, ``.pth``, ``.ckpt``, ``.pkl``) or a numpy file.
    """
    path = Path(path)
    head = b""
    if path.is_file():
        with os.fdopen(open_regular(path), "rb") as file:
            head = file.read(4)
    zipped = head == b"PK\x03\x04"
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if path.suffix.lower() in _PICKLES or ((zipped or pickled) and path.suffix != ".safetensors"):
        raise FromfewError(
            f"'{path}' may hold a pickle, which can run any code when it is read; fromfew never reads one. "
            "Ask its author for a .safetensors file."
        )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the name '{key[:80]}' stands in it twice")
        found[key] = value
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _check_name(name: str) -> None:
    pieces = re.split(r"[/\\]", name)
    if not name or len(name) > 1024 or _CONTROL.search(name):
        raise ValueError("a name in it is empty, longer than 1,024 letters, or holds control characters")
    if ".." in pieces or name.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:[/\\]", name):
        raise ValueError(f"the name '{name[:80]}' is a path out of the file")


def _entry(name: str, spec: object) -> Entry:
    """Check one tensor's description; ValueError says what is wrong."""
    _check_name(name)
    if not isinstance(spec, dict) or set(spec) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"'{name}' is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = spec["dtype"], spec["shape"], spec["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"'{name}' has the unknown number type {str(dtype)[:20]!r}")
    if not isinstance(shape, list) or len(shape) > _RANK_LIMIT or not all(map(_is_size, shape)):
        raise ValueError(f"'{name}' has no proper shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ValueError(f"'{name}' has no proper offsets")
    count = 1
    for side in shape:
        count *= side
        if count >= 2**60:
            raise ValueError(f"'{name}' claims {' x '.join(map(str, shape))} numbers")
    start, stop = offsets
    needed = count * _BITS[dtype][0] // 8
    if stop - start != needed:
        raise ValueError(f"'{name}' of shape {shape} needs {needed:,} bytes but has {stop - start:,}")
    return Entry(dtype, tuple(shape), start, stop)


def _check_layout(entries: Mapping[str, Entry], data: int) -> None:
    """The tensors must cover the ``data`` bytes one after another, with no overlap, gap or rest."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            fault = "overlaps another tensor" if entry.start < at else "leaves a gap before it"
            raise ValueError(f"'{name}' {fault}")
        at = entry.stop
    if at != data:
        raise ValueError(f"the tensors need {at:,} bytes of data and the file has {data:,}")


def _parse(file: BinaryIO, size: int) -> Header:
    """Read and check a header; ValueError says what is wrong."""
    if size < 10:
        raise ValueError(f"{size} bytes are too few")
    length = int.from_bytes(file.read(8), "little")
    if length > min(_HEADER_LIMIT, size - 8):
        raise ValueError(f"its header claims {length:,} bytes")
    text = file.read(length).decode("utf-8")
    if not text.startswith("{"):
        raise ValueError("its header is not JSON")
    found = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not text by name")
    entries = {name: _entry(name, spec) for name, spec in found.items()}
    _check_layout(entries, size - 8 - length)
    return Header(entries, metadata, 8 + length)


def _header(path: Path, file: BinaryIO) -> Header:
    cause: Exception
    try:
        return _parse(file, os.fstat(file.fileno()).st_size)
    except UnicodeDecodeError as error:
        reason, cause = "its header is not UTF-8 text", error
    except json.JSONDecodeError as error:
        reason, cause = "its header is not JSON", error
    except RecursionError as error:
        reason, cause = "its header is nested too deep", error
    except ValueError as error:
        reason, cause = str(error), error
    raise FromfewError(f"'{path}' is no proper safetensors file: {reason}.") from cause


def read_header(path: Path | str) -> Header:
    """What a safetensors file holds, checked: sizes, types, shapes, offsets, names, metadata.

    Raises:
        FromfewError: The file is missing, a pickle, no regular file, or its header is wrong in any way.
    """
    path = Path(path)
    refuse_pickle(path)
    with os.fdopen(open_regular(path), "rb") as file:
        return _header(path, file)


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU; the header is checked before any is allocated.

    Raises:
        FromfewError: As `read_header`, or the data is cut short.
    """
    import torch

    path = Path(path)
    refuse_pickle(path)
    tensors: dict[str, Tensor] = {}
    with os.fdopen(open_regular(path), "rb") as file:
        header = _header(path, file)
        for name, entry in sorted(header.tensors.items(), key=lambda item: item[1].start):
            raw = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
            file.seek(header.offset + entry.start)
            into = memoryview(raw.numpy())  # type: ignore[arg-type]
            if raw.numel() and file.readinto(into) != raw.numel():
                raise FromfewError(f"'{path}' is cut short inside '{name}'.")
            if entry.dtype == "BOOL" and bool((raw > 1).any()):
                raise FromfewError(f"'{path}' holds a truth value in '{name}' that is neither 0 nor 1.")
            tensors[name] = raw.view(getattr(torch, _BITS[entry.dtype][1])).reshape(entry.shape)
    return {name: tensors[name] for name in header.tensors}


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file in one step; equal tensors give equal bytes.

    Raises:
        FromfewError: A name is not allowed, or the disk is full.
    """
    from safetensors.torch import save

    path = Path(path)
    for name in tensors:
        try:
            _check_name(name)
        except ValueError as error:
            raise FromfewError(f"'{path}' cannot be written: {error}.") from error
    held = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in sorted(tensors.items())}
    data = save(held, metadata=dict(metadata or {}) or None)
    with replacing(path) as fresh:
        fresh.write_bytes(data)
