"""Line charts as inline SVG. They are sharp at any size, and the page sets their colours, also in dark mode."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 280
MARKED = 10  # a curve of at most this many points has a marker at each
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 14, 34  # margins for the tick labels


@dataclass(frozen=True)
class Line:
    """One curve. `style` 0, 1, 2, ... selects colour and dashes from the page's style sheet.

    `thin` curves are drawn behind the thick one of the same name: single seeds behind their mean.
    """

    name: str
    points: list[tuple[float, float]]
    style: int = 0
    thin: bool = False


@dataclass(frozen=True)
class Chart:
    """A drawn chart: its SVG, and the title and legend that the page puts around it."""

    title: str
    svg: Markup
    legend: list[tuple[str, int]]  # (name, style), one entry per name


def points(log: Iterable[dict[str, Any]], key: str, *, scale: float = 1.0) -> list[tuple[float, float]]:
    """Return (iteration, value x scale) of the log lines in which `key` has a finite value."""
    found = []
    for line in log:
        value, iteration = line.get(key), line.get("iteration")
        if isinstance(value, int | float) and math.isfinite(value) and iteration is not None:
            found.append((float(iteration), value * scale))
    return found


def chart(title: str, lines: list[Line], *, unit: str = "", from_zero: bool = False) -> Chart | None:
    """Draw curves over iterations; None if there is no point to draw.

    Args:
        unit: printed after the numbers of the vertical axis, such as `%`.
        from_zero: start the vertical axis at 0.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = (min(0.0, min(ys)) if from_zero else min(ys)), max(ys)
    y_ticks = ticks(low, high)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    x_ticks = [tick for tick in ticks(min(0.0, min(xs)), max(xs)) if tick <= max(xs)]
    x_span, y_span = max(max(xs), 1.0), (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + x / x_span * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - (y - low) / y_span * (HEIGHT - TOP - BOTTOM), 1)

    parts = [_y_tick(place(0, tick)[1], f"{number(tick)}{unit}") for tick in y_ticks]
    parts += [_x_tick(place(tick, low)[0], number(tick)) for tick in x_ticks]
    for line in lines:
        parts += _curve([place(x, y) for x, y in line.points], line)
    label = f"{title} over iterations. " + " ".join(
        f"{line.name}: from {number(line.points[0][1])}{unit} to {number(line.points[-1][1])}{unit}."
        for line in lines
        if not line.thin
    )
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )
    return Chart(title, svg, list(dict.fromkeys((line.name, line.style) for line in lines)))


def ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers that enclose `low` and `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Format with at most four significant digits, and large numbers in thousands: 0.25, 12.5, 1500, 12k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}".replace("-", "−")


def _y_tick(y: float, label: str) -> Markup:
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="end">{}</text>'
    ).format(LEFT, WIDTH - RIGHT, y, y, LEFT - 7, round(y + 5, 1), escape(label))


def _x_tick(x: float, label: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
        x, HEIGHT - BOTTOM + 22, escape(label)
    )


def _curve(places: list[tuple[float, float]], line: Line) -> list[Markup]:
    """Return the line through the points, and a marker at each of them if there are few."""
    style = f"s{line.style} thin" if line.thin else f"s{line.style}"
    parts = []
    if len(places) > 1:
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(style, path))
    if len(places) == 1 or (len(places) <= MARKED and not line.thin):
        parts += [Markup('<circle class="{}" cx="{}" cy="{}" r="4"/>').format(style, x, y) for x, y in places]
    return parts
