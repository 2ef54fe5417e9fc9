"""Line charts as HTML and SVG; a script makes them interactive, but they are readable without."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .html import COLORS, escape, page, visible_text

Point = tuple[float, float]
Axes = dict[str, list[float]]
"""Ascending values of `step`, and if known of `tokens` and `time` (seconds), at the same moments of
a run: at least two."""

# Maximum points of a curve: more than a screen has pixels would only make the file larger.
MAX_POINTS = 800
# Larger values are excluded from scales: sums of them could overflow.
_MAX_VALUE = 1e30


@dataclass(frozen=True)
class Series:
    """A curve of a chart."""

    name: str
    points: Sequence[Point]
    """x and y, x ascending; a y that is not finite leaves a gap."""
    color: int = 0
    """Index into the page's colours, from 0."""
    noisy: bool = False
    """With many points, draw them pale, behind their running median."""
    dots: bool = False
    """Mark each point with a dot, whose tooltip is the value."""
    run: int = 0
    """Index of the run on the page, from 0."""


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic mapping from [`low`, `high`] to [0, 1]."""

    low: float
    high: float
    log: bool = False

    def transform(self, value: float) -> float:
        """Map a value; the result is outside [0, 1] if the value is beyond the ends."""
        if self.log:
            if value <= 0:
                return -1.0
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 6) -> list[float]:
        """Return round values between the ends, at most about `count`."""
        if self.log and self.high / self.low > 20:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                ticks = self._inside(d * 10.0**power for power in powers for d in digits)
                if len(ticks) <= count + 2:
                    return ticks
            return ticks[:: math.ceil(len(ticks) / count)]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(digit for digit in (1, 2, 5, 10) if digit * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return self._inside(step * number for number in range(first, last + 1))

    def _inside(self, values: Iterable[float]) -> list[float]:
        return [value for value in values if -1e-9 <= self.transform(value) <= 1 + 1e-9]


def fit_scale(values: Iterable[float], *, log: bool = False, from_zero: bool = False) -> Scale:
    """Fit a scale to values, robust against outliers.

    Values among the lowest and highest 5 % that are more than three interquartile ranges from the
    quartiles ("far out" in Tukey, 1977) do not extend it, so that neither the first steps nor a
    loss spike flatten a curve.

    Args:
        values: huge and non-finite values are ignored.
        log: use a logarithmic scale if all values are positive.
        from_zero: start a linear scale at 0.
    """
    finite = sorted(value for value in values if abs(value) < _MAX_VALUE)
    log = log and bool(finite) and finite[0] > 1 / _MAX_VALUE
    finite = [math.log(value) for value in finite] if log else finite
    if not finite:
        return Scale(0.0, 1.0)
    count = len(finite)
    lower, upper = finite[count // 4], finite[3 * count // 4]
    whisker = 3 * (upper - lower)
    low = max(finite[0], min(lower - whisker, finite[count // 20]))
    high = min(finite[-1], max(upper + whisker, finite[-1 - count // 20]))
    if from_zero and not log:
        low = min(low, 0.0)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 0.5
    if log:
        return Scale(math.exp(low - margin), math.exp(high + margin), log=True)
    return Scale(low if low == 0 else low - margin, high + margin)


def downsample(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Downsample a curve to about `limit` points, so that it looks the same.

    Each bin keeps its minimum and maximum; a bin without finite values stays a gap.
    """
    if len(points) <= limit:
        return list(points)
    width = math.ceil(2 * len(points) / limit)
    downsampled: list[Point] = []
    for start in range(0, len(points), width):
        chunk = points[start : start + width]
        finite = [point for point in chunk if math.isfinite(point[1])] or chunk[:1]
        ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
        downsampled += sorted(ends)
    return downsampled


