"""Pages and line charts in HTML and SVG: one file each, without a script, that opens offline."""

from __future__ import annotations

import bisect
import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

# More points than a screen has pixels would only make a file larger.
MAX_POINTS = 800
# Beyond it, a number is no measurement, and sums of such numbers overflow.
_HUGE = 1e30


@dataclass(frozen=True)
class Series:
    """A curve."""

    name: str
    points: Sequence[Point]
    """x and y, x ascending; a y that is not finite leaves a gap."""
    color: int = 0
    """Which of the page's colours, from 0."""
    noisy: bool = False
    """Where there are many points, they are pale, with their running median before them."""
    dots: bool = False
    """Each point is marked, and tells its value when pointed at."""


@dataclass(frozen=True)
class Scale:
    """From values to places between 0 and 1."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands; outside of [0, 1] where it is beyond the ends."""
        if self.log:
            if value <= 0:
                return -1.0
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 6) -> list[float]:
        """At most about `count` round values between the ends."""
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
        return [value for value in values if -1e-9 <= self.place(value) <= 1 + 1e-9]


def fit_scale(values: Iterable[float], *, log: bool = False, from_zero: bool = False) -> Scale:
    """A scale that shows the bulk of some values.

    The far-out values (beyond three times the spread of the middle half, Tukey 1977) among the
    lowest and the highest twentieth do not stretch it, so that neither the first steps nor a
    spike flatten a curve.

    Args:
        values: those that are huge or not finite are left out.
        log: logarithmic, if all values allow it.
        from_zero: begin at 0.
    """
    found = sorted(value for value in values if abs(value) < _HUGE)
    log = log and bool(found) and found[0] > 1 / _HUGE
    found = [math.log(value) for value in found] if log else found
    if not found:
        return Scale(0.0, 1.0)
    count = len(found)
    lower, upper = found[count // 4], found[3 * count // 4]
    reach = 3 * (upper - lower)
    low = max(found[0], min(lower - reach, found[count // 20]))
    high = min(found[-1], max(upper + reach, found[-1 - count // 20]))
    if from_zero and not log:
        low = min(low, 0.0)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 0.5
    if log:
        return Scale(math.exp(low - margin), math.exp(high + margin), log=True)
    return Scale(low if low == 0 else low - margin, high + margin)


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points that look the same: the lowest and highest of each stretch.

    A point that is not finite stays where its whole stretch is so.
    """
    if len(points) <= limit:
        return list(points)
    width = math.ceil(2 * len(points) / limit)
    thinned: list[Point] = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        finite = [point for point in stretch if math.isfinite(point[1])] or stretch[:1]
        ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
        thinned += sorted(ends)
    return thinned


def smooth(points: Sequence[Point], share: float = 0.03) -> list[Point]:
    """The running median over a share of the finite points, half before and half after each."""
    finite = [point for point in points if math.isfinite(point[1])]
    half = max(1, round(share * len(finite) / 2))
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
    """A figure with its axes and its legend, as HTML; a line that says so where nothing is known.

    Args:
        title: what is shown.
        unit: of y.
        series: the curves.
        x_name: what x is.
        log: a logarithmic y-axis, where all values allow it.
        from_zero: a y-axis that begins at 0.
        resumed: where the run was resumed: x values with a vertical line.
    """
    head = f"<h3>{escape(title)} <small>{escape(unit)}</small></h3>"
    finite = [
        (x, y) for each in series for x, y in each.points if math.isfinite(x) and math.isfinite(y)
    ]
    if not finite:
        return f'<figure class="chart">{head}<p class="none">nothing was logged</p></figure>'
    first, last = min(x for x, _ in finite), max(x for x, _ in finite)
    first = first if first > last / 2 else 0
    x_scale = Scale(first, last) if last > first else Scale(first - 0.5, first + 0.5)
    y_scale = fit_scale((y for _, y in finite), log=log, from_zero=from_zero)
    outside = sum(not 0 <= y_scale.place(y) <= 1 for _, y in finite)
    y_ticks = [(y_scale.place(value), short_number(value)) for value in y_scale.ticks()]
    x_ticks = [
        (x_scale.place(value), f"{value:,.0f}")
        for value in x_scale.ticks(5)
        if abs(value - round(value)) < 1e-9
    ]
    shown = [mark for mark in resumed if 0 <= x_scale.place(mark) <= 1]
    lines = "".join(
        [f'<path class="grid" d="M0 {1000 * (1 - y):.1f}H1000"/>' for y, _ in y_ticks]
        + [f'<path class="mark" d="M{1000 * x_scale.place(x):.1f} 0V1000"/>' for x in shown]
        + [_draw(each, x_scale, y_scale) for each in series]
    )
    labels = "".join(
        [f'<span class="y" style="bottom:{100 * y:.2f}%">{label}</span>' for y, label in y_ticks]
        + [f'<span class="x" style="left:{100 * x:.2f}%">{label}</span>' for x, label in x_ticks]
    )
    keys = [key for each in series if each.points for key in _keys(each)]
    if shown:
        keys.append('<span><i class="mark"></i>resumed</span>')
    if outside:
        keys.append(f"<span>{outside:,} far-out points are not shown</span>")
    if y_scale.log:
        keys.append("<span>logarithmic</span>")
    return (
        f'<figure class="chart">{head}<div class="plot">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)} by {escape(x_name)}">{lines}</svg>{labels}</div>'
        f'<p class="x-name">{escape(x_name)}</p>'
        f'<figcaption class="legend">{"".join(keys)}</figcaption></figure>'
    )


def _keys(series: Series) -> list[str]:
    """What a curve looks like, for the legend."""
    color, name = f"c{series.color % COLORS}", escape(series.name)
    if _is_smoothed(series):
        return [
            f'<span><i class="{color} faint"></i>{name}</span>',
            f'<span><i class="{color}"></i>{name}, running median</span>',
        ]
    return [f'<span><i class="{color}"></i>{name}</span>']


def _is_smoothed(series: Series) -> bool:
    return series.noisy and len(series.points) >= 40


def _draw(series: Series, x_scale: Scale, y_scale: Scale) -> str:
    """A curve in a box of 1000 x 1000, whose y points down."""

    def placed(points: Sequence[Point]) -> Iterator[tuple[str, Point]]:
        for x, y in thin(points):
            # What is far outside is cut off in any case; huge numbers are not for every browser.
            height = max(-1.0, min(2.0, y_scale.place(y)))
            yield f"{1000 * x_scale.place(x):.1f} {1000 * (1 - height):.1f}", (x, y)

    def line(points: Sequence[Point], style: str) -> str:
        path, pen = "", "M"
        for place, (_, y) in placed(points):
            path += f"{pen}{place}" if math.isfinite(y) else ""
            pen = "L" if math.isfinite(y) else "M"
        return f'<path class="line {style}" d="{path}"/>'

    color = f"c{series.color % COLORS}"
    if _is_smoothed(series):
        return line(series.points, f"{color} faint") + line(smooth(series.points), color)
    drawn = line(series.points, color)
    if series.dots:
        # A line of no length with round ends is a dot, whatever the picture's proportions.
        drawn += "".join(
            f'<path class="dot {color}" d="M{place}h0"><title>{escape(series.name)}: {y:.4g} at '
            f"{x:,.0f}</title></path>"
            for place, (x, y) in placed(series.points)
            if math.isfinite(y)
        )
    return drawn


def short_number(value: float) -> str:
    """1,200,000 as `1.2M`, 0.00025 as `2.5e-4`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    if value and abs(value) < 1e-3:
        digits, exponent = f"{value:.3e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:.4g}"


def escape(text: object) -> str:
    """Text as HTML, whatever it holds: control characters become visible, halves of pairs `?`."""
    shown = str(text).translate(_VISIBLE).encode("utf-8", "replace").decode("utf-8")
    return html.escape(shown)


# Control characters have no place in HTML; Unicode has a picture of each.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already, which scrolls sideways where it must."""
    return "".join(_table(head, rows, kind))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> Iterator[str]:
    yield f'<div class="scroll"><table class="{kind}"><thead><tr>'
    yield from (f"<th>{cell}</th>" for cell in head)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</tbody></table></div>"


def page(title: str, body: str) -> str:
    """A whole HTML file.

    Args:
        title: plain text.
        body: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # Nothing may be loaded or run, whatever a text in here looks like.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


COLORS = 6
# The colours of both schemes have a contrast of at least 3:1 on the cards, and text of 4.5:1.
_STYLE = """
:root { color-scheme: light dark; --back: #f4f5f7; --card: #fff; --text: #1b1f24; --soft: #59636e;
  --line: #d8dce1; --grid: #e8eaed; --mark: #fff1b8; --0: #1f6feb; --1: #d4491c; --2: #1a7f4b;
  --3: #8250df; --4: #9a6700; --5: #bf3989 }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --card: #161b22; --text: #e6edf3;
  --soft: #9aa4af; --line: #30363d; --grid: #262c34; --mark: #5c4a00; --0: #58a6ff; --1: #ff8f6b;
  --2: #4cc38a; --3: #b694ff; --4: #e0b341; --5: #f287c0 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 1.75rem 1rem 3rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem }
h3 { font-size: .95rem; margin: 0 0 .6rem }
small, .soft { color: var(--soft); font-weight: 400; font-size: .85rem }
p { margin: .35rem 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0 .75rem }
.tiles div, .card, .chart { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px }
.tiles div { padding: .7rem .9rem }
.tiles b { display: block; font-size: 1.3rem; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums }
.tiles span { color: var(--soft); font-size: .85rem }
.charts { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)) }
.chart { margin: 0; padding: .9rem 1rem .7rem; min-width: 0 }
.wide { grid-column: 1 / -1; min-width: 0 }
.plot { position: relative; height: 13rem; margin: .2rem .6rem 1.4rem 2.9rem;
  border-bottom: 1px solid var(--soft) }
.wide .plot { height: 20rem }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden }
.plot path { fill: none; vector-effect: non-scaling-stroke }
.plot .grid { stroke: var(--grid); stroke-width: 1 }
.plot .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 3 }
.plot .line { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.plot .line.faint { stroke-width: 1; opacity: .4 }
.plot .dot { stroke-width: 7; stroke-linecap: round }
.plot span { position: absolute; color: var(--soft); font-size: .75rem; white-space: nowrap;
  font-variant-numeric: tabular-nums }
.plot .y { right: 100%; transform: translateY(50%); padding-right: .45rem }
.plot .x { top: 100%; transform: translateX(-50%); padding-top: .2rem }
.x-name { text-align: center; font-size: .75rem; color: var(--soft); margin: 0 0 .25rem 2.9rem }
.none { color: var(--soft); padding: 3rem 0; text-align: center }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .8rem;
  color: var(--soft) }
.legend i { display: inline-block; width: 1.1rem; border-top: 3px solid; margin-right: .4rem;
  vertical-align: middle }
.legend i.faint { border-top-width: 1px; opacity: .6 }
.legend i.mark { border-top: 1px dashed var(--soft) }
.card { padding: .9rem 1rem; margin-bottom: .75rem; min-width: 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .35rem 0 0; unicode-bidi: isolate;
  font: .85rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; tab-size: 4 }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: .05em 0 }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; margin-bottom: .75rem }
table { border-collapse: collapse; width: 100%; font-size: .85rem }
th, td { text-align: left; padding: .35rem .9rem; border-bottom: 1px solid var(--grid);
  vertical-align: top; font-variant-numeric: tabular-nums }
tbody tr:last-child td { border-bottom: 0 }
th { color: var(--soft); font-weight: 500; white-space: nowrap }
td { overflow-wrap: anywhere; min-width: 4rem }
td pre { margin: 0; min-width: 14rem }
summary { cursor: pointer; margin: .5rem 0; color: var(--soft) }
code { font: .95em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
"""
_STYLE += "".join(
    f".plot .c{n} {{ stroke: var(--{n}) }} .legend .c{n} {{ border-color: var(--{n}) }}\n"
    for n in range(COLORS)
)
