"""The report of a run: one HTML file, from the logged metrics."""

import html
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.config import Config
from src.config_loader import make_config
from src.errors import AGI2Error
from src.evaluation import report
from src.evaluation.html import visible_text
from src.evaluation.report import bounds, write_report
from src.evaluation.run_log import History, read_run
from src.training import train_from_config
from tests.evaluation.test_charts import lines
from tests.evaluation.test_copies import rewrite, text_of
from tests.evaluation.test_html import Whole


def test_a_run_writes_its_report(tiny_run, caplog):
    caplog.set_level("INFO", logger="agi2")
    run = train_from_config(tiny_run(eval_interval=4, sample_tokens=8))
    path = run.folder / "report.html"
    assert f"report: {path}" in caplog.text
    text = Whole(path.read_text(encoding="utf-8")).text
    for section in ("Loss", "Speed", "Samples during training", "Memorization", "Configuration"):
        assert section in text
    best = min(run.history["val_loss"])
    assert f"{best:.4f}" in text
    assert f"{run.model.num_parameters():,}" in text


def test_the_report_says_what_was_read_and_what_was_skipped(tiny_run, tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(Path(tiny_run().sources[0]).read_text("utf-8"), "utf-8")
    (folder / "b.pdf").write_bytes(b"%PDF-1.4 broken")
    (folder / "c.xlsx").write_bytes(b"PK")
    for _ in range(2):  # the second run does not read the text
        run = train_from_config(tiny_run(sources=[str(folder)], max_steps=1))
        text = text_of(run.folder).text.replace("\u00a0", " ")
        assert "Text: what was read, what was skipped" in text
        assert re.search(r"read .*texts: 1 file, 1 document, [\d,]+ characters, ", text)
        assert re.search(r"skipped in .*texts: 1 damaged \(15 B\), such as .*b\.pdf: damaged", text)
        assert re.search(r"1 in no format that is read \(2 B\), such as .*c\.xlsx", text)
    monkeypatch.setattr(report, "MAX_TEXT_LINES", 1)
    assert re.search(r"read .*texts.*and \d+\smore", text_of(run.folder).text)


def test_training_does_not_fail_for_want_of_a_report(tiny_run, caplog, monkeypatch):
    def refuse(folder, text):
        raise AGI2Error("no room")

    monkeypatch.setattr("src.training.write_report", refuse)
    assert train_from_config(tiny_run()).history["steps"] == 12
    assert "no report: no room" in caplog.text


def test_the_report_shows_settings_and_machine(run):
    page = text_of(run.folder)
    assert f"All {len(Config.model_fields)} keys" in page.text
    assert "model_embd16768" in page.text  # key, value and default, in cells
    for word in ("PyTorch", "precision", "float32", "from step 0"):
        assert word in page.text
    assert "Memorization" not in page.text


def test_curves_are_those_of_the_log(run):
    source = write_report(run.folder).read_text(encoding="utf-8")
    history = read_run(run.folder).history
    training, validation, rate = lines(source)[:3]
    assert (len(training), len(validation), len(rate)) == (12, 3, 12)
    bits = [each.bits_per_byte for each in history.validations]
    for each in bits:
        assert f"val loss: {each:.4g} at" in source


def test_resumes_are_marked(tiny_run):
    config = tiny_run(max_steps=4)
    train_from_config(config)
    run = train_from_config(config.changed(max_steps=8, resume="auto"))
    page = text_of(run.folder)
    assert "resumed 1\u00a0time" in page.text
    assert "resumed at step 4" in page.text
    assert page.elements.count(("path", {"class": "mark", "d": "M500.0 0V1000"})) == 4


HOSTILE = "</script><img src=x onerror=alert(1)>\u2028 \0 \u202e \ud800 &amp; "


def test_hostile_texts_stay_text(run):
    start = {"device": HOSTILE, "parameters": 5}
    folder = rewrite(run, [{"step": 0, "start": start}, {"step": 3, "sample": HOSTILE}])
    page = text_of(folder, ["x " + HOSTILE.replace("\ud800", "")])
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in {tag for tag, _ in page.elements}
    visible = HOSTILE.replace("\0", "␀").replace("\ud800", "?")
    assert page.text.count(visible) >= 3


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"step": 0, "start": {}}],
        [{"step": 1, "loss": 3.0, "tokens": 5, "tokens_per_second": 9, "seconds": 0.1}],
        [{"step": 1, "loss": None, "grad_norm": None}, {"step": 2, "val_loss": None}],
        [{"step": 1, "loss": 1e29}, {"step": 2, "loss": -1e29}, {"step": 2, "loss": 1e-300}],
        [
            {
                "step": 0,
                "start": {
                    "tokens_per_step": 5.25,
                    "train_tokens": 5,
                    "train_bytes": 0,
                    "compiled": True,
                },
            }
        ],
        [{"step": 5, "start": {"a": None}}, {"step": 6, "start": {"b": False}}],
    ],
)
def test_the_report_of_any_log_is_whole(run, entries):
    text = text_of(rewrite(run, entries), ["text"]).text
    assert "no samples" in text
    assert "Memorization" not in text  # there is nothing to compare


