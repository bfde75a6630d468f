"""Line charts as SVG, on logarithmic axes, small enough to read in the source.

svg = line_chart("Time of a step", "table rows", "ms", {"Crossfade": [(1e6, 17.5), (4e6, 18.1)]})
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 240, 56, 50
COLORS = ("#2459a8", "#c2541b", "#3a7d44", "#7a4fa3", "#8a6d1f", "#5a6672")
MAX_TICKS = 7
_STEPS = (1, 2, 5)


def short_number(value: float) -> str:
    """Write a number in at most five characters: 1.5, 400, 64 k, 16 M."""
    for scale, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


class _Axis:
    """Maps values to positions on a logarithmic scale that ends at round numbers."""

    def __init__(self, values: Sequence[float], start: float, end: float, ticks: Sequence[float] | None = None) -> None:
        self.ticks = list(ticks or self._round_ticks(min(values), max(values)))
        self._low, self._high = math.log(min(*self.ticks, *values)), math.log(max(*self.ticks, *values))
        self._start, self._end = start, end

    @staticmethod
    def _round_ticks(low: float, high: float) -> list[float]:
        exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        every = [step * 10.0**exponent for exponent in exponents for step in _STEPS]
        first = max(index for index, tick in enumerate(every) if tick <= low)
        last = min(index for index, tick in enumerate(every) if tick >= high)
        return every[first : last + 1]

    def position(self, value: float) -> float:
        """Return where ``value`` is."""
        share = (math.log(value) - self._low) / ((self._high - self._low) or 1.0)
        return self._start + share * (self._end - self._start)


def line_chart(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """Draw one line per series; those without points are left out."""
    series = {name: points for name, points in series.items() if points}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    if series:
        x_values = sorted({x for points in series.values() for x, _ in points})
        x_axis = _Axis(x_values, LEFT + 15, WIDTH - RIGHT, x_values if len(x_values) <= MAX_TICKS else None)
        y_axis = _Axis([y for points in series.values() for _, y in points], HEIGHT - BOTTOM, TOP)
        lines += _grid(x_axis, y_axis, x_label, y_label)
        for (_, points), color in zip(series.items(), COLORS, strict=False):
            lines += _line([(x_axis.position(x), y_axis.position(y)) for x, y in sorted(points)], color)
        lines += _legend(series, y_axis)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT + 10
    lines = []
    for tick in y_axis.ticks:
        y = y_axis.position(tick)
        lines.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short_number(tick)}</text>')
    for tick in x_axis.ticks:
        x = x_axis.position(tick)
        lines.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{short_number(tick)}</text>')
    middle = (LEFT + right) / 2
    lines.append(f'<text x="{middle:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>')
    lines.append(f'<text x="12" y="{TOP - 13}">{escape(y_label)}</text>')
    return lines


def _line(places: Points, color: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in places]
    return [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>', *dots]


def _legend(series: Mapping[str, Points], y_axis: _Axis) -> list[str]:
    """Write each name at the height of the line's end, moved down where names would overlap."""
    ends = sorted((y_axis.position(max(points)[1]), index, name) for index, (name, points) in enumerate(series.items()))
    lines, previous = [], -math.inf
    for y, index, name in ends:
        previous = max(y, previous + 18)
        color = COLORS[index % len(COLORS)]
        lines.append(f'<text x="{WIDTH - RIGHT + 18}" y="{previous + 4:.1f}" fill="{color}">{escape(name)}</text>')
    return lines
