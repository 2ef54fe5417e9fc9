"""The console, `metrics.jsonl`, and running means."""

import io
import json
import logging
import math
import re
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from src import metrics
from src.config_loader import make_config
from src.errors import AGI2Error
from src.metrics import (
    MetricsFile,
    RunLog,
    TrainingDisplay,
    check_log_to,
    read_metrics,
    setup_logging,
    visible,
)
from src.training import train_from_config
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
    return make_screen(monkeypatch, 140)


def make_screen(monkeypatch, width, **environment):
    """A terminal of a width."""
    screen = io.StringIO()
    environment = {"TERM": "xterm", **environment}
    terminal = Console(
        file=screen, force_terminal=True, width=width, highlight=False, _environ=environment
    )
    monkeypatch.setattr(metrics, "console", terminal)
    setup_logging()
    return screen


def without_colours(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


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
            assert not metrics.is_logged()
            with visible():
                log.info("not shown either: the outer call is quiet")
            log.warning("careful")
        with visible():
            log.info("shown once")
        assert metrics.is_logged()
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
        assert metrics.is_drawn()
        with visible(verbose=False):
            assert not metrics.is_drawn()
    log.addHandler(logging.StreamHandler(screen))
    log.setLevel(logging.INFO)
    assert metrics.is_logged()
    assert not metrics.is_drawn()


# metrics.jsonl

ENTRIES = st.lists(
    st.dictionaries(
        st.text(max_size=5),
        st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5)
        | st.none(),
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


def test_what_is_not_finite_is_null_for_strict_readers(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).write({"loss": math.nan, "start": {"speeds": [1.5, math.inf]}, "norm": 2})
    line = json.loads(path.read_text(), parse_constant=refuse)
    assert line == {"loss": None, "start": {"speeds": [1.5, None]}, "norm": 2}
    assert read_metrics(path) == [line]


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


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
@pytest.mark.parametrize("width", [50, 60, 80, 100, 200])
def test_bar_and_time_left_are_shown_in_a_terminal_of_any_width(width, environment, monkeypatch):
    screen = make_screen(monkeypatch, width, **environment)
    setup_logging()
    with TrainingDisplay(211_000) as display:
        given = {"val_loss": 4.0, "share_of_peak": 0.456, "memory": "12.3 GB, GPU 70 of 80 GB"}
        show(display, 150_000, 0.7, 3.14159, 1_234_567.8, 5430, **given)
    lines = re.split(r"[\r\n]+", without_colours(screen.getvalue()))
    shown = next(line for line in lines if "left" in line)
    assert "━" in shown
    assert "step 150000/211000" in shown or width < 60
    assert "1 h 30 min left" in shown or width < 60
    assert max(map(len, lines)) <= width
    for width_for_it, part in [(80, "loss 3.1416"), (100, "val 4.0000"), (200, "46 % of peak")]:
        assert part in shown or width < width_for_it


def test_a_terminal_that_cannot_redraw_a_line_has_lines(monkeypatch, capsys):
    make_screen(monkeypatch, 80, TERM="dumb")
    setup_logging()
    with TrainingDisplay(10) as display:
        show(display, 5, 0.5, 1.0, 1.0, 90)
    with metrics.busy("reading"):
        pass
    expected = " 50 %  step 5/10  loss 1.0000  1 tok/s  1.0 GB  1 min 30 s left"
    assert capsys.readouterr().err.splitlines() == [expected, "reading"]


@pytest.mark.usefixtures("_no_terminal")
def test_what_takes_long_is_logged_elsewhere_if_asked(capsys):
    setup_logging()
    with metrics.busy("validating", everywhere=True), metrics.busy("reading"):
        pass
    assert capsys.readouterr().err == "validating\n"


HOSTILE = "\x1b]0;title\x07 \x9b31m\r[red]\u202e\n\u2028\x08 tail"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_control_character_of_a_log_line_reaches_a_terminal(is_terminal, monkeypatch, capsys):
    screen = make_screen(monkeypatch, 200)
    if not is_terminal:
        monkeypatch.setattr(metrics, "console", Console(file=screen, force_terminal=False))
    setup_logging()
    log.info("sample: %s", HOSTILE)
    log.warning(HOSTILE)
    try:
        raise ValueError(HOSTILE)
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
    with metrics.busy("waiting [red]\x1b"):
        pass
    assert r"waiting [red]\x1b" in out.getvalue()
    quiet = make_screen(monkeypatch, 80)
    log.setLevel(logging.WARNING)
    with metrics.busy("waiting"):
        pass
    assert quiet.getvalue() == ""


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


@pytest.mark.parametrize(
    "content", [b"not json\n", b"[1]\n", b"\xff\n", b"[" * 9999 + b"\n", b"9" * 9999 + b"\n"]
)
def test_a_log_that_is_none_is_one_clear_line(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(AGI2Error, match=r"metrics\.jsonl cannot be read"):
        read_metrics(path)
    with pytest.raises(AGI2Error, match="cannot be read"):
        read_metrics(tmp_path / "missing.jsonl")


# Other services


def config_of(*names, **changes):
    return make_config({"model_name": "whale", "log_to": list(names), **changes})


def line(step, **values):
    return {"step": step, "epoch": step / 4, "loss": 5.0 - step / 8, "seconds": step, **values}


def events(folder):
    """What TensorBoard itself reads: curves as {name: [(step, value)]}, and texts likewise."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    reader = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "tensors": 0})
    reader.Reload()
    curves = {
        name: [(event.step, event.value) for event in reader.Scalars(name)]
        for name in reader.Tags()["scalars"]
    }
    texts = {
        name.removesuffix("/text_summary"): [
            (event.step, make_ndarray(event.tensor_proto)[0].decode())
            for event in reader.Tensors(name)
        ]
        for name in reader.Tags()["tensors"]
    }
    return curves, texts


def test_without_other_services_there_is_the_file_alone(tmp_path):
    log_file = RunLog(config_of(), tmp_path)
    log_file.write(line(1))
    log_file.close()
    assert log_file.size == (tmp_path / "metrics.jsonl").stat().st_size > 0
    assert read_metrics(tmp_path / "metrics.jsonl") == [line(1)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_has_curves_samples_and_the_configuration(tmp_path):
    log_file = RunLog(config_of("tensorboard", seed=42), tmp_path)
    log_file.write({"step": 0, "start": {"parameters": 5}})
    for step in (1, 2):
        log_file.write(line(step, sample=f"a\n# {step}"))
    log_file.close()
    curves, texts = events(tmp_path)
    assert curves == {"loss": [(1, 4.875), (2, 4.75)], "seconds": [(1, 1.0), (2, 2.0)]}
    # Indented, so that Markdown takes it as it is.
    assert texts["sample"] == [(1, "    a\n    # 1"), (2, "    a\n    # 2")]
    ((step, written),) = texts["config"]
    assert step == 0
    assert "    seed = 42\n" in written
    assert "    model_name = 'whale'\n" in written


def test_a_resumed_tensorboard_has_no_point_twice(tmp_path):
    config = config_of("tensorboard")
    killed = RunLog(config, tmp_path)
    for step in (1, 2):
        killed.write(line(step))
    size = killed.size  # a checkpoint, and then what is lost
    killed.write({"step": 2, "val_loss": 9.0})
    killed.write(line(3, loss=9.0))
    killed.close()
    resumed = RunLog(config, tmp_path, size, 2)
    resumed.write({"step": 2, "val_loss": 4.0})
    resumed.write(line(3))
    resumed.close()
    curves, texts = events(tmp_path)
    assert curves["loss"] == [(1, 4.875), (2, 4.75), (3, 4.625)]
    assert curves["val_loss"] == [(2, 4.0)]
    assert len(texts["config"]) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"step": None, "loss": 1},
        {"step": "x", "loss": 1},
        {"step": math.nan},
        {"step": 1, "start": {"parameters": "x"}},
        {"step": 1, "start": "x"},
        {"step": 1, "start": {"total_steps": "x"}},
        {"step": 9, "tokens_per_second": 3},
        {"step": 9, "tokens_per_second": 3, "tokens": None, "seconds": 1},
        {"step": True},
        {"step": -1},
        {"step": 10**400},
        {"step": 1, "val_loss": math.inf},
        {"step": 1, "start": {"tokens_per_step": [8]}},
        {"step": 1, "start": {"parameters": 10**400}},
    ],
)
def test_a_line_that_no_run_has_written_is_named(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": null}}\n{json.dumps(bad)}\n')
    with pytest.raises(AGI2Error, match=r"metrics\.jsonl:2: .*: not a line that a run has written"):
        read_metrics(path)


def test_a_run_that_is_watched_only_after_a_resume_is_written_from_its_beginning(tmp_path):
    before = RunLog(config_of(), tmp_path)
    for step in (1, 2):
        before.write(line(step))
    after = RunLog(config_of("tensorboard"), tmp_path, before.size, 2)
    after.write(line(3))
    after.close()
    assert [step for step, _ in events(tmp_path)[0]["loss"]] == [1, 2, 3]


@pytest.fixture
def fresh_wandb():
    """The library, which reads the environment once in a process, unless it is told to forget."""
    import wandb

    wandb.teardown()
    yield wandb
    wandb.teardown()


def records(folder):
    """What an offline run of Weights & Biases holds, the oldest run first.

    Its file is seven bytes, and then LevelDB's log format: blocks of 32 KiB of records with a
    checksum, a length and a kind (whole, first, middle, last).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        content, place, data = path.read_bytes(), 7, b""
        while place < len(content):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
            _, length, kind = struct.unpack("<IHB", content[place : place + 7])
            data += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                record = Record()
                record.ParseFromString(data)
                data = b""
                yield record


def test_wandb_offline_has_curves_samples_and_the_configuration_in_one_run(
    tmp_path, monkeypatch, fresh_wandb
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = config_of("wandb", seed=42)
    first = RunLog(config, tmp_path)
    first.write({"step": 0, "start": {"parameters": 5}})
    first.write(line(1, sample="a <b>"))
    first.close()
    second = RunLog(config, tmp_path, first.size, 1)
    second.write(line(2))
    second.close()
    fresh_wandb.teardown()  # as at a program's end: only then is all of the last file on disk
    runs, rows = [], []
    for record in records(tmp_path):
        if record.HasField("run"):
            runs.append(record.run)
        if record.HasField("history"):
            found = {
                (item.key or item.nested_key[0]): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append({key: value for key, value in found.items() if key[0] != "_"})
            assert record.history.step.num == found["_step"]
    assert rows == [
        {"loss": 4.875, "seconds": 1, "sample": "a <b>"},
        {"loss": 4.75, "seconds": 2},
    ]
    assert {(run.project, run.display_name) for run in runs} == {("agi2", "whale")}
    # Both belong to the run whose id stands in the folder.
    assert {run.run_id for run in runs} == {(tmp_path / "wandb" / "run_id").read_text()}
    settings = {item.key: item.value_json for run in runs for item in run.config.update}
    assert settings["seed"] == "42"


@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize(("mode", "reason"), [("online", "40"), ("nowhere", "offline")])
def test_a_service_that_refuses_is_one_line(tmp_path, monkeypatch, mode, reason):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(AGI2Error, match=rf"log_to: wandb: .*{reason}.*WANDB_MODE=offline") as error:
        RunLog(config_of("wandb"), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_a_run_begins(name, tiny_run, tmp_path, monkeypatch):
    check_log_to([name])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AGI2Error, match=f"{name} is not installed.*--extra {name}.*log_to"):
        train_from_config(tiny_run(log_to=[name]))
    assert not (tmp_path / "trained").exists()


def test_a_log_that_a_power_cut_left_within_a_line_goes_on_after_the_last_whole_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    file = MetricsFile(path, 500)
    file.write({"step": 2})
    file.sync()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_a_folder_of_a_packages_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "nopackage").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AGI2Error, match="nopackage is not installed"):
        metrics.check_log_to(["nopackage"])


@pytest.mark.parametrize("content", [b"", b"../x", b"a" * 65, b"\xff", b"a\nb", b"9" * 10**6])
def test_a_run_id_of_somebody_else_is_one_line(tmp_path, content):
    note = tmp_path / "wandb" / "run_id"
    note.parent.mkdir()
    note.write_bytes(content)
    with pytest.raises(AGI2Error, match=r"run_id holds no run's id: delete it"):
        metrics.WandbSink(config_of("wandb"), tmp_path)
    note.unlink()
    note.mkdir()
    with pytest.raises(AGI2Error, match=r"run_id holds no run's id: delete it"):
        metrics.WandbSink(config_of("wandb"), tmp_path)


def test_a_folder_in_a_log_s_place_is_one_line(tmp_path):
    with pytest.raises(AGI2Error, match="cannot be read: it is not a file"):
        read_metrics(tmp_path)
