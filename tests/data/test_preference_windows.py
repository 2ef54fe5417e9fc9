"""Windows of pairs: the two conversations, what counts in them, and what is left out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import Config
from src.data.batches import EpochBatches
from src.data.chat_template import ChatTemplate, Message
from src.data.planned_windows import hash_of_bounds, training_windows, validation_windows
from src.data.preference_windows import PreferenceWindows
from src.data.shards import ShardedTokens
from src.data.windows import IGNORE_INDEX, TokenWindows
from src.errors import AGI2Error
from tests.data.chats import TEXTS, chat_tokenizer, conversations, write_shards

TOKENIZER = chat_tokenizer()
TEMPLATE = ChatTemplate(TOKENIZER)
some = settings(max_examples=25, deadline=None)


def answered(chat, replies):
    """A pair: a conversation without its last reply, and two replies."""
    return [*chat[:-1], *[Message("assistant", replies[0])]], [
        *chat[:-1],
        *[Message("assistant", replies[1])],
    ]


REPLIES = st.tuples(TEXTS, TEXTS).map(lambda two: tuple(map(str.strip, two)))
PAIRS = st.lists(
    st.builds(answered, conversations(), REPLIES.filter(lambda two: two[0] != two[1])),
    min_size=1,
    max_size=5,
)


def write_pairs(folder, pairs) -> ShardedTokens:
    """Write pairs to shards, as texts are that are encoded already."""

    class Pairs(ChatTemplate):
        def encode(self, pair):
            one, other = (TEMPLATE.encode(each)[0] for each in pair)
            return [*one, TOKENIZER.end_of_text, *other], []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.data.chats.ChatTemplate", Pairs)
        return write_shards(folder, pairs, TOKENIZER)


def rows_of(windows):
    """The inputs and targets of each conversation, without padding: (pairs, 2)."""
    inputs, targets, _ = windows.batch(torch.arange(len(windows)), 0)
    width = inputs.size(1) // 2
    return [
        [
            (row[side * width : (side + 1) * width], own[side * width : (side + 1) * width])
            for side in range(2)
        ]
        for row, own in zip(inputs.numpy(), targets.numpy(), strict=True)
    ]


@some
@given(pairs=PAIRS)
def test_a_row_has_both_conversations_and_the_last_replies_as_targets(pairs, tmp_path_factory):
    windows = PreferenceWindows(write_pairs(tmp_path_factory.mktemp("a"), pairs), 10**4, TEMPLATE)
    assert [*windows.describe()][1:] == []
    assert windows.weight(torch.arange(len(pairs)), 0) == len(windows) == len(pairs)
    lengths = []
    for pair, row in zip(pairs, rows_of(windows), strict=True):
        for chat, (inputs, targets) in zip(pair, row, strict=True):
            ids = TEMPLATE.encode(chat)[0][:-1]  # to the end of the turn
            prompt = len(TEMPLATE.encode(chat[:-1], add_generation_prompt=True)[0])
            assert inputs[: len(ids) - 1].tolist() == ids[:-1]
            wanted = [IGNORE_INDEX] * (prompt - 1) + ids[prompt:]
            assert targets[: len(wanted)].tolist() == wanted
            assert (targets[len(wanted) :] == IGNORE_INDEX).all()
            assert (inputs[len(wanted) :] == 0).all()
            lengths.append(len(wanted))
    assert windows.seq_len == 2 * max(lengths) + 1
    assert windows.mean_targets == pytest.approx(2 * np.mean(lengths))
    expected = sum(n**2 for n in lengths) / sum(lengths)
    assert windows.attention_length == pytest.approx(expected)


@some
@given(pairs=PAIRS, width=st.integers(12, 90))
def test_long_pairs_lose_their_first_turns_on_both_sides_alike(pairs, width, tmp_path_factory):
    tokens = write_pairs(tmp_path_factory.mktemp("a"), pairs)

    def shortest(pair):
        turn = [each[-2:] for each in pair]
        return max(len(TEMPLATE.encode(each)[0]) - 2 for each in turn)

    fitting = [pair for pair in pairs if shortest(pair) <= width]
    if not fitting:
        with pytest.raises(AGI2Error, match=f"none is left to train on: {len(pairs)} longer than"):
            PreferenceWindows(tokens, width, TEMPLATE)
        return
    windows = PreferenceWindows(tokens, width, TEMPLATE)
    assert (len(windows), windows.long) == (len(fitting), len(pairs) - len(fitting))
    assert windows.seq_len <= 2 * width + 1
    for pair, row in zip(fitting, rows_of(windows), strict=True):
        kept = []
        for chat, (inputs, targets) in zip(pair, row, strict=True):
            said = TEMPLATE.encode([chat[-1]])[0][len(TEMPLATE.reply_start) : -1]
            assert targets[targets != IGNORE_INDEX].tolist() == said
            end = int(np.flatnonzero(targets != IGNORE_INDEX)[-1])
            kept.append(inputs[: end + 2 - len(said)].tolist())
        assert kept[0] == kept[1]
        full = TEMPLATE.encode(pair[0][:-1], add_generation_prompt=True)[0]
        size = len(full) - len(kept[0])
        system = TEMPLATE.encode(pair[0][:1])[0] if pair[0][0].role == "system" else []
        starts = [full[:0] + full[size:], system + full[len(system) + size :]]
        assert kept[0] in starts
        role = TEMPLATE.join("user", ())[0]
        assert kept[0][0] in (role, *system[:1])
    lines = [*windows.describe()]
    assert ("first turns are left out" in str(lines)) == (windows.shortened > 0)
    assert ("left out: the last turn" in str(lines)) == (windows.long > 0)


def test_replies_with_the_same_tokens_are_left_out(tmp_path):
    same = [Message("user", "a"), Message("assistant", "b")]
    other = [Message("user", "a"), Message("assistant", "c")]
    longer = [*same, Message("user", "x"), Message("assistant", "y")]
    changed = [Message("user", "b"), Message("assistant", "b")]
    # A function of `preprocess` may have made them so.
    pairs = [(same, same), (same, other), (same, longer), (same, changed)]
    windows = PreferenceWindows(write_pairs(tmp_path, pairs), 50, TEMPLATE)
    assert len(windows) == 1
    assert "3 pairs left out: the replies have the same tokens" in [*windows.describe()]
    with pytest.raises(
        AGI2Error, match=r"of 1 pair none is left to validate on: 0 longer.* 1 with"
    ):
        PreferenceWindows(write_pairs(tmp_path, [(same, same)]), 50, TEMPLATE, "validate on")


def test_several_messages_after_the_first_that_differs_count(tmp_path):
    asked, more = Message("user", "a"), Message("user", "and?")
    chosen = [asked, Message("assistant", "b"), more, Message("assistant", "c")]
    rejected = [asked, Message("assistant", "bd"), more, Message("assistant", "c")]
    windows = PreferenceWindows(write_pairs(tmp_path, [(chosen, rejected)]), 90, TEMPLATE)
    for chat, (_, targets) in zip((chosen, rejected), rows_of(windows)[0], strict=True):
        ids, counted = TEMPLATE.encode(chat)
        expected = [id for id, own in zip(ids, counted, strict=True) if own]
        assert targets[targets != IGNORE_INDEX].tolist() == expected


def test_the_reference_is_beside_its_targets_in_any_order(tmp_path):
    pairs = [
        ([Message("user", "a"), Message("assistant", "b" * n)],
         [Message("user", "a"), Message("assistant", "c" * (n + 2))])
        for n in range(1, 8)
    ]  # fmt: skip
    windows = PreferenceWindows(write_pairs(tmp_path, pairs), 90, TEMPLATE)
    windows.reference.copy_(torch.arange(1, len(windows.reference) + 1))
    _, all_targets, all_reference = windows.batch(torch.arange(len(windows)), 0)
    assert (all_reference[all_targets != IGNORE_INDEX] == windows.reference).all()
    assert (all_reference[all_targets == IGNORE_INDEX] == 0).all()
    batches = EpochBatches(windows, 3, seed=5)
    seen = []
    for step in range(batches.steps_per_epoch):
        inputs, targets, reference = batches.batch(step)
        assert batches.weight(step) == len(inputs)
        seen += reference[targets != IGNORE_INDEX].tolist()
    assert sorted(seen) == windows.reference.tolist()
    assert [part.shape for part in windows.batch(torch.arange(0), 0)] == [(0, inputs.size(1))] * 3


def test_the_keys_choose_these_windows(tmp_path):
    pair = [[Message("user", "a"), Message("assistant", each)] for each in "bc"]
    tokens = write_pairs(tmp_path, [pair])
    dataset = TokenWindows(tokens, 20, 19)
    config = Config(preferences=["a.jsonl"])
    assert isinstance(training_windows(dataset, config, TOKENIZER), PreferenceWindows)
    assert isinstance(validation_windows(dataset, TOKENIZER, True), PreferenceWindows)
    hashes = {hash_of_bounds(dataset, each) for each in (config, Config(conversations=["a"]))}
    assert len(hashes) == 2
    with pytest.raises(AGI2Error, match="preferences are for texts that train_model or"):
        training_windows(TokenWindows(np.arange(30), 20), config, TOKENIZER)
