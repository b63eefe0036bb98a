"""Pictures of any size, mode and orientation come in as 8-bit RGB and a mask, or are refused by name."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.errors import FromfewError
from fromfew.io.files import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ENDINGS", "FOREIGN", "Picture", "read_mask", "read_picture"]

ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
    | {".ppm", ".pgm", ".mpo"}
)
"""Endings of pictures that are read."""
FOREIGN = frozenset(
    {".heic", ".heif", ".svg", ".psd", ".jxl", ".eps", ".ico", ".tga", ".exr", ".hdr", ".jp2", ".j2k"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"}
)
"""Endings of pictures that must be converted first; to pass over them would shrink a set silently."""
MAX_BYTES = 256 * 1024**2
MAX_PIXELS = 80_000_000
MIN_SIDE = 16
MAX_RATIO = 20
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "PPM")
_KNOWN = {
    b"pk\x03\x04": "a ZIP archive",
    b"%pdf": "a PDF",
    b"%!ps": "PostScript",
    b"8bps": "a Photoshop file; save it as PNG first",
    b"\x1f\x8b": "a gzip archive",
    b"rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x7felf": "a program",
    b"{": "JSON text",
    b"\x80\x04": "a pickle",
    b"\xff\x0a": "a JPEG XL picture; save it as PNG first",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as it is used.

    Attributes:
        image: 8-bit RGB, upright; what was transparent is white.
        mask: 8-bit greys 0 or 255 of the same size, from the picture's transparency, or None.
        sha256: Hash of the file's bytes, 64 hexadecimal digits.
        notes: What was done that its owner may want to know, e.g. "animated: the first frame is used".
    """

    image: Image
    mask: Image | None
    sha256: str
    notes: tuple[str, ...] = ()


def _what_it_is(data: bytes) -> str | None:
    """The kind of a file that is no picture we read, from its first bytes; None if it may be one."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML), probably saved in place of the picture"
    if b"<svg" in head or head.startswith(b"<?xml"):
        return "a drawing or XML text (SVG); save it as PNG first"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run 'git lfs pull' to get the picture itself"
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1") and b"avif" not in data[:64]:
            return "a HEIC photo; save it as JPEG or PNG first"
        if brand not in (b"avif", b"avis", b"mif1", b"msf1"):
            return "a video; save a frame of it as PNG first"
    return next((kind for start, kind in _KNOWN.items() if head.startswith(start)), None)


def _check_size(size: tuple[int, int]) -> None:
    """ValueError for sizes that cannot be meant."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"is {width} x {height} pixels; more than {MAX_PIXELS // 10**6} million are not read")
    if min(size) < MIN_SIDE:
        raise ValueError(f"is {width} x {height} pixels; each side needs at least {MIN_SIDE}")
    if max(size) > MAX_RATIO * min(size):
        raise ValueError(f"is {width} x {height} pixels; one side may be at most {MAX_RATIO} times the other")


def _open(data: bytes) -> Image:
    """Open, check the size, and decode the first frame; ValueError says why not."""
    from PIL import Image as Pil

    kind = _what_it_is(data)
    if kind:
        raise ValueError(f"is {kind}")
    Pil.init()  # open() knows only the formats whose plugins are loaded
    try:
        image = Pil.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Pil.OPEN])
    except Pil.UnidentifiedImageError as error:
        raise ValueError("is no picture that can be read (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, PPM)") from error
    except Pil.DecompressionBombError as error:
        raise ValueError(f"claims more than {MAX_PIXELS // 10**6} million pixels") from error
    _check_size(image.size)
    image.load()
    return image


def _upright(image: Image, notes: list[str]) -> Image:
    from PIL import ImageOps

    try:
        turned = ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block can fail anywhere in Pillow's parser; the pixels are still good
        notes.append("its EXIF block is damaged: orientation not applied")
        return image
    if turned is not None and turned.size != image.size:
        notes.append("turned upright as its orientation tag says")
    return turned if turned is not None else image


def _eight_bits(image: Image) -> Image:
    """Bring 16-bit, 32-bit and float greys to 8 bits; ValueError if their range cannot be told."""
    import numpy as np
    from PIL import Image as Pil

    values = np.array(image, dtype=np.float32)  # exact for 16 bits, and half the memory of doubles
    if not np.isfinite(values).all():
        raise ValueError("holds values that are not numbers (NaN or infinity)")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"holds values from {low:g} to {high:g}; save it with 8 or 16 bits a channel")
    if image.mode == "F" and high <= 1:
        values *= 255
    elif image.mode.startswith("I;16") or high > 255:
        values /= 257
    return Pil.fromarray(np.round(values, out=values).astype(np.uint8), mode="L")


