"""Comparison of runs: tables, curves and samples."""

import io
import json
import sys
from dataclasses import replace

import pytest

from src.cli.compare import compare_runs, print_runs, print_table
from src.config_checks import UNBOUNDED_EPOCHS
from src.errors import AGI2Error
from src.evaluation.comparison import aligned_curves, differences, results
from src.evaluation.run_log import read_run
from src.generation import generate_text
from src.train.trackers import read_metrics
from src.training import train_from_config
from src.utils import human_time
from tests.evaluation.test_charts import lines
from tests.evaluation.test_html import HOSTILE, Whole


@pytest.fixture
def pair(copied_run):
    options = {"eval_interval": 4, "sample_tokens": 0, "max_length": 12}
    one = copied_run("one", **options)
    return one, copied_run("two", dropout=0.0, model_ff=24, **options)


def folders(pair):
    return [run.folder for run in pair]


def cells(line):
    return [cell for cell in line.split("  ") if cell]


# Tables


def test_a_table_in_a_pipe_has_aligned_columns(capsys):
    print_table(["name", "n"], [["a longer\nname", "1"], ["b", ""]])
    assert capsys.readouterr().out == "name            n\na longer\\nname  1\nb\n"


def test_a_table_in_a_terminal_is_drawn(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    print_table(["na[b]me", "n"], [["[red]x", "1"]])
    shown = sys.stdout.getvalue()
    assert "na[b]me" in shown
    assert "[red]x" in shown
    assert "──" in shown


def test_runs_are_listed_with_what_they_reached(pair, capsys, caplog):
    (pair[0].folder / "config.toml").write_text("= =")
    print_runs(pair[0].folder.parent)
    head, *rows = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in cells(head)][:3] == ["run", "parameters", "steps"]
    one, two = ([cell.strip() for cell in cells(row)] for row in rows)
    best = read_run(pair[1].folder).history.best
    parameters = f"{pair[1].model.num_parameters():,}"
    figures = [f"{best.loss:.4f}", f"{best.bits_per_byte:.3f}"]
    assert two[:6] == ["two", parameters, "12", *figures, "12"]
    assert two[-1] == "finished"
    assert (one[0], one[-1]) == ("one", "broken")
    assert "one is broken: " in caplog.text
    assert "config.toml" in caplog.text


def test_a_folder_without_runs_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AGI2Error, match=r"empty contains no runs"):
        print_runs(tmp_path / "empty")


def test_a_log_that_says_nothing_is_listed(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    print_runs(tmp_path)
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[:6] == ["run", "–", "0", "–", "–", "–"]


# Comparing


def test_only_keys_that_differ_are_shown(pair):
    rows = differences([read_run(folder) for folder in folders(pair)])
    assert rows == [["model_ff", "64", "24"], ["dropout", "0.1", "0.0"]]


def test_epochs_without_a_limit_are_not_set(pair):
    one, two = (read_run(folder) for folder in folders(pair))
    one = replace(one, config=one.config.changed(epochs=3))
    endless = replace(two, config=one.config.changed(epochs=UNBOUNDED_EPOCHS))
    assert differences([one, endless]) == [["epochs", "3", "not set"]]


def test_results_are_those_of_the_logs(pair):
    rows = {name: found for name, *found in results([read_run(f) for f in folders(pair)])}
    assert rows["steps"] == ["12", "12"]
    losses = [f"{run.history['best_val_loss']:.4f}" for run in pair]
    assert rows["best val loss"] == losses
    # To the last line of the log: the final validation comes after it.
    last = [[e for e in read_metrics(r.folder / "metrics.jsonl") if "loss" in e][-1] for r in pair]
    assert rows["time"] == [human_time(entry["seconds"]) for entry in last]


def test_curves_are_aligned_at_common_steps(pair):
    records = [read_run(folder) for folder in folders(pair)]
    unit, rows = aligned_curves(records)
    assert unit == "step"
    expected = [[each.bits_per_byte for each in r.history.validations] for r in records]
    assert rows == [
        [str(step), f"{one:.3f}", f"{two:.3f}"]
        for step, one, two in zip((4, 8, 12), *expected, strict=True)
    ]


def write_log(folder, entries):
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "metrics.jsonl").write_text(text)


def test_the_tokens_of_a_run_shorter_than_the_log_interval_are_shown(shared_run):
    run = shared_run(max_steps=2, log_interval=10, batch_size=4, sample_tokens=0)
    table = {name: cells for name, *cells in results([read_run(run.folder)])}
    assert table["tokens"] == ["127"]  # 2 steps of 64, but for the first token of the text


def log_of(tokens_per_step, curve):
    start = {"step": 0, "start": {"tokens_per_step": tokens_per_step}}
    return [start, *({"step": step, "val_bits_per_byte": bits} for step, bits in curve)]


