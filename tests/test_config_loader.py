"""Loading and saving of configurations: TOML files and overrides."""

import ast
import inspect
import itertools
import os
import re
import shlex
import textwrap
import threading
import time
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.config import REQUIRED_KEYS, Config
from src.config_checks import GREEDY_VALUES
from src.config_keys import (
    Activation,
    DataConfig,
    GenerationConfig,
    ModelConfig,
    Normalization,
    Preset,
    TrainConfig,
)
from src.config_loader import load_config, make_config, save_config
from src.config_messages import SYNONYMS
from src.errors import AGI2Error, printable

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")

RESOURCES = Path(__file__).parent.parent / "resources"

# The specification's example, to the letter.
EXAMPLE = """\
# Training configuration
sources = ["data/corpus.txt"]
model_name = "my_model"
epochs = 10
batch_size = 12
learning_rate = 3e-4
seq_len = 1024

# Model architecture
model_layer = 12
model_head = 12
model_embd = 768

# Device and resume
device = "auto"
resume = null

# Generation parameters
max_length = 100
temperature = 0.8
beam_size = 5
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file `run.toml` in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        content = text if isinstance(text, bytes) else text.encode()
        Path("run.toml").write_bytes(content)
        return "run.toml"

    return write


def problems_of(path, kind=None, overrides=()):
    """The lines of the error that loading raises."""
    with pytest.raises(AGI2Error) as error:
        load_config(path, kind, overrides)
    return str(error.value).splitlines()


# Files


@pytest.mark.parametrize("kind", [None, *REQUIRED_KEYS])
def test_the_specification_s_example_loads_as_written(write, kind):
    config = load_config(write(EXAMPLE), kind)
    assert config["sources"] == ["data/corpus.txt"]
    assert config["model_name"] == "my_model"
    assert (config["epochs"], config["batch_size"], config["seq_len"]) == (10, 12, 1024)
    assert config["learning_rate"] == 3e-4
    assert (config["model_layer"], config["model_head"], config["model_embd"]) == (12, 12, 768)
    assert config["device"] == "auto"
    assert config["resume"] is None
    assert (config["max_length"], config["temperature"], config["beam_size"]) == (100, 0.8, 5)


def test_a_path_object_is_a_path(write):
    assert load_config(Path(write("epochs = 3"))).epochs == 3


def test_an_empty_file_gives_the_defaults(write):
    assert dict(load_config(write(""))) == dict(Config())


@pytest.mark.parametrize(
    "line", ["top_k = null", "top_k=null # none", "  top_k = null\t", 'top_k = ""', "# top_k = 3"]
)
def test_null_and_empty_mean_not_set(write, line):
    config = load_config(write(f"epochs = 3\n{line}\nseed = 4"))
    assert (config.epochs, config.top_k, config.seed) == (3, None, 4)


def test_the_word_null_stays_in_texts(write):
    config = load_config(write('model_seed = "x = null"\nstop = ["""\na = null\n"""]\n'))
    assert config.model_seed == "x = null"
    assert config.stop == ["a = null\n"]


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_files_of_every_editor_load(write, prefix, line_end):
    text = line_end.join(["resume = null", 'model_seed = "né 🐋"', ""])
    config = load_config(write(prefix + text.encode()))
    assert (config.resume, config.model_seed) == (None, "né 🐋")


def test_a_missing_file_says_where_examples_are(write):
    assert problems_of("nowhere.toml") == [
        "nowhere.toml: no such file; resources/ contains examples"
    ]


def test_a_missing_file_that_is_not_toml_may_be_a_run(write):
    assert problems_of("trained/nothere") == [
        "trained/nothere: no such file or folder; name a TOML file, or a run: agi2 list shows the "
        "runs"
    ]


@pytest.mark.parametrize("name", ["my book.txt", "notes.MD", "a.jsonl", "a.csv", "a.html"])
def test_a_text_for_a_configuration_says_how_to_get_one(name, tmp_path):
    (tmp_path / name).write_text("Call me Ishmael.\n")
    (problem,) = problems_of(tmp_path / name)
    assert problem.startswith(f"{tmp_path / name}: not TOML. If it is a text to train on, ")
    assert problem.endswith(f"agi2 plan {shlex.quote(str(tmp_path / name))}")


def test_a_folder_cannot_be_read(tmp_path):
    (problem,) = problems_of(tmp_path)
    assert problem.startswith(f"{tmp_path}: cannot be read: ")


def test_a_file_that_is_not_text(write):
    assert problems_of(write(b"\xff\xfe\x00")) == ["run.toml: not UTF-8 text"]


@pytest.mark.parametrize(
    "text", ["epochs", "epochs = 1\nepochs = 2", "resume = null\ndevice = cpu"]
)
def test_a_file_that_is_not_toml_says_which_line(write, text):
    (problem,) = problems_of(write(text))
    assert problem.startswith("run.toml: not TOML: ")
    assert f"line {len(text.splitlines())}" in problem or "end of document" in problem


# Keys


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("temperatur", "temperature"),
        ("bach_size", "batch_size"),
        ("Epochs", "epochs"),
        ("model_heads", "model_head"),
        ("lr", "learning_rate"),
        ("n_layer", "model_layer"),
        ("max_new_tokens", "max_length"),
        ("block_size", "seq_len"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one_with_file_and_line(write, key, right):
    assert problems_of(write(f"# mine\n\nseed = 3\n{key} = 1\n")) == [
        f"run.toml:4: unknown key {key}; did you mean {right}?"
    ]


def test_synonyms_are_no_keys_and_name_keys():
    assert not SYNONYMS.keys() & set(Config.model_fields)
    assert set(SYNONYMS.values()) <= set(Config.model_fields)


def test_an_unknown_key_like_no_other_says_where_all_are(write):
    assert problems_of(write("zzz = 1")) == [
        "run.toml:1: unknown key zzz; resources/default.toml lists every key"
    ]


@pytest.mark.parametrize(("key", "shown"), [('""', "''"), ('"\\u001b[2J"', r"'\x1b[2J'")])
def test_a_key_whose_line_is_not_known_is_said_to_be_in_no_line(write, key, shown):
    assert problems_of(write(f"epochs = 1\n{key} = 1\n")) == [
        f"run.toml: unknown key {shown}; resources/default.toml lists every key"
    ]


def test_an_unknown_key_is_found_even_when_empty(write):
    assert problems_of(write('temperatur = ""\nlerning_rate = null')) == [
        "run.toml:1: unknown key temperatur; did you mean temperature?",
        "run.toml:2: unknown key lerning_rate; did you mean learning_rate?",
    ]


@pytest.mark.parametrize(
    ("text", "line", "header"),
    [
        ("epochs = 1\n[train]\nbatch_size = 2", 2, "train"),
        ("epochs = 1\n\n[tokenizer]\nlowercase = true", 3, "tokenizer"),
        ("train.epochs = 1", 1, "train"),
        ("seed = 1\ntrain = { epochs = 1 }", 2, "train"),
    ],
)
def test_keys_stand_at_the_top_level(write, text, line, header):
    assert problems_of(write(text)) == [
        f"run.toml:{line}: keys must be at the top level: remove the header [{header}]"
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('epochs = "3"', "epochs must be an integer, not '3'"),
        ("epochs = 2.5", "epochs must be an integer, not 2.5"),
        ("epochs = 0", "epochs must be at least 1, not 0"),
        ("bias = 1", "bias must be True or False, not 1"),
        ("model_name = 7", "model_name must be a string, not 7"),
        ("learning_rate = nan", "learning_rate must be above 0 and at most 1e+30, not nan"),
        ('temperature = "hot"', "temperature must be a number, not 'hot'"),
        ("temperature = -1", "temperature must be a number from 0 on, not -1"),
        ("top_p = 1.5", "top_p must be above 0 and at most 1, not 1.5"),
        ('preset = "tiny"', "preset must be 'small', 'medium', 'large' or 'xl', not 'tiny'"),
        ('sources = ["a", 3]', "sources[1] must be a string, not 3"),
        (
            'micro_batch_size = "half"',
            "micro_batch_size must be an integer or 'auto', not 'half'",
        ),
        ('device = "gpu"', "device 'gpu' is none of auto, cpu, cuda, cuda:1, mps"),
        ('model_name = "a/b"', "model_name 'a/b' is not a folder's name"),
        ("logit_bias = 3", "logit_bias must be a mapping from tokens to numbers, not 3"),
        ('logit_bias = { the = "x" }', "logit_bias of 'the' must be a number, not 'x'"),
        (
            "min_length = 101",
            "min_length 101 is above max_length 100: lower the one or raise the other",
        ),
    ],
)
def test_an_ill_typed_or_wrong_value_is_one_line_with_its_place(write, line, found):
    assert problems_of(write(f"seed = 3\n{line}\n")) == [f"run.toml:2: {found}"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "model_embd = 100\nmodel_head = 3",
            "run.toml:1: model_embd 100 is not divisible by model_head 3",
        ),
        ("\nmodel_head = 7", "run.toml:2: model_embd 768 is not divisible by model_head 7"),
        (
            "seq_len = 512\nmodel_positions = 256",
            "run.toml:1: seq_len 512 is above model_positions 256: "
            "lower the one or raise the other",
        ),
        (
            "batch_size = 10\nmicro_batch_size = 4",
            "run.toml:2: micro_batch_size 4 does not divide batch_size 10",
        ),
        (
            '\nspeculative = "ngram"',
            'run.toml:2: temperature 0.8 does not go with speculative = "ngram", which is '
            "greedy: set temperature = 0",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_an_error(write, text, found):
    assert problems_of(write(text)) == [found]


def test_all_problems_are_reported_at_once_a_line_each(write):
    text = """\
