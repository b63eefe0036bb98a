"""Files people give by mistake or out of malice, each made in a fresh folder."""

import contextlib
import io
import json
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Maker = Callable[[Path], Any]
PICTURES: dict[str, Maker] = {}
TENSORS: dict[str, Maker] = {}


def jpeg(size: tuple[int, int] = (64, 48), colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def png(image: Image.Image | None = None, **how: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.new("RGB", (64, 48), "red")).save(buffer, "PNG", **how)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes do not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def bytes_named(table: dict[str, Maker], what: str, name: str, data: bytes) -> None:
    """An entry that is one file of these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    table[what] = make


def entry(table: dict[str, Maker], what: str) -> Callable[[Maker], Maker]:
    def add(make: Maker) -> Maker:
        table[what] = make
        return make

    return add


_NOISE = bytes(range(256)) * 8
for _what, _name, _data in [
    ("an empty file", "a.jpg", b""),
    ("a web page saved as a picture", "a.jpg", b"<!DOCTYPE html><html><body>404</body></html>"),
    ("a web page after blank lines", "a.png", b"\n\n  <HTML><head></head></HTML>"),
    ("a drawing", "a.png", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'),
    ("a Git LFS pointer", "a.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ("a HEIC photo with another ending", "a.jpg", b"\0\0\0\x18ftypheic" + b"\0" * 64),
    ("a video with another ending", "a.jpg", b"\0\0\0\x18ftypisom" + b"\0" * 64),
    ("a PDF", "a.png", b"%PDF-1.7\n"),
    ("a ZIP archive", "a.png", b"PK\x03\x04" + b"\0" * 64),
    ("a Photoshop file", "a.png", b"8BPS\0\1" + b"\0" * 64),
    ("PostScript, which would be run", "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ("JSON", "a.png", b'{"error": "not found"}'),
    ("a pickle", "a.png", b"\x80\x04\x95\x05\0\0\0\0\0\0\0K\x01."),
    ("noise", "a.png", _NOISE),
    ("a JPEG cut short", "a.jpg", jpeg((640, 480))[:900]),
    ("a PNG cut short", "a.png", png(Image.effect_noise((64, 64), 80))[:600]),
    ("a PNG with a flipped byte", "a.png", png()[:45] + b"\xff" + png()[46:]),
    ("a PNG of a billion pixels", "a.png", png_claiming(40_000, 40_000)),
    ("a PNG of 100 million pixels", "a.png", png_claiming(10_000, 10_000)),
    ("a PNG with fewer rows than it claims", "a.png", png_claiming(200, 200)),
    ("one pixel", "a.png", png(Image.new("RGB", (1, 1)))),
    ("a ribbon", "a.png", png(Image.new("RGB", (1000, 20)))),
    ("a wholly transparent picture", "a.png", png(Image.new("RGBA", (64, 64), (9, 9, 9, 0)))),
]:
    bytes_named(PICTURES, _what, _name, _data)


@entry(PICTURES, "a file that is not there")
def _(folder: Path) -> Path:
    return folder / "a.jpg"


@entry(PICTURES, "a folder")
def _(folder: Path) -> Path:
    (folder / "a.jpg").mkdir()
    return folder / "a.jpg"


@entry(PICTURES, "a named pipe")
def _(folder: Path) -> Path:
    os.mkfifo(folder / "a.jpg")
    return folder / "a.jpg"


@entry(PICTURES, "a socket")
def _(folder: Path) -> Path:
    here = Path.cwd()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
        os.chdir(folder)  # the name of a socket may have 100 letters only
        one.bind("a.jpg")
        os.chdir(here)
    return folder / "a.jpg"


@entry(PICTURES, "a device that never ends")
def _(folder: Path) -> Path:
    (folder / "a.jpg").symlink_to("/dev/zero")
    return folder / "a.jpg"


@entry(PICTURES, "a link to itself")
def _(folder: Path) -> Path:
    (folder / "a.jpg").symlink_to(folder / "a.jpg")
    return folder / "a.jpg"


@entry(PICTURES, "a link to nothing")
def _(folder: Path) -> Path:
    (folder / "a.jpg").symlink_to(folder / "gone.jpg")
    return folder / "a.jpg"


@entry(PICTURES, "greys that are not numbers")
def _(folder: Path) -> Path:
    import numpy as np

    Image.fromarray(np.full((32, 32), np.nan, dtype=np.float32)).save(folder / "a.tif")
    return folder / "a.tif"


@entry(PICTURES, "greys below zero")
def _(folder: Path) -> Path:
    import numpy as np

    Image.fromarray(np.full((32, 32), -4, dtype=np.float32)).save(folder / "a.tif")
    return folder / "a.tif"


def tensor_file(what: str, header: Any, data: bytes = b"", name: str = "a.safetensors") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    bytes_named(TENSORS, what, name, struct.pack("<Q", len(text)) + text + data)


def one(shape: list, start: Any, stop: Any, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


bytes_named(TENSORS, "an empty file", "a.safetensors", b"")
bytes_named(TENSORS, "five bytes", "a.safetensors", b"hello")
bytes_named(TENSORS, "a header longer than the file", "a.safetensors", struct.pack("<Q", 2**62) + b"{}")
bytes_named(TENSORS, "a pickle by its ending", "a.bin", b"\x80\x04K\x01.")
bytes_named(TENSORS, "a checkpoint by its ending", "a.ckpt", b"PK\x03\x04")
bytes_named(TENSORS, "a pickle with another ending", "a.weights", b"\x80\x04K\x01.")
bytes_named(TENSORS, "a web page", "a.safetensors", b"<!DOCTYPE html><html></html>")
tensor_file("a header that is no JSON", b"{nonsense}")
tensor_file("a header that is a list", b"[1, 2]")
tensor_file("a header that is no UTF-8", b'{"\xff\xfe": 1}')
tensor_file("a header nested without end", b'{"a":' * 100_000)
tensor_file("a name twice", b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
            b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}')  # fmt: skip
tensor_file("a name that leads out", {"../a": one([1], 0, 4)}, b"\0" * 4)
tensor_file("a name that is an absolute path", {"/etc/a": one([1], 0, 4)}, b"\0" * 4)
tensor_file("a name with a control character", {"a\n": one([1], 0, 4)}, b"\0" * 4)
tensor_file("tensors that overlap", {"a": one([2], 0, 8), "b": one([1], 4, 8)}, b"\0" * 8)
tensor_file("a gap between tensors", {"a": one([1], 0, 4), "b": one([1], 8, 12)}, b"\0" * 12)
tensor_file("data left over", {"a": one([1], 0, 4)}, b"\0" * 8)
tensor_file("a shape larger than its bytes", {"a": one([2**20, 2**20], 0, 16)}, b"\0" * 16)
tensor_file("a shape whose product overflows", {"a": one([2**40, 2**40], 0, 16)}, b"\0" * 16)
tensor_file("a side below zero", {"a": one([-1], 0, 4)}, b"\0" * 4)
tensor_file("offsets that run backwards", {"a": one([1], 4, 0)}, b"\0" * 4)
tensor_file("an offset that is text", {"a": one([1], "0", 4)}, b"\0" * 4)
tensor_file("an unknown number type", {"a": one([1], 0, 4, "Q7")}, b"\0" * 4)
tensor_file("more than a tensor needs", {"a": {**one([1], 0, 4), "code": "import os"}}, b"\0" * 4)
tensor_file("metadata that is no text", {"__metadata__": {"a": 1}, "a": one([1], 0, 4)}, b"\0" * 4)
