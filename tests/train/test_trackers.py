"""`metrics.jsonl` and experiment trackers."""

import json
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config_loader import make_config
from src.errors import AGI2Error
from src.train import trackers as metrics
from src.train.trackers import (
    MetricsFile,
    RunLog,
    check_log_to,
    read_metrics,
)
from src.training import train_from_config

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


@pytest.mark.parametrize("content", [None, "", '{"step": 1}\n', '{"step": 1}\n{"step": '])
def test_what_is_missing_of_a_resumed_file_is_said(tmp_path, caplog, content):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    file = MetricsFile(path, 500)
    assert file.size == (12 if content else 0)
    missing = 500 - len(content or "")
    assert caplog.messages == [f"{path}: the last {missing} B before the checkpoint are missing"]


@pytest.mark.parametrize("content", [b"\0\xff\n", b"[1]\n", b"null\n", b'{"step": -1}\n'])
def test_a_damaged_file_is_not_resumed(tmp_path, content):
    """Else the run would train to its end, and its report and its line in a list be missing."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(AGI2Error, match=r"metrics\.jsonl.*: delete it to resume without") as error:
        MetricsFile(path, 1000)
    assert len(error.value.args) == 1
    assert path.read_bytes() == content
    assert MetricsFile(path).size == 0  # a fresh run does not need it


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(AGI2Error, match=r"cannot write .*metrics\.jsonl"):
        MetricsFile(tmp_path / "nowhere" / "metrics.jsonl")
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.path = tmp_path
    with pytest.raises(AGI2Error, match="cannot write"):
        file.write({"step": 1})


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
    with pytest.raises(AGI2Error, match=r"metrics\.jsonl:2: .*: not a valid log entry"):
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


def test_no_service_is_sent_the_secret_of_a_source(tmp_path, monkeypatch, fresh_wandb):
    url = "https://me:pa55word@host.example/book.txt?key=t0ken"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["agi2", "train", "my.toml", "--set", f"sources={url}"])
    RunLog(config_of("wandb", "tensorboard", sources=[url]), tmp_path).close()
    fresh_wandb.teardown()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert b"host.example" in content
    assert b"pa55word" not in content
    assert b"t0ken" not in content


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


@pytest.mark.parametrize(
    "content",
    [b"", b"../x", b"a" * 65, b"\xff", b"a\nb", b"9" * 10**6],
    ids=["empty", "path", "long", "bytes", "lines", "endless"],
)
def test_a_run_id_of_somebody_else_is_one_line(tmp_path, content):
    note = tmp_path / "wandb" / "run_id"
    note.parent.mkdir()
    note.write_bytes(content)
    with pytest.raises(AGI2Error, match=r"run_id contains no run id: delete it"):
        metrics.WandbTracker(config_of("wandb"), tmp_path)
    note.unlink()
    note.mkdir()
    with pytest.raises(AGI2Error, match=r"run_id contains no run id: delete it"):
        metrics.WandbTracker(config_of("wandb"), tmp_path)


def test_a_folder_in_a_log_s_place_is_one_line(tmp_path):
    with pytest.raises(AGI2Error, match="cannot be read: it is a folder, not a file"):
        read_metrics(tmp_path)
