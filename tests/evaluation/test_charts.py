"""Charts: the drawn curves, and the data for the script."""

import json
import math
import re
from statistics import median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.evaluation.charts import (
    MAX_POINTS,
    Scale,
    Series,
    chart,
    chart_group,
    charts_page,
    downsample,
    fit_scale,
    running_median,
    short_number,
)
from src.evaluation.html import COLORS
from tests.bounds import gamma, nearly
from tests.evaluation.test_html import Whole

FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=32)
CURVES = st.lists(FLOATS, max_size=80).map(lambda ys: list(enumerate(ys)))


def lines(source):
    """Points of every curve of a chart."""
    paths = re.findall(r'class="line [^"]*" d="([^"]*)"', source)
    return [re.findall(r"([ML])(-?[\d.]+) (-?[\d.]+)", path) for path in paths]


# Scales


@settings(max_examples=40, deadline=None)
@given(st.lists(FLOATS, max_size=60), st.booleans(), st.booleans())
def test_a_scale_fits_any_values_and_has_sensible_ticks(values, log, from_zero):
    scale = fit_scale(values, log=log, from_zero=from_zero)
    assert scale.low < scale.high
    finite = [value for value in values if abs(value) < 1e30]
    inside = [value for value in finite if 0 <= scale.transform(value) <= 1]
    assert len(inside) >= 0.85 * len(finite)
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert len(ticks) <= 8
    # Rounding at an end loses no tick.
    assert all(-1e-9 <= scale.transform(tick) <= 1 + 1e-9 for tick in ticks)


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 10), [0, 2, 4, 6, 8, 10]),
        (Scale(0.93, 1.07), [0.95, 1.0, 1.05]),
        (Scale(1.5, 4.2, log=True), [1.5, 2, 2.5, 3, 3.5, 4]),
        (Scale(1, 100, log=True), [1, 2, 5, 10, 20, 50, 100]),
        (Scale(1, 1e4, log=True), [1, 10, 100, 1000, 10000]),
        (Scale(1e-9, 1e9, log=True), [1e-9, 1e-5, 1e-1, 1e3, 1e7]),
    ],
)
def test_ticks_are_round(scale, ticks):
    assert scale.ticks() == nearly(ticks, 8)  # a power of ten, a digit and a number, multiplied


def test_neither_first_steps_nor_a_spike_flatten_a_curve():
    bulk = [3 + 0.001 * index for index in range(1000)]
    for log in (False, True):
        scale = fit_scale([11.0, 10.0, *bulk, 900.0], log=log)
        assert scale.transform(3.9) - scale.transform(3.1) > 0.2
        assert scale.transform(900.0) > 1


def test_a_scale_from_zero_and_one_of_equal_values():
    assert fit_scale([5.0, 6.0], from_zero=True).low == 0
    assert 0 < fit_scale([7.0, 7.0]).transform(7.0) < 1
    assert fit_scale([2.0, 0.0], log=True).log is False
    assert Scale(1, 10, log=True).transform(0.0) < 0


# Points


@given(CURVES, st.integers(4, 40))
def test_thinned_points_keep_the_lowest_and_the_highest(points, limit):
    thinned = downsample(points, limit)
    assert len(thinned) <= max(limit, 2) + 2
    finite = [y for _, y in points if math.isfinite(y)]
    kept = [y for _, y in thinned if math.isfinite(y)]
    assert bool(kept) == bool(finite)
    if finite:
        assert (min(kept), max(kept)) == (min(finite), max(finite))
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)
    assert set(map(repr, thinned)) <= set(map(repr, points))


@given(CURVES, st.sampled_from([0.03, 0.2, 1.0]))
def test_smoothing_is_a_running_median(points, share):
    finite = [point for point in points if math.isfinite(point[1])]
    half = max(1, round(share * len(finite) / 2))
    result = running_median(points, share)
    assert [x for x, _ in result] == [x for x, _ in finite]
    for index, (_, y) in enumerate(result):
        window = sorted(y for _, y in finite[max(0, index - half) : index + half + 1])
        assert y == window[len(window) // 2] >= median(window)


# Charts


@settings(deadline=None)
@given(CURVES, CURVES, st.booleans())
def test_any_curves_make_a_whole_figure(one, two, log):
    series = [Series("a", one, noisy=True), Series("b", two, color=7, dots=True)]
    figure = chart("T", "u", series, log=log, resumed=[3, 1e9])
    Whole(figure)
    assert "nan" not in figure
    assert "inf" not in figure


def test_a_curve_is_drawn_where_its_points_are():
    figure = chart("Loss", "nats", [Series("a", [(0, 0.0), (50, 100.0), (100, 50.0)])])
    ((first, second, third),) = lines(figure)
    assert (first[0], second[0], third[0]) == ("M", "L", "L")
    assert [float(x) for _, x, _ in (first, second, third)] == [0, 500, 1000]
    top, middle, bottom = (round(10 * float(y)) for _, _, y in (second, third, first))
    assert 0 <= top < middle < bottom <= 10_000  # y points down
    assert abs(2 * middle - top - bottom) <= 2  # each is rounded to the nearest tenth


def test_what_is_not_finite_is_a_gap():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0), (5, 2.0)]
    ((*points,),) = lines(chart("Loss", "nats", [Series("a", points)]))
    assert "".join(pen for pen, _, _ in points) == "MLML"


