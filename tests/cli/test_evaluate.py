"""The command eval."""

import json
import math
import re

import torch

from tests.cli.commands import run


def test_eval_takes_a_folder_or_a_configuration(trained, held_out, capsys):
    from src.evaluation.loss import evaluate_text
    from src.formats.model_dir import load_model

    folder = trained.parent / "trained" / "tiny"
    found = load_model(folder)
    text = held_out.read_text()
    expected = evaluate_text(found.model, [text], found.tokenizer, 16)
    for place in (folder, trained):
        status, out, err = run(capsys, "eval", place, "--text", held_out, "--json", "--quiet")
        assert (status, err) == (0, "")
        assert json.loads(out) == {
            "loss": expected.loss,
            "perplexity_per_token": expected.perplexity,
            "perplexity_per_word": expected.word_perplexity,
            "bits_per_byte": expected.bits_per_byte,
            "tokens": len(found.tokenizer.encode(text)) - 1,
            "words": expected.words,
            "bytes": expected.text_bytes,
            "window": 32,
            "stride": 16,
        }


def test_eval_measures_rounded_weights_by_either_name(trained, held_out, capsys):
    from src.evaluation.loss import evaluate_text
    from src.formats.model_dir import load_model

    folder = trained.parent / "trained" / "tiny"
    given = ["--text", held_out, "--json", "--quiet"]

    def loss(place, *options):
        status, out, err = run(capsys, "eval", place, *given, *options)
        assert (status, err) == (0, "")
        return json.loads(out)["loss"]

    whole, half = loss(folder), loss(trained, "-s", "precision=bf16")
    rounded = {loss(place, "-s", "quantize=int8") for place in (folder, trained)}
    assert rounded == {loss(folder, "-s", "quantize=int8", "-s", "precision=bf16")}
    assert whole not in rounded
    found = load_model(folder)
    expected = evaluate_text(
        found.model, [held_out.read_text()], found.tokenizer, 16, precision=torch.bfloat16
    )
    assert half == expected.loss != whole


def test_eval_prints_a_figure_a_line_and_the_stride_changes_them(trained, held_out, capsys):
    status, out, err = run(capsys, "eval", trained, "--text", held_out)
    assert status == 0
    size = len(held_out.read_bytes())
    assert err == f"read {held_out}: 1 file, 1 document, {size} characters, {size} B on disk\n"
    lines = dict(line.rsplit(None, 1) for line in out.splitlines())
    assert list(lines)[:4] == [
        "loss",
        "perplexity per token",
        "perplexity per word",
        "bits per byte",
    ]
    assert lines["stride"] == "16"
    _, closer, _ = run(capsys, "eval", trained, "--text", held_out, "--stride", 1)
    assert closer.splitlines()[0] != out.splitlines()[0]
    assert closer.splitlines()[-1].split() == ["stride", "1"]


def test_eval_defines_what_it_prints(capsys):
    status, out, _ = run(capsys, "eval", "--help")
    assert status == 0
    for words in (
        "exp(loss)",
        "tokens / words",
        "ln(2) / bytes",
        "-ln(p)",
        "p is the probability",
        "window",
    ):
        assert words in out


def test_eval_tells_what_is_wrong_in_a_line(trained, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("café été ".encode() + b"caf\xe9")
    (tmp_path / "one.txt").write_text("t")
    (tmp_path / "fine.txt").write_text("the cat sat")
    (tmp_path / "no_run").mkdir()
    for arguments, said in [
        (["--text", tmp_path / "none.txt"], "none.txt: no such file"),
        (["--text", tmp_path / "empty.txt"], "empty.txt: the file is empty"),
        (["--text", tmp_path / "latin.txt"], "latin.txt:1: not UTF-8 (byte 15)"),
        (["--text", tmp_path / "one.txt"], "the text has 1 token: at least 2 are needed"),
        (["--text", tmp_path / "fine.txt", "--stride", 0], "stride must be between 1 and the mod"),
        (["--text", tmp_path / "fine.txt", "--stride", 33], "the model's 32 positions, not 33"),
        ([], "eval needs either --text FILE or"),
        (
            ["--text", tmp_path / "fine.txt", "--tasks", "a"],
            "eval needs either --text FILE or",
        ),
        (["--tasks", "a", "--stride", 3], "--stride goes with --text"),
        (["--text", tmp_path / "fine.txt", "--task-path", "."], "--task-path goes with --tasks"),
    ]:
        status, out, err = run(capsys, "eval", trained, *arguments, "--quiet")
        assert (status, out) == (2, "")
        assert said in err
        assert len(err.splitlines()) == 1
    status, _, err = run(capsys, "eval", tmp_path / "no_run", "--text", tmp_path / "fine.txt")
    assert status == 2
    assert "no_run is not a folder of a run or a model: it has no config.toml" in err


def test_eval_in_tasks_prints_a_table_or_json(trained, tmp_path, capsys, monkeypatch):
    asked = []

    def run_tasks(model, names, folder):
        asked.append((model.tokenizer.vocab_size, names, folder))
        return {"one": {"acc": 0.5, "acc_stderr": math.nan}, "two": {"acc": 1.0}}

    monkeypatch.setattr("src.evaluation.harness.run_tasks", run_tasks)
    options = ["--tasks", "one,two", "--task-path", tmp_path]
    status, out, err = run(capsys, "eval", trained, *options)
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["task", "metric", "value"],
        ["one", "acc", "0.5000"],
        ["one", "acc_stderr", "nan"],
        ["two", "acc", "1.0000"],
    ]
    _, out, _ = run(capsys, "eval", trained, *options, "--json")
    assert json.loads(out) == {"one": {"acc": 0.5, "acc_stderr": None}, "two": {"acc": 1.0}}
    assert asked == [(270, ["one", "two"], tmp_path)] * 2


def test_eval_says_how_to_install_what_it_needs(trained, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, out, err = run(capsys, "eval", trained, "--tasks", "one")
    assert (status, out) == (2, "")
    assert err == (
        "error: --tasks: lm-eval is not installed; install it with uv sync --extra eval or "
        "pip install lm-eval\n"
    )


def test_a_figure_without_a_meaning_has_its_reason(trained, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("鯨" * 40)
    status, out, _ = run(capsys, "eval", trained, "--text", tmp_path / "other.txt", "-q")
    assert status == 0
    assert re.search(r"perplexity per word +- \(", out)