modle_name = "m"
epochs = "three"
temperature = -0.5
sources = [1, 2]
model_embd = 100
model_head = 3
seq_len = 2000
"""
    assert sorted(problems_of(write(text), "training", ["beams=4"])) == [
        "--set beams: unknown key beams; did you mean beam_size?",
        "run.toml: model_name is missing: training needs it",
        "run.toml:1: unknown key modle_name; did you mean model_name?",
        "run.toml:2: epochs must be an integer, not 'three'",
        "run.toml:3: temperature must be a number from 0 on, not -0.5",
        "run.toml:4: sources[0] must be a string, not 1",
        "run.toml:4: sources[1] must be a string, not 2",
        "run.toml:5: model_embd 100 is not divisible by model_head 3",
        "run.toml:7: seq_len 2000 is above model_positions 1024: lower the one or raise the other",
    ]


@pytest.mark.parametrize(
    "text", ['model_positions = "x"', "model_embd = 1.5\nmodel_head = 7", "model_positions = 0"]
)
def test_a_wrong_value_brings_no_other_problem_with_it(write, text):
    assert len(problems_of(write(text))) == 1


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("training", {"sources", "model_name"}),
        ("generation", {"model_name"}),
        ("interactive", {"model_name"}),
    ],
)
def test_each_kind_says_which_keys_it_needs(write, kind, needed):
    assert set(problems_of(write("sources = []\nmodel_name = ''"), kind)) == {
        f"run.toml: {key} is missing: {kind} needs it" for key in needed
    }
    assert load_config(write('sources = "a.txt"\nmodel_name = "m"'), kind).model_name == "m"


# Overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("epochs=3", "epochs", 3),
        (" epochs = 3 ", "epochs", 3),
        ("learning_rate=1e-3", "learning_rate", 1e-3),
        ("bias=false", "bias", False),
        ("model_name=moby_dick", "model_name", "moby_dick"),
        ('model_name="7"', "model_name", "7"),
        ("output_dir=/some/where", "output_dir", "/some/where"),
        ("model_seed=a = b", "model_seed", "a = b"),
        ('sources=["a.txt", "b.txt"]', "sources", ["a.txt", "b.txt"]),
        ("sources=a.txt", "sources", ["a.txt"]),
        ("model_name=2024", "model_name", "2024"),
        ("model_name=2024-01-01", "model_name", "2024-01-01"),
        ("model_seed=5 # x", "model_seed", "5 # x"),
        ("model_seed=inf", "model_seed", "inf"),
        ("sources=1984", "sources", ["1984"]),
        ("stop=1", "stop", ["1"]),
        ("top_k=null", "top_k", None),
        ("top_k=", "top_k", None),
    ],
)
def test_an_override_wins_over_the_file(write, override, key, value):
    config = load_config(write('epochs = 1\ntop_k = 5\nmodel_name = "m"'), overrides=[override])
    assert config[key] == value


def test_the_last_override_wins(write):
    assert load_config(write(""), overrides=["epochs=2", "epochs=3"]).epochs == 3


@pytest.mark.parametrize("override", ["epochs", "=3", ""])
def test_an_override_without_key_or_value_is_an_error(write, override):
    assert problems_of(write(""), overrides=[override]) == [
        f"--set {override}: write KEY=VALUE, for example --set epochs=3"
    ]


def test_a_wrong_override_is_named_as_such(write):
    path = write("epochs = 2\nmodel_embd = 16")
    assert problems_of(path, overrides=["epochs=two", "model_head=3"]) == [
        "--set epochs: epochs must be an integer, not 'two'",
        "run.toml:2: model_embd 16 is not divisible by model_head 3",
    ]


# Keys and values that are already read


def test_make_config_names_where_keys_come_from():
    with pytest.raises(AGI2Error) as error:
        make_config({"temperature": -1, "epoch": 3}, "generation", "request")
    assert str(error.value).splitlines() == [
        "request: model_name is missing: generation needs it",
        "request: temperature must be a number from 0 on, not -1",
        "request: unknown key epoch; did you mean epochs?",
    ]


def test_make_config_takes_a_configuration():
    config = Config(epochs=3, model_name="m")
    assert make_config(config, "generation") == config


# Round trip

TEXT = st.text(min_size=1, max_size=8)
SHARE = st.floats(0, 1, exclude_max=True)
INSIDE = st.floats(0, 1, exclude_min=True, exclude_max=True)
ABOVE_0 = st.floats(0, exclude_min=True, allow_infinity=False)
COUNT = st.integers(1, 10**12)
FROM_0 = st.integers(0, 10**12)
NAME = st.text(
    st.characters(exclude_categories=["C"], exclude_characters="/\\"), min_size=1, max_size=50
)

VALUES = {
    "sources": st.lists(TEXT, max_size=3),
    "conversations": st.lists(TEXT, max_size=3),
    "text_share": st.none() | SHARE,
    "speakers": st.none() | TEXT,
    "source_weights": st.just([]) | st.lists(st.floats(1e-3, 1e9), min_size=3, max_size=3),
    "model_name": NAME.filter(lambda name: name not in (".", "..")),
    "output_dir": NAME,
    "text_field": st.none() | TEXT,
    "encoding": st.sampled_from([None, "utf-8", "cp1252", "shift_jis"]),
    "normalize": st.sampled_from(get_args(Normalization)),
    "clean": st.booleans(),
    "max_broken_lines": FROM_0,
    "preprocess": st.sampled_from([None, "clean:keep", "/a/clean.py:keep"]),
    "val_fraction": SHARE,
    "val_sources": st.lists(TEXT, max_size=3),
    "val_conversations": st.lists(TEXT, max_size=3),
    "preferences": st.just([]) | st.lists(TEXT, max_size=3),
    "val_preferences": st.lists(TEXT, max_size=3),
    "dpo_beta": st.floats(1e-3, 1e6),
    "dedup": st.booleans(),
    "token_cache": st.none() | TEXT,
    "tokenizer": st.sampled_from(["bpe", "basic"]) | TEXT,
    "vocab_size": st.just("auto") | st.integers(1, 2**20),
    "pretokenizer": st.sampled_from(["gpt2", "gpt4"]),
    "split_digits": st.booleans(),
    "special_tokens": st.lists(TEXT, max_size=3),
    "byte_fallback": st.booleans(),
    "lowercase": st.booleans(),
    "fold_whitespace": st.booleans(),
    "init_from": st.none() | TEXT,
    "lora_rank": st.none() | st.integers(1, 4096),
    "preset": st.none() | st.sampled_from(get_args(Preset)),
    "model_layer": st.integers(1, 1024),
    "model_head": st.integers(1, 50),
    "model_embd": st.integers(1, 50),  # times model_head
    "model_ff": st.integers(0, 2**20),
    "model_positions": st.integers(500, 10**6),
    "dropout": SHARE,
    "activation": st.sampled_from(get_args(Activation)),
    "bias": st.booleans(),
    "norm_position": st.sampled_from(["pre", "post"]),
    "position_embedding": st.sampled_from(["sinusoidal", "learned"]),
    "tie_weights": st.booleans(),
    "gradient_checkpointing": st.booleans(),
    "epochs": COUNT,
    "max_steps": st.none() | COUNT,
    "max_minutes": st.none() | st.floats(1e-9, 1e9),
    "batch_size": st.integers(1, 50),  # times micro_batch_size
    "micro_batch_size": st.just("auto") | st.integers(1, 50),
    "seq_len": st.integers(1, 500),
    "windows": st.sampled_from(["stream", "documents", "packed"]),
    "mask_documents": st.booleans(),
    "stochastic_depth": SHARE,
    "optimizer": st.sampled_from(["adamw", "muon"]),
    "normuon": st.booleans(),
    "self_distillation": st.just(0.0) | st.floats(0.01, 0.99),
    "learning_rate": st.floats(1e-9, 1e30),
    "embedding_lr_factor": st.floats(1e-9, 1e6),
    "head_lr_factor": st.floats(1e-9, 1e6),
    "norm_lr_factor": st.floats(1e-9, 1e6),
    "muon_learning_rate": st.floats(1e-9, 1e30),
    "lr_schedule": st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    "lr_decay_fraction": st.floats(0.01, 1.0),
    "log_to": st.lists(st.sampled_from(["tensorboard", "wandb"])),
    "parallel": st.sampled_from(["ddp", "fsdp"]),
    "warmup_steps": FROM_0,
    "weight_decay": st.floats(0, 1e30),
    "weight_decay_schedule": st.sampled_from(["constant", "lr"]),
    "cautious_weight_decay": st.booleans(),
    "ema_decay": st.none() | INSIDE,
    "adam_beta2": INSIDE,
    "clip_grad_norm": ABOVE_0,
    "seed": FROM_0,
    "eval_interval": COUNT,
    "eval_tokens": FROM_0,
    "early_stopping_patience": st.none() | COUNT,
    "checkpoint_interval": COUNT,
    "keep_checkpoints": COUNT,
    "log_interval": COUNT,
    "sample_tokens": FROM_0,
    "device": st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:3"]),
    "threads": st.just("auto") | st.integers(1, 1024),
    "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    "compile": st.booleans() | st.just("auto"),
    "resume": st.none() | TEXT,
    "max_length": st.integers(1, 2**30),
    "min_length": FROM_0,  # at most max_length
    "samples": st.integers(1, 10_000),
    "temperature": ABOVE_0,
    "top_k": st.none() | COUNT,
    "top_p": st.none() | INSIDE,
    "min_p": st.none() | INSIDE,
    "typical_p": st.none() | INSIDE,
    "repetition_penalty": st.floats(1e-3, 1e3),
    "presence_penalty": st.floats(-10, 10),
    "frequency_penalty": st.floats(-10, 10),
    "no_repeat_ngram": st.none() | COUNT,
    "logit_bias": st.dictionaries(TEXT, st.floats(-100, 100), max_size=3),
    "stop": st.lists(TEXT, max_size=3),
    "stop_at_sentence_end": st.booleans(),
    "model_seed": st.text(max_size=20),
    "sampling_seed": st.none() | FROM_0,
    "quantize": st.sampled_from(["none", "int8", "int4"]),
    "speculative": st.sampled_from(["none", "ngram"]),
    "beam_size": st.integers(1, 20),  # times beam_groups
    "length_penalty": st.floats(-10, 10),
    "beam_results": COUNT,  # at most beam_size
    "beam_early_stopping": st.booleans() | st.just("never"),
    "beam_groups": st.integers(1, 50),
    "diversity_penalty": st.floats(0, 1e6),
    "max_context_length": COUNT,
    "chat_stats": st.booleans(),
}


def consistent(values):
    micro = values["micro_batch_size"]
    if values["preferences"]:
        values.update(sources=[], conversations=[], mask_documents=False, windows="stream")
        values.update(text_field=None, speakers=None, source_weights=[])
    if values["conversations"] and not values["sources"]:
        values["windows"] = "packed"
    values["source_weights"] = values["source_weights"][: len(values["sources"])]
    for kind in ("sources", "conversations", "preferences"):
        if not values[kind]:
            values.update({f"val_{kind}": [], "text_share": None})
    values["model_embd"] *= values["model_head"]
    values["min_length"] = min(values["min_length"], values["max_length"])
    values["batch_size"] *= 1 if micro == "auto" else micro
    values["beam_size"] *= values["beam_groups"]
    values["beam_results"] = min(values["beam_results"], values["beam_size"])
    if values["tokenizer"] != "bpe":
        values.update(pretokenizer="gpt2", split_digits=False)
    if values["tokenizer"] != "basic":
        values["byte_fallback"] = False
    if values["speculative"] == "ngram":
        values.update(GREEDY_VALUES)
    if values["temperature"] == 0:
        values["samples"] = 1
    if values["lora_rank"] is not None:
        values.update(optimizer="adamw", parallel="ddp", init_from=values["init_from"] or "base")
    values["normuon"] = values["normuon"] and values["optimizer"] == "muon"
    if values["ema_decay"] is None or values["preferences"] or values["parallel"] != "ddp":
        values["self_distillation"] = 0.0
    if values["tie_weights"]:
        values["head_lr_factor"] = 1.0
    if values["init_from"] is not None:
        values["special_tokens"] = []
    return values


def test_the_round_trip_below_draws_every_key():
    assert set(VALUES) == set(Config.model_fields)


@given(st.fixed_dictionaries(VALUES).map(consistent))
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_key_survives_saving_and_loading(tmp_path, values):
    save_config(Config(**values), tmp_path / "config.toml")
    assert dict(load_config(tmp_path / "config.toml")) == values


def test_a_saved_file_sets_every_key_that_has_a_value(tmp_path):
    save_config(Config(epochs=3), tmp_path / "config.toml")
    saved = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert set(saved) == {key for key, value in Config().items() if value is not None}
    assert saved["epochs"] == 3


# init_from


@pytest.fixture
def base(tmp_path):
    """A trained model's folder, as far as a configuration reads it."""
    folder = tmp_path / "base"
    folder.mkdir()
    small = {"model_layer": 3, "model_head": 2, "model_embd": 32, "model_positions": 48}
    config = Config(**small, vocab_size=300, dropout=0.25, bias=False, gradient_checkpointing=True)
    save_config(config, folder / "config.toml")
    return folder


