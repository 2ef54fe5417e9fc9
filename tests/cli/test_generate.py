"""The commands generate, beam and chat."""

import io
import os
import re
import sys

import pytest

from src.cli.generate import short_names
from src.console import console
from tests.cli.commands import run


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
        (["-s", "beam_size=0"], "--set beam_size: beam_size must be at least 1, not 0"),
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


def test_a_prompt_is_not_shown_before_the_options_are_right(trained, capsys):
    biased = 'logit_bias={"the cat"=1}'
    status, out, err = run(capsys, "generate", trained, "the", "-q", "-s", biased)
    assert (status, out) == (2, "")
    assert err.startswith("error: logit_bias: 'the cat' is not one token")


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


def test_chat_sends_a_message_to_two_models_that_have_the_same_seed(trained, capsys, monkeypatch):
    monkeypatch.setattr(console, "no_color", False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n"))
    folder = trained.parent / "trained" / "tiny"
    status, out, err = run(capsys, "chat", trained, folder, "--no-color")
    assert (status, err.count("sampling_seed = ")) == (0, 1)
    first, second = (part.strip() for part in re.split(r"--- [12] tiny ---\n", out)[1:])
    assert first == second != ""
    assert console.no_color
    too_many = run(capsys, "chat", "a", "b", "c")
    assert too_many == (2, "", "error: chat takes one model or two, not 3\n")


def test_models_are_named_by_their_folders(tmp_path):
    config = str(tmp_path / "c.1" / "config.toml")
    assert short_names(["trained/a", "b.toml", config]) == ["a", "b", "c.1"]
    (tmp_path / "d.toml").mkdir()
    long = "x" * 100
    models = [f"trained/{long}", str(tmp_path / "d.toml")]
    assert short_names(models, length=None) == [long, "d.toml"]
    assert short_names(models) == [long[:30], "d.toml"]


def test_a_system_message_needs_a_model_with_a_chat_template(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n"))
    status, out, err = run(capsys, "chat", trained, "--quiet", "--system", "Be kind")
    assert (status, out) == (2, "")
    assert err.startswith("error: the model has no chat template, so no system message")