def test_a_run_without_bits_per_byte_shows_nats(run):
    start = {"parameters": 5, "train_tokens": 9, "train_bytes": None}
    for about in (start, start | {"train_bytes": 9}):
        log = [
            {"step": 0, "start": about},
            {"step": 1, "loss": 3.0},
            {"step": 1, "val_loss": 2.5, "val_bits_per_byte": None, "sample": "x"},
        ]
        source = write_report(rewrite(run, log)).read_text(encoding="utf-8")
        assert "<b>–</b><span>bits per byte at that step" in source
        assert "val loss: 2.5 at" in source
        assert "nan" not in source


def test_a_large_count_is_short(run):
    start = {"parameters": 124_439_808, "time": "2026-01-01 10:00:00"}
    text = text_of(rewrite(run, [{"step": 0, "start": start}])).text
    assert "124.44 Mparameters" in text
    assert "2026-01-01 10:00:00" in text


def test_many_samples_and_starts_are_cut_and_it_says_so(run):
    entries = [{"step": step, "sample": f"<{step}>"} for step in range(100)]
    entries += [{"step": step, "start": {"time": f"day {step}"}} for step in range(30)]
    text = text_of(rewrite(run, entries)).text
    shown = [int(step) for step in re.findall(r"<(\d+)>", text)]
    assert (shown[0], shown[-1], len(shown)) == (0, 99, 20)
    assert "20 of 100" in text
    assert "The last 20 starts of 30." in text
    assert "day 10" in text
    assert "day 9\n" not in text


ANY = st.text(st.characters(), max_size=30) | st.just(HOSTILE)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12
)
@given(st.lists(ANY, min_size=7, max_size=7))
def test_no_text_of_a_run_becomes_html(run, texts):
    device, version, sample, key, value, stop, document = texts
    chosen = {"stop": [stop], key: value, "model_seed": value}
    start = {"device": device, "torch": version, "chosen": chosen, "<b>": key, "text": [key, 3]}
    entries = [{"step": 1, "loss": 2.0, "val_loss": 3.0}, {"step": 1, f"x{key}": value}]
    folder = rewrite(run, [{"step": 0, "start": start}, *entries, {"step": 2, "sample": sample}])
    page = text_of(folder, [document])
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert set(tags) <= TAGS
    for text in (device, version, sample):
        assert visible_text(text) in page.text
    assert page.policy["default-src"] == ["'none'"]


# All that a report is made of.
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "script", "header", "h1", "h2"),
    *("h3", "p", "div", "b", "span", "small", "figure", "svg", "path", "figcaption", "i", "pre"),
    *("mark", "table", "thead", "tbody", "tr", "th", "td", "code", "details", "summary"),
}


# What is said of a run


@pytest.mark.parametrize(
    ("changes", "bounds"),
    [
        ({"max_steps": None}, "10 epochs"),
        ({"max_steps": None, "epochs": 1}, "1 epoch"),
        ({"max_steps": 1000}, "1,000 steps"),
        ({"max_steps": 2_000_000}, "2,000,000 steps"),
        ({"max_steps": None, "max_minutes": 2.5}, "2 min 30 s"),
        ({"max_steps": 1, "max_minutes": 1.0}, "1 step or 1 min, whichever comes first"),
        (
            {"max_steps": 5, "epochs": 3, "early_stopping_patience": 2},
            "3 epochs or 5 steps or 2 validations without a better loss, whichever comes first",
        ),
    ],
)
def test_what_bounds_a_run_is_what_was_set(tiny_run, changes, bounds):
    config = tiny_run(**changes)
    assert report.bounds(config) == bounds
    # As its folder says it, in which all keys stand.
    assert report.bounds(Config(**config)) == bounds


def rows_of(page, head):
    """The cells of the table that follows a heading."""
    rows = page.partition(head)[2].partition("</table>")[0].split("<tr>")[2:]
    return [[re.sub(r"<[^>]*>", "", each) for each in row.split("</td>")[:-1]] for row in rows]


def configuration(folder):
    source = write_report(folder).read_text(encoding="utf-8")
    return {key: html.unescape(value) for key, value, _ in rows_of(source, "<h2>Configuration")}