def _to_srgb(image: Image, notes: list[str]) -> Image:
    """To RGB (or RGBA), through the picture's own colour profile where it has one."""
    profile = image.info.get("icc_profile")
    if image.mode in ("RGB", "CMYK", "LAB") and (profile or image.mode == "LAB"):
        try:
            from PIL import ImageCms

            source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
            made = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except Exception:  # damaged or exotic profiles fail in many ways; plain conversion is the next best
            notes.append("its colour profile is damaged: not applied")
        else:
            if made is not None:
                return made
    if image.mode == "LAB":
        raise ValueError("is in Lab colours without a usable profile; save it as RGB")
    return image.convert("RGB")


def _split_alpha(image: Image) -> tuple[Image, Image | None]:
    """The picture without its transparency, and the transparency as greys 0...255 or None."""
    if image.mode in ("P", "RGB", "L", "1") and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in ("PA", "La", "RGBa"):
        image = image.convert({"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode not in ("LA", "RGBA"):
        return image, None
    alpha = image.getchannel("A")
    plain = image.convert("RGB") if image.mode == "RGBA" else image.getchannel("L")
    plain.info.update({key: value for key, value in image.info.items() if key == "icc_profile"})
    return plain, (None if alpha.getextrema()[0] == 255 else alpha)


def _brightest(grey: Image) -> int:
    return int(grey.getextrema()[1])  # type: ignore[arg-type]


def _usable(image: Image, notes: list[str]) -> tuple[Image, Image | None]:
    """RGB and mask of a decoded picture; ValueError says why not."""
    from PIL import Image as Pil

    if getattr(image, "is_animated", False) and image.format not in ("MPO",):
        notes.append("animated: the first frame is used")
    image, alpha = _split_alpha(_upright(image, notes))
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    image = _to_srgb(image, notes)
    image.info = {}
    if alpha is None:
        return image, None
    if _brightest(alpha) < 128:
        raise ValueError("is wholly transparent")
    notes.append("its transparency is used as its mask")
    return Pil.composite(image, Pil.new("RGB", image.size, "white"), alpha), alpha.point(lambda a: 255 * (a >= 128))


def _damage(error: Exception) -> str:
    """What a decoder's exception says about the file."""
    text = str(error) or type(error).__name__
    if "truncated" in text or isinstance(error, EOFError):
        return "is cut short"
    return "is damaged" if "broken data stream" in text else f"is damaged ({text.splitlines()[0][:120]})"


def _decoded(path: Path) -> Picture:
    data = read_regular(path, MAX_BYTES)
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is checked, or refused, here
            image, mask = _usable(_open(data), notes)
    except ValueError as error:
        reason = str(error)
    except MemoryError:
        reason = "needs more memory than there is"
    except Exception as error:  # decoders meet damaged files with every kind of exception
        reason = _damage(error)
    else:
        return Picture(image, mask, hashlib.sha256(data).hexdigest(), tuple(notes))
    raise FromfewError(f"'{path}' {reason}.")


def read_picture(path: Path | str) -> Picture:
    """Read a photo: upright, 8-bit RGB in sRGB, transparency as a mask, first frame of an animation.

    Args:
        path: A regular file in JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or PPM form, whatever its ending says.

    Raises:
        FromfewError: It is missing, no regular file, empty, no such picture, damaged, under 16 px a side,
            over 80 million pixels, or wholly transparent.
    """
    return _decoded(Path(path))


def read_mask(path: Path | str, size: tuple[int, int]) -> Image:
    """Read a mask, white (or opaque) where the subject is, as greys 0 or 255 of ``size`` (width, height).

    Raises:
        FromfewError: As `read_picture`; or its shape is not that of the picture, or it marks nothing.
    """
    from PIL import Image as Pil

    path = Path(path)
    picture = _decoded(path)
    grey = picture.mask or picture.image.convert("L")
    # Label images write the subject as 1, which looks black but is meant.
    floor = 1 if _brightest(grey) == 1 else 128
    mask = grey.point(lambda a: 255 * (a >= floor))
    if _brightest(mask) == 0:
        raise FromfewError(f"'{path}' marks nothing: a mask is white where the subject is.")
    if mask.size != size:
        if abs(mask.width * size[1] - mask.height * size[0]) > 0.02 * mask.width * size[1]:
            raise FromfewError(
                f"'{path}' is {mask.width} x {mask.height} pixels and its picture {size[0]} x {size[1]}: "
                "they must have the same shape."
            )
        mask = mask.resize(size, Pil.Resampling.NEAREST)
    return mask
