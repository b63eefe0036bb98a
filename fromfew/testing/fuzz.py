"""Seeded fuzzers of everything that reads what others wrote: no fault but `FromfewError`, no hang, no flood of memory.

Every target takes a generator of chance and a folder, makes one bad (or good) input there and feeds it in. What is
allowed is a result or a `FromfewError` of a few lines; anything else is a finding.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import shutil
import signal
import struct
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fromfew.errors import FromfewError
from fromfew.testing.mutations import NUMBERS, WORDS, bent, twisted

__all__ = ["TARGETS", "Finding", "Report", "capped", "fuzz"]

MEMORY = 2 * 1024**3
"""Most bytes of address space that feeding may add."""
PATIENCE = 20.0
"""Seconds of processor time after which an input counts as a hang."""
_LONGEST_MESSAGE = 4000


class Hang(Exception):
    """An input took too long."""


@dataclass
class Finding:
    """An input that was met with something else than a result or a `FromfewError`."""

    target: str
    number: int
    what: str


@dataclass
class Report:
    """What a run of one target found."""

    target: str
    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    findings: list[Finding] = field(default_factory=list)


Target = Callable[[random.Random, Path], object]


@contextlib.contextmanager
def capped(extra: int = MEMORY) -> Iterator[None]:
    """Let this process's address space grow by so many bytes and no more."""
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(
    target: str, folder: Path, *, seconds: float | None = None, count: int | None = None, seed: int = 0,
    findings: int = 5,
) -> Report:  # fmt: skip
    """Feed one target until the time or the number of inputs is used up, or enough was found.

    Args:
        target: Key of `TARGETS`.
        folder: Where inputs are made; each is removed again.
        seconds: Time to spend.
        count: How many inputs.
        seed: Input ``n`` depends on the seed and on ``n`` only.
        findings: Stop after so many.
    """
    feed, report, end = TARGETS[target], Report(target), time.monotonic() + (seconds or 1e9)
    number = 0
    with _watchdog():
        while number != count and time.monotonic() < end and len(report.findings) < findings:
            home = folder / f"{target}-{number}"
            home.mkdir(parents=True)
            began = time.process_time()
            what = _fed(feed, random.Random(f"{seed} {target} {number}"), home)
            report.slowest = max(report.slowest, time.process_time() - began)
            report.inputs += 1
            report.refused += what == ""
            if what:
                report.findings.append(Finding(target, number, what))
            shutil.rmtree(home, ignore_errors=True)
            number += 1
    return report