def start_from(base, kind="training", **given):
    return make_config({"sources": ["a"], "model_name": "b", "init_from": str(base), **given}, kind)


def test_a_run_takes_over_the_model_that_it_starts_from(base):
    config = start_from(base)
    assert (config.model_layer, config.model_head, config.model_embd) == (3, 2, 32)
    assert (config.model_ff, config.bias, config.vocab_size) == (128, False, 300)
    assert (config.seq_len, config.max_context_length) == (48, 48)
    assert (config.tokenizer, config.dropout) == (str(base), 0.25)
    assert not config.gradient_checkpointing
    same = {"model_layer": 3, "model_ff": 0, "bias": False, "tokenizer": None, "preset": None}
    changed = start_from(base, **same, dropout=0.0, vocab_size=50257, seq_len=20)
    assert (changed.dropout, changed.seq_len, changed.vocab_size) == (0.0, 20, 300)


def test_what_a_run_took_over_is_written_and_read_again(base, tmp_path):
    config = start_from(base)
    save_config(config, tmp_path / "again.toml")
    assert dict(load_config(tmp_path / "again.toml", "training")) == dict(config)
    assert dict(config.changed(epochs=2)) == {**config, "epochs": 2}


@pytest.mark.parametrize("kind", [None, "generation"])
def test_only_training_reads_what_a_run_started_from(tmp_path, kind):
    assert start_from(tmp_path / "gone", kind).model_layer == Config().model_layer


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"model_layer": 4}, "b.toml: model_layer = 4, but the model of init_from has 3: leave"),
        ({"bias": True}, "b.toml: bias = True, but the model of init_from has False"),
        ({"preset": "small"}, "model_embd = 768, but the model of init_from has 32"),
        ({"tokenizer": "gpt2"}, "b.toml: tokenizer = 'gpt2', but the model of init_from has"),
        ({"seq_len": 100}, "seq_len 100 is above model_positions 48"),
        ({"init_from": "nowhere"}, "b.toml: init_from = 'nowhere': no trained model there"),
        ({"lora_rank": 2, "optimizer": "muon"}, "lora_rank is trained by AdamW: set optimizer"),
        ({"lora_rank": 2, "parallel": "fsdp"}, "lora_rank is not for sharded models"),
        ({"lora_rank": 2, "init_from": None}, "lora_rank goes with a trained model: set init_from"),
        ({"self_distillation": 0.5, "ema_decay": None}, "self_distillation needs the average of"),
        ({"self_distillation": 0.5, "preferences": ["a"]}, "self_distillation is for texts and"),
        ({"self_distillation": 0.5, "parallel": "fsdp"}, "self_distillation is not for sharded"),
        ({"lora_rank": 0}, "lora_rank must be at least 1, not 0"),
    ],
)
def test_what_contradicts_the_model_that_a_run_starts_from_is_named(base, given, found):
    keys = {"sources": ["a"], "model_name": "b", "init_from": str(base), **given}
    with pytest.raises(AGI2Error, match=re.escape(found)):
        make_config(keys, "training", "b.toml", dict.fromkeys(keys, "b.toml"))