def test_many_points_are_thinned_and_smoothed():
    points = [(step, 3 + math.sin(step) / 9) for step in range(50_000)]
    raw, smoothed = lines(chart("Loss", "nats", [Series("a", points, noisy=True)]))
    assert 100 < len(raw) <= MAX_POINTS + 2
    heights = [float(y) for _, _, y in smoothed]
    assert max(heights) - min(heights) < 200


def test_the_legend_names_curves_resumes_and_what_is_left_out():
    points = [(step, 3.0 + 0.01 * step) for step in range(60)]
    points[30] = (30, 1e6)
    dotted = Series("<b>", [(1, 3.1), (50, 3.3)], color=COLORS + 1, dots=True)
    figure = chart("Loss", "nats", [Series("a", points, noisy=True), dotted], log=True, resumed=[9])
    text = Whole(figure).text
    assert "1 far-out point is not shown" in text
    assert "resumed" in text
    assert "logarithmic" in text
    assert "a, running median" in text
    assert "<b>: 3.1 at 1" in text
    assert 'class="dot c1"' in figure
    assert "resumed" not in Whole(chart("Loss", "nats", [dotted], resumed=[99])).text


def test_a_single_point_and_none():
    text = Whole(chart("Loss", "nats", [Series("a", [(1, 3.0)], dots=True)])).text
    assert "a: 3 at 1" in text
    for points in ([], [(1, math.nan)]):
        assert "nothing was logged" in chart("Loss", "nats", [Series("a", points)])


# The script


def data_of(figure):
    """What the script reads of a chart."""
    (element,) = [keys for _, keys in Whole(figure).elements if "data-chart" in keys]
    return json.loads(element["data-chart"])


@given(CURVES, CURVES, st.text(st.characters(), max_size=20))
def test_the_script_reads_the_points_to_five_digits(one, two, name):
    series = [Series(name, one, dots=True), Series("two", two, color=COLORS, run=1)]
    figure = chart("T", "u", series, x_name="tokens", log=True, resumed=[3])
    if "data-chart" not in figure:
        assert not any(math.isfinite(y) for _, y in [*one, *two])
        return
    data = data_of(figure)
    assert (data["axis"], data["log"], data["zero"]) == ("tokens", True, False)
    drawn = [(points, run) for points, run in ((one, 0), (two, 1)) if points]
    assert [curve["run"] for curve in data["curves"]] == [run for _, run in drawn]
    for (points, _), curve in zip(drawn, data["curves"], strict=True):
        assert curve["x"] == [x for x, _ in points]
        for (_, y), shown in zip(points, curve["y"], strict=True):
            if math.isfinite(y):
                # Half of the fifth digit; the smallest numbers are whole multiples of the least.
                assert shown == pytest.approx(y, rel=5e-5 + gamma(2, torch.float64), abs=5e-324)
            else:
                assert shown is None


def test_the_script_is_sent_no_more_points_than_it_can_show():
    points = [(step, math.sin(step)) for step in range(3 * MAX_POINTS)]
    curves = [Series(str(number), points, noisy=True, run=number) for number in range(20)]
    data = data_of(chart("T", "u", curves))["curves"]
    assert [curve["kind"] for curve in data] == ["faint", "median"] * 20
    assert sum(len(curve["x"]) for curve in data) <= 4500
    assert len(data_of(chart("T", "u", curves[:1]))["curves"][0]["x"]) > MAX_POINTS


def test_points_that_are_out_of_order_are_drawn_in_order():
    points = [(5, 1.0), (3, 2.0), (4, 3.0)]
    assert data_of(chart("T", "u", [Series("a", points)]))["curves"][0]["x"] == [3, 4, 5]


def test_the_script_finds_what_it_looks_for():
    axes = [{"step": [0.0, 9.0], "time": [0.0, 4.5]}]
    series = [Series("a", [(x, 1.0 + x) for x in range(9)], dots=True)]
    figure = chart("T", "u", series, resumed=[4])
    source = charts_page("title", chart_group([figure], axes))
    found = Whole(source)
    (script,) = [text for tag, text in found.texts if tag == "script"]
    classes = {word for _, keys in found.elements for word in keys.get("class", "").split()}
    tags = {tag for tag, _ in found.elements}
    for wanted in re.findall(r'figure\.querySelector\("(.*?)"\)', script):
        assert wanted.removeprefix(".") in (classes if wanted.startswith(".") else tags), wanted
    attributes = {key for _, keys in found.elements for key in keys}
    for name in re.findall(r"\.dataset\.(\w+)", script):
        assert f"data-{name}" in attributes, name
    data = data_of(figure)
    for key in (*data, *data["curves"][0]):
        assert re.search(rf"\b{key}\b", script), key
    # What the script draws is styled.
    (style,) = [text for tag, text in found.texts if tag == "style"]
    for kind in re.findall(r'make\("(?:path|div)", "(\w+)"', script):
        assert f".{kind} " in style, kind


def test_the_script_makes_no_html_of_text_and_reaches_nothing():
    script = charts_page("", "").partition("<script>")[2].partition("</script>")[0]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|import|fetch|XMLHttp"
        r"|https?:(?!//www\.w3\.org/2000/svg)",
        script,
    )


# Words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.25, "1.25"),
        (2000, "2k"),
        (1.2e6, "1.2M"),
        (3e9, "3B"),
        (0.00025, "2.5e-4"),
        (-1e-5, "-1e-5"),
    ],
)
def test_short_numbers(value, text):
    assert short_number(value) == text
