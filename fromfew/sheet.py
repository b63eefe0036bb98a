"""Contact sheets: rows of pictures with their captions below, on one white page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

__all__ = ["contact_sheet", "grid"]

_GAP = 8
_LINE = 15
_FONT = 12
_MOST_LINES = 4
_MOST_PIXELS = 60_000_000


def _wrapped(draw: ImageDraw, text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` pixels; what does not fit into four of them ends in dots."""
    lines: list[str] = [""]
    for word in text.split():
        trial = f"{lines[-1]} {word}".strip()
        if draw.textlength(trial) <= width or not lines[-1]:
            lines[-1] = trial
        else:
            lines.append(word)
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1] + " …"]
    cut = [_cut(draw, line, width) for line in lines]
    return [line for line in cut if line]


def _cut(draw: ImageDraw, line: str, width: int) -> str:
    while line and draw.textlength(line) > width:
        line = line[:-2].rstrip("…") + "…" if len(line) > 2 else ""
    return line


def _fitted(image: Image, cell: int) -> Image:
    """The picture as large as fits into a square of ``cell`` pixels."""
    from PIL.Image import Resampling

    factor = cell / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Resampling.LANCZOS)


def grid(rows: Sequence[Sequence[tuple[Image, str]]], *, title: str = "", cell: int = 192) -> Image:
    """A page with one line of pictures per row, each with its caption below.

    Args:
        rows: (picture, caption) pairs; rows may differ in length.
        title: A line above all.
        cell: Side in pixels of the square that a picture is fitted into; smaller on huge pages. A row is as high as
            its highest picture.

    Raises:
        FromfewError: There is no picture.
    """
    from PIL import Image as Pil
    from PIL import ImageDraw, ImageFont

    rows = [row for row in rows if row]
    if not rows:
        raise FromfewError("There is no picture to put on a sheet.")
    columns = max(map(len, rows))
    while cell > 48 and columns * len(rows) * (cell + 40) ** 2 > _MOST_PIXELS:
        cell = cell * 3 // 4
    probe = ImageDraw.Draw(Pil.new("RGB", (8, 8)))
    probe.font = ImageFont.load_default(_FONT)
    texts = [[_wrapped(probe, caption, cell) for _, caption in row] for row in rows]
    shown = [[_fitted(image, cell) for image, _ in row] for row in rows]
    highest = [max(image.height for image in row) for row in shown]
    heights = [most + _LINE * max(map(len, row)) + 2 * _GAP for most, row in zip(highest, texts, strict=True)]
    width = columns * (cell + _GAP) + _GAP
    heading = _wrapped(probe, title, width - 2 * _GAP)
    top = _GAP + _LINE * len(heading) + (_GAP if heading else 0)
    page = Pil.new("RGB", (width, top + sum(heights)), "white")
    draw = ImageDraw.Draw(page)
    draw.font = probe.font
    for number, line in enumerate(heading):
        draw.text((_GAP, _GAP + _LINE * number), line, fill="black")
    for row, lines, most, height in zip(shown, texts, highest, heights, strict=True):
        for column, (fitted, caption) in enumerate(zip(row, lines, strict=True)):
            left = _GAP + column * (cell + _GAP)
            page.paste(fitted, (left + (cell - fitted.width) // 2, top + (most - fitted.height) // 2))
            for number, line in enumerate(caption):
                draw.text((left, top + most + 4 + _LINE * number), line, fill=(60, 60, 60))
        top += height
    return page


def contact_sheet(
    images: Sequence[Image],
    captions: Sequence[str],
    *,
    columns: int | None = None,
    title: str = "",
    cell: int = 192,
) -> Image:
    """A page of pictures in reading order, about as wide as high.

    Raises:
        FromfewError: There is no picture, or not one caption per picture.
    """
    if len(images) != len(captions):
        raise FromfewError(f"{len(images)} pictures need as many captions, not {len(captions)}.")
    columns = columns or max(1, round(len(images) ** 0.5 + 0.49))
    pairs = list(zip(images, captions, strict=True))
    return grid([pairs[at : at + columns] for at in range(0, len(pairs), columns)], title=title, cell=cell)
