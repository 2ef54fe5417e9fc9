"""Terminal output: logging, progress, escaping of untrusted text."""

import io
import logging
import os
import re
import sys
import threading

import pytest
from rich.console import Console

from src import console as terminal
from src.console import (
    TrainingDisplay,
    print_line,
    print_text,
    print_wrapped,
    setup_logging,
    visible,
)
from src.utils import log
from tests.cli.test_table import HOSTILE, Terminal
from tests.processes import in_terminal, needs_fork


def test_generated_text_is_escaped_in_a_terminal_and_raw_elsewhere(monkeypatch, capfdbinary):
    print_text(HOSTILE)
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == HOSTILE.encode() + b"\n"
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    print_text(HOSTILE)
    print_text("piece", end="")
    assert screen.getvalue() == "a\\x1b[31mb\\x07\\r\\x9bc\\u202ed\n\te\npiece"


def test_a_line_of_ours_is_always_escaped(capsys):
    print_line("disk: free in \x1b[2J\nnext")
    assert capsys.readouterr().out == "disk: free in \\x1b[2J\nnext\n"


RECITER = """
import sys
from tests.tiny_models import reciting_model
from src.console import print_text
from src.generation import generate_text, stream_text, Choice
from src.cli.token_view import print_choices
from src.tokenizer import BPETokenizer

tokenizer = BPETokenizer(257)
tokenizer.fit([""], verbose=False)
script = tokenizer.encode("\\x1b]0;owned\\x07\\x9b2J\\r\\u202e")
model = reciting_model(257, [*script, *script])
for piece in stream_text(model, "A", len(script), tokenizer=tokenizer, temperature=0):
    print_text(piece, end="")
print_choices("\\x1b[31m", [Choice(65, "\\x1b[32mx\\x07", 0.5, [])], tokenizer)
print("THE END")
"""