def running_median(points: Sequence[Point], window_fraction: float = 0.03) -> list[Point]:
    """Return the running median of the finite points.

    Args:
        points: the curve.
        window_fraction: width of the centered window, as a fraction of the finite points.
    """
    finite = [point for point in points if math.isfinite(point[1])]
    half = max(1, round(window_fraction * len(finite) / 2))
    medians = []
    window: list[float] = []  # always sorted
    for index in range(-half, len(finite)):
        if index + half < len(finite):
            bisect.insort(window, finite[index + half][1])
        if index > half:
            window.pop(bisect.bisect_left(window, finite[index - half - 1][1]))
        if index >= 0:
            medians.append((finite[index][0], window[len(window) // 2]))
    return medians


@dataclass(frozen=True)
class _Line:
    """A line of a chart: a curve, or its running median."""

    name: str
    color: int
    run: int
    kind: str
    """`plain`, `dots`, `faint` (noisy values) or `median` (of noisy values)."""
    points: Sequence[Point]


def _lines(series: Sequence[Series]) -> list[_Line]:
    """Return the lines to draw for each curve that has points."""
    lines = []
    for each in series:
        points = sorted((x, y) for x, y in each.points if math.isfinite(x))
        name, color = visible_text(each.name), each.color % COLORS
        if each.noisy and len(points) >= 40:
            lines += [
                _Line(name, color, each.run, "faint", points),
                _Line(f"{name}, running median", color, each.run, "median", running_median(points)),
            ]
        elif points:
            lines.append(_Line(name, color, each.run, "dots" if each.dots else "plain", points))
    return lines


def chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    x_name: str = "step",
    log: bool = False,
    from_zero: bool = False,
    resumed: Sequence[float] = (),
) -> str:
    """Return a figure with axes and legend as HTML, or with a note if there is no data.

    Args:
        title: plain text.
        unit: unit of y.
        series: the curves.
        x_name: name of the x-axis: `step` or `tokens`.
        log: use a logarithmic y-axis if all values are positive.
        from_zero: start the y-axis at 0.
        resumed: x values at which the run was resumed, marked by vertical lines.
    """
    head = f"<h3>{escape(title)} <small>{escape(unit)}</small></h3>"
    lines = _lines(series)
    finite = [
        (x, y)
        for line in lines
        if line.kind != "median"
        for x, y in line.points
        if math.isfinite(y)
    ]
    if not finite:
        return f'<figure class="chart">{head}<p class="none">nothing was logged</p></figure>'
    first, last = min(x for x, _ in finite), max(x for x, _ in finite)
    first = first if first > last / 2 else 0
    x_scale = Scale(first, last) if last > first else Scale(first - 0.5, first + 0.5)
    y_scale = fit_scale((y for _, y in finite), log=log, from_zero=from_zero)
    num_outliers = sum(not 0 <= y_scale.transform(y) <= 1 for _, y in finite)
    marks = [mark for mark in resumed if 0 <= x_scale.transform(mark) <= 1]
    data = {"axis": x_name, "log": log, "zero": from_zero, "resumed": marks}
    data["curves"] = [_data(line, len(lines)) for line in lines]
    return (
        f'<figure class="chart" data-chart="{escape(json.dumps(data, allow_nan=False))}">{head}'
        f'<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)} by {escape(x_name)}">{_grid(x_scale, y_scale, marks)}'
        f"{''.join(_draw(line, x_scale, y_scale) for line in lines)}</svg>"
        f'{_labels(x_scale, y_scale)}</div><p class="x-name">{escape(x_name)}</p>'
        f'<figcaption class="legend">{_legend(lines, bool(marks), num_outliers, y_scale.log)}'
        "</figcaption></figure>"
    )


# Maximum points of a chart, over all its lines, that are embedded for the script.
_MAX_EMBEDDED_POINTS = 4_000


def _data(line: _Line, lines: int) -> dict[str, Any]:
    """Return a line as JSON data for the script; a non-finite value becomes `null`."""
    points = downsample(line.points, max(100, min(2 * MAX_POINTS, _MAX_EMBEDDED_POINTS // lines)))
    values = [float(f"{y:.5g}") if math.isfinite(y) else None for _, y in points]
    fields = {"name": line.name, "color": line.color, "run": line.run, "kind": line.kind}
    return {**fields, "x": [x for x, _ in points], "y": values}


def _grid(x_scale: Scale, y_scale: Scale, marks: Sequence[float]) -> str:
    heights = [1000 * (1 - y_scale.transform(value)) for value in y_scale.ticks()]
    return "".join(
        [f'<path class="grid" d="M0 {y:.1f}H1000"/>' for y in heights]
        + [f'<path class="mark" d="M{1000 * x_scale.transform(x):.1f} 0V1000"/>' for x in marks]
    )


def _labels(x_scale: Scale, y_scale: Scale) -> str:
    rows = [(100 * y_scale.transform(value), short_number(value)) for value in y_scale.ticks()]
    columns = [
        (100 * x_scale.transform(value), f"{value:,.0f}")
        for value in x_scale.ticks(5)
        if abs(value - round(value)) < 1e-9
    ]
    return "".join(
        [f'<span class="y" style="bottom:{y:.2f}%">{label}</span>' for y, label in rows]
        + [f'<span class="x" style="left:{x:.2f}%">{label}</span>' for x, label in columns]
    )


def _legend(lines: Sequence[_Line], is_resumed: bool, num_outliers: int, log: bool) -> str:
    """Return the legend as HTML; the script updates the elements of class `note`."""
    keys = [
        f'<span><i class="c{line.color}{" faint" * (line.kind == "faint")}"></i>'
        f"{escape(line.name)}</span>"
        for line in lines
    ]
    if is_resumed:
        keys.append('<span><i class="mark"></i>resumed</span>')
    if num_outliers:
        keys.append(f'<span class="note">{outliers_note(num_outliers)}</span>')
    if log:
        keys.append('<span class="note">logarithmic</span>')
    return "".join(keys)


def outliers_note(count: int) -> str:
    """Format a number of outliers: 1 as `1 far-out point is not shown`."""
    return f"{count:,} far-out point{' is' if count == 1 else 's are'} not shown"


def _draw(line: _Line, x_scale: Scale, y_scale: Scale) -> str:
    """Return a line as SVG paths, in a box of 1000 x 1000 whose y-axis points down."""
    path, dots, command, color = "", "", "M", f"c{line.color}"
    for x, y in downsample(line.points):
        if not math.isfinite(y):
            command = "M"
            continue
        # The plot clips values outside anyway, and some browsers fail at huge coordinates.
        height = max(-1.0, min(2.0, y_scale.transform(y)))
        point = f"{1000 * x_scale.transform(x):.1f} {1000 * (1 - height):.1f}"
        path += command + point
        command = "L"
        if line.kind == "dots":
            # A zero-length line with round caps is a round dot at any aspect ratio.
            dots += (
                f'<path class="dot {color}" d="M{point}h0"><title>{escape(line.name)}: {y:.4g} at '
                f"{x:,.0f}</title></path>"
            )
    faint = " faint" * (line.kind == "faint")
    return f'<path class="line {color}{faint}" d="{path}"/>{dots}'


def charts_page(title: str, body: str) -> str:
    """Return an HTML page with interactive charts: values on hover or by keyboard, zoom.

    Args:
        title: plain text.
        body: HTML, with charts in `chart_group`.
    """
    return page(title, body, _SCRIPT.read_text(encoding="utf-8"))


_SCRIPT = Path(__file__).with_name("charts.js")


def chart_group(figures: Iterable[str], axes: Sequence[Axes], x_name: str = "step") -> str:
    """Return charts that share their x-axis, as HTML.

    Args:
        figures: results of `chart`.
        axes: axes of each run.
        x_name: name of the x-axis.
    """
    data = escape(json.dumps(axes, allow_nan=False))
    return (
        f'<div class="charts" data-axis="{escape(x_name)}" data-axes="{data}">'
        f"{''.join(figures)}</div>"
    )


def short_number(value: float) -> str:
    """Format a number for an axis: 1,200,000 as `1.2M`, 0.00025 as `2.5e-4`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    if value and abs(value) < 1e-3:
        digits, exponent = f"{value:.3e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"
