"""Learned words in old ``.pt`` and ``.bin`` files, read without running anything the file says.

A pickle is a program that may call any function. Here its opcodes are only listed and interpreted one by
one by the table below: it builds numbers, text, lists, tables and descriptions of tensors. A name of a
function becomes a plain mark; "calling" one of the few marks known makes a description, all others are
refused. Nothing is imported, no object of the file's choosing comes to be, no method of it is run.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.files import read_regular

__all__ = ["read_pickled_word"]

_LIMIT = 64 * 2**20
_FAULTS = (
    ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, EOFError, zipfile.BadZipFile,
    zlib.error, struct.error,
)  # fmt: skip
_STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64,
}  # fmt: skip
_KNOWN = {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch.nn.modules.container ParameterDict", "torch.nn.parameter Parameter", "torch Size",
    "__builtin__ set", "builtins set",
    *(f"torch {name}" for name in _STORAGES),
}  # fmt: skip


@dataclass(frozen=True)
class _Mark:
    """A name in the file, and nothing but that name."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class _Described:
    """A tensor as described: where its numbers lie and how."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False)
class _Machine:
    """Stack and memo of one pickle."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def since_mark(self) -> list[Any]:
        at = self.marks.pop()
        found = self.stack[at:]
        del self.stack[at:]
        return found

    def step(self, name: str, arg: Any) -> None:
        """Do one opcode; ValueError if it is not in the table."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(arg)
        elif name in _ACTIONS:
            _ACTIONS[name](self, arg)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"it uses the opcode {name}, which describes no tensor")


_CONSTANTS: Mapping[str, Any] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None,
    "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip


def _mark(name: str) -> _Mark:
    if name not in _KNOWN:
        raise ValueError(f"it names '{name.replace(' ', '.')[:80]}', which describes no tensor")
    return _Mark(name)


def _stack_global(m: _Machine, arg: Any) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.stack.append(_mark(f"{module} {name}"))


def _tuple(count: int) -> Any:
    def act(m: _Machine, arg: Any) -> None:
        found = tuple(m.stack[-count:])
        del m.stack[-count:]
        m.stack.append(found)

    return act


def _set_items(m: _Machine, pairs: list[Any]) -> None:
    target = m.stack[-1]
    if not isinstance(target, dict):
        raise ValueError("it sets items of something that is no table")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, str | int):
            raise ValueError("a table in it has a key that is no text")
        target[key] = value


def _set_item(m: _Machine, arg: Any) -> None:
    pair = m.stack[-2:]
    del m.stack[-2:]
    _set_items(m, pair)


def _append(m: _Machine, values: list[Any]) -> None:
    if not isinstance(m.stack[-1], list):
        raise ValueError("it appends to something that is no list")
    m.stack[-1].extend(values)


def _append_one(m: _Machine, arg: Any) -> None:
    value = m.stack.pop()
    _append(m, [value])


def _persistent(m: _Machine, arg: Any) -> None:
    described = m.stack.pop()
    if not (isinstance(described, tuple) and len(described) >= 5 and described[0] == "storage"):
        raise ValueError("it refers to something outside that is no storage")
    kind, key = described[1], described[2]
    dtype = _STORAGES.get(kind.name.removeprefix("torch ")) if isinstance(kind, _Mark) else None
    if dtype is None or not (isinstance(key, str) and key.isdigit()):
        raise ValueError("it has a storage of unknown kind")
    m.stack.append(_Storage(key, dtype))


def _reduce(m: _Machine, arg: Any) -> None:
    """A known mark with its arguments becomes a description; nothing is called."""
    args, mark = m.stack.pop(), m.stack.pop()
    if not isinstance(mark, _Mark) or not isinstance(args, tuple):
        raise ValueError("it calls something that is no known name")
    if mark.name.endswith(("OrderedDict", "ParameterDict")) and not args:
        m.stack.append({})
    elif mark.name.endswith("_rebuild_tensor_v2") and len(args) >= 4 and isinstance(args[0], _Storage):
        m.stack.append(_Described(args[0], args[1], tuple(args[2]), tuple(args[3])))
    elif mark.name.endswith(("_rebuild_parameter", "Parameter")) and args and isinstance(args[0], _Described):
        m.stack.append(args[0])
    elif mark.name.endswith(("Size", " set")) and len(args) == 1:
        m.stack.append(tuple(args[0]))
    else:
        raise ValueError(f"it calls '{mark.name.replace(' ', '.')}' in an unknown way")


def _new(m: _Machine, arg: Any) -> None:
    _reduce(m, arg)


def _build(m: _Machine, arg: Any) -> None:
    """State of a module is kept as a table; that of anything else is dropped."""
    state = m.stack.pop()
    if isinstance(m.stack[-1], dict) and isinstance(state, dict):
        m.stack[-1].update({key: value for key, value in state.items() if isinstance(key, str)})


def _memoize(m: _Machine, arg: Any) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


_ACTIONS: Mapping[str, Any] = {
    "MARK": lambda m, arg: m.marks.append(len(m.stack)),
    "GLOBAL": lambda m, arg: m.stack.append(_mark(arg)),
    "STACK_GLOBAL": _stack_global,
    "TUPLE": lambda m, arg: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": _tuple(1), "TUPLE2": _tuple(2), "TUPLE3": _tuple(3),
    "SETITEM": _set_item, "SETITEMS": lambda m, arg: _set_items(m, m.since_mark()),
    "APPEND": _append_one, "APPENDS": lambda m, arg: _append(m, m.since_mark()),
    "BINPERSID": _persistent, "REDUCE": _reduce, "NEWOBJ": _new, "BUILD": _build,
    "BINPUT": lambda m, arg: m.memo.__setitem__(arg, m.stack[-1]),
    "LONG_BINPUT": lambda m, arg: m.memo.__setitem__(arg, m.stack[-1]),
    "MEMOIZE": _memoize,
    "BINGET": lambda m, arg: m.stack.append(m.memo[arg]),
    "LONG_BINGET": lambda m, arg: m.stack.append(m.memo[arg]),
}  # fmt: skip


def _described(program: bytes) -> Any:
    machine = _Machine()
    for opcode, arg, _ in pickletools.genops(program):
        machine.step(opcode.name, arg)
    return machine.stack[-1]


def _tensor(one: _Described, storages: Mapping[str, bytes]) -> Tensor:
    """The numbers, every index checked to lie inside the storage."""
    sizes = [*one.shape, *one.stride, one.offset]
    if not all(isinstance(n, int) and 0 <= n < 2**31 for n in sizes) or len(one.shape) != len(one.stride):
        raise ValueError("a tensor in it has no proper shape")
    data = torch.frombuffer(bytearray(storages[one.storage.key]), dtype=one.storage.dtype)
    last = one.offset + sum((n - 1) * s for n, s in zip(one.shape, one.stride, strict=True))
    if 0 in one.shape or last >= len(data) or math.prod(one.shape) > len(data):
        raise ValueError("a tensor in it reaches beyond its numbers")
    return data.as_strided(one.shape, one.stride, one.offset).clone()


def _archive(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the storages of a torch archive; nothing is unpacked to disk."""
    data = read_regular(path, _LIMIT)
    if not data.startswith(b"PK\x03\x04"):
        raise ValueError("it is not of the form that torch has written since 2020")
    with zipfile.ZipFile(BytesIO(data)) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if sum(info.file_size for info in entries.values()) > _LIMIT or any(
            info.compress_type != zipfile.ZIP_STORED for info in entries.values()
        ):
            raise ValueError("it is packed or too large")
        program = next((name for name in entries if name.endswith("/data.pkl")), None)
        if program is None:
            raise ValueError("it has no data.pkl")
        root = program.removesuffix("data.pkl") + "data/"
        storages = {name.removeprefix(root): archive.read(name) for name in entries if name.startswith(root)}
        return archive.read(program), storages


def read_pickled_word(path: Path | str) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a learned word in an old file, named as in a safetensors file, and the word's own name.

    Raises:
        FromfewError: If the file asks for anything but tensors, or holds something else.
    """
    path = Path(path)
    try:
        program, storages = _archive(path)
        found = _described(program)
        if not isinstance(found, dict):
            raise ValueError("it holds no table")
        called = found.get("name")
        if "string_to_param" in found:
            inner = found["string_to_param"]
            inner = inner.get("_parameters", inner) or inner
            found = {"emb_params": inner["*"]}
        held = {str(key): value for key, value in found.items() if isinstance(value, _Described)}
        if not held or len(held) > 3:
            raise ValueError("it holds no learned word")
        tensors = {key: _tensor(value, storages) for key, value in held.items()}
    except FromfewError:
        raise
    except _FAULTS as error:
        raise FromfewError(
            f"'{path}' is an old file that could run code, and is read only as a learned word: "
            f"{str(error)[:300] or type(error).__name__}. "
            "Ask its author for a .safetensors file."
        ) from error
    return tensors, called if isinstance(called, str) else None