@contextlib.contextmanager
def _watchdog() -> Iterator[None]:
    def late(*_: object) -> None:
        raise Hang(f"more than {PATIENCE:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, late)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _fed(feed: Target, rng: random.Random, home: Path) -> str | None:
    """None: it was taken; "": refused as it should be; else what went wrong."""
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        feed(rng, home)
    except FromfewError as error:
        text = str(error)
        return "" if 10 <= len(text) <= _LONGEST_MESSAGE else f"a message of {len(text)} letters: {text[:200]}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error))[-3000:]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return None


# Good inputs to begin from, made once.


@cache
def _tensor_file() -> bytes:
    import torch
    from safetensors.torch import save

    tensors = {"a.b": torch.ones(2, 3), "c": torch.zeros(4, dtype=torch.int64), "d": torch.ones(1, dtype=torch.bool)}
    return save(tensors, {"format": "pt", "x": "y"})


@cache
def _concepts() -> tuple[dict[str, bytes], ...]:
    """The files of a concept of every kind of part that is easily made."""
    import tempfile

    import torch

    from fromfew.concept import Card, Concept
    from fromfew.parts.full import FullDelta
    from fromfew.parts.low_rank import LowRank
    from fromfew.parts.word import Word
    from fromfew.ports.part import Parts
    from fromfew.testing.tiny import tiny

    bb, rng = tiny("sd15"), torch.Generator().manual_seed(0)
    word, maps = Word.learned(bb, "<v>", "cat", 1, rng), bb.select("text.key")
    found = []
    for parts in (Parts(word=word, maps=LowRank.of(maps, 2, 2.0, rng)), Parts(maps=FullDelta.of(bb, *maps))):
        card = Card("lora", {"rank": 2}, {"name": "tiny-sd15", "family": "unet", "fingerprint": "0" * 32}, ("0" * 64,))
        with tempfile.TemporaryDirectory() as home:
            folder = Concept("rex", "<v>", "cat", parts, card).save(Path(home) / "rex")
            found.append({item.name: item.read_bytes() for item in folder.iterdir()})
    return tuple(found)


@cache
def _pictures() -> tuple[tuple[str, bytes], ...]:
    """Small pictures in every form that Pillow writes here."""
    from PIL import Image

    greys = Image.linear_gradient("L").resize((40, 32))
    mirrored = greys.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    colour = Image.merge("RGB", (greys, greys.rotate(90).resize(greys.size), mirrored))
    found = []
    for ending, image, form, how in (
        ("png", colour, "PNG", {}), ("png", greys.convert("LA"), "PNG", {}), ("png", colour.quantize(8), "PNG", {}),
        ("jpg", colour, "JPEG", {"exif": _exif()}), ("jpg", colour.convert("CMYK"), "JPEG", {}),
        ("webp", colour, "WEBP", {}), ("gif", colour, "GIF", {"save_all": True, "append_images": [colour.rotate(9)]}),
        ("bmp", colour, "BMP", {}), ("tif", colour, "TIFF", {"compression": "tiff_lzw"}),
        ("tif", greys.convert("F"), "TIFF", {}), ("ppm", colour, "PPM", {}), ("avif", colour, "AVIF", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        try:
            image.save(buffer, form, **how)
        except (OSError, KeyError, ValueError):  # this Pillow was built without the form
            continue
        found.append((ending, buffer.getvalue()))
    return tuple(found)


def _exif() -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return bytes(exif.tobytes())


@cache
def _pickled() -> tuple[tuple[str, bytes], ...]:
    """Old words: as torch writes them now (a ZIP), and bare pickles of plain data."""
    import torch

    found = []
    for value in (
        {"<v>": torch.ones(768)},
        {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 768))}), "name": "x",
         "string_to_token": {"*": 265}, "step": 3},
    ):  # fmt: skip
        buffer = io.BytesIO()
        torch.save(value, buffer)
        found.append(("zip", buffer.getvalue()))
    plain = {"a": [1, 2.5, None, ("x", b"y")], "b": {"c": True}}
    found += [("bare", pickle.dumps(plain, protocol=version)) for version in range(5)]
    return tuple(found)


# Targets.


def header(rng: random.Random, home: Path) -> None:
    """A safetensors file: header twisted as JSON, or the whole bent as bytes."""
    from fromfew.io.tensors import read_header, read_tensors

    data = _tensor_file()
    if rng.random() < 0.6:
        length = int.from_bytes(data[:8], "little")
        told = twisted(json.loads(data[8 : 8 + length]), rng)
        text = json.dumps(told).encode("utf-8", "surrogatepass")
        size = len(text) if rng.random() < 0.8 else int(rng.choice(NUMBERS[:16])) & (2**64 - 1)
        data = struct.pack("<Q", size) + text + data[8 + length :]
    if rng.random() < 0.6:
        data = bent(data, rng)
    file = home / f"x.{rng.choice(('safetensors', 'safetensors', 'bin'))}"
    file.write_bytes(data)
    read_header(file)
    read_tensors(file)


