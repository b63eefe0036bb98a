"""What a picture says about how it was made: our own JSON chunk, and the "parameters" other tools read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.errors import FromfewError
from fromfew.io.files import read_regular, write_atomic
from fromfew.io.pictures import MAX_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CHUNK", "free_path", "parameters_text", "png_bytes", "read_recipe", "write_png"]

CHUNK = "fromfew"
SCHEMA = 1
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SHAPE: dict[str, type | tuple[type, ...]] = {
    "prompts": list, "index": int, "seed": int, "steps": int, "guidance": (int, float), "negative": str,
    "sampler": (str, type(None)), "size": (list, type(None)), "batch": int, "base": str,
    "base_fingerprint": str, "concepts": list, "versions": dict,
}  # fmt: skip


def parameters_text(recipe: Mapping[str, Any]) -> str:
    """The recipe in the form that A1111 and its kin write and read."""
    lines = [str(recipe["prompts"][recipe["index"]])]
    if recipe.get("negative"):
        lines.append(f"Negative prompt: {recipe['negative']}")
    width, height = (recipe.get("pixels") or [0, 0])[::-1]
    pairs = {
        "Steps": recipe["steps"],
        "Sampler": recipe.get("sampler"),
        "CFG scale": recipe["guidance"],
        "Seed": recipe["seed"],
        "Size": f"{width}x{height}" if width else None,
        "Model hash": str(recipe.get("base_fingerprint", ""))[:10],
        "Model": recipe.get("base"),
        "Concepts": " ".join(f"{c['name']}:{c['strength']:g}" for c in recipe.get("concepts", [])),
        "Version": f"fromfew {recipe.get('versions', {}).get('fromfew', '')}",
    }
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value not in (None, "")))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text) if any(sign in text for sign in ',:\n"') else text


def png_bytes(image: Image, texts: Mapping[str, str]) -> bytes:
    """A picture as PNG with text chunks; equal pictures and texts give equal bytes."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        if text.isascii():
            info.add_text(key, text)
        else:
            info.add_itxt(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()


def write_png(path: Path | str, image: Image, recipe: Mapping[str, Any] | None = None) -> None:
    """Write a picture in one step, with its recipe (if any) in the chunks "fromfew" and "parameters".

    Raises:
        FromfewError: The disk is full or the folder cannot be written.
    """
    texts = {}
    if recipe is not None:
        full = {"schema": SCHEMA, **recipe}
        texts = {
            CHUNK: json.dumps(full, sort_keys=True, ensure_ascii=False),
            "parameters": parameters_text(recipe),
        }
    write_atomic(path, png_bytes(image, texts))


def free_path(folder: Path, stem: str, ending: str = ".png") -> Path:
    """``folder/stem-0001.png``, or the next number that is free."""
    taken = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    number = 1
    while f"{stem}-{number:04}{ending}" in taken:
        number += 1
    return folder / f"{stem}-{number:04}{ending}"


def _texts(data: bytes, path: Path) -> dict[str, str]:
    """The tEXt and iTXt chunks of a PNG, none of them compressed; pixels are not decoded."""
    found: dict[str, str] = {}
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if len(body) < length:
            raise FromfewError(f"'{path}' is cut short.")
        key, _, rest = body.partition(b"\0")
        if kind == b"tEXt":
            found[key.decode("latin-1")] = rest.decode("latin-1")
        elif kind == b"iTXt" and rest[:1] == b"\0":
            found[key.decode("latin-1")] = rest[2:].split(b"\0", 2)[-1].decode("utf-8", "replace")
        at += 12 + length
    return found


def _is_concept(item: object) -> bool:
    if not isinstance(item, dict):
        return False
    texts = all(isinstance(item.get(key), str) for key in ("name", "path", "sha256"))
    strength = item.get("strength")
    return texts and isinstance(strength, int | float) and not isinstance(strength, bool)


def _check(recipe: Any) -> None:
    """ValueError says what is wrong with a recipe."""
    if not isinstance(recipe, dict):
        raise ValueError("it is no table")
    if recipe.get("schema") != SCHEMA:
        raise ValueError(f"its form is {str(recipe.get('schema'))[:20]}, and this fromfew reads {SCHEMA}")
    for key, kind in _SHAPE.items():
        if key not in recipe or not isinstance(recipe[key], kind) or isinstance(recipe[key], bool):
            raise ValueError(f"'{key}' is missing or of the wrong kind")
    if not all(isinstance(prompt, str) for prompt in recipe["prompts"]):
        raise ValueError("a prompt is no text")
    if not 0 <= recipe["index"] < len(recipe["prompts"]) <= 10_000:
        raise ValueError("its picture number is not among its prompts")
    if not all(map(_is_concept, recipe["concepts"])):
        raise ValueError("a concept is not described by name, path, sha256 and strength")


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The recipe that `write_png` put into a picture, checked.

    Raises:
        FromfewError: It is no PNG, carries no recipe of ours, or a damaged one.
    """
    path = Path(path)
    data = read_regular(path, MAX_BYTES)
    if not data.startswith(_SIGNATURE):
        raise FromfewError(f"'{path}' is no PNG; only PNG pictures made by fromfew carry their recipe.")
    texts = _texts(data, path)
    if CHUNK not in texts:
        also = " (it has A1111 parameters, which do not suffice)" if "parameters" in texts else ""
        raise FromfewError(f"'{path}' carries no recipe of fromfew{also}.")
    try:
        recipe = json.loads(texts[CHUNK])
        _check(recipe)
    except (ValueError, RecursionError) as error:
        reason = "it is not JSON" if isinstance(error, json.JSONDecodeError | RecursionError) else str(error)
        raise FromfewError(f"'{path}' carries a damaged recipe: {reason}.") from error
    return recipe
