"""Windows of conversations: every reply once, its end always a target, no attention across."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import Config, GPT2Config
from src.data.batches import EpochBatches
from src.data.chat_template import ChatTemplate
from src.data.conversation_windows import ConversationPlan, Piece
from src.data.planned_windows import hash_of_bounds, training_windows, validation_windows
from src.data.windows import IGNORE_INDEX, TokenWindows
from src.errors import AGI2Error
from src.model import GPT2Model
from src.train.loss import NextTokenLoss
from src.train.step import accumulate_gradients
from tests.data.chats import (
    chat_tokenizer,
    conversations,
    make_conversation,
    random_conversations,
    write_shards,
)

TOKENIZER = chat_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
CHATS = st.lists(conversations(), min_size=1, max_size=8)
some = settings(max_examples=25, deadline=None)


def windows_of(folder, chats, width, documents=(), **keys):
    tokens = write_shards(folder, chats, TOKENIZER, documents)
    keys = {"sources": ["a text"] if documents else [], "conversations": ["chats"], **keys}
    dataset = TokenWindows(tokens, min(width + 1, len(tokens)), width)
    config = Config(seed=7, model_positions=2**14, **keys)
    return training_windows(dataset, config, TOKENIZER)


def epoch_of(windows, epoch=0, batch_size=4):
    """The inputs, targets and document ids of an epoch."""
    batches = EpochBatches(windows, batch_size, seed=3)
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    parts = [torch.cat(part) for part in zip(*map(batches.batch, steps), strict=True)]
    counted = [int((batches.batch(step)[1] != IGNORE_INDEX).sum()) for step in steps]
    assert [batches.weight(step) for step in steps] == counted
    return parts


def pieces_of(inputs, targets, ids):
    """The inputs and targets of each piece, as lists; padding is none."""
    pieces = []
    for row, wanted, own in zip(inputs.tolist(), targets.tolist(), ids.tolist(), strict=True):
        found = {}
        for token, target, document in zip(row, wanted, own, strict=True):
            found.setdefault(document, []).append((token, target))
        pieces += [list(zip(*piece, strict=True)) for piece in found.values()]
    return [each for each in pieces if any(target != IGNORE_INDEX for target in each[1])]


def encoded(chat):
    """The inputs and targets of a conversation by itself, up to its last target."""
    ids, counts = TEMPLATE.encode(chat)
    end = max(place for place, is_target in enumerate(counts) if is_target) + 1
    targets = [id if own else IGNORE_INDEX for id, own in zip(ids, counts, strict=True)]
    return tuple(ids[: end - 1]), tuple(targets[1:end])


@some
@given(chats=CHATS)
def test_conversations_that_fit_are_in_an_epoch_once_as_they_are(chats, tmp_path_factory):
    windows = windows_of(tmp_path_factory.mktemp("chats"), chats, 1000)
    for epoch in range(2):
        found = pieces_of(*epoch_of(windows, epoch))
        assert Counter(map(tuple, found)) == Counter(map(encoded, chats))


@some
@given(chats=CHATS, width=st.integers(8, 60))
def test_what_the_assistant_says_is_a_target_once_also_when_cut(chats, width, tmp_path_factory):
    windows = windows_of(tmp_path_factory.mktemp("chats"), chats, width)
    inputs, targets, ids = epoch_of(windows)
    assert inputs.size(1) <= width
    wanted = Counter(target for chat in chats for target in encoded(chat)[1])
    found = Counter(targets.flatten().tolist())
    del wanted[IGNORE_INDEX], found[IGNORE_INDEX]
    assert found == wanted
    assert found[TEMPLATE.end_of_turn] == sum(len(chat) // 2 for chat in chats)
    roles = {TEMPLATE.join(role, ())[0] for role in ("system", "user", "assistant")}
    for own_inputs, own_targets in pieces_of(inputs, targets, ids):
        assert own_inputs[0] in roles
        piece = np.array([*own_inputs, own_targets[-1]])
        expected = np.where(TEMPLATE.target_mask(piece), piece, IGNORE_INDEX)[1:]
        counted = np.array(own_targets) >= 0
        assert (expected[counted] == np.array(own_targets)[counted]).all()
        if own_inputs[0] != TEMPLATE.reply_start[0]:
            assert expected.tolist() == list(own_targets)


@some
@given(chat=conversations(max_turns=6), width=st.integers(8, 80))
def test_pieces_of_a_conversation_in_order_have_its_targets(chat, width, tmp_path_factory):
    tokens = write_shards(tmp_path_factory.mktemp("chat"), [chat], TOKENIZER)
    plan = ConversationPlan(tokens, width, TEMPLATE)
    ids, counts = map(np.array, TEMPLATE.encode(chat))
    pieces = [plan._piece(index) for index in range(plan.pieces)]
    read = [np.concatenate([tokens[at : at + n] for at, n in each.segments]) for each in pieces]
    assert all(len(piece) <= width + 1 for piece in read)
    is_counted = [
        np.arange(len(ids)) >= each.uncounted for ids, each in zip(read, pieces, strict=True)
    ]
    said = [
        piece[TEMPLATE.target_mask(piece) & own]
        for piece, own in zip(read, is_counted, strict=True)
    ]
    assert np.concatenate(said).tolist() == ids[counts].tolist()
    assert all(len(each) for each in said)
    is_long = len(encoded(chat)[0]) > width
    assert plan.cut == is_long == (len(pieces) > 1 or bool(plan.shortened))
    if not is_long:
        assert pieces == [Piece([(1, len(encoded(chat)[0]) + 1)])]


def test_pieces_begin_at_turns_with_the_system_message_if_it_fits(tmp_path):
    chat = make_conversation([("q" * 5, "a" * 5), ("r" * 5, "b" * 5), ("s" * 5, "c" * 5)], "sys")
    # 7 tokens of the system message, 18 of each turn (9 and 9), of which the last is not needed.
    tokens = write_shards(tmp_path, [chat], TOKENIZER)

    def texts(width):
        plan = ConversationPlan(tokens, width, TEMPLATE)
        pieces = [plan._piece(index) for index in range(plan.pieces)]
        decoded = (
            "".join(TOKENIZER.decode(tokens[at : at + n]) for at, n in piece.segments)
            for piece in pieces
        )
        return [" ".join(each.split()) for each in decoded], plan.shortened

    q, r, s = "qqqqq aaaaa", "rrrrr bbbbb", "sssss ccccc"
    assert texts(59) == ([f"sys {q} {r} {s}"], 0)
    assert texts(58) == ([f"sys {q} {r}", f"sys {s}"], 0)
    assert texts(41) == ([f"sys {q} {r}", f"sys {s}"], 0)
    assert texts(40) == ([f"sys {q}", f"sys {r}", f"sys {s}"], 0)
    assert texts(23) == ([f"sys {q}", f"sys {r}", f"sys {s}"], 0)
    assert texts(22) == ([q, r, s], 1)
    assert texts(16) == ([q, r, s], 1)
    # What the user says loses its beginning, and then the reply is in several pieces.
    assert texts(15) == (["qqqq aaaaa", "rrrr bbbbb", "ssss ccccc"], 1)
    assert texts(12)[0][:2] == ["qq aaaaa", "aaaaa"]  # the end of the turn is in the second
    assert texts(8)[0][:4] == ["aaa", "aaaaa", "bbb", "bbbbb"]
    with pytest.raises(AGI2Error, match=r"^seq_len 7 is too short for conversations: at least 8$"):
        texts(7)


def test_the_log_says_what_was_cut(tmp_path):
    chats = [make_conversation([("q" * 9, "a" * 30)]), make_conversation([("q", "a")] * 4)]
    lines = list(windows_of(tmp_path, [*chats, make_conversation([("q", "a")])], 25).describe())
    assert lines[1] == "2 of 3 conversations longer than seq_len 25: cut at turns into 5 pieces"
    assert lines[2].startswith("1 conversation with a turn longer than that: pieces of it lack ")


@some
@given(chats=CHATS, width=st.integers(30, 90))
def test_packed_conversations_have_the_loss_of_each_alone(chats, width, tmp_path_factory):
    windows = windows_of(tmp_path_factory.mktemp("chats"), chats, width)
    inputs, targets, ids = epoch_of(windows)
    model = tiny_model(width)
    losses = NextTokenLoss(model)
    alone = total = 0
    for own_inputs, own_targets in pieces_of(inputs, targets, ids):
        count = sum(target >= 0 for target in own_targets)
        loss = losses(torch.tensor([own_inputs]), torch.tensor([own_targets]))
        alone, total = alone + loss.item() * count, total + count
    packed = losses(inputs, targets, ids)
    assert packed.item() == pytest.approx(alone / total, rel=1e-12)
    # As micro-batches of the accumulated gradients, of which some may have few targets.
    loss = accumulate_gradients(losses, (inputs, targets, ids), model.device, micro_batch_size=1)
    assert loss.item() == pytest.approx(alone / total, rel=1e-5)  # added in float32


def tiny_model(positions):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "dropout": 0.0}
    size = TOKENIZER.vocab_size
    return GPT2Model(GPT2Config(vocab_size=size, max_seq_len=positions, **sizes)).double()


def test_a_micro_batch_without_targets_adds_nothing(tmp_path):
    windows = windows_of(tmp_path, random_conversations(6, seed=2), 60)
    inputs, targets, ids = epoch_of(windows)
    results = []
    none = torch.full_like(targets[:1], IGNORE_INDEX)
    for more in (0, 1):
        model = tiny_model(60)
        batch = (
            torch.cat([inputs[:1]] * more + [inputs]),
            torch.cat([none] * more + [targets]),
            torch.cat([ids[:1]] * more + [ids]),
        )
        loss = accumulate_gradients(NextTokenLoss(model), batch, model.device, micro_batch_size=1)
        results.append([loss, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    model = tiny_model(60)
    loss = NextTokenLoss(model)(inputs[:1], none, ids[:1])
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


# Beside plain text


TEXTS = tuple(f"text {number} " * 30 for number in range(9))


def shares_of(windows, epoch):
    """The number of tokens of text, and the pieces of conversations, of an epoch."""
    inputs, targets, ids = epoch_of(windows, epoch)
    spoken = (inputs == TEMPLATE.end_of_turn).any(1)
    is_text = ~spoken
    text = int((targets[is_text] >= 0).sum())
    return text, pieces_of(inputs[spoken], targets[spoken], ids[spoken])


@pytest.mark.parametrize("keys", [{}, {"windows": "packed", "mask_documents": True}])
@pytest.mark.parametrize("share", [None, 0.0, 0.2, 0.9])
def test_each_epoch_has_each_conversation_and_its_share_of_text(tmp_path, share, keys):
    chats = random_conversations(40, seed=5, words=3)
    windows = windows_of(tmp_path, chats, 400, TEXTS, text_share=share, **keys)
    size = sum(len(encoded(chat)[0]) for chat in chats)
    for epoch in range(3):
        text, pieces = shares_of(windows, epoch)
        assert Counter(map(tuple, pieces)) == Counter(map(encoded, chats))
        if share is None:
            assert text == pytest.approx(sum(map(len, TEXTS)), rel=0.2)
        elif share:
            assert text / (text + size) == pytest.approx(share, abs=0.05)
        else:
            assert not text
    assert bool(share == 0.0) == (not any("sources: " in line for line in windows.describe()))


def test_text_is_one_document_unless_it_is_masked(tmp_path):
    windows = windows_of(tmp_path, random_conversations(3), 400, TEXTS)
    inputs, _, ids = epoch_of(windows)
    is_text = ~(inputs == TEMPLATE.end_of_turn).any(1)
    assert is_text.any()
    assert all(len(set(row.tolist())) == 1 for row in ids[is_text])


def test_weights_of_sources_share_the_text(tmp_path):
    chats = random_conversations(20, seed=5)
    tokens = write_shards(tmp_path, chats, TOKENIZER, TEXTS)
    tokens.figures.source_documents = [3, 6]
    dataset = TokenWindows(tokens, 101, 100)
    keys = {"sources": ["a", "b"], "source_weights": [3, 1], "model_positions": 512}
    for share, text in ((0.5, 0.5), (None, None)):
        config = Config(conversations=["c"], text_share=share, **keys)
        lines = list(training_windows(dataset, config, TOKENIZER).describe())
        found = {line.split(":")[0]: float(line.split()[1]) / 100 for line in lines[-3:]}
        assert list(found) == ["a", "b", "conversations"]
        if text is not None:
            assert found["a"] + found["b"] == pytest.approx(text, abs=0.1)
        assert found["a"] / found["b"] == pytest.approx(3, rel=0.3)


def test_nothing_to_train_on_is_an_error(tmp_path):
    for name, chats, documents, problem in (
        ("a", [], TEXTS, "^conversations: none is left to train on"),
        ("b", random_conversations(3), (), "^sources: there is no text in them"),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(AGI2Error, match=problem):
            windows_of(tmp_path / name, chats, 60, documents, sources=["a"])


def test_held_out_conversations_are_what_is_validated_on(tmp_path):
    chats = random_conversations(9)
    tokens = write_shards(tmp_path, chats, TOKENIZER, TEXTS, "val")
    dataset = TokenWindows(tokens, 1001, 1000)
    windows = validation_windows(dataset, TOKENIZER)
    found = pieces_of(*windows.batch(torch.arange(len(windows)), 0))
    assert Counter(map(tuple, found)) == Counter(map(encoded, chats))
    tokens.figures.conversations = 0
    assert validation_windows(dataset, TOKENIZER) is dataset


def test_the_bounds_of_conversations_are_part_of_what_is_trained_on(tmp_path):
    tokens = write_shards(tmp_path, random_conversations(3), TOKENIZER, TEXTS)
    dataset = TokenWindows(tokens, 101, 100)
    config = Config(conversations=["a"], sources=["b"], model_positions=512)
    before = hash_of_bounds(dataset, config)
    tokens.figures.conversations -= 1
    assert before != hash_of_bounds(dataset, config)