@pytest.fixture
def checkpoint(base, tmp_path):
    """A checkpoint of a run from `base`, as far as a configuration reads it; `base` is moved."""
    folder = tmp_path / "trained" / "b" / "checkpoints" / "step-00000007"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}", encoding="utf-8")
    save_config(start_from(base, output_dir=str(folder.parents[2])), folder / "config.toml")
    (folder.parent / "step-00000003").mkdir()
    base.rename(tmp_path / "moved")
    return folder


@pytest.mark.parametrize("start", ["base", "moved", "nowhere"])
@pytest.mark.parametrize("resumed", ["auto", "trained/b", "trained/b/checkpoints/step-00000007"])
def test_a_resumed_run_needs_no_model_to_start_from(checkpoint, tmp_path, resumed, start):
    resume = resumed if resumed == "auto" else str(tmp_path / resumed)
    keys = {"output_dir": str(tmp_path / "trained"), "resume": resume, "lora_rank": 2}
    config = start_from(tmp_path / start, **keys)
    assert (config.model_layer, config.vocab_size, config.bias) == (3, 300, False)
    assert config.tokenizer == str(tmp_path / "base")  # as the checkpoint has it
    assert config.init_from == str(tmp_path / start)
    again = load_config(checkpoint / "config.toml", "training", [f"resume={resume}"])
    assert again.tokenizer == config.tokenizer
    with pytest.raises(AGI2Error, match=r"model_layer = 4, but .*step-00000007 has 3"):
        start_from(tmp_path / start, model_layer=4, **keys)