def test_other_batches_are_aligned_by_tokens_and_nothing_is_made_up(pair):
    one, two = folders(pair)
    write_log(one, log_of(10, [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0), (9, 1.0)]))
    write_log(two, log_of(5, [(3, 5.5), (5, 4.5), (9, 3.5)]))
    unit, rows = aligned_curves([read_run(one), read_run(two)])
    assert unit == "tokens"
    assert rows == [
        ["15", "5.000", "5.500"],
        ["25", "4.000", "4.500"],
        ["45", "2.000", "3.500"],
    ]


@pytest.mark.parametrize("size", [None, 0, -3])
def test_runs_without_a_number_of_tokens_are_aligned_by_steps(pair, size):
    one, two = folders(pair)
    write_log(one, log_of(size, [(1, 5.0), (2, 4.0)]))
    write_log(two, log_of(5, [(1, 5.5), (2, 4.5)]))
    unit, rows = aligned_curves([read_run(one), read_run(two)])
    assert (unit, len(rows)) == ("step", 2)


def test_long_curves_are_thinned_and_missing_ones_are_none(pair):
    one, two = folders(pair)
    for folder in (one, two):
        write_log(folder, log_of(10, [(step, 2.0) for step in range(1, 200)]))
    _, rows = aligned_curves([read_run(one), read_run(two)])
    assert 10 <= len(rows) <= 20
    write_log(two, log_of(10, []))
    assert aligned_curves([read_run(one), read_run(two)]) == ("step", [])


def test_the_same_prompt_is_continued_by_each(pair, capsys):
    compare_runs(folders(pair), prompt="the", seed=7)
    out = capsys.readouterr().out
    for run in pair:
        config = read_run(run.folder).config
        sampling = (config.max_length, config.temperature)
        text = generate_text(run.model, "the", *sampling, tokenizer=run.tokenizer, seed=7)
        assert f"--- {run.folder.name} ---\n{text}\n" in out
    assert out.startswith("Configuration:\nkey")


def test_the_prompt_is_the_runs_own_seed_where_none_is_given(tiny_run, capsys):
    runs = [train_from_config(tiny_run(name, model_seed="white")) for name in ("a", "b")]
    compare_runs(folders(runs))
    out = capsys.readouterr().out
    assert "--- a ---\nwhite" in out
    assert "--- b ---\nwhite" in out
    assert "no difference" in out


def test_a_run_without_weights_is_compared_all_the_same(pair, capsys):
    (pair[0].folder / "model.safetensors").unlink()
    write_log(pair[0].folder, [])
    compare_runs(folders(pair))
    out = capsys.readouterr().out
    assert "model.safetensors: no such file)" in out
    assert "nothing to compare" in out


def test_runs_of_one_name_go_by_their_paths(pair, capsys):
    compare_runs([pair[0].folder, pair[0].folder])
    assert f"--- {pair[0].folder} ---" in capsys.readouterr().out


def test_curves_are_drawn_over_each_other_and_texts_shown(pair, tmp_path, capsys):
    compare_runs(folders(pair), prompt="the", seed=3, html=tmp_path / "both.html")
    source = (tmp_path / "both.html").read_text(encoding="utf-8")
    page = Whole(source)
    assert [len(line) for line in lines(source)[:4]] == [3, 3, 12, 12]
    assert "one · two" in page.text
    assert "model_ff" in page.text
    # With the texts that were printed, and the axes of both runs for the script.
    printed = capsys.readouterr().out.partition("--- one ---\n")[2].removesuffix("\n\n")
    one, _, two = printed.partition("\n\n--- two ---\n")
    assert f"one{one}two{two}" in page.text
    axes = next(keys["data-axes"] for _, keys in page.elements if "data-axes" in keys)
    assert [run["step"][-1] for run in json.loads(axes)] == [12, 12]
    curves = [json.loads(keys["data-chart"]) for _, keys in page.elements if "data-chart" in keys]
    assert [curve["run"] for curve in curves[0]["curves"]] == [0, 1]


def test_no_text_of_a_run_becomes_html_in_a_comparison(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("src.cli.compare._generate_sample", lambda *_: HOSTILE)
    (pair[0].folder).rename(pair[0].folder.with_name("<script>"))
    compared = [pair[0].folder.with_name("<script>"), pair[1].folder]
    compare_runs(compared, prompt=HOSTILE, html=tmp_path / "both.html")
    page = Whole((tmp_path / "both.html").read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert page.text.count(HOSTILE) == 3
    assert "<script>" in page.text


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_runs_are_an_error(count, pair):
    with pytest.raises(AGI2Error, match="two runs or more"):
        compare_runs(folders(pair)[:count])


def test_what_is_no_run_is_named(pair, tmp_path):
    with pytest.raises(AGI2Error, match=r"nothing is not a run's folder"):
        compare_runs([pair[0].folder, tmp_path / "nothing"])


def test_columns_that_a_narrow_terminal_has_no_room_for_are_named(pair, monkeypatch, caplog):
    caplog.set_level("INFO", logger="agi2")
    monkeypatch.setattr("src.cli.compare.print_table", lambda *_: ["date"])
    print_runs(folders(pair)[0].parent)
    assert "not shown in a narrow terminal: date" in caplog.text
