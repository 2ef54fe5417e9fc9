"""The arguments of `train_model`, converted to a configuration."""

import inspect
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from src.config import Config
from src.config_checks import PRESETS
from src.errors import AGI2Error
from src.formats.model_dir import load_model
from src.model import GPT2Model
from src.tokenizer import BasicTokenizer, BPETokenizer
from src.train.arguments import UNUSED_IN_TRAINING, configuration_of, copy_vocabulary
from src.training import train_model
from tests.test_training import same_weights, tiny_model


@pytest.fixture
def fitted(corpus):
    tokenizer = BasicTokenizer()
    tokenizer.fit([corpus.read_text()])
    return tokenizer


@pytest.fixture
def options(tmp_path):
    return {"max_steps": 1, "output_dir": str(tmp_path / "trained"), "sample_tokens": 0}


def model_for(tokenizer):
    return tiny_model(vocab_size=tokenizer.vocab_size)


# By position and by keyword.


def test_every_way_to_call_it_trains_the_same(corpus, fitted, options):
    config = configuration_of(model_for(fitted), {"sources": str(corpus), **options})
    ways = {
        "keywords": lambda m: train_model(
            model=m, tokenizer=fitted, sources=str(corpus), **options
        ),
        "positions": lambda m: train_model(m, fitted, str(corpus), None, **options),
        "configuration": lambda m: train_model(m, fitted, **config),
        "mapping": lambda m: train_model(m, fitted, **dict(config)),
    }
    trained = []
    for call in ways.values():
        trained.append(model_for(fitted))
        assert call(trained[-1])["steps"] == 1
    assert all(same_weights(trained[0], other) for other in trained[1:])


def test_the_signature_is_the_one_that_is_written():
    names = list(inspect.signature(train_model).parameters)
    assert names == ["model", "tokenizer", "sources", "epochs", "verbose", "kwargs"]
    with pytest.raises(TypeError, match="sources"):
        train_model(None, None)
    # No key of the configuration is a double of another argument.
    assert not {"model", "verbose", "kwargs"} & Config.model_fields.keys()


def test_a_tokenizer_may_be_named_as_the_configuration_names_it(corpus, options):
    for kind, size in (("basic", 40), ("bpe", 280)):
        model = tiny_model(vocab_size=size)
        train_model(model=model, tokenizer=kind, sources=str(corpus), model_name=kind, **options)
        trained = load_model(Path(options["output_dir"]) / kind)
        assert isinstance(trained.tokenizer, BasicTokenizer if kind == "basic" else BPETokenizer)
        assert trained.tokenizer.vocab_size <= size


@pytest.mark.parametrize(
    ("key", "is_named"),
    [("bpe", True), ("gpt2", True), ("else.json", True), ("basic", False), (None, False)],
)
def test_a_key_that_names_another_tokenizer_is_not_followed(
    corpus, fitted, options, caplog, key, is_named
):
    train_model(model_for(fitted), fitted, str(corpus), tokenizer=key, **options)
    assert (f"tokenizer = {key!r} is not followed" in caplog.text) == is_named


# Types.


@pytest.mark.parametrize(
    "sources", [str, Path, lambda path: [path], lambda path: (str(path), path)]
)
def test_sources_are_texts_paths_lists_or_tuples(corpus, sources):
    found = configuration_of(tiny_model(), {"sources": sources(corpus)}).sources
    assert set(found) == {str(corpus)}


@pytest.mark.parametrize("sources", [None, 7, b"bytes", {"a": 1}, [None], [["nested"]]])
def test_other_sources_are_refused(sources):
    with pytest.raises(AGI2Error, match=r"^sources: .* is not a path: give a string"):
        configuration_of(tiny_model(), {"sources": sources})


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("resume", True, "auto"),
        ("resume", False, None),
        ("resume", Path("some/run"), "some/run"),
        ("device", torch.device("cpu"), "cpu"),
        ("device", torch.device("cuda", 1), "cuda:1"),
        ("output_dir", Path("out"), "out"),
        ("epochs", np.int64(3), 3),
        ("epochs", torch.tensor(3), 3),
        ("learning_rate", np.float32(0.5), 0.5),
        ("stop", ("a", "b"), ["a", "b"]),
        ("seq_len", None, 8),
        ("seq_len", 5, 5),
        ("max_steps", None, None),
    ],
)
def test_values_stand_for_those_of_the_configuration(key, given, expected):
    config = configuration_of(tiny_model(), {"sources": "a.txt", key: given})
    assert config[key] == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epochs": "many"}, "train_model: epochs must be an integer, not 'many'"),
        ({"seq_len": 0}, "train_model: seq_len must be at least 1, not 0"),
        ({"seq_len": "long"}, "train_model: seq_len must be an integer, not 'long'"),
        ({"learning_rat": 1}, "unknown key learning_rat; did you mean learning_rate"),
        ({"device": "tpu"}, "device 'tpu' is none of"),
        ({"threads": 0}, "threads 0 is not in the range 1 to 1024"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(keys, message):
    with pytest.raises(AGI2Error, match=message) as refused:
        configuration_of(tiny_model(), {"sources": "a.txt", **keys})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["epochs", "learning_rate", "top_k", "model_name", "resume"])
@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_an_array_is_no_value_of_a_key(key, make):
    with pytest.raises(AGI2Error, match=key):
        configuration_of(tiny_model(), {"sources": "a", key: make([1, 2])})