def test_a_run_is_not_resumed_with_another_model_to_start_from(checkpoint, base, tmp_path):
    (tmp_path / "moved").rename(base)
    other = tmp_path / "other"
    other.mkdir()
    save_config(Config(), other / "config.toml")
    keys = {"output_dir": str(tmp_path / "trained"), "resume": "auto"}
    assert start_from(base, **keys).model_layer == 3
    with pytest.raises(AGI2Error, match=r"but the run to resume is from .*base: set it back"):
        start_from(other, **keys)


@pytest.mark.parametrize("resume", ["auto", "{tmp_path}"])
def test_a_run_without_a_checkpoint_needs_the_model_to_start_from(tmp_path, resume):
    (tmp_path / "state.json").write_text("{}", encoding="utf-8")  # of earlier versions
    with pytest.raises(AGI2Error, match="no trained model there"):
        start_from(
            tmp_path / "gone", output_dir=str(tmp_path), resume=resume.format(tmp_path=tmp_path)
        )


def test_a_foreign_model_is_to_be_imported_first(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AGI2Error, match=f"agi2 import {re.escape(str(tmp_path))} NEW_FOLDER"):
        start_from(tmp_path)


# resources/default.toml

DEFAULT = RESOURCES / "default.toml"


def key_lines():
    """Line number, whether commented out, and key, of every line that sets or shows one."""
    lines = DEFAULT.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"(# )?([a-z_0-9]+) = ", line)
        if match:
            yield number, bool(match[1]), match[2]


