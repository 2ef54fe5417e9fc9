"""Shell completion, in a process without PyTorch."""

import json

import pytest

from src.cli.completion import (
    complete_format,
    complete_model,
    complete_override,
    complete_path,
    complete_quantization,
    complete_recipe,
    join_words,
)
from src.config import Config
from tests.cli.test_startup import WITHOUT_PYTORCH
from tests.conftest import run_python

# Asks for each completion as a shell does, in one process.
ASK_EACH = """
import contextlib, io, json, os
os.chdir(sys.argv[1])
before = dict(os.environ)
for environment in json.loads(sys.argv[2]):
    os.environ.clear()
    os.environ.update(before | environment)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    print(json.dumps(out.getvalue()))
"""


def asked(shell, words):
    """The environment in which a shell asks for completions of the last of some words."""
    environment = {"_AGI2_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        # As bash has it in COMP_WORDS: `=` is a word of its own.
        split = [part for word in words for part in word.replace("=", "\n=\n").split("\n") if part]
        split += [""] * (words[-1] == "")
        environment |= {"COMP_WORDS": "\n".join(split), "COMP_CWORD": str(len(split) - 1)}
    else:
        environment["_TYPER_COMPLETE_ARGS"] = " ".join(words)
    return environment


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    for name in ("trained/one", "trained/two", "models/gpt2", "notes", ".hidden"):
        (folder / name).mkdir(parents=True)
    for name in ("trained/one", "trained/two", "models/gpt2"):
        (folder / name / "config.toml").write_text("")
    for name in ("my.toml", "text.txt", "models/big.toml"):
        (folder / name).write_text("")
    return folder


BASH = [
    (["agi2", "train", "my.toml", "--set", "optimizer="], ["adamw", "muon"]),
    (["agi2", "train", "my.toml", "--set", "optimizer=m"], ["muon"]),
    (["agi2", "train", "my.toml", "--set=optimizer=m"], ["muon"]),
    (["agi2", "train", "my.toml", "-s", "a=1", "-s", "bias=f"], ["false"]),
    (["agi2", "train", "my.toml", "--set", "seq_l"], ["seq_len="]),
    (["agi2", "train", "my.toml", "--set=lora_"], ["lora_rank="]),
    (["agi2", "export", "trained/one", "out", "--format", "g"], ["gguf"]),
    (["agi2", "export", "trained/one", "out", "--format=o"], ["onnx"]),
    (["agi2", "export", "trained/one", "out", "--quantize", ""], ["f16", "q8_0", "q4_0"]),
    (["agi2", "generate", "trained/o"], ["trained/one"]),
    (["agi2", "generate", "m"], ["models/", "my.toml"]),
    (["agi2", "compare", "trained/one", "trained/t"], ["trained/two"]),
    (["agi2", "verify"], ["verify-resume"]),
    (["agi2", "train", "t"], ["text.txt", "trained/", "trained/one", "trained/two"]),
    (["agi2", "init", "te"], ["text.txt"]),
    (["agi2", "init", "text.txt", "--recipe", "sm"], ["small_model"]),
    (["agi2", "da"], ["data"]),
    (["agi2", "data", "in"], ["inspect"]),
    (["agi2", "data", "inspect", "models/b"], ["models/big.toml"]),
    (["agi2", "chat", "my.toml", "--temp"], ["--temperature"]),
]
ZSH = [
    (
        ["agi2", "train", "my.toml", "--set", "optimizer="],
        ["optimizer=adamw", "optimizer=muon"],
    ),
    (["agi2", "generate", "trained/o"], ["trained/one"]),
]


@pytest.fixture(scope="module")
def offered(place):
    """What a shell is offered after some words, the last of which is incomplete."""
    questions = [("bash", words) for words, _ in BASH] + [("zsh", words) for words, _ in ZSH]
    environments = json.dumps([asked(*question) for question in questions])
    done = run_python(WITHOUT_PYTORCH + ASK_EACH, place, environments)
    assert done.stderr == ""
    answers = map(json.loads, done.stdout.splitlines())
    known = {(shell, *words): next(answers) for shell, words in questions}
    return lambda shell, words: known[shell, *words]


@pytest.mark.parametrize(("words", "expected"), BASH, ids=lambda case: " ".join(case))
def test_bash_is_offered_the_word_that_it_completes(words, expected, offered):
    assert offered("bash", words).split() == expected


@pytest.mark.parametrize(("words", "expected"), ZSH, ids=lambda case: " ".join(case))
def test_zsh_is_offered_the_whole_word(words, expected, offered):
    found = offered("zsh", words)
    assert found.startswith("_arguments")
    assert [word for word in found.split('"') if word in expected] == expected


def test_every_key_is_offered_and_its_values_are_right():
    keys = [offered.rstrip("=") for offered in complete_override("")]
    assert keys == list(Config.model_fields)
    for key in keys:
        for offered in complete_override(f"{key}="):
            name, _, value = offered.partition("=")
            plain = {"true": True, "false": False}.get(value, value)
            assert name == key
            changes = {"log_to": [value], "sources": [value]}.get(key, plain)
            more = {"temperature": 0.0} if value == "ngram" else {}
            more |= {"tokenizer": "basic"} if key == "byte_fallback" else {}
            more |= {"optimizer": "muon"} if key == "normuon" else {}
            Config(**{key: changes, **more})
    assert complete_override("epochs=") == complete_override("unknown=") == []


def test_an_empty_word_is_offered_runs_and_configurations(place, monkeypatch):
    monkeypatch.chdir(place)
    assert complete_model("") == [
        "models/",
        "my.toml",
        "notes/",
        "trained/",
        "trained/one",
        "trained/two",
    ]
    assert complete_model("nowhere/") == []
    assert complete_model(".h") == [".hidden/"]


def test_a_path_is_a_text_or_a_run(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / ".notes.txt").touch()
    runs = ["models/", "my.toml", "notes/", "text.txt", "trained/", "trained/one", "trained/two"]
    assert complete_path("") == runs
    assert complete_path("te") == ["text.txt"]
    assert complete_path("models/") == ["models/big.toml", "models/gpt2"]
    assert complete_path(".") == [".hidden/", ".notes.txt"]
    assert complete_recipe("s") == ["small_model"]
    (place / ".notes.txt").unlink()


@pytest.mark.parametrize(
    ("words", "joined", "key"),
    [
        (["agi2", "tr"], ["agi2", "tr"], None),
        (["agi2", "train", "--set", "epo"], ["agi2", "train", "--set", "epo"], None),
        (["agi2", "train", "--set", "device", "=", "c"], ["agi2", "train", "--set", "c"], "device"),
        (["agi2", "train", "--set", "device", "="], ["agi2", "train", "--set", ""], "device"),
        (
            ["agi2", "train", "--set", "a", "=", "b", "-q"],
            ["agi2", "train", "--set", "a=b", "-q"],
            None,
        ),
        (["agi2", "train", "--set", "=", "seed", "="], ["agi2", "train", "--set", ""], "seed"),
        (["agi2", "export", "--format", "=", "h"], ["agi2", "export", "--format", "h"], None),
    ],
)
def test_words_that_bash_has_split_are_joined(words, joined, key):
    environment = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    join_words(environment)
    assert environment["COMP_WORDS"].split("\n") == joined
    assert environment["COMP_CWORD"] == str(len(joined) - 1)
    assert environment.get("_AGI2_COMPLETE_KEY") == key


def test_formats_values_and_quantizations_are_offered(monkeypatch):
    assert complete_format("g") == ["gguf"]
    assert complete_quantization("q") == ["q8_0", "q4_0"]
    monkeypatch.setenv("_AGI2_COMPLETE_KEY", "device")
    assert complete_override("cu") == ["cuda"]
