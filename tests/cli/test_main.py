"""The command line, run inside this process: `main([...])` ends with a status."""

import contextlib
import errno
import io
import json
import logging
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import torch

from src import __version__
from src.cli import main as cli
from src.cli.main import main
from src.data.downloads import cached_path
from src.train.step import accumulate_gradients
from src.train.trackers import read_metrics

ROOT = Path(__file__).parents[2]


def run(capsys, *arguments):
    """Status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


@pytest.fixture(autouse=True)
def _log_as_before():
    """The command sets up the project's log; other tests have it as it was."""
    log = logging.getLogger("agi2")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


def write_run(folder, **changes):
    """A corpus and a configuration of a tiny model; its file."""
    sentence = "the cat sat on a mat while the dog ran over hills and rivers"
    chosen = random.Random(1).choices(sentence.split(), k=900)
    (folder / "corpus.txt").write_text(" ".join(chosen), encoding="utf-8")
    keys = {
        "sources": [str(folder / "corpus.txt")],
        "model_name": "tiny",
        "output_dir": str(folder / "trained"),
        "vocab_size": 270,
        "model_layer": 1,
        "model_head": 2,
        "model_embd": 32,
        "model_positions": 32,
        "batch_size": 4,
        "max_steps": 6,
        "eval_interval": 3,
        "checkpoint_interval": 2,
        "log_interval": 1,
        "learning_rate": 0.01,
        "sample_tokens": 5,
        "max_length": 12,
        "device": "cpu",
        **changes,
    }
    file = folder / "tiny.toml"
    file.write_text(tomli_w.dumps(keys), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The configuration file of a model that is trained."""
    file = write_run(tmp_path_factory.mktemp("cli"))
    with pytest.raises(SystemExit) as leaving:
        main(["train", str(file), "--quiet"])
    assert leaving.value.code == 0
    return file


def steps_done(file):
    lines = (file.parent / "trained" / "tiny" / "metrics.jsonl").read_text("utf-8").splitlines()
    return max(json.loads(line)["step"] for line in lines)


def test_training_prints_only_samples_on_standard_output(tmp_path, capsys):
    file = write_run(tmp_path)
    status, out, err = run(capsys, "train", file)
    assert status == 0
    assert [line for line in out.splitlines() if line.startswith("---")] == [
        f"--- sample {number} ---" for number in (1, 2, 3)
    ]
    assert "loss" not in out
    assert "step 6/6  loss" in err
    assert "the longest span copied from it has" in err
    assert f"generate more with: agi2 generate {tmp_path / 'trained' / 'tiny'} " in err
    assert (tmp_path / "trained" / "tiny" / "model.safetensors").is_file()


def test_quiet_logs_nothing_and_still_prints_samples(tmp_path, capsys):
    status, out, err = run(capsys, "train", write_run(tmp_path), "--quiet")
    assert (status, err) == (0, "")
    assert "--- sample 3 ---" in out


def test_verbose_shows_versions_and_the_effective_configuration(trained, capsys):
    _, _, plain = run(capsys, "generate", trained, "the")
    _, _, verbose = run(capsys, "generate", trained, "the", "--verbose")
    assert f"agi2 {__version__}, Python" in verbose
    assert "model_embd = 32" in verbose
    assert "length_penalty = 1.0" in verbose
    assert "model_embd" not in plain


def test_generate_prints_prompt_and_continuation_alone(trained, capsys):
    status, out, err = run(capsys, "generate", trained, "the cat", "-s", "sampling_seed=5")
    assert (status, err) == (0, "")
    assert out.startswith("the cat")
    assert len(out) > len("the cat\n")
    assert out.endswith("\n")


def test_a_sampling_seed_repeats_a_text(trained, capsys):
    texts = [
        run(capsys, "generate", trained, "a", "--set", f"sampling_seed={seed}")[1]
        for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_logged_seed_repeats_a_text_that_had_none(trained, capsys):
    _, text, err = run(capsys, "generate", trained, "a")
    seed = err.split("sampling_seed = ")[1].split()[0]
    assert run(capsys, "generate", trained, "a", "-s", f"sampling_seed={seed}")[1] == text


def test_set_overrides_the_file(trained, capsys):
    greedy = ["--set", "temperature=0"]
    short = run(capsys, "generate", trained, "a", *greedy, "--set", "max_length=1")[1]
    long = run(capsys, "generate", trained, "a", *greedy, "--set", "max_length=20")[1]
    assert long.startswith(short.rstrip("\n"))
    assert len(long) > len(short)


def test_generated_text_is_what_the_python_interface_gives(trained, capsys):
    from src.formats.model_dir import load_model
    from src.generation import beam_search, generate_text

    found = load_model(trained.parent / "trained" / "tiny")
    options = ["-s", "top_k=5", "-s", "sampling_seed=1", "-s", 'model_seed="so "']
    expected = generate_text(
        found.model, "so the", 12, 0.8, 5, tokenizer=found.tokenizer, seed=1
    ).removeprefix("so ")
    assert run(capsys, "generate", trained, "the", *options)[1] == expected + "\n"
    best = beam_search(
        found.model,
        found.tokenizer.encode("so the"),
        3,
        12,
        end_token=found.tokenizer.end_of_text,
    )[0]
    expected = "the" + found.tokenizer.decode(best.tokens)
    status, out, err = run(capsys, "beam", trained, "the", *options, "-s", "beam_size=3")
    assert (status, out, err) == (0, expected + "\n", "")


def test_beam_shows_several_results_each_with_its_score(trained, capsys):
    from src.formats.model_dir import load_model
    from src.generation import generate_beam_texts

    found = load_model(trained.parent / "trained" / "tiny")
    expected = generate_beam_texts(
        found.model, "the", 4, 12, 0.5, found.tokenizer, results=3, groups=2, diversity_penalty=2.0
    )
    options = [
        f"--set={key}"
        for key in ("beam_size=4", "length_penalty=0.5", "beam_groups=2", "diversity_penalty=2")
    ]
    shown = "".join(
        f"--- text {number}, score {each.score:.4f} ---\nthe{each.text}\n\n"
        for number, each in enumerate(expected, 1)
    )
    for asked in (["--results", "3"], ["--set", "beam_results=3"]):
        assert run(capsys, "beam", trained, "the", *options, *asked) == (0, shown, "")
    one = run(capsys, "beam", trained, "the", *options)
    assert one == (0, f"the{expected[0].text}\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "6"], "--set beam_results: beam_results 6 is above beam_size 5: lower the one"),
        (["-s", "beam_groups=2"], "--set beam_groups: beam_groups 2 does not divide beam_size 5"),
        (["-s", "beam_size=0"], "--set beam_size: beam_size = 0: input should be greater"),
        (["-s", "beam_size=999"], "beam_size 999 is above the vocabulary of"),
    ],
)
def test_beams_that_cannot_be_are_one_clear_line(options, message, trained, capsys):
    status, out, err = run(capsys, "beam", trained, "the", *options)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_samples_are_printed_one_after_the_other(trained, capsys):
    given = ["-s", "sampling_seed=4", "-s", 'model_seed="so "']
    status, out, err = run(capsys, "generate", trained, "the", *given, "-s", "samples=3")
    assert (status, err) == (0, "")
    texts = [
        run(capsys, "generate", trained, "the", *given, "-s", f"sampling_seed={seed}")[1]
        for seed in (4, 5, 6)
    ]
    assert out == "".join(f"--- sample {i} ---\n{text}\n" for i, text in enumerate(texts, 1))


def test_show_probs_prints_the_text_and_a_line_for_each_token(trained, capsys):
    given = ["-s", "sampling_seed=4", "-s", "max_length=6"]
    text = run(capsys, "generate", trained, "the", *given)[1]
    status, out, err = run(capsys, "generate", trained, "the", *given, "--show-probs")
    assert (status, err) == (0, "")
    assert out.startswith(text)
    lines = out[len(text) :].splitlines()
    assert len([line for line in lines if re.match(r" *\d+\.\d%", line)]) == 6
    status, out, err = run(capsys, "generate", trained, "a", "--show-probs", "-s", "samples=2")
    assert (status, out) == (2, "")
    assert err == "error: --show-probs shows one text, not 2: leave samples at 1\n"


def test_chat_answers_each_line_of_a_pipe(trained, capsys, monkeypatch):
    read, write = os.pipe()
    with os.fdopen(write, "w", encoding="utf-8") as pipe:
        pipe.write("the cat\n\n/clear\nthe cat\n/quit\nnever read\n")
    with os.fdopen(read, encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        status, out, err = run(capsys, "chat", trained, "-s", "sampling_seed=2")
    assert status == 0
    middle = len(out) // 2
    assert out[:middle] == out[middle:] != ""  # the same message after /clear, the same seed
    assert "the conversation is forgotten" in err


def test_resume_goes_on_to_more_steps(tmp_path, capsys):
    file = write_run(tmp_path)
    run(capsys, "train", file, "-s", "max_steps=4")
    status, _, err = run(capsys, "train", file, "--resume", "-s", "max_steps=6")
    assert status == 0
    assert "step-00000004 at step 4" in err
    assert "the run is now 6 steps long, not 4" in err
    assert steps_done(file) == 6
    assert not (tmp_path / "trained" / "tiny.1").exists()


def test_resuming_a_finished_run_trains_nothing_and_changes_no_weight(tmp_path, capsys):
    file = write_run(tmp_path)
    samples = run(capsys, "train", file)[1]
    folder = tmp_path / "trained" / "tiny"
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}
    metrics = read_metrics(folder / "metrics.jsonl")
    status, again, err = run(capsys, "train", file, "--resume")
    assert (status, again) == (0, samples)
    assert "finished after 6 steps" in err
    assert "step 7" not in err
    *same, start = read_metrics(folder / "metrics.jsonl")
    assert same == metrics
    assert "start" in start
    assert before == {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_exits_with_130_and_goes_on_exactly(
    number, trained, tmp_path, capsys, monkeypatch
):
    steps = []

    def stopped_in_the_third(*arguments, **options):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(number)
        return accumulate_gradients(*arguments, **options)

    file = write_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("src.train.accumulator.accumulate_gradients", stopped_in_the_third)
        status, out, err = run(capsys, "train", file)
    assert (status, out) == (130, "")
    assert "step-00000003; continue with --resume" in err
    assert "Traceback" not in err
    assert run(capsys, "train", file, "--resume", "--quiet")[0] == 0
    weights, expected = (
        path.parent / "trained" / "tiny" / "model.safetensors" for path in (file, trained)
    )
    assert weights.read_bytes() == expected.read_bytes()


def test_the_doctor_tells_on_standard_output_what_a_run_takes(tmp_path, capsys):
    file = write_run(tmp_path)
    status, out, err = run(capsys, "doctor", file, "--quiet")
    assert (status, err) == (0, "")
    assert out.startswith(f"keys: every key of {file} is right\n")
    assert out.endswith("it fits\n")
    assert not (tmp_path / "trained").exists()


def test_the_doctor_ends_with_2_where_a_run_does_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("src.cli.doctor.available_memory", lambda device: 1)
    status, out, err = run(capsys, "doctor", write_run(tmp_path), "--quiet")
    assert status == 2
    assert "advice: micro_batch_size = 1" in out
    assert err.startswith("error: it does not fit (memory: ")


def test_verify_resume_prints_what_it_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("src.cli.verify_resume.verify", lambda config, steps: [f"exact in {steps}"])
    assert run(capsys, "verify-resume", write_run(tmp_path)) == (0, "exact in 6\n", "")
    found = run(capsys, "verify-resume", write_run(tmp_path), "--steps", "9")
    assert found == (0, "exact in 9\n", "")
    assert run(capsys, "verify-resume", write_run(tmp_path), "--steps", "2")[0] == 2


def test_plan_takes_sources_minutes_and_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("some text")
    monkeypatch.setattr(
        "src.train.planner.propose",
        lambda sources, minutes, out: [f"{sources} {minutes} {out}"],
    )
    given = ["plan", "--sources", "a.txt", "b.txt", "--minutes", "30"]
    assert run(capsys, *given) == (0, "['a.txt', 'b.txt'] 30.0 my.toml\n", "")
    given += ["--sources", "c.txt", "--out", "x.toml", "--quiet"]
    assert run(capsys, *given) == (0, "['a.txt', 'c.txt', 'b.txt'] 30.0 x.toml\n", "")
    assert run(capsys, "plan", "a.txt", "b.txt") == (0, "['a.txt', 'b.txt'] 10.0 my.toml\n", "")
    assert run(capsys, "plan", "--minutes", "30")[0] == 2


def test_a_plan_never_overwrites(tmp_path, capsys):
    (tmp_path / "my.toml").write_text("# mine")
    status, out, err = run(
        capsys, "plan", "--sources", "a", "--minutes", "1", "--out", tmp_path / "my.toml"
    )
    assert (status, out) == (2, "")
    assert err == f"error: {tmp_path / 'my.toml'} exists: name another file with --out\n"


def test_resume_without_a_checkpoint_begins_a_run(tmp_path, capsys):
    file = write_run(tmp_path)
    assert run(capsys, "train", file, "--resume", "--quiet")[0] == 0
    assert steps_done(file) == 6


def test_a_fresh_run_moves_the_old_one_aside(tmp_path, capsys):
    file = write_run(tmp_path)
    run(capsys, "train", file, "-s", "max_steps=2")
    old = (tmp_path / "trained" / "tiny" / "metrics.jsonl").read_bytes()
    status, _, err = run(capsys, "train", file, "-s", "max_steps=3")
    assert status == 0
    assert "tiny exists: moved to" in err
    assert (tmp_path / "trained" / "tiny.1" / "metrics.jsonl").read_bytes() == old


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_the_commands(option, capsys):
    status, out, err = run(capsys, option)
    assert (status, err) == (0, "")
    for word in (
        "train",
        "doctor",
        "verify-resume",
        "generate",
        "beam",
        "chat",
        "eval",
        "--version",
        "--show-completion",
    ):
        assert word in out


@pytest.mark.parametrize(
    "command", ["train", "doctor", "verify-resume", "generate", "beam", "chat"]
)
def test_each_command_has_help(command, capsys):
    status, out, _ = run(capsys, command, "-h")
    assert status == 0
    assert ("MODEL" if command in ("generate", "beam", "chat") else "FILE.toml") in out
    assert "--set" in out


def test_help_loads_neither_pytorch_nor_rich():
    """So that it answers at once."""
    program = (
        "import sys\n"
        "from src.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print(sorted({'torch', 'numpy', 'rich', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"agi2 {__version__}\n", "")


def test_a_late_ctrl_c_says_nothing():
    """One that comes while the process is ending: what was to be saved is saved."""
    program = (
        "import atexit, os, signal\n"
        "from src.cli.main import main\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"agi2 {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "no such command 'fly'; agi2 --help"),
        (["train"], "missing argument 'FILE.toml'; agi2 train --help"),
        (["generate", "a.toml"], "missing argument 'PROMPT'; agi2 generate --help"),
        (["train", "a.toml", "--fast"], "no such option: --fast"),
        (["generate", "a", "-x"], "no such option: -x; a prompt that begins with - comes after --"),
        (["train", "a.toml", "b.toml"], "quote a text or a name that contains spaces"),
        (["generate", "a", "b", "--temperature", "hot"], "'--temperature'"),
        (["generate", "a", "b", "--temperature", "hot"], "not 'hot'"),
        (["generate", "a", "b", "--top-k", "-1"], "not '-1'"),
        (["verify-resume", "a", "--steps", "2"], "not '2'"),
        (["plan", "a", "--minutes", "0"], "not '0'"),
        (["plan"], "agi2 plan my_book.txt --minutes 10"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, said, capsys):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_the_list_of_commands_cuts_no_description(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    commands = run(capsys, "--help")[1].partition("Commands:\n")[2].splitlines()
    assert len(commands) >= 12
    assert not [line for line in commands if line.endswith("...")]


def test_without_arguments_the_help_is_shown(capsys):
    status, out, err = run(capsys)
    assert status == 2
    assert "Commands:" in out + err


def test_a_mistake_of_the_user_is_told_in_lines_without_a_traceback(tmp_path, capsys):
    file = write_run(tmp_path, epoch=3, temperature=-1.0)
    status, out, err = run(capsys, "generate", file, "a")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 2
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_ctrl_c_exits_with_130(trained, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("src.generation.stream_text", interrupted)
    status, _, err = run(capsys, "generate", trained, "a", "--quiet")
    assert (status, err) == (130, "")


def test_a_stream_that_cannot_be_set_to_utf8_is_used_as_it_is(capsys, monkeypatch):
    class Plain:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", plain := Plain())
    assert run(capsys, "--version")[0] == 0
    assert plain.text == f"agi2 {__version__}\n"


# agi2 eval


@pytest.fixture
def held_out(tmp_path):
    path = tmp_path / "held_out.txt"
    path.write_text("the dog sat on hills and rivers\nwhile a cat ran. " * 9, encoding="utf-8")
    return path


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
    assert err == f"read {held_out}: 1 file, 1 document, {size} characters, {size} B\n"
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
    for words in ("exp(loss)", "tokens / words", "ln(2) / bytes", "-ln(probability)", "window"):
        assert words in out


def test_eval_tells_what_is_wrong_in_a_line(trained, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "one.txt").write_text("t")
    (tmp_path / "fine.txt").write_text("the cat sat")
    (tmp_path / "no_run").mkdir()
    for arguments, said in [
        (["--text", tmp_path / "none.txt"], "none.txt: no such file"),
        (["--text", tmp_path / "empty.txt"], "empty.txt: the file is empty"),
        (["--text", tmp_path / "latin.txt"], "latin.txt:1: not UTF-8 (byte 3)"),
        (["--text", tmp_path / "one.txt"], "the text has 1 token: at least 2 are needed"),
        (["--text", tmp_path / "fine.txt", "--stride", 0], "stride must be between 1 and the mod"),
        (["--text", tmp_path / "fine.txt", "--stride", 33], "the model's 32 positions, not 33"),
        ([], "eval needs --text FILE or --tasks NAME,NAME"),
        (["--text", tmp_path / "fine.txt", "--tasks", "a"], "eval needs --text FILE or --tasks"),
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


def test_list_shows_runs_on_standard_output(trained, capsys):
    status, out, err = run(capsys, "list", trained.parent / "trained")
    assert (status, err) == (0, "")
    assert out.splitlines()[1].startswith("tiny ")


def test_list_says_where_it_looked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "list")
    assert (status, out) == (2, "")
    assert err.startswith("error: trained cannot be read")


def test_list_and_compare_log_less_or_more_and_print_the_same(trained, capsys):
    folder = trained.parent / "trained"
    for command in (["list", folder], ["compare", folder / "tiny", folder / "tiny"]):
        status, out, _ = run(capsys, *command)
        assert run(capsys, *command, "--quiet") == (status, out, "")
        assert logging.getLogger("agi2").level == logging.WARNING
        _, same, err = run(capsys, *command, "-v")
        assert same == out
        assert f"agi2 {__version__}, Python" in err


def test_compare_takes_prompt_seed_and_file(trained, tmp_path, capsys):
    folder, html = trained.parent / "trained" / "tiny", tmp_path / "both.html"
    options = ["--prompt", "the cat", "--seed", 3, "--html", html]
    status, out, _ = run(capsys, "compare", folder, folder, *options)
    assert status == 0
    assert out.count("\nthe cat") == 2
    assert html.is_file()
    assert run(capsys, "compare", folder)[0] == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error: [Errno 28] No space left"),
        (MemoryError(), "error: out of memory: lower model_embd, "),
        (
            RuntimeError("can't allocate memory: you tried"),
            "error: out of memory: lower model_embd",
        ),
    ],
)
def test_what_a_machine_lacks_is_one_line(capsys, monkeypatch, trained, error, line):
    def lacking(*_, **__):
        raise error

    monkeypatch.setattr("src.generation.stream_text", lacking)
    status, out, err = run(capsys, "generate", trained, "the", "-q")
    assert (status, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), BrokenPipeError(errno.EPIPE, "gone")])
def test_other_errors_stay_as_they_are(monkeypatch, trained, error):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr("src.generation.stream_text", failing)
    with pytest.raises((RuntimeError, SystemExit)) as caught:
        main(["generate", str(trained), "the", "-q"])
    assert caught.value is error or caught.value.code == 1


def test_a_model_that_no_machine_holds_is_one_line(tmp_path, capsys):
    file = write_run(tmp_path, model_embd=2**16, model_layer=20, seq_len=32)
    for command, said in (
        ("train", r"error: training a model of .* takes .*, this machine has .*: lower model_"),
        ("doctor", r"error: it does not fit \(memory: "),
    ):
        status, _, err = run(capsys, command, file, "-q")
        assert status == 2
        assert re.match(said, err.splitlines()[-1])


def test_a_prompt_is_not_shown_before_the_options_are_right(trained, capsys):
    biased = 'logit_bias={"the cat"=1}'
    status, out, err = run(capsys, "generate", trained, "the", "-q", "-s", biased)
    assert (status, out) == (2, "")
    assert err.startswith("error: logit_bias: 'the cat' is not one token")


# One kind of argument, and nothing that it holds reaches a terminal raw


@pytest.fixture(scope="module")
def named(trained, tmp_path_factory):
    """The same model by all of its names: configuration, run, moved run, model without a log."""
    run_ = trained.parent / "trained" / "tiny"
    folder = tmp_path_factory.mktemp("named")
    moved = shutil.copytree(run_, folder / "moved run")
    model = shutil.copytree(run_, folder / "model", ignore=lambda *_: ["metrics.jsonl"])
    return [trained, run_, moved, model]


def test_every_command_takes_a_model_by_any_of_its_names(named, held_out, tmp_path, capsys):
    greedy = ["--set", "temperature=0", "--quiet"]
    for command in (
        ["generate", "MODEL", "the", *greedy],
        ["beam", "MODEL", "the", "--quiet"],
        ["eval", "MODEL", "--text", held_out, "--quiet"],
    ):
        found = {
            run(capsys, *(place if word == "MODEL" else word for word in command))
            for place in named
        }
        assert len(found) == 1
        assert found.pop()[0] == 0
    exported = set()
    for number, place in enumerate(named):
        assert run(capsys, "export", place, tmp_path / str(number), "--quiet")[0] == 0
        exported.add((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(exported) == 1
    status, out, _ = run(capsys, "compare", *named, "--prompt", "the", "--quiet")
    assert status == 0
    assert out.count("\nthe") >= 4
    for place in named:
        assert run(capsys, "doctor", place, "-s", "max_steps=2")[0] == 0


def test_a_folder_that_is_named_is_the_run_that_goes_on(named, tmp_path, capsys):
    moved = shutil.copytree(named[2], tmp_path / "elsewhere")
    before = (named[1] / "metrics.jsonl").read_bytes()
    status, _, err = run(capsys, "train", moved, "--resume", "-s", "max_steps=8")
    assert status == 0
    assert f"agi2 generate {moved} " in err
    assert max(line["step"] for line in read_metrics(moved / "metrics.jsonl")) == 8
    assert (named[1] / "metrics.jsonl").read_bytes() == before


def test_the_command_that_training_prints_works(tmp_path, capsys):
    file = write_run(tmp_path, max_steps=2)
    name = "it's a [red] name"
    status, _, err = run(capsys, "train", file, "-s", f"model_name={name}")
    assert status == 0
    line = next(line for line in err.splitlines() if line.startswith("generate more with: "))
    _, *command = shlex.split(line.partition(": ")[2])
    assert command == ["generate", str(tmp_path / "trained" / name), "..."]
    assert run(capsys, *command)[0] == 0


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (["--temperature", "0.5", "--top-k", "3"], ["temperature=0.5", "top_k=3"]),
        (["--max-length", "4", "--top-k", "0"], ["max_length=4", "top_k=null"]),
        (["--temperature", "1e-3"], ["temperature=0.001"]),
    ],
)
def test_flags_are_keys(flags, keys, trained, capsys):
    given = [word for key in keys for word in ("--set", key)]
    expected = run(capsys, "generate", trained, "the", "-s", "sampling_seed=3", *given)
    assert expected[0] == 0
    assert run(capsys, "generate", trained, "the", "--seed", "3", *flags) == expected
    # A flag wins over --set.
    both = ["-s", "sampling_seed=9", "-s", "temperature=0.8", "--seed", "3", *flags]
    assert run(capsys, "generate", trained, "the", *given, *both) == expected


def test_beam_and_chat_have_flags_that_mean_something_there(trained, capsys, monkeypatch):
    short = run(capsys, "beam", trained, "the", "--max-length", "2")
    assert short == run(capsys, "beam", trained, "the", "-s", "max_length=2")
    assert run(capsys, "beam", trained, "the", "--temperature", "1")[0] == 2
    answers = []
    for options in (["--seed", "2", "--top-k", "4"], ["-s", "sampling_seed=2", "-s", "top_k=4"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n"))
        answers.append(run(capsys, "chat", trained, *options))
    assert answers[0] == answers[1]
    assert answers[0][0] == 0


HOSTILE = "\x1b]0;t\x07\x9b2J\r\u202e\u2028[red]"


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        ["generate", f"--{HOSTILE}"],
        ["generate", "a", "b", HOSTILE],
        ["generate", "a", "b", "--temperature", HOSTILE],
        ["generate", HOSTILE, "b"],
        ["generate", "TRAINED", "b", "-s", HOSTILE],
        ["generate", "TRAINED", "b", "-s", f"{HOSTILE}=1"],
        ["generate", "TRAINED", "b", "-s", f"device={HOSTILE}"],
        ["list", HOSTILE],
        ["compare", HOSTILE, HOSTILE],
        ["export", HOSTILE, HOSTILE],
        ["export", "TRAINED", "b", "--format", HOSTILE],
        ["plan", "--sources", HOSTILE, "--minutes", "1"],
        ["train", HOSTILE * 500],
    ],
    ids=lambda arguments: " ".join(arguments)[:30].encode("ascii", "backslashreplace").decode(),
)
def test_a_hostile_argument_is_escaped_in_the_message(arguments, trained, capsys):
    given = [trained if word == "TRAINED" else word for word in arguments]
    status, out, err = run(capsys, *given)
    assert (status, out) == (2, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", err)
    assert max(map(len, err.splitlines())) <= 310


def test_names_of_runs_are_escaped_and_no_markup(trained, tmp_path, capsys):
    name = HOSTILE.replace("\u2028", "")
    shutil.copytree(trained.parent / "trained" / "tiny", tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.jsonl").write_text(HOSTILE)
    for command in (
        ["list", tmp_path],
        ["compare", tmp_path / name, trained],
    ):
        status, out, err = run(capsys, *command)
        assert status == 0
        out = re.sub(r"(?s)(?<= ---\n).*?\n\n", "", out)  # generated text goes to a pipe as it is
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out + err)
        assert r"\x1b]0;t\x07\x9b2J\r\u202e[red]" in out


def test_a_failing_system_call_is_an_escaped_line(trained, capsys, monkeypatch):
    def failing(*_, **__):
        raise OSError(errno.ENOSPC, f"full {HOSTILE}")

    monkeypatch.setattr("src.generation.stream_text", failing)
    status, _, err = run(capsys, "generate", trained, "the", "-q")
    assert status == 2
    assert err == r"error: [Errno 28] full \x1b]0;t\x07\x9b2J\r\u202e\u2028[red]" + "\n"


def test_memory_that_runs_out_before_pytorch_is_loaded_is_one_line(monkeypatch, capsys):
    def lacking(*_, **__):
        raise MemoryError

    monkeypatch.setattr("src.config_loader.load_config", lacking)
    monkeypatch.delitem(sys.modules, "torch")
    status, _, err = run(capsys, "train", "any.toml")
    assert status == 2
    assert err.startswith("error: out of memory: lower model_embd")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("option", ["--help", "--version", "list --help"])
def test_output_that_cannot_be_written_is_one_line(option):
    program = "from src.cli.main import main; main()"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {option} > /dev/full"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "error: [Errno 28] No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "arguments", ["", "list nothing", "list --nothing", "nothing", "train -s a=1 x"]
)
def test_a_status_needs_no_standard_error(arguments):
    program = f"from src.cli.main import main; main({arguments.split()})"
    with open("/dev/full", "w") as full:
        left = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=full)
    assert left.returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_help_that_cannot_be_printed_is_a_status(monkeypatch):
    full = open("/dev/full", "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    with contextlib.suppress(OSError):
        full.close()


SECRETS = ("pa55word", "t0ken")


@pytest.fixture
def secret_url():
    """An address with a login and a token, whose text is in the cache."""
    url = "https://me:pa55word@host.example/book.txt?key=t0ken"
    cached_path(url).parent.mkdir(parents=True, exist_ok=True)
    cached_path(url).write_text("the cat sat on a mat and " * 300, encoding="utf-8")
    yield url
    cached_path(url).unlink()


def test_the_secret_of_a_source_stays_in_files_for_the_user_alone(tmp_path, capsys, secret_url):
    file = write_run(tmp_path, sources=[secret_url], log_to=["tensorboard"])
    folder = tmp_path / "trained" / "tiny"
    shown = [run(capsys, "train", file, "--verbose")]
    assert shown[0][0] == 0
    changes = ["--set", f"sources={secret_url}2", "--set", "max_steps=8"]
    cached_path(secret_url).rename(cached_path(f"{secret_url}2"))
    shown += [run(capsys, "train", file, "--resume", "--verbose", *changes)]
    shown += [run(capsys, "train", folder, "--resume", "--verbose", "--set", "max_steps=9")]
    assert steps_done(file) == 9  # resumed from the address that is kept
    cached_path(f"{secret_url}2").rename(cached_path(secret_url))
    shown += [
        run(capsys, *arguments)
        for arguments in (
            ("compare", file, write_run(tmp_path, model_name="x"), "--html", tmp_path / "c.html"),
            ("doctor", file, "--verbose"),
            ("generate", folder, "the", "--verbose"),
            ("train", file, "--set", f"sources={secret_url}/nothing.txt"),
            ("train", file, "--set", f"epochs={secret_url}"),
        )
    ]
    for text in [*map(str, shown)]:
        assert not any(secret in text for secret in SECRETS)
    private = {folder / "config.toml", *folder.glob("checkpoints/*/config.toml")}
    for path in filter(Path.is_file, (tmp_path / "trained").rglob("*")):
        has_secret = any(secret.encode() in path.read_bytes() for secret in SECRETS)
        assert has_secret == (path in private), path
        assert not has_secret or path.stat().st_mode & 0o077 == 0


def test_standard_streams_that_were_closed_are_the_null_device():
    program = (
        "import os, sys; from src.cli.main import _replace_closed_streams as replace; replace();"
        "found = [os.path.samestat(os.fstat(n), os.stat(os.devnull)) for n in range(3)];"
        "print(); print(file=sys.stderr);"
        "sys.exit(7 if all(found) and sys.stdin.read() == '' else 1)"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False).returncode == 7


class Full(io.StringIO):
    """Standard output on a disk that has no room."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


def test_help_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full(errno.ENOSPC))
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    monkeypatch.setattr(sys, "stdout", Full(errno.EPIPE))
    with pytest.raises(SystemExit):
        main(["--help"])


def test_a_figure_without_a_meaning_has_its_reason(trained, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("鯨" * 40)
    status, out, _ = run(capsys, "eval", trained, "--text", tmp_path / "other.txt", "-q")
    assert status == 0
    assert re.search(r"perplexity per word +- \(", out)


def test_closed_standard_streams_become_the_null_device(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    opened = []
    monkeypatch.setattr(os, "open", lambda *given: opened.append(given))
    cli._replace_closed_streams()
    assert opened == [(os.devnull, os.O_RDWR)]
    assert sys.stdin.read() == ""
    sys.stdin.close()


def test_bash_is_answered_after_its_words_are_joined(monkeypatch, capsys):
    monkeypatch.setenv("_AGI2_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "agi2\ntr")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.split() == ["train"]


class FullStream(io.StringIO):
    """Standard error on a device that is full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("arguments", [["list", "nothing"], ["list", "--nothing"]])
def test_what_cannot_be_said_is_still_the_status(arguments, monkeypatch):
    monkeypatch.setattr(sys, "stderr", FullStream())
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