def test_default_toml_holds_every_key_once_and_no_other():
    keys = [key for _, _, key in key_lines()]
    assert sorted(keys) == sorted(Config.model_fields)


def test_default_toml_sets_exactly_the_defaults():
    config = load_config(DEFAULT, "training")
    assert config.sources == ["data/corpus.txt"]
    assert config.model_name == "my_model"
    rest = set(Config.model_fields) - {"sources", "model_name"}
    assert {key: config[key] for key in rest} == {key: Config()[key] for key in rest}


def test_default_toml_comments_out_exactly_the_keys_without_a_default():
    commented = {key for _, is_commented, key in key_lines() if is_commented}
    assert commented == {key for key, value in Config().items() if value is None}


def key_docstrings():
    """The docstring of each key of a section, without line breaks and backticks."""
    for section in (DataConfig, ModelConfig, TrainConfig, GenerationConfig):
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(section))).body
        for field, below in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                yield field.target.id, " ".join(below.value.value.replace("`", "").split())


def test_default_toml_explains_each_key_as_its_docstring_does():
    documented = dict(key_docstrings())
    assert sorted(documented) == sorted(Config.model_fields)
    lines = DEFAULT.read_text(encoding="utf-8").splitlines()
    for number, _, key in key_lines():
        above = itertools.takewhile(
            lambda line: re.match(r"# (?![a-z_0-9]+ = )", line), lines[number - 1 :: -1]
        )
        comment = " ".join(line.removeprefix("# ") for line in reversed([*above]))
        assert comment.replace('"', "") == documented[key].replace('"', ""), key


