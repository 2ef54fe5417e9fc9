"""What is prepared before training: the tokenized text, and what of it is kept for later runs."""

import dataclasses
import logging
import pickle

import numpy as np
import pytest
import torch

from src.data import build
from src.errors import AGI2Error
from src.tokenizer import BasicTokenizer, BPETokenizer
from src.train.distributed import ProcessGroup
from src.train.setup import prepare, prepare_on_rank_0
from src.training import train_from_config


@pytest.fixture
def config(tiny_run, tmp_path):
    return tiny_run(token_cache=str(tmp_path / "tokens"))


def tokens_of(text):
    return np.asarray(text.train_data.tokens).tolist()


class Own(BasicTokenizer):
    """A user's own tokenizer, of which nothing is known."""


@pytest.mark.parametrize("make", [lambda: BPETokenizer(290), BasicTokenizer, Own])
def test_a_tokenizer_that_is_not_fitted_is_fitted_once_for_a_text(config, make, caplog, tmp_path):
    caplog.set_level(logging.INFO, "agi2")
    first, second = make(), make()
    before = tokens_of(prepare(config, tokenizer=first))
    caplog.clear()
    text = prepare(config, tokenizer=second)
    assert text.tokenizer is second
    assert tokens_of(text) == before
    assert vars(second).keys() == vars(first).keys()
    assert second.fingerprint == first.fingerprint
    assert getattr(second, "max_vocab_size", None) == getattr(first, "max_vocab_size", None)
    assert f"now it is, {second.vocab_size} tokens" in caplog.text
    assert ("the text is unchanged" in caplog.text) == (type(second) is not Own)


def test_the_text_is_read_once_for_several_runs(config, monkeypatch):
    before = prepare(config)
    monkeypatch.setattr(build, "iterate_documents", None)
    after = prepare(config.changed(seq_len=8, batch_size=3, learning_rate=0.5))
    assert tokens_of(after) == tokens_of(before)
    assert list(after.training_text) == list(before.training_text)
    assert (after.documents, after.characters, after.size) == (
        before.documents,
        before.characters,
        before.size,
    )


def test_other_ranks_receive_paths_and_open_the_tokens_themselves(config, monkeypatch):
    made = prepare_on_rank_0(config, None, None, ProcessGroup(torch.device("cpu")))

    def received(self, make):
        sent = dataclasses.replace(made, training_text=[], corpus=None)
        data = pickle.dumps(sent)
        assert len(data) < 10_000
        return pickle.loads(data)

    monkeypatch.setattr(ProcessGroup, "broadcast_from_main", received)
    other = ProcessGroup(torch.device("cpu"), rank=1, world_size=2)
    own = BasicTokenizer()
    text = prepare_on_rank_0(config, None, own, other)
    assert tokens_of(text) == tokens_of(made)
    assert own.fingerprint == made.tokenizer.fingerprint
    assert list(text.training_text) == []
    path = made.corpus.train.files[0]
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(AGI2Error, match=r"process 1: .* is missing: set token_cache to a folder"):
        prepare_on_rank_0(config, None, None, other)


def test_a_text_of_one_token_is_too_short(tmp_path, tiny_run):
    (tmp_path / "corpus.txt").write_text("a")
    with pytest.raises(AGI2Error, match="the text has 1 token: at least 2 are needed"):
        prepare(tiny_run(val_fraction=0.0))


def test_a_val_fraction_that_leaves_nothing_to_train_on_is_named(tmp_path, tiny_run):
    (tmp_path / "corpus.txt").write_text("abcabcabcabcabc")
    with pytest.raises(AGI2Error, match=r"left .* has 1 token: .*; lower val_fraction, 0\.9"):
        prepare(tiny_run(val_fraction=0.9, tokenizer="bpe", vocab_size=300))


def test_held_out_text_of_one_token_is_too_short(tmp_path, tiny_run, caplog):
    (tmp_path / "corpus.txt").write_text("abcabcabca")
    assert prepare(tiny_run()).val_data is None
    assert "the held-out text is too short to validate on" in caplog.text


def test_validation_text_of_its_own_and_without_copies(tmp_path, tiny_run, caplog):
    (tmp_path / "val.txt").write_text("only for validation, in a file of its own")
    text = prepare(
        tiny_run(tokenizer="bpe", vocab_size=300, val_sources=str(tmp_path / "val.txt"), dedup=True)
    )
    decoded = text.tokenizer.decode(np.asarray(text.val_data.tokens))
    assert decoded == "only for validation, in a file of its own"


def test_stochastic_depth_is_of_every_block_and_resumes_exactly(tiny_run):
    keys = {"model_layer": 2, "checkpoint_interval": 2, "lr_schedule": "constant"}
    plain = train_from_config(tiny_run("plain", max_steps=4, **keys))
    keys["stochastic_depth"] = 0.5
    complete = train_from_config(tiny_run("complete", max_steps=4, **keys))
    assert [block.skip_rate for block in complete.model.blocks] == [0.5, 0.5]
    assert [block.skip_rate for block in plain.model.blocks] == [0.0, 0.0]
    assert complete.history["train_loss"] != plain.history["train_loss"]
    train_from_config(tiny_run("cut", max_steps=2, **keys))
    resumed = train_from_config(tiny_run("cut", max_steps=4, resume="auto", **keys))
    assert resumed.history["final_val_loss"] == complete.history["final_val_loss"]
    for one, other in zip(resumed.model.parameters(), complete.model.parameters(), strict=True):
        assert torch.equal(one, other)
