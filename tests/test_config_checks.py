"""Checks of a whole configuration, and values that follow from others."""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import Config
from src.errors import AGI2Error

TINY = {"model_layer": 2, "model_head": 2, "model_embd": 16, "model_positions": 8, "vocab_size": 50}


def test_lengths_follow_the_positions_unless_given():
    config = Config(model_positions=32)
    assert (config.seq_len, config.max_context_length) == (32, 32)
    config = Config(model_positions=32, seq_len=16, max_context_length=64)
    assert (config.seq_len, config.max_context_length) == (16, 64)


@pytest.mark.parametrize("limit", ["max_steps", "max_minutes"])
def test_a_limit_alone_ends_a_run_instead_of_the_epochs(limit):
    assert Config(**{limit: 3}).epochs > 100_000
    assert Config(**{limit: 3, "epochs": 4}).epochs == 4


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"model_embd": 10, "model_head": 3}, "model_embd 10 is not divisible by model_head 3"),
        ({"seq_len": 9, "model_positions": 8}, "seq_len 9 is above model_positions 8"),
        ({"batch_size": 12, "micro_batch_size": 5}, "micro_batch_size 5 does not divide batch_siz"),
        ({"micro_batch_size": 0}, "micro_batch_size 0 does not divide batch_size 12"),
        ({"micro_batch_size": -4}, "micro_batch_size -4 does not divide batch_size 12"),
        ({"vocab_size": 0}, "vocab_size 0 is not in the range 1 to 1,048,576"),
        ({"vocab_size": 2**20 + 1}, "vocab_size 1048577 is not in the range"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"pretokenizer": "gpt3"}, "pretokenizer"),
        (
            {"pretokenizer": "gpt4", "tokenizer": "basic"},
            'pretokenizer goes with a new vocabulary: set tokenizer = "bpe", or leave',
        ),
        ({"split_digits": True, "tokenizer": "gpt2"}, "split_digits goes with a new vocabulary"),
        (
            {"byte_fallback": True},
            'byte_fallback goes with a new vocabulary: set tokenizer = "basic"',
        ),
        (
            {"special_tokens": ["<a>"], "init_from": "x"},
            "special_tokens: the vocabulary of init_from stays as it is",
        ),
        ({"threads": 0}, "threads 0 is not in the range 1 to 1024"),
        ({"threads": 1025}, "threads 1025 is not in the range 1 to 1024"),
        ({"micro_batch_size": 24}, "micro_batch_size 24 does not divide batch_size 12"),
        ({"beam_size": 6, "beam_groups": 4}, "beam_groups 4 does not divide beam_size 6"),
        ({"beam_results": 6}, "beam_results 6 is above beam_size 5"),
        ({"beam_early_stopping": "always"}, "beam_early_stopping"),
        ({"diversity_penalty": -0.1}, "diversity_penalty"),
        ({"speculative": "ngram"}, "temperature 0.8 does not go with speculative"),
        (
            {"speculative": "ngram", "temperature": 0.0, "repetition_penalty": 1.2},
            'repetition_penalty 1.2 does not go with speculative = "ngram", which is '
            "greedy: set repetition_penalty = 1",
        ),
        (
            {"sources": ["a", "b"], "source_weights": [1.0]},
            "source_weights has 1 numbers for 2 sources: give one for each",
        ),
        ({"conversations": ["a"], "windows": "documents"}, "windows is that of sources: "),
        (
            {"sources": ["a"], "text_share": 0.5},
            "text_share is that of sources beside conversations: set both, or leave it out",
        ),
        (
            {"conversations": ["a"], "val_sources": ["b"]},
            "val_sources goes with sources to train on: set sources, or leave it out",
        ),
        (
            {"sources": ["a"], "val_conversations": ["b"]},
            "val_conversations goes with conversations to train on: set conversations, or",
        ),
        ({"sources": ["a"], "source_weights": [0]}, "source_weights[0] must be above 0 and at"),
        ({"source_weights": ["2"]}, "source_weights[0] must be a number, not '2'"),
        ({"source_weights": 2}, "source_weights must be a list of numbers, not 2"),
        ({"windows": "pack"}, "windows must be"),
        ({"model_name": ".."}, "model_name '..' is not a folder's name"),
        ({"model_name": "a/b"}, "model_name 'a/b' is not a folder's name"),
        ({"model_name": "a\\b"}, "is not a folder's name"),
        ({"model_name": "é" * 121}, "is too long for a folder's name: at most 240 bytes"),
        ({"model_name": "a\0b"}, "is not a folder's name"),
        ({"output_dir": "a\0b"}, "is not a folder's name"),
        ({"device": "gpu"}, "device 'gpu' is none of auto, cpu, cuda"),
        ({"device": "cpu:1"}, "device 'cpu:1' is none of"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 0.0}, "min_p"),
        ({"typical_p": 1.1}, "typical_p"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram"),
        ({"logit_bias": {"a": float("inf")}}, "logit_bias"),
        ({"min_length": 9, "max_length": 8}, "min_length 9 is above max_length 8"),
        ({"samples": 2, "temperature": 0.0}, "samples 2 would all be equal at temperature 0"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"preset": "huge"}, "preset"),
        ({"epochs": "3"}, "epochs"),
        ({"epochs": 3.5}, "epochs"),
        ({"bias": 1}, "bias"),
    ],
)
def test_wrong_values_and_contradictions_are_errors(keys, problem):
    with pytest.raises(AGI2Error) as error:
        Config(**keys)
    assert problem in str(error.value)