def test_default_toml_shows_examples_that_are_valid():
    lines = DEFAULT.read_text(encoding="utf-8").splitlines()
    shown = [lines[number][2:] for number, is_commented, _ in key_lines() if is_commented]
    examples = make_config(tomllib.loads("\n".join(shown)))
    assert all(examples[key] is not None for key in tomllib.loads("\n".join(shown)))


@pytest.mark.parametrize("path", sorted(RESOURCES.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_configuration_can_train(path):
    assert load_config(path, "training").model_name


@pytest.mark.parametrize("path", sorted(RESOURCES.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_configuration_says_first_what_it_needs_and_reached(path):
    top = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert "# Needs: " in top
    assert "# Reached: " in top


# Files of strangers


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("a = " + "[" * 3000 + "]" * 3000, "t.toml: it is nested too deeply"),
        (".".join(["a"] * 3000) + " = 1", "t.toml: it is nested too deeply"),
        ("logit_bias." + ".".join(["a"] * 99) + " = 1", "t.toml:1: logit_bias of 'a' must be"),
        ("epochs = " + "9" * 5000, "t.toml: a number has too many digits"),
        (
            "seed = 0x" + "f" * 5000,
            "t.toml:1: seed must be at most 4,611,686,018,427,387,904, not a value of type int",
        ),
        ("temperature = 1e999", "t.toml:1: temperature must be a number from 0 on, not inf"),
        ("temperature = " + "9" * 400, "t.toml:1: temperature must be a number from 0 on, not 999"),
        ("x" * 10**5 + " = 1", "unknown key x"),
        ("#" * (2**20 + 1), "no configuration: it is larger than 1.0 MB"),
    ],
    ids=range(9),
)
def test_deep_and_huge_content_is_one_line(tmp_path, content, found):
    path = tmp_path / "t.toml"
    path.write_text(content)
    with pytest.raises(AGI2Error, match=re.escape(found)) as error:
        load_config(path)
    assert all(len(line) <= 300 for line in error.value.args)


def test_what_has_no_end_is_not_read_to_its_end():
    with pytest.raises(AGI2Error, match="/dev/zero: cannot be read: it is a device, not a file"):
        load_config("/dev/zero")
    with pytest.raises(AGI2Error, match="cannot be read"):
        load_config("a\0b")


def test_a_broken_link_is_said_to_be_one(tmp_path):
    (tmp_path / "my.toml").symlink_to("nowhere")
    with pytest.raises(AGI2Error, match=r"my\.toml: it is a broken link"):
        load_config(tmp_path / "my.toml")


@needs_pipes
def test_a_pipe_is_read_to_its_end_as_it_comes():
    reading, writing = os.pipe()

    def write():
        with open(writing, "wb", 0) as pipe:
            for part in (b"epochs =", b" 3\n", b"seed = 4\n"):
                time.sleep(0.02)
                pipe.write(part)

    writer = threading.Thread(target=write)
    writer.start()
    config = load_config(f"/dev/fd/{reading}")
    writer.join()
    os.close(reading)
    assert (config.epochs, config.seed) == (3, 4)


@needs_pipes
def test_a_pipe_that_nobody_writes_to_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("src.config_loader._READ_TIMEOUT", 0.05)
    os.mkfifo(tmp_path / "my.toml")
    with pytest.raises(
        AGI2Error, match=r"my\.toml: cannot be read: it is a pipe, and no data arrived"
    ):
        load_config(tmp_path / "my.toml")
    monkeypatch.setattr("src.config_loader._READ_TIMEOUT", 1e6)
    os.mkfifo(tmp_path / "config.toml")  # in a run's folder
    with pytest.raises(AGI2Error, match=r"config\.toml: cannot be read: it is a pipe, not a file"):
        load_config(tmp_path / "config.toml")


def test_the_first_twenty_problems_are_told_and_the_others_counted(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text("".join(f"unknown{i} = {i}\n" for i in range(20_000)))
    with pytest.raises(AGI2Error) as error:
        load_config(path)
    *told, more = error.value.args
    assert [line.split(" ")[0] for line in told] == [f"{path}:{n}:" for n in range(1, 21)]
    assert more == "and 19,980 more problems"


TREE = st.recursive(
    st.integers() | st.floats() | st.booleans() | st.text(max_size=5) | st.just(10**4000),
    lambda inside: st.lists(inside, max_size=3)
    | st.dictionaries(st.text(max_size=3), inside, max_size=3),
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(Config.model_fields)) | st.text(max_size=9), TREE))
def test_any_content_is_a_configuration_or_short_lines(content):
    problems: tuple[str, ...] = ()
    try:
        make_config(content, name="t")
    except AGI2Error as error:
        problems = error.args
    assert len(problems) <= 21
    assert all(0 < len(line) <= 300 and printable(line) == line for line in problems)
