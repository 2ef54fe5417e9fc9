"""The console, `metrics.jsonl`, and running means."""

import contextlib
import io
import json
import logging
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from src import metrics
from src.errors import AGI2Error
from src.metrics import MetricsFile, RunningMean, TrainingDisplay, read_metrics, setup_logging
from src.utils import log


@pytest.fixture(autouse=True)
def _restored_log():
    """The log as it was, after each test."""
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


@pytest.fixture
def screen(monkeypatch):
    """What a terminal would show."""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(metrics, "console", terminal)
    return screen


@pytest.fixture
def _no_terminal(monkeypatch):
    plain = Console(file=io.StringIO(), force_terminal=False)
    monkeypatch.setattr(metrics, "console", plain)


# The log


@pytest.mark.usefixtures("_no_terminal")
def test_the_log_is_bare_lines_on_standard_error(capsys):
    setup_logging()
    log.info("step %d [bold]", 3)
    log.debug("not shown")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "step 3 [bold]\n")


@pytest.mark.usefixtures("_no_terminal")
def test_the_level_says_what_is_shown(capsys):
    setup_logging(logging.WARNING)
    log.info("not shown")
    log.warning("careful")
    setup_logging(logging.DEBUG)
    log.debug("detail")
    assert capsys.readouterr().err == "careful\ndetail\n"


def test_in_a_terminal_the_log_goes_there_too(screen):
    setup_logging()
    log.info("sample: [bold] text")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())  # without the colours
    assert shown.strip() == "sample: [bold] text"


# metrics.jsonl

ENTRIES = st.lists(
    st.dictionaries(
        st.text(max_size=5),
        st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.none(),
        max_size=3,
    ),
    max_size=5,
)


@given(ENTRIES)
@settings(max_examples=30, deadline=None)
def test_entries_are_read_as_they_were_written(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    file = MetricsFile(path)
    for entry in entries:
        file.write(entry)
    assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == entries


def test_each_entry_is_on_disk_at_once(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert file.size == 12


def test_a_fresh_file_forgets_what_stood_there(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("old\n")
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.size == 0


def test_a_resumed_file_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1})
    kept = file.size
    file.write({"step": 2})
    with open(path, "a", encoding="utf-8") as torn:
        torn.write('{"step": ')
    resumed = MetricsFile(path, kept)
    resumed.write({"step": 20})
    assert path.read_text() == '{"step": 1}\n{"step": 20}\n'


def test_a_resumed_file_that_was_lost_is_begun_anew(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 1000)
    assert file.size == 0


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(AGI2Error, match=r"cannot write .*metrics\.jsonl"):
        MetricsFile(tmp_path / "nowhere" / "metrics.jsonl")
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.path = tmp_path
    with pytest.raises(AGI2Error, match="cannot write"):
        file.write({"step": 1})


# The display


def show(display, step, progress, loss, speed, seconds_left, **more):
    given = {"val_loss": None, "share_of_peak": None, "memory": "1.0 GB", **more}
    display.update(step, progress, loss, speed=speed, seconds_left=seconds_left, **given)


def test_in_a_terminal_there_is_a_progress_bar(screen):
    setup_logging()
    with TrainingDisplay(200) as display:
        show(display, 50, 0.25, 3.14159, 12345.6, 90, val_loss=4.0, share_of_peak=0.456)
    line = screen.getvalue()
    assert "step 50/200  loss 3.1416  val 4.0000  12,346 tok/s (46 % of peak)  1.0 GB" in line
    assert "━" in screen.getvalue()


@pytest.mark.usefixtures("_no_terminal")
@pytest.mark.parametrize(("total", "step"), [(200, "50/200"), (None, "50")])
def test_elsewhere_there_is_a_line_a_step(capsys, total, step):
    setup_logging()
    with TrainingDisplay(total) as display:
        show(display, 50, 0.25, 3.14159, 12345.6, 90)
        show(display, 51, 0.5, 3.0, 10.0, 5)
    assert capsys.readouterr().err.splitlines() == [
        f" 25 %  step {step}  loss 3.1416  12,346 tok/s  1.0 GB  2 min left",
        f" 50 %  step {step.replace('50', '51')}  loss 3.0000  10 tok/s  1.0 GB  5 s left",
    ]


def test_a_quiet_display_shows_nothing(screen):
    setup_logging(logging.WARNING)
    with TrainingDisplay(10) as display:
        show(display, 5, 0.5, 1.0, 1.0, 1.0)
    assert screen.getvalue() == ""


@pytest.mark.usefixtures("_no_terminal")
def test_a_quiet_display_logs_nothing(capsys):
    setup_logging(logging.WARNING)
    with TrainingDisplay(10) as display:
        show(display, 5, 0.5, 1.0, 1.0, 1.0)
    assert capsys.readouterr() == ("", "")


# Means


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_a_running_mean_is_the_mean_of_what_was_added(values):
    mean = RunningMean()
    for value in values:
        mean.add(torch.tensor(value, dtype=torch.float32))
    expected = torch.tensor(values, dtype=torch.float64).mean().item()
    assert mean.take() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_mean_that_was_taken_starts_anew():
    mean = RunningMean()
    mean.add(torch.tensor(4.0))
    assert mean.take() == 4.0
    mean.add(torch.tensor(1.0))
    assert mean.take() == 1.0
    assert math.isnan(mean.take())


def test_a_mean_goes_on_exactly_from_its_state():
    values = torch.rand(9)
    whole, half = RunningMean(), RunningMean()
    for value in values[:5]:
        whole.add(value)
        half.add(value)
    resumed = RunningMean(*json.loads(json.dumps(half.state())))
    for value in values[5:]:
        whole.add(value)
        resumed.add(value)
    assert resumed.take() == whole.take()


def test_a_mean_keeps_no_graph():
    mean = RunningMean()
    mean.add(torch.ones((), requires_grad=True) * 2)
    assert mean.state() == (2.0, 1)
    assert not mean._total.requires_grad


def test_what_takes_long_is_said_in_a_terminal_alone(monkeypatch):
    log.setLevel(logging.INFO)
    assert isinstance(metrics.busy("waiting"), contextlib.nullcontext)
    out = io.StringIO()
    monkeypatch.setattr(metrics, "console", Console(file=out, force_terminal=True))
    with metrics.busy("waiting"):
        pass
    assert "waiting" in out.getvalue()
    log.setLevel(logging.WARNING)
    assert isinstance(metrics.busy("waiting"), contextlib.nullcontext)


# Reading the log back


def test_what_was_written_is_read_but_for_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    entries = [{"step": 1, "loss": 2.5}, {"step": 2, "sample": "Käse\u2028 und Brot\n"}]
    for entry in entries:
        file.write(entry)
    with open(path, "a") as broken:
        broken.write('{"step": 3, "lo')
    assert read_metrics(path) == entries


@pytest.mark.parametrize("content", [b"not json\n", b"[1]\n", b"\xff\n"])
def test_a_log_that_is_none_is_one_clear_line(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(AGI2Error, match=r"metrics\.jsonl cannot be read"):
        read_metrics(path)
    with pytest.raises(AGI2Error, match="cannot be read"):
        read_metrics(tmp_path / "missing.jsonl")