def test_only_what_was_set_differs_from_the_defaults(tiny_run):
    config = tiny_run(max_steps=3, vocab_size=5000, seq_len=16, max_minutes=None, epochs=10**6)
    folder = train_from_config(config).folder
    shown = configuration(folder)
    # Not seq_len and epochs, which are as they would be anyway, nor what was not set.
    assert set(shown) == {
        "sources", "model_name", "output_dir", "tokenizer", "vocab_size", "model_layer",
        "model_head", "model_embd", "model_positions", "max_steps", "batch_size", "eval_interval",
        "eval_tokens", "checkpoint_interval", "log_interval", "sample_tokens", "learning_rate",
        "device",
    }  # fmt: skip
    assert shown["vocab_size"] == "5000"  # not what the tokenizer found in the text
    assert read_run(folder).config.vocab_size < 5000
    # A run that did not note what was set: what its tokenizer set is left out.
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    del entries[0]["start"]["chosen"]
    assert configuration(rewrite(type("Run", (), {"folder": folder}), entries)) == {
        key: value for key, value in shown.items() if key != "vocab_size"
    }


def test_what_a_trained_model_brings_was_not_set(tiny_run):
    first = train_from_config(tiny_run(max_steps=2, dropout=0.2))
    config = make_config(
        {
            "sources": tiny_run().sources,
            "model_name": "second",
            "output_dir": tiny_run().output_dir,
            "init_from": str(first.folder),
            "model_layer": 1,
            "max_steps": 2,
            "device": "cpu",
        },
        "training",
    )
    folder = train_from_config(config.changed(resume="auto")).folder
    shown = configuration(folder)
    expected = {"sources", "model_name", "output_dir", "init_from", "model_layer", "max_steps"}
    assert set(shown) == expected | {"device", "resume"}
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    del entries[0]["start"]["chosen"]
    rewrite(type("Run", (), {"folder": folder}), entries)
    assert set(configuration(folder)) == expected - {"model_layer"} | {"device", "resume"}


def test_no_internals_are_shown_as_facts(tiny_run):
    run = train_from_config(tiny_run(max_steps=None, max_minutes=0.001))
    page = text_of(run.folder)
    assert "trains for 0.06\u00a0s" in page.text
    assert not re.search(r"total_steps|1,?000,?000", page.text.partition("keys")[0])
    for name in ("parameters", "tokens per step", "training tokens", "PyTorch"):
        assert name in page.text
    start = read_run(run.folder).history.start
    assert f"training tokens{start['train_tokens']:,}" in page.text


def test_the_axes_are_those_of_the_log(run):
    history = read_run(run.folder).history
    found = report.axes(history)
    entries = [entry for entry in history.entries if "seconds" in entry]
    assert found["step"] == [0, *(entry["step"] for entry in entries)]
    # The log rounds them to integers.
    logged = [0, *(entry["tokens"] for entry in entries)]
    assert [round(tokens) for tokens in found["tokens"]] == logged
    assert found["time"] == [0, *(entry["seconds"] for entry in entries)]


@given(
    st.lists(st.tuples(st.integers(-5, 50), st.floats(allow_nan=True) | st.none()), max_size=20),
    st.none() | st.integers(-3, 3) | st.floats(min_value=-1) | st.text(max_size=3),
)
def test_axes_ascend_whatever_was_logged(moments, size):
    entries = [{"step": 0, "start": {"tokens_per_step": size}}]
    entries += [{"step": step, "seconds": seconds} for step, seconds in moments]
    found = report.axes(History(entries))
    for values in found.values():
        assert len(values) == len(found["step"]) >= 2
        assert all(math.isfinite(value) for value in values)
        assert values == sorted(set(values))


def test_axes_of_a_long_run_are_thinned():
    entries = [{"step": step, "seconds": step / 7} for step in range(1, 10_001)]
    found = report.axes(History(entries))
    assert len(found["step"]) <= 502
    assert (found["step"][-1], found["time"][-1]) == (10_000, 10_000 / 7)


# Copies


def test_a_report_of_a_long_run_stays_small(run):
    entries = [
        {"step": step, "loss": 3.0 + math.sin(step), "grad_norm": 1.0 + math.cos(step),
         "learning_rate": 1e-3, "tokens": step * 512, "tokens_per_second": 1e4 + step % 7,
         "seconds": step * 0.0123}
        for step in range(1, 100_001, 10)
    ]  # fmt: skip
    entries += [{"step": step, "sample": "whale " * 50} for step in range(0, 100_001, 1000)]
    path = write_report(rewrite(run, entries), ["the whale"])
    assert path.stat().st_size < 500_000


def test_a_folder_that_is_no_run_has_no_report(tmp_path):
    with pytest.raises(AGI2Error, match="not a run's folder"):
        write_report(tmp_path)


def test_a_run_of_epochs_alone_trains_for_epochs(tiny_run):
    page = text_of(train_from_config(tiny_run(max_steps=None, epochs=1)).folder)
    assert "trains for 1\u00a0epoch" in page.text


def test_a_run_without_another_bound_is_bounded_by_its_epochs():
    assert bounds(Config(epochs=1_000_000)) == "1,000,000 epochs"
