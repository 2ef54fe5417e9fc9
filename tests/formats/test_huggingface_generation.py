"""Sampling keys in `generation_config.json`, read by `transformers`."""

import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config_keys import GenerationConfig
from src.formats.export import export_model
from src.formats.huggingface import import_huggingface
from src.formats.huggingface_generation import from_hf_generation, to_hf_generation
from src.formats.model_dir import load_model, save_model

SAMPLED = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.95}
PENALTIES = {
    "repetition_penalty": 1.2,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.25,
    "no_repeat_ngram": 3,
}
KEYS = [*SAMPLED, *PENALTIES]
SHARES = st.floats(0.01, 1)
OPTIONS = st.fixed_dictionaries(
    {"temperature": st.just(0.0) | st.floats(0.01, 5)},
    optional={
        **dict.fromkeys(("top_p", "min_p", "typical_p"), SHARES),
        **dict.fromkeys(("top_k", "no_repeat_ngram"), st.integers(1, 1000)),
        "repetition_penalty": st.floats(0.5, 2),
        **dict.fromkeys(("presence_penalty", "frequency_penalty"), st.floats(-2, 2)),
    },
)


@settings(max_examples=50)
@given(OPTIONS)
def test_options_come_back(keys):
    options = GenerationConfig(**keys)
    notes = to_hf_generation(options)
    found, kept = from_hf_generation(notes)
    assert kept == notes.keys()
    back = GenerationConfig(**found)
    unused = SAMPLED if options.is_greedy else {}
    for key in KEYS:
        if key not in unused:
            assert getattr(back, key) == getattr(options, key)
    assert back.is_greedy == options.is_greedy


@pytest.fixture
def export(saved, byte_pairs, tmp_path):
    """A function that exports a model whose configuration has these keys."""

    def make(**keys):
        model, folder = saved()
        save_model(model, byte_pairs, load_model(folder).config.changed(**keys), folder)
        export_model(folder, tmp_path / "hf")
        return tmp_path / "hf"

    return make


def test_transformers_samples_by_the_configuration(export):
    from transformers import GenerationConfig as Theirs

    folder = export(**SAMPLED, **PENALTIES)
    theirs = Theirs.from_pretrained(folder)
    theirs.validate(strict=True)
    assert theirs.do_sample is True
    for key, value in {**SAMPLED, **PENALTIES}.items():
        assert getattr(theirs, {"no_repeat_ngram": "no_repeat_ngram_size"}.get(key, key)) == value


def test_without_a_limit_transformers_samples_from_all_tokens(export):
    """Its default is the 50 most likely ones."""
    notes = json.loads((export(temperature=1.0) / "generation_config.json").read_text())
    assert notes == {
        **{"bos_token_id": notes["eos_token_id"], "eos_token_id": notes["eos_token_id"]},
        **{"do_sample": True, "temperature": 1.0, "top_k": 0},
    }


def test_greedy_decoding_is_exported_for_both(export):
    """vLLM takes the temperature from the file, `transformers` do_sample."""
    from transformers import GenerationConfig as Theirs

    folder = export(temperature=0.0, top_k=5, repetition_penalty=1.5)
    notes = json.loads((folder / "generation_config.json").read_text())
    assert notes["temperature"] == 0.0
    assert "top_k" not in notes
    theirs = Theirs.from_pretrained(folder)
    assert theirs.do_sample is False
    assert theirs.repetition_penalty == 1.5


def test_an_import_keeps_what_the_configuration_has(export, tmp_path, caplog):
    folder = export(**SAMPLED, **PENALTIES)
    with caplog.at_level(logging.WARNING, "agi2"):
        import_huggingface(folder, tmp_path / "back")
    assert not caplog.messages
    config = load_model(tmp_path / "back").config
    assert {key: config[key] for key in KEYS} == {**SAMPLED, **PENALTIES}


ODD = [
    ({}, {}, set()),
    ({"temperature": 0.6}, {}, set()),
    ({"do_sample": "yes", "temperature": 0.6}, {}, set()),
    ({"do_sample": True}, {}, {"do_sample"}),
    ({"do_sample": True, "temperature": "warm"}, {}, {"do_sample"}),
    ({"do_sample": True, "temperature": None, "top_k": -1}, {}, {"do_sample"}),
    ({"do_sample": True, "top_k": 0, "min_p": 0.0}, {}, {"do_sample", "top_k", "min_p"}),
    ({"do_sample": True, "top_k": False}, {}, {"do_sample"}),
    ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}, {"do_sample"}),
    ({"do_sample": False, "top_k": 5}, {"temperature": 0.0}, {"do_sample"}),
]


@pytest.mark.parametrize(("notes", "keys", "kept"), ODD)
def test_what_is_unclear_or_invalid_is_not_imported(notes, keys, kept):
    assert from_hf_generation(notes) == (keys, kept)