@needs_fork
def test_a_model_that_recites_escape_codes_cannot_reach_a_real_terminal():
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    with in_terminal("-c", RECITER, environment=environment) as (terminal, _):
        terminal.expect("THE END")
        seen = terminal.before
    assert r"\x1b]0;owned\x07" in seen
    assert r"\x1b[31m" in seen
    assert not re.search(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", seen.replace("\x1b[0m", "")
    )


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
    return make_screen(monkeypatch, 140)


def make_screen(monkeypatch, width, **environment):
    """A terminal of a width."""
    screen = io.StringIO()
    environment = {"TERM": "xterm", **environment}
    drawn = Console(
        file=screen, force_terminal=True, width=width, highlight=False, _environ=environment
    )
    monkeypatch.setattr(terminal, "console", drawn)
    setup_logging()
    return screen


def without_colours(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def _no_terminal(monkeypatch):
    plain = Console(file=io.StringIO(), force_terminal=False)
    monkeypatch.setattr(terminal, "console", plain)


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


# Calls from Python


@pytest.fixture
def bare_host(monkeypatch):
    """A function that makes this process a host that has configured no logging, but for some
    handlers of the root logger: pytest adds its own when a test begins."""

    def make(*handlers):
        monkeypatch.setattr(logging.root, "handlers", [*handlers])
        log.handlers[:] = []
        log.setLevel(logging.NOTSET)
        log.propagate = True

    return make


def state_of_the_log():
    return log.handlers[:], log.level, log.propagate


@pytest.mark.usefixtures("_no_terminal")
def test_a_call_shows_the_log_and_leaves_it_as_it_was(capsys, bare_host):
    bare_host()
    before = state_of_the_log()
    with visible():
        log.info("shown")
        with visible(verbose=False):
            log.info("not shown")
            assert not terminal.is_logged()
            with visible():
                log.info("not shown either: the outer call is quiet")
            log.warning("careful")
        with visible():
            log.info("shown once")
        assert terminal.is_logged()
    assert capsys.readouterr().err == "shown\ncareful\nshown once\n"
    assert state_of_the_log() == before


@pytest.mark.usefixtures("_no_terminal")
def test_calls_in_several_threads_end_in_any_order(capsys, bare_host):
    bare_host()
    before = state_of_the_log()
    first, second = visible(), visible()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    log.info("of the second")
    quiet = threading.Thread(target=_log_quietly)
    quiet.start()
    quiet.join()
    second.__exit__(None, None, None)
    assert capsys.readouterr().err == "of the second\n"
    assert state_of_the_log() == before


def _log_quietly():
    with visible(verbose=False):
        log.info("of a quiet thread")


@pytest.mark.parametrize("root_level", [logging.INFO, logging.WARNING])
@pytest.mark.parametrize("own_level", [logging.NOTSET, logging.WARNING])
def test_the_handlers_of_a_host_get_each_record_once(monkeypatch, bare_host, root_level, own_level):
    out = io.StringIO()
    bare_host(logging.StreamHandler(out))
    monkeypatch.setattr(logging.root, "level", root_level)
    log.setLevel(own_level)
    before = state_of_the_log()
    with visible():
        log.info("progress")
    assert out.getvalue() == ("" if own_level else "progress\n")
    assert state_of_the_log() == before


@pytest.mark.parametrize("change", ["handler", "disabled", "propagate"])
def test_a_logger_that_the_host_has_set_up_is_left_alone(monkeypatch, capsys, bare_host, change):
    bare_host()
    if change == "handler":
        log.addHandler(logging.NullHandler())
    else:
        monkeypatch.setattr(log, change, change == "disabled")
    before = state_of_the_log()
    with visible():
        log.info("progress")
        assert state_of_the_log() == before
    assert capsys.readouterr().err == ""


def test_bars_are_drawn_where_the_log_goes_to_the_same_terminal(screen, bare_host):
    bare_host()
    with visible():
        assert terminal.can_draw()
        with visible(verbose=False):
            assert not terminal.can_draw()
    log.addHandler(logging.StreamHandler(screen))
    log.setLevel(logging.INFO)
    assert terminal.is_logged()
    assert not terminal.can_draw()


# The display


def show(display, step, progress, loss, speed, seconds_left, **more):
    given = {"val_loss": None, "mfu": None, "memory": "1.0 GB", **more}
    display.update(step, progress, loss, speed=speed, seconds_left=seconds_left, **given)


def test_in_a_terminal_there_is_a_progress_bar(screen):
    setup_logging()
    with TrainingDisplay(200) as display:
        show(display, 50, 0.25, 3.14159, 12345.6, 90, val_loss=4.0, mfu=0.456)
    line = screen.getvalue()
    assert "step 50/200  loss 3.1416  val 4.0000  12,346 tok/s (MFU 46 %)  1.0 GB" in line
    assert "━" in screen.getvalue()


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
@pytest.mark.parametrize("width", [50, 60, 80, 100, 200])
def test_bar_and_time_left_are_shown_in_a_terminal_of_any_width(width, environment, monkeypatch):
    screen = make_screen(monkeypatch, width, **environment)
    setup_logging()
    with TrainingDisplay(211_000) as display:
        given = {"val_loss": 4.0, "mfu": 0.456, "memory": "12.3 GB, GPU 70 of 80 GB"}
        show(display, 150_000, 0.7, 3.14159, 1_234_567.8, 5430, **given)
    lines = re.split(r"[\r\n]+", without_colours(screen.getvalue()))
    shown = next(line for line in lines if "left" in line)
    assert "━" in shown
    assert "step 150000/211000" in shown or width < 60
    assert "1 h 30 min left" in shown or width < 60
    assert max(map(len, lines)) <= width
    for width_for_it, part in [(80, "loss 3.1416"), (100, "val 4.0000"), (200, "MFU 46 %")]:
        assert part in shown or width < width_for_it


def test_a_terminal_that_cannot_redraw_a_line_has_lines(monkeypatch, capsys):
    make_screen(monkeypatch, 80, TERM="dumb")
    setup_logging()
    with TrainingDisplay(10) as display:
        show(display, 5, 0.5, 1.0, 1.0, 90)
    with terminal.show_progress("reading"):
        pass
    expected = " 50 %  step 5/10  loss 1.0000  1 tok/s  1.0 GB  1 min 30 s left"
    assert capsys.readouterr().err.splitlines() == [expected, "reading"]


@pytest.mark.usefixtures("_no_terminal")
def test_what_takes_long_is_logged_elsewhere_if_asked(capsys):
    setup_logging()
    with terminal.show_progress("validating", log_at_once=True), terminal.show_progress("reading"):
        pass
    assert capsys.readouterr().err == "validating\n"


HOSTILE_LINE = "\x1b]0;title\x07 \x9b31m\r[red]\u202e\n\u2028\x08 tail"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_control_character_of_a_log_line_reaches_a_terminal(is_terminal, monkeypatch, capsys):
    screen = make_screen(monkeypatch, 200)
    if not is_terminal:
        monkeypatch.setattr(terminal, "console", Console(file=screen, force_terminal=False))
    setup_logging()
    log.info("sample: %s", HOSTILE_LINE)
    log.warning(HOSTILE_LINE)
    try:
        raise ValueError(HOSTILE_LINE)
    except ValueError:
        log.exception("failed")
    shown = without_colours(screen.getvalue()) + capsys.readouterr().err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", shown)
    assert r"\x1b]0;title\x07 \x9b31m\r[red]\u202e" in shown
    assert len([line for line in shown.splitlines() if "sample" in line or "tail" in line]) >= 3


@pytest.mark.usefixtures("_no_terminal")
@pytest.mark.parametrize(("total", "step"), [(200, "50/200"), (None, "50")])
def test_elsewhere_there_is_a_line_a_step(capsys, total, step):
    setup_logging()
    with TrainingDisplay(total) as display:
        show(display, 50, 0.25, 3.14159, 12345.6, 90)
        show(display, 51, 0.5, 3.0, 10.0, 5)
    assert capsys.readouterr().err.splitlines() == [
        f" 25 %  step {step}  loss 3.1416  12,346 tok/s  1.0 GB  1 min 30 s left",
        f" 50 %  step {step.replace('50', '51')}  loss 3.0000  10 tok/s  1.0 GB  5 s left",
    ]


def test_of_two_displays_at_a_time_one_is_drawn_and_the_other_logged(screen):
    setup_logging()
    first, second = TrainingDisplay(10), TrainingDisplay(20)
    with first:
        second.__enter__()
        show(second, 3, 0.5, 1.0, 1.0, 1.0)
        with terminal.show_progress("reading"):
            show(first, 4, 0.5, 1.0, 1.0, 1.0)
    second.__exit__(None, None, None)  # not in the order of a stack, as in threads
    with TrainingDisplay(30) as third:
        show(third, 5, 0.5, 1.0, 1.0, 1.0)
    lines = re.split(r"[\r\n]+", without_colours(screen.getvalue()))
    assert next(line for line in lines if "step 3/20" in line).startswith(" 50 %")
    for step in ("step 4/10", "step 5/30"):
        assert "━" in next(line for line in lines if step in line)


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


def test_what_takes_long_is_said_in_a_terminal_alone(monkeypatch):
    log.setLevel(logging.INFO)
    out = make_screen(monkeypatch, 80)
    with terminal.show_progress("waiting [red]\x1b"):
        pass
    assert r"waiting [red]\x1b" in out.getvalue()
    quiet = make_screen(monkeypatch, 80)
    log.setLevel(logging.WARNING)
    with terminal.show_progress("waiting"):
        pass
    assert quiet.getvalue() == ""


# What takes long


@pytest.fixture
def lines(monkeypatch):
    """What is logged where nothing can be drawn; an event is set with the first line."""
    monkeypatch.setattr(terminal, "console", Console(file=io.StringIO(), force_terminal=False))
    found, seen = [], threading.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())
            seen.set()

    log.handlers[:] = [Handler()]
    log.setLevel(logging.INFO)
    found_and_seen = found, seen
    return found_and_seen


def test_what_takes_longer_than_a_moment_is_logged_once(lines, monkeypatch):
    found, seen = lines
    monkeypatch.setattr(terminal, "_LOG_DELAY", 0.01)
    with terminal.show_progress("reading"), terminal.show_progress("a part of it"):
        assert seen.wait(600)
    assert found == ["reading"]


def test_what_is_done_in_a_moment_is_not_logged(lines, monkeypatch):
    monkeypatch.setattr(terminal, "_LOG_DELAY", 3600)
    with terminal.show_progress("reading"):
        pass
    assert lines[0] == []


def test_how_far_it_is_is_logged_now_and_then(lines, monkeypatch):
    monkeypatch.setattr(terminal, "_LOG_DELAY", 3600)
    with terminal.show_progress("evaluating", is_determinate=True) as advance:
        advance(0.1)
        monkeypatch.setattr(terminal, "_INTERVAL", 0)
        advance(0.5)
    assert lines[0] == ["evaluating: 50 %"]


def test_the_time_left_is_estimated_after_a_while(lines, monkeypatch):
    monkeypatch.setattr(terminal, "_INTERVAL", 0)
    monkeypatch.setattr(terminal, "_LOG_DELAY", 0)
    with terminal.show_progress("evaluating", is_determinate=True) as advance:
        for fraction in (0.0, 0.5, 1.0):
            advance(fraction)
    said = [line for line in lines[0] if "%" in line]
    assert [re.sub(r"\d+ s left", "N s left", line) for line in said] == [
        "evaluating: 0 %",
        "evaluating: 50 %, N s left",
        "evaluating: 100 %, N s left",
    ]


def test_how_far_it_is_is_drawn_in_a_terminal_by_one_at_a_time(screen):
    with terminal.show_progress("evaluating", is_determinate=True) as advance:
        advance(0.5)
        other = threading.Thread(target=_be_busy)
        other.start()
        other.join()
    shown = without_colours(screen.getvalue())
    assert "evaluating" in shown
    assert "beside it" in shown  # as a line


def _be_busy():
    with terminal.show_progress("beside it"):
        pass


def test_a_long_line_is_wrapped_at_words_if_the_width_is_known(capsys, monkeypatch):
    line = (
        "memory: about 1 GB of 2 GB (weights 500 MB, gradients 250 MB, a-very-long-word-" + "x" * 9
    )
    monkeypatch.delenv("COLUMNS", raising=False)
    print_wrapped(line)
    assert capsys.readouterr().out == f"{line}\n"
    monkeypatch.setenv("COLUMNS", "40")
    print_wrapped(line)
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 40
    assert all(part.startswith("  ") for part in shown[1:])
    assert " ".join(part.strip() for part in shown) == line