def test_a_tensor_without_a_value_is_refused():
    with pytest.raises(AGI2Error, match=r"^epochs: a tensor on the meta device"):
        configuration_of(tiny_model(), {"sources": "a", "epochs": torch.tensor(2, device="meta")})


def test_models_and_tokenizers_of_another_kind_are_refused(corpus, fitted, options):
    with pytest.raises(AGI2Error, match="model: Linear is not a GPT2Model"):
        train_model(torch.nn.Linear(1, 1), fitted, str(corpus), **options)
    with pytest.raises(AGI2Error, match="tokenizer: function is not a tokenizer"):
        train_model(model_for(fitted), str.split and (lambda text: []), str(corpus), **options)


# What is not followed.


def test_keywords_that_are_not_followed_are_named(caplog):
    keys = {"model_layer": 12, "dropout": 0.5, "seq_len": 64, "preset": "small", "model_ff": 0}
    config = configuration_of(tiny_model(), {"sources": "a.txt", **keys})
    assert config.model_layer == 1
    assert config.seq_len == 8
    sizes = PRESETS["small"]
    assert sorted(caplog.messages) == sorted(
        [
            "dropout = 0.5 is not followed: the model has 0.0",
            "model_layer = 12 is not followed: the model has 1",
            f"model_head = {sizes['model_head']} is not followed: the model has 2",
            f"model_embd = {sizes['model_embd']} is not followed: the model has 16",
            "seq_len = 64 is not followed: the model has 8 positions",
        ]
    )


def test_a_configuration_that_is_the_models_is_followed_in_silence(caplog, tiny_run):
    config = tiny_run(vocab_size=300)
    with caplog.at_level(logging.INFO, logger="agi2"):
        configuration_of(GPT2Model(config), dict(config))
    assert caplog.messages == []


def test_keywords_of_generation_are_named_as_unused(caplog):
    assert set(UNUSED_IN_TRAINING) <= Config.model_fields.keys()
    with caplog.at_level(logging.INFO, logger="agi2"):
        given = {"sources": "a.txt", "beam_size": 8, "max_length": 100, "temperature": 0.5}
        assert configuration_of(tiny_model(), given).beam_size == 8
    assert caplog.messages == ["not used in training, written to the run's config.toml: beam_size"]


# A tokenizer that is not fitted.


@pytest.mark.parametrize("make", [BasicTokenizer, BPETokenizer])
def test_an_unfitted_tokenizer_is_fitted_on_the_text_to_train_on(corpus, options, caplog, make):
    corpus.write_text(corpus.read_text() + "ß" * 100)  # at the end, which is held out
    tokenizer, model = make(), tiny_model(vocab_size=300)
    with caplog.at_level(logging.INFO, logger="agi2"):
        train_model(model, tokenizer, str(corpus), **options)
    assert f"the tokenizer was not fitted: now it is, {tokenizer.vocab_size} tokens" in caplog.text
    assert 10 < tokenizer.vocab_size <= 300
    if make is BasicTokenizer:
        assert "ß" not in tokenizer.vocabulary
    trained = load_model(Path(options["output_dir"]) / "model")
    assert trained.tokenizer.fingerprint == tokenizer.fingerprint
    # A run that is resumed gives it the run's own vocabulary.
    again = make()
    train_model(model, again, str(corpus), resume=True, **{**options, "max_steps": 2})
    assert again.fingerprint == tokenizer.fingerprint
    other = BPETokenizer() if make is BasicTokenizer else BasicTokenizer()
    with pytest.raises(AGI2Error, match=f"was trained with a {make.__name__}, not a"):
        train_model(model, other, str(corpus), resume=True, **{**options, "max_steps": 3})


def test_a_vocabulary_that_the_model_has_no_room_for_is_one_line(corpus, options):
    with pytest.raises(AGI2Error, match="the model has 20 tokens, byte pairs are at least 257"):
        train_model(tiny_model(), BPETokenizer(), str(corpus), **options)
    with pytest.raises(AGI2Error, match="tokens, the model only 5"):
        train_model(tiny_model(vocab_size=5), BasicTokenizer(), str(corpus), **options)
    assert not Path(options["output_dir"]).exists()


def test_a_tokenizer_becomes_another_of_its_class(fitted):
    empty = BasicTokenizer()
    assert copy_vocabulary(empty, fitted) is empty
    assert empty.fingerprint == fitted.fingerprint
    assert copy_vocabulary(fitted, fitted) is fitted


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_refused_by_its_name(corpus, fitted, kind):
    model = tiny_model().to(kind)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(AGI2Error, match=rf"^model: its weights are {str(kind)[6:]}, .*float\(\)"):
        train_model(model, fitted, corpus, max_steps=1)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_model_in_float64_is_trained_and_loaded(corpus, fitted, options):
    model = tiny_model(vocab_size=fitted.vocab_size).double()
    before = [p.detach().clone() for p in model.parameters()]
    history = train_model(model, fitted, corpus, **options)
    assert all(p.dtype == torch.float64 and p.isfinite().all() for p in model.parameters())
    assert not all(map(torch.equal, before, model.parameters()))
    assert history["final_val_loss"] > 0
    loaded = load_model(Path(options["output_dir"]) / "model").model
    assert all(map(torch.equal, (p.float() for p in model.parameters()), loaded.parameters()))
