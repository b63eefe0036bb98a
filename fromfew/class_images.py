"""Pictures of a plain noun, drawn once by the untouched base and kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fromfew.templates import class_prompt, sentences, with_article

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["cache_folder", "class_images"]


def cache_folder() -> Path:
    """Where what can be made again is kept: ``FROMFEW_CACHE``, else ``~/.cache/fromfew``."""
    home = os.environ.get("FROMFEW_CACHE")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fromfew"


def class_images(
    bb: Backbone, noun: str, count: int, *, seed: int, folder: Path | None = None, steps: int | None = None,
    guidance: float = 5.0, templates: str | Sequence[str] = ("a {}",),
    watch: Callable[[int, int, str], None] | None = None,
) -> list[Image.Image]:  # fmt: skip
    """Pictures of the plain noun, drawn once by the untouched base and kept as PNG files.

    Args:
        bb: The base; nothing may be attached.
        noun: What to draw.
        count: How many pictures.
        seed: Their seed.
        folder: Where to keep them; default: the user's cache (``FROMFEW_CACHE``, else ``~/.cache/fromfew``).
        steps: Sampling steps; default: as many as the base usually takes, but no more than 25.
        guidance: Scale of classifier-free guidance.
        templates: As for `photo_batches`.
        watch: Called with (done, count, what).
    """
    from fromfew.io.files import write_atomic
    from fromfew.io.metadata import png_bytes
    from fromfew.io.pictures import read_picture
    from fromfew.make import make

    lines, steps = sentences(templates), steps or min(bb.defaults.steps, 25)
    what = hashlib.sha256(repr((bb.fingerprint(), noun, seed, steps, guidance, lines)).encode()).hexdigest()
    home = (folder or cache_folder() / "class") / f"{noun.replace(' ', '-')}-{what[:16]}"
    # Eight at a time, each eight with a seed of its own: an interrupted run keeps what it drew, bit for bit.
    for start in range(0, count, 8):
        paths = [home / f"{index:04}.png" for index in range(start, start + 8)]
        if not all(path.exists() for path in paths[: count - start]):
            prompts = [class_prompt(lines[i % len(lines)], noun) for i in range(start, start + 8)]
            drawn: Any = make(bb, prompts, guidance=guidance, steps=steps, seed=seed * 100_003 + start)
            for path, image in zip(paths, drawn, strict=True):
                write_atomic(path, png_bytes(image, {}))
        if watch:
            watch(min(start + 8, count), count, f"pictures of {with_article(noun)}")
    return [read_picture(home / f"{index:04}.png").image for index in range(count)]
