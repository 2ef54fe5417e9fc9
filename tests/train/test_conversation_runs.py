"""Runs on conversations: tokens, validation, exact resume, and what is said of them."""

import logging

import numpy as np
import pytest
import torch

from src.data.chat_template import ChatTemplate, Message
from src.data.windows import IGNORE_INDEX
from src.errors import AGI2Error
from src.formats.model_dir import load_model
from src.model import GPT2Model
from src.tokenizer import BPETokenizer
from src.train.setup import prepare
from src.training import make_trainer, train_from_config, train_model
from tests.conftest import make_text
from tests.data.chats import messages_lines, random_conversations
from tests.train.test_trainer import EXACT, assert_same_outcome, crash

CHATS = random_conversations(40, seed=3, words=4)
SIZES = {"tokenizer": "bpe", "vocab_size": 300, "model_positions": 48, "model_embd": 16}


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_bytes(messages_lines(CHATS))
    return str(path)


def documents_of(tokens):
    """The ids of each document in shards."""
    ids, starts = np.asarray(tokens), tokens.document_starts.tolist()
    ends = [start - 1 for start in starts[1:]] + [len(ids)]
    return [ids[a:b].tolist() for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("tokenizer", ["bpe", "basic"])
def test_conversations_are_tokenized_as_the_template_does(tiny_run, chats, tokenizer):
    config = tiny_run(**{**SIZES, "tokenizer": tokenizer}, sources=[], conversations=[chats])
    text = prepare(config)
    template = ChatTemplate(text.tokenizer)
    expected = [template.encode(chat)[0] for chat in CHATS]
    train, val = (documents_of(each) for each in (text.corpus.train, text.corpus.val))
    assert sorted(train + val) == sorted(expected)
    assert [each for each in expected if each in train] == train
    assert 1 <= len(val) <= 8
    assert text.corpus.train.figures.conversations == len(train)
    assert text.corpus.val.figures.conversations == len(val)
    # Words were merged as they are said, not as JSON.
    assert text.corpus.train.figures.unknown == 0
    assert '","' not in {text.tokenizer.decode([id]) for id in range(text.tokenizer.vocab_size)}


def test_conversations_follow_the_text_and_are_split_by_themselves(tiny_run, chats):
    text = prepare(tiny_run(**SIZES, conversations=[chats], val_fraction=0.3))
    for tokens in (text.corpus.train, text.corpus.val):
        figures = tokens.figures
        assert figures.documents == 1 + figures.conversations
        assert make_text()[:40] in text.training_text[0]
        ends = [each[-2] for each in documents_of(tokens)[1:]]
        assert set(ends) == {ChatTemplate(text.tokenizer).end_of_turn}
    held_out = text.corpus.val.figures.conversations
    assert 8 <= held_out <= 16
    assert text.corpus.train.figures.conversations == 40 - held_out


def test_a_crash_and_a_resume_change_nothing(tiny_run, chats, caplog):
    options = {**EXACT, **SIZES, "conversations": [chats], "text_share": 0.3, "max_steps": 13}
    with caplog.at_level(logging.INFO, "agi2"):
        whole = train_from_config(tiny_run("whole", **options))
    assert "longer than seq_len 48: cut at turns into" in caplog.text
    assert "conversations: 7" in caplog.text
    for step in (0, 7, 12):
        crash(tiny_run("broken", resume="auto", **options), step)
    assert_same_outcome(whole, train_from_config(tiny_run("broken", resume="auto", **options)))
    with pytest.raises(AGI2Error, match=r"trained with text_share = 0\.3"):
        train_from_config(tiny_run("whole", resume="auto", **{**options, "text_share": 0.4}))
    trained = load_model(whole.folder)
    assert trained.tokenizer.has_roles
    assert trained.model.config.vocab_size == trained.tokenizer.vocab_size


def test_validation_is_on_what_the_assistant_says(tiny_run, chats):
    config = tiny_run(**SIZES, sources=[], conversations=[chats])
    trainer = make_trainer(config, prepare(config))
    found = trainer.evaluate()
    inputs, targets, ids = trainer.val_windows.batch(torch.arange(len(trainer.val_windows)), 0)
    assert found.tokens == int((targets != IGNORE_INDEX).sum())
    with torch.no_grad():
        logits = trainer.model.eval()(inputs, document_ids=ids).double()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert found.loss == pytest.approx(losses.item(), rel=1e-5)
    # About as many tokens as are asked for, in windows that have some.
    assert 0 < trainer.evaluate(48).tokens < found.tokens


def test_conversations_of_their_own_to_validate_on(tiny_run, chats, tmp_path, caplog):
    own = tmp_path / "val.jsonl"
    new = random_conversations(3, seed=99)
    own.write_bytes(messages_lines([*new, CHATS[0]]))
    keys = {**SIZES, "conversations": [chats], "val_conversations": [str(own)]}
    text = prepare(tiny_run(**keys))
    template = ChatTemplate(text.tokenizer)
    expected = [template.encode(chat)[0] for chat in [*new, CHATS[0]]]
    assert documents_of(text.corpus.val)[1:] == expected
    assert text.corpus.train.figures.conversations == 39
    assert "removed from the training text, as val_conversations has the same: 1 doc" in caplog.text


def test_a_system_message_that_all_have_is_no_copy(tiny_run, tmp_path, caplog):
    path = tmp_path / "same.jsonl"
    system = Message("system", "You are an assistant that is kind, brief and right. " * 20)
    turns = [[each for each in chat if each.role != "system"] for chat in CHATS]
    copied = [Message("system", "Be brief."), *turns[0]]
    path.write_bytes(messages_lines([*([system, *each] for each in turns), copied]))
    with caplog.at_level(logging.INFO, "agi2"):
        text = prepare(tiny_run(**SIZES, sources=[], conversations=[str(path)], dedup=True))
    assert "removed 0 copies and 1 near copy of other documents" in caplog.text
    assert "of the held-out conversations is in the training text" not in caplog.text
    kept = text.corpus.train.figures.conversations + text.corpus.val.figures.conversations
    assert kept == len(CHATS)
    assert text.corpus.val.figures.conversations >= 1


def test_a_model_and_a_tokenizer_of_ones_own(tmp_path, chats):
    tokenizer = BPETokenizer(270)
    model = GPT2Model({"vocab_size": 270, **{k: v for k, v in SIZES.items() if "model" in k},
                       "model_layer": 1, "model_head": 2})  # fmt: skip
    keys = {"output_dir": str(tmp_path / "runs"), "conversations": [chats], "max_steps": 1}
    history = train_model(model, tokenizer, [], batch_size=4, sample_tokens=0, **keys)
    assert history["steps"] == 1
    assert tokenizer.has_roles
    assert tokenizer.vocab_size == 270


def test_a_vocabulary_without_roles_gets_them(tmp_path, chats, caplog):
    tokenizer = BPETokenizer(270)
    tokenizer.fit([make_text()], verbose=False)
    sizes = {"model_layer": 1, "model_head": 2, "model_embd": 16, "model_positions": 48}
    model = GPT2Model({"vocab_size": 270, **sizes})
    keys = {"output_dir": str(tmp_path / "runs"), "conversations": [chats], "max_steps": 1}
    with caplog.at_level(logging.INFO, "agi2"):
        train_model(model, tokenizer, [], sample_tokens=0, **keys)
    assert "4 new tokens for the roles of conversations in the vocabulary" in caplog.text
    assert tokenizer.vocab_size == model.config.vocab_size == 274


def test_a_checkpoint_has_the_tokens_of_the_roles(tiny_run, chats):
    options = {**EXACT, **SIZES, "sources": [], "conversations": [chats], "max_steps": 5}
    crash(tiny_run("broken", **options), 4)
    assert train_from_config(tiny_run("broken", resume="auto", **options)).history["steps"] == 5


def test_too_few_conversations_to_hold_out(tiny_run, tmp_path, caplog):
    path = tmp_path / "few.jsonl"
    path.write_bytes(messages_lines(CHATS[:3]))
    with caplog.at_level(logging.INFO, "agi2"):
        text = prepare(tiny_run(**SIZES, sources=[], conversations=[str(path)], val_fraction=0.02))
    assert text.val_data is None
    assert text.corpus.train.figures.conversations == 3