def pickled(rng: random.Random, home: Path) -> None:
    """A pickle, bare or in a ZIP, that only the interpreter of descriptions may look at."""
    from fromfew.io.forms.pickled import read_pickled_word

    kind, data = rng.choice(_pickled())
    if kind == "zip" and rng.random() < 0.7:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            entries = {name: old.read(name) for name in old.namelist()}
        name = rng.choice([one for one in entries if one.endswith("data.pkl")] * 3 + list(entries))
        entries[name] = bent(entries[name], rng)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
            for one, held in entries.items():
                new.writestr(one, held)
        data = buffer.getvalue()
    if kind == "bare" or rng.random() < 0.3:
        data = bent(data, rng)
    file = home / rng.choice(("x.pt", "x.bin"))
    file.write_bytes(data)
    read_pickled_word(file)


def reader(rng: random.Random, home: Path) -> None:
    """Files of tensors, as safetensors or as old pickles."""
    (header if rng.random() < 0.5 else pickled)(rng, home)


def concept(rng: random.Random, home: Path) -> None:
    """A concept's folder, with one of its two files spoiled."""
    from fromfew.commands.concepts import peek
    from fromfew.concept import load

    files = dict(rng.choice(_concepts()))
    if rng.random() < 0.75:
        told = json.loads(files["concept.json"])
        for _ in range(rng.choice((1, 1, 2))):
            told = twisted(told, rng)
        if rng.random() < 0.5 and isinstance(told, dict) and isinstance(told.get("parts"), list) and told["parts"]:
            told["parts"] = twisted(told["parts"], rng)  # most of a concept's meaning is here
        files["concept.json"] = json.dumps(told).encode()
    else:
        name = rng.choice(list(files))
        files[name] = bent(files[name], rng)
    for name, data in files.items():
        (home / name).write_bytes(data)
    for read in (peek, load):
        with contextlib.suppress(FromfewError):
            read(home)
    load(home)


def pictures(rng: random.Random, home: Path) -> None:
    """A picture bent as bytes, read as a photo and as a mask."""
    from fromfew.io.pictures import read_mask, read_picture

    ending, data = rng.choice(_pictures())
    for _ in range(rng.choice((1, 1, 3))):
        data = bent(data, rng)
    file = home / f"x.{ending}"
    file.write_bytes(data)
    with contextlib.suppress(FromfewError):
        read_mask(file, (40, 32))
    read_picture(file)


@cache
def _readers() -> tuple[Any, Any]:
    import torch

    from fromfew.parts.word import Word
    from fromfew.testing.tiny import tiny

    bb, rng = tiny("sd3"), torch.Generator().manual_seed(0)
    words = [Word.learned(bb, "<v>", "cat", 2, rng), Word.plain("<w>", "red dog"), Word.plain("<n>", "")]
    return bb, words


def prompts(rng: random.Random, home: Path) -> None:
    """A prompt out of words, placeholders and rubbish: checked, spliced, and its places looked at."""
    from fromfew.commands.concepts import check_prompts
    from fromfew.ports.text import splice

    bb, words = _readers()
    bits = ["a", "cat", "<v>", "<w>", "<n>", "<V>", "<", ">", "<v", "v>", "<v><v>", "\n", "\u00a0", *WORDS]
    prompt = rng.choice((" ", "", " ")).join(rng.choice(bits) for _ in range(rng.choice((0, 1, 3, 8, 40))))
    if rng.random() < 0.3:
        prompt += "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD7FF)))) for _ in range(20))
    with contextlib.suppress(FromfewError):
        check_prompts([prompt], [])
    strength = rng.choice((0.0, 1.0))
    for encoder in bb.text_encoders.values():
        found = splice(encoder.tokenizer, [prompt], [(word, strength) for word in words], length=encoder.length)
        assert found.ids.shape == found.mask.shape == (1, encoder.length)
        count = prompt.count("<v>") * words[0].count if hasattr(words[0], "count") else None
        held = found.where[0].get("<v>", [])
        assert all(0 <= place < encoder.length for place in held)
        assert count is None or len(held) <= count


TARGETS: dict[str, Target] = {"reader": reader, "concept": concept, "pictures": pictures, "prompts": prompts}
"""What can be fed."""
