"""The report of a run: one HTML file, from what the run wrote down."""

import json
import math
import re
import time

import pytest

from src import report
from src.config import Config
from src.errors import AGI2Error
from src.report import find_copies, write_report
from src.runs import read_run
from src.training import train_from_config
from tests.test_charts import Whole, lines


@pytest.fixture
def run(tiny_run):
    return train_from_config(tiny_run(eval_interval=4, sample_tokens=8))


def rewrite(run, entries):
    path = run.folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return run.folder


def text_of(folder, documents=None):
    return Whole(write_report(folder, documents).read_text(encoding="utf-8"))


def test_a_run_writes_its_report(tiny_run, caplog):
    caplog.set_level("INFO", logger="agi2")
    run = train_from_config(tiny_run(eval_interval=4, sample_tokens=8))
    path = run.folder / "report.html"
    assert f"report: {path}" in caplog.text
    text = Whole(path.read_text(encoding="utf-8")).text
    for section in ("Loss", "Speed", "Samples as they changed", "Memorisation", "Configuration"):
        assert section in text
    best = min(run.history["val_loss"])
    assert f"{best:.4f}" in text
    assert f"{run.model.num_parameters():,}" in text


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
    for word in ("torch", "precision", "float32", "from step 0"):
        assert word in page.text
    assert "Memorisation" not in page.text


def test_curves_are_those_of_the_log(run):
    source = write_report(run.folder).read_text(encoding="utf-8")
    history = read_run(run.folder).history
    training, validation, rate = lines(source)[:3]
    assert (len(training), len(validation), len(rate)) == (12, 3, 12)
    bits = [each.bits_per_byte for each in history.validations]
    for each in bits:
        assert f"validation: {each:.4g} at" in source


def test_resumes_are_marked(tiny_run):
    config = tiny_run(max_steps=4)
    train_from_config(config)
    run = train_from_config(config.changed(max_steps=8, resume="auto"))
    page = text_of(run.folder)
    assert "resumed 1 time" in page.text
    assert "resumed at step 4" in page.text
    assert page.elements.count(("path", {"class": "mark", "d": "M500.0 0V1000"})) == 4


HOSTILE = "</script><img src=x onerror=alert(1)>\u2028 \0 \u202e \ud800 &amp; "


def test_hostile_texts_stay_text(run):
    start = {"device": HOSTILE, "parameters": 5}
    folder = rewrite(run, [{"step": 0, "start": start}, {"step": 3, "sample": HOSTILE}])
    page = text_of(folder, ["x " + HOSTILE.replace("\ud800", "")])
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    visible = HOSTILE.replace("\0", "␀").replace("\ud800", "?")
    assert page.text.count(visible) >= 3


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [{"step": 0, "start": {}}],
        [{"step": 1, "loss": 3.0, "tokens": 5, "tokens_per_second": 9, "seconds": 0.1}],
        [{"step": 1, "loss": math.nan, "grad_norm": math.inf}, {"step": 2, "val_loss": math.nan}],
        [{"step": 1, "loss": None, "grad_norm": None}, {"step": 2, "val_loss": None}],
        [{"step": 1, "loss": -math.inf}, {"step": 2, "loss": 1e300}, {"step": 2, "loss": 1e-300}],
        [{"step": 0, "start": {"train_tokens": 5, "train_bytes": 0, "compiled": True}}],
        [{"step": 5, "start": {"a": None}}, {"step": 6, "start": {"b": False}}],
    ],
)
def test_the_report_of_any_log_is_whole(run, entries):
    text = text_of(rewrite(run, entries), ["text"]).text
    assert "none were written" in text
    assert "nothing in common" in text


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


# Copies


def test_copies_are_found_with_their_place(run):
    folder = rewrite(
        run,
        [
            {"step": 1, "sample": "zz Call me Ishmael. zz"},
            {"step": 2, "sample": "12345"},
            {"step": 3, "sample": "to sea. Call"},
        ],
    )
    documents = ["first", "He said: Call me Ishmael. Some", "I went to sea.", " Call me. Call me "]
    one, two = find_copies(read_run(folder), documents)
    assert (one.step, one.span, one.document, one.offset) == (1, " Call me Ishmael. ", 2, 8)
    assert (one.before, one.after, one.places) == ("He said:", "Some", 1)
    # Not across documents, though the sample goes on as the next one does.
    assert (two.span, two.document, two.offset) == ("to sea.", 3, 7)
    page = text_of(folder, documents)
    marked = [tag for tag, _ in page.elements if tag == "mark"]
    assert len(marked) == 4
    assert "document 2, at letter 8" in page.text
    assert "in 4 documents" in page.text


def test_a_span_that_stands_in_many_places_says_so(run):
    folder = rewrite(run, [{"step": 1, "sample": "the whale"}])
    text = text_of(folder, ["a the whale", "the whale the whale" + " and more" * 20]).text
    assert "document 1, at letter 2, and 2 more" in text
    long = "x" * 70
    around = text_of(folder, [f"{long}the whale{long}"]).text
    assert f"…{'x' * 60}the whale{'x' * 60}…" in around


def test_the_prompt_is_not_held_against_a_sample(tiny_run):
    run = train_from_config(tiny_run(model_seed="the ship", eval_interval=4, sample_tokens=4))
    assert all(text.startswith("the ship") for _, text in read_run(run.folder).history.samples)
    copies = find_copies(read_run(run.folder), ["the ship"])
    assert len(copies) == len(read_run(run.folder).history.samples)
    assert not any(copy.written.startswith("the ship") for copy in copies)


def test_what_is_compared_is_bounded(run, monkeypatch):
    monkeypatch.setattr(report, "COMPARED_TEXT", 12)
    folder = rewrite(run, [{"step": step, "sample": "abc def ghi"} for step in range(15)])
    documents = ["abc xyz", "def ghi jkl", "abc def ghi"]
    copies = find_copies(read_run(folder), documents)
    assert [copy.step for copy in copies] == list(range(5, 15))
    assert {copy.span for copy in copies} == {"def g"}
    assert "the first 12 of 29 letters" in text_of(folder, documents).text


def test_a_report_on_a_megabyte_takes_less_than_a_second(run):
    folder = rewrite(
        run,
        [{"step": step, "loss": 3.0 + step % 7, "grad_norm": 1.0} for step in range(5000)]
        + [{"step": step, "sample": f"{step} white whales swam " * 10} for step in range(20)],
    )
    documents = ["the white whale swam in the wide sea, and the crew slept. " * 200] * 100
    started = time.perf_counter()
    write_report(folder, documents)
    assert time.perf_counter() - started < 1.0


def test_a_folder_that_is_no_run_has_no_report(tmp_path):
    with pytest.raises(AGI2Error, match="no run's folder"):
        write_report(tmp_path)
