"""Two pictures for the report, as inline SVG: no script, no font, no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from fromfew.bench.tables import CONTROL_NAMES, front

__all__ = ["scatter"]

_WIDTH, _HEIGHT, _PAD = 640, 420, 52


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
    xs, ys = _span([x for x, _ in place.values()]), _span([y for _, y in place.values()])

    def at(name: str) -> tuple[float, float]:
        x, y = place[name]
        left = _PAD + (x - xs[0]) / (xs[1] - xs[0]) * (_WIDTH - _PAD - 120)
        return left, _HEIGHT - _PAD - (y - ys[0]) / (ys[1] - ys[0]) * (_HEIGHT - 2 * _PAD)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="chart">', *_axes(xs, ys, labels, log)]
    if pareto:
        others = {name: point for name, point in points.items() if name not in CONTROL_NAMES}
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(name) for name in front(others)))
        parts.append(f'<polyline points="{line}" class="front"/>')
    for name in sorted(points):
        x, y = at(name)
        kind = "control" if name in CONTROL_NAMES else "method"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{kind}"/>')
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 0.1
    return low - room, high + room


def _axes(xs: tuple[float, float], ys: tuple[float, float], labels: tuple[str, str], log: bool) -> list[str]:
    right, bottom = _WIDTH - 120, _HEIGHT - _PAD
    parts = [f'<path d="M{_PAD} {_PAD}V{bottom}H{right}" class="axis"/>']
    for i in range(5):
        share = i / 4
        x, y = _PAD + share * (right - _PAD), bottom - share * (bottom - _PAD)
        value = xs[0] + share * (xs[1] - xs[0])
        told = f"{10**value:.3g}" if log else f"{value:.3g}"
        parts.append(f'<text x="{x:.0f}" y="{bottom + 18}" class="tick" text-anchor="middle">{told}</text>')
        level = f"{ys[0] + share * (ys[1] - ys[0]):.3g}"
        parts.append(f'<text x="{_PAD - 6}" y="{y + 4:.0f}" class="tick" text-anchor="end">{level}</text>')
    middle = (right + _PAD) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(labels[0])}</text>')
    turn = f"rotate(-90 14 {(bottom + _PAD) / 2:.0f})"
    parts.append(
        f'<text x="14" y="{(bottom + _PAD) / 2:.0f}" transform="{turn}" text-anchor="middle">{escape(labels[1])}</text>'
    )
    return parts