def test_greedy_text_may_be_speculated():
    config = Config(speculative="ngram", temperature=0.0)
    assert (config.speculative, Config().speculative) == ("ngram", "none")


@pytest.mark.parametrize("micro", ["auto", 1, 3, 12])
def test_a_micro_batch_divides_the_batch(micro):
    assert Config(micro_batch_size=micro).micro_batch_size == micro


def test_what_only_follows_from_other_keys_follows_anew():
    assert Config().changed(model_positions=64).seq_len == 64
    assert Config(max_steps=5).changed(max_steps=None).epochs == 10
    larger = Config(preset="small", model_layer=2).changed(preset="large")
    assert (larger.model_layer, larger.model_head, larger.model_embd) == (2, 20, 1280)


@pytest.mark.parametrize(
    ("key", "given", "plain"),
    [
        ("sources", Path("a.txt"), ["a.txt"]),
        ("sources", (Path("a.txt"), "b.txt"), ["a.txt", "b.txt"]),
        ("output_dir", Path("runs"), "runs"),
        ("init_from", Path("runs/a"), "runs/a"),
        ("stop", ("x",), ["x"]),
        ("device", torch.device("cpu"), "cpu"),
        ("preset", "Small", "small"),
        ("resume", True, "auto"),
        ("resume", False, None),
        ("resume", Path("runs/a"), "runs/a"),
        ("top_k", 0, None),
        ("epochs", np.int64(3), 3),
        ("temperature", np.float32(0.5), 0.5),
        ("max_length", torch.tensor(7), 7),
        ("bias", np.True_, True),
    ],
)
def test_a_value_of_python_is_what_a_file_would_have_given(key, given, plain):
    assert Config(**{key: given})[key] == plain
    assert type(Config(**{key: given})[key]) is type(plain)


@pytest.mark.parametrize("key_and_value", [("top_k", False), ("epochs", True), ("epochs", "3")])
def test_a_value_of_another_meaning_is_refused(key_and_value):
    with pytest.raises(AGI2Error):
        Config(**dict([key_and_value]))


@pytest.mark.parametrize("name", ["klingon", "rot13", "a\0b", "\ud800"])
def test_an_encoding_that_python_does_not_know_is_refused(name):
    with pytest.raises(AGI2Error, match="none that Python knows, such as utf-8 or cp1252"):
        Config(encoding=name)
    assert Config(encoding="Windows-1252").encoding == "Windows-1252"
