"""Two pictures for the report, as inline SVG: no script, no font, no network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import ClassVar

from fromfew.bench.tables import CONTROL_NAMES, front

__all__ = ["scatter"]

_CROWD = 16
"""Above so many points a chart is drawn large, so that names find room near them."""
_LETTER, _LINE = 6.3, 13
"""About the width and height of a letter of a name."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Frame:
    """Size of a chart and what its axes span; the room to the right of them is for names."""

    width: int
    height: int
    xs: tuple[float, float]
    ys: tuple[float, float]
    left: ClassVar[int] = 58
    top: ClassVar[int] = 14

    @property
    def right(self) -> int:
        return self.width - 140

    @property
    def bottom(self) -> int:
        return self.height - 50

    def x(self, value: float) -> float:
        """Where a value lies across."""
        return self.left + (value - self.xs[0]) / (self.xs[1] - self.xs[0]) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Where a value lies from the top."""
        return self.bottom - (value - self.ys[0]) / (self.ys[1] - self.ys[0]) * (self.bottom - self.top)


def scatter(
    points: Mapping[str, tuple[float, float]], labels: tuple[str, str], *, log: bool = False, pareto: bool = False
) -> str:
    """Named points with axes; the Pareto front, if asked for, as a line.

    Args:
        points: name to (x, y).
        labels: of the axes.
        log: whether x is drawn by its logarithm (values must be > 0).
        pareto: draw the front of the points that are no controls, more being better on both axes.
    """
    if not points:
        return ""
    place = {name: (math.log10(max(x, 1e-3)) if log else x, y) for name, (x, y) in points.items()}
    width, height, kinds = (1060, 640, "chart large") if len(points) > _CROWD else (640, 400, "chart")
    frame = _Frame(width, height, _span([x for x, _ in place.values()]), _span([y for _, y in place.values()]))
    spots = {name: (frame.x(x), frame.y(y)) for name, (x, y) in place.items()}
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="{kinds}">', *_axes(frame, labels, log)]
    if pareto:
        others = {name: point for name, point in points.items() if name not in CONTROL_NAMES}
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (spots[name] for name in front(others)))
        parts.append(f'<polyline points="{line}" class="front"/>')
    names = _names(frame, spots)
    for name, (x, y) in sorted(spots.items()):
        kind = "control" if name in CONTROL_NAMES else "method"
        told = f"{name}: {points[name][0]:.3g}, {points[name][1]:.3g}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{kind}"><title>{escape(told)}</title></circle>')
        parts += _name(name, (x, y), names[name])
    return "\n".join([*parts, "</svg>"])


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 0.1
    return low - room, high + room


def _names(frame: _Frame, spots: Mapping[str, tuple[float, float]]) -> dict[str, Box]:
    """Where each name goes: as near to its point as may be, over no other name and no point."""
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots.values()]
    found = {}
    for name, (x, y) in sorted(spots.items(), key=lambda item: item[1]):
        wide = len(name) * _LETTER
        boxes = [(x + dx, y + dy, x + dx + wide, y + dy + _LINE) for dx, dy in _tries(wide)]
        inside = [b for b in boxes if b[0] > frame.left and b[2] < frame.width and b[1] > 0 and b[3] < frame.bottom]
        free = [box for box in inside if not any(_meet(box, other) for other in taken)]
        found[name] = (free or inside or boxes)[0]
        taken.append(found[name])
    return found


def _tries(wide: float) -> Iterator[tuple[float, float]]:
    """Offsets of a name's upper left corner from its point, nearest first, the right side before the left."""
    for ring in range(14):
        for step in (0, -1, 1) if ring == 0 else (-ring, ring):
            for side in (8 + ring * 4, -8 - ring * 4 - wide, -wide / 2):
                if side != -wide / 2 or abs(step) > 0:
                    yield side, step * _LINE - _LINE / 2


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _name(name: str, spot: tuple[float, float], box: Box) -> list[str]:
    """A name in its place, with a thin line to its point if that is not beside it."""
    (x, y), (left, top, right, bottom) = spot, box
    end = (min(max(x, left), right), min(max(y, top), bottom))
    far = math.dist(end, spot) > 12
    line = f'<path d="M{x:.1f} {y:.1f}L{end[0]:.1f} {end[1]:.1f}" class="leader"/>' if far else ""
    return [*([line] if line else []), f'<text x="{left:.1f}" y="{bottom - 3:.1f}">{escape(name)}</text>']


def _ticks(low: float, high: float, log: bool) -> list[tuple[float, str]]:
    """Round values inside a span, with how they are written; of a logarithm, powers of ten and what lies between."""
    if log:
        marks = [(k + math.log10(m), f"{m * 10.0**k:g}") for k in range(-4, 9) for m in (1, 2, 5)]
        inside = [one for one in marks if low <= one[0] <= high]
        return inside if len(inside) <= 6 else [one for one in inside if one[1].strip("0.") == "1"]
    rough = (high - low) / 5
    ten = 10.0 ** math.floor(math.log10(rough))
    step = next(m * ten for m in (1, 2, 5, 10) if m * ten >= rough)
    return [(i * step, f"{i * step:.6g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axes(frame: _Frame, labels: tuple[str, str], log: bool) -> list[str]:
    parts = [f'<path d="M{frame.left} {frame.top}V{frame.bottom}H{frame.right}" class="axis"/>']
    for value, told in _ticks(*frame.xs, log):
        x = frame.x(value)
        parts.append(f'<path d="M{x:.1f} {frame.bottom}v4" class="axis"/>')
        parts.append(f'<text x="{x:.1f}" y="{frame.bottom + 17}" class="tick" text-anchor="middle">{told}</text>')
    for value, told in _ticks(*frame.ys, False):
        y = frame.y(value)
        parts.append(f'<path d="M{frame.left} {y:.1f}h-4" class="axis"/>')
        parts.append(f'<text x="{frame.left - 7}" y="{y + 4:.1f}" class="tick" text-anchor="end">{told}</text>')
    across, down = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
    parts.append(f'<text x="{across:.0f}" y="{frame.height - 10}" text-anchor="middle">{escape(labels[0])}</text>')
    turn = f'transform="rotate(-90 14 {down:.0f})"'
    parts.append(f'<text x="14" y="{down:.0f}" {turn} text-anchor="middle">{escape(labels[1])}</text>')
    return parts
