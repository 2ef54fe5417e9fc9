import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.inference.model_runner import Chunk, ModelRunner, check_prompt
from src.inference.prefix_cache import PrefixCache
from tests.bounds import assert_same_in_float64
from tests.tiny_models import random_model

POSITIONS = 8
WIDTH = 29


@pytest.fixture(scope="module", params=["sinusoidal", "learned"])
def model(request):
    return random_model(max_seq_len=POSITIONS, position_embedding=request.param).double()


def new_tokens(seed: int, rows: int, steps: int) -> torch.Tensor:
    """(steps, rows)"""
    return torch.randint(WIDTH, (steps, rows), generator=torch.Generator().manual_seed(seed))


def in_one_reading(model, window) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([window]))[:, -1]


@given(
    steps=st.lists(
        st.dictionaries(
            st.integers(0, 4),  # row
            st.tuples(st.floats(0, 1), st.integers(1, 8)),  # share to keep, new tokens
            min_size=1,
        ),
        max_size=8,
    ),
    interrupted=st.sets(st.integers(0, 7), max_size=2),
    seed=st.integers(0, 999),
)
@settings(max_examples=12, deadline=None)
def test_rows_get_the_logits_that_each_gets_alone(model, steps, interrupted, seed):
    """Of any lengths, in any rows, each from any place on; also after an interrupt."""
    runner, generator = ModelRunner(model, WIDTH), torch.Generator().manual_seed(seed)
    runner.reserve_rows(5)
    held: list[list[int]] = [[] for _ in range(5)]
    for index, step in enumerate(steps):
        chunks = []
        for row, (share, count) in sorted(step.items()):
            offset = min(int(share * len(held[row])), POSITIONS - count)
            new = torch.randint(WIDTH, (count,), generator=generator).tolist()
            held[row] = held[row][:offset] + new
            chunks.append(Chunk(row, offset, new))
        if index in interrupted:
            handle = model.blocks[-1].register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                runner.compute(chunks)
            handle.remove()
        logits = runner.compute(chunks)
        for chunk, found in zip(chunks, logits, strict=True):
            assert_same_in_float64(found[None], in_one_reading(model, held[chunk.row]))
        for row, tokens in enumerate(held):
            assert runner.reusable(row, [*tokens, 0]) <= len(tokens)
        copied = generator.initial_seed() % 5
        runner.copy_row(copied, 4)
        held[4] = list(held[copied])


def interrupt(*_):
    raise KeyboardInterrupt


@given(
    prompt=st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=12),
    seed=st.integers(0, 999),
    data=st.data(),
)
@settings(max_examples=10)
def test_continuations_may_be_repeated_reordered_and_dropped(model, prompt, seed, data):
    runner = ModelRunner(model, WIDTH)
    runner.prefill(prompt)
    texts, windows = [list(prompt)], [prompt[-POSITIONS:]]
    for round_ in range(4):
        rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4))
        runner.reorder(torch.tensor(rows))
        texts, windows = ([list(each[row]) for row in rows] for each in (texts, windows))
        for column in new_tokens(seed + round_, len(rows), 3):
            logits = runner.decode(column)
            for row, token in enumerate(column.tolist()):
                texts[row].append(token)
                slides = len(windows[row]) == POSITIONS
                windows[row] = texts[row][-(POSITIONS // 2) :] if slides else [*windows[row], token]
                assert_same_in_float64(logits[row : row + 1], in_one_reading(model, windows[row]))
        assert runner.tokens.tolist() == texts


@given(
    prompt=st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=12),
    copies=st.integers(1, 3),
    seed=st.integers(0, 999),
    data=st.data(),
)
@settings(max_examples=10)
def test_tokens_may_be_appended_together_and_rolled_back(model, prompt, copies, seed, data):
    runner = ModelRunner(model, WIDTH)
    runner.prefill(prompt)
    runner.reorder(torch.zeros(copies, dtype=torch.long))
    texts = [list(prompt) for _ in range(copies)]
    windows = [text[-POSITIONS:] for text in texts]
    for round_ in range(6):
        slides = runner.remaining_capacity == 0
        count = 1 if slides else data.draw(st.integers(1, runner.remaining_capacity))
        tokens = new_tokens(seed + round_, copies, count).T
        logits = runner.extend(tokens)
        assert logits.shape == (copies, count, WIDTH)
        kept = count if slides else data.draw(st.integers(0, count))
        runner.rollback(count - kept)
        for row, new in enumerate(tokens.tolist()):
            full = len(windows[row]) == POSITIONS
            before = (texts[row] + new)[-(POSITIONS // 2) :][:-1] if full else windows[row]
            for place in range(count):
                expected = in_one_reading(model, [*before, *new[: place + 1]])
                assert_same_in_float64(logits[row, place : place + 1], expected)
            texts[row] += new[:kept]
            windows[row] = [*before, *new[:kept]]
        assert runner.tokens.tolist() == texts


def counted(model, reads):
    """Note how many tokens the model reads each time."""
    embeddings = model.token_embeddings
    return embeddings.register_forward_pre_hook(lambda _, args: reads.append(args[0].shape[1]))


@given(
    first=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    written=st.lists(st.integers(0, 3), max_size=9),
    second=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    goes_on=st.booleans(),
)
@settings(max_examples=15)
def test_a_second_prompt_is_read_from_where_it_differs(model, first, written, second, goes_on):
    runner = ModelRunner(model, WIDTH)
    runner.prefill(first)
    window = first[-POSITIONS:]
    text = list(first)
    for token in written:
        runner.decode(torch.tensor([token]))
        text.append(token)
        slides = len(window) == POSITIONS
        window = text[-(POSITIONS // 2) :] if slides else [*window, token]
    if goes_on:
        second = window + second
    wanted = second[-POSITIONS:]
    shared = 0
    while shared < min(len(window), len(wanted) - 1) and window[shared] == wanted[shared]:
        shared += 1
    reads = []
    handle = counted(model, reads)
    logits = runner.prefill(second)
    handle.remove()
    assert_same_in_float64(logits, in_one_reading(model, wanted))
    assert reads == [len(wanted) - shared]
    assert runner.tokens.tolist() == [second]


def test_an_interrupted_decode_step_leaves_what_was_computed_before():
    model = random_model(n_layers=2).double()
    runner = ModelRunner(model, WIDTH)
    runner.prefill([1, 2, 3])
    # In the second layer: the first one holds the token by then.
    handle = model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.decode(torch.tensor([4]))
    handle.remove()
    reads = []
    handle = counted(model, reads)
    logits = runner.prefill([1, 2, 3, 4, 5])
    handle.remove()
    assert_same_in_float64(logits, in_one_reading(model, [1, 2, 3, 4, 5]))
    assert reads == [2]


def test_a_prompt_reuses_nothing_of_several_continuations(model):
    runner = ModelRunner(model, WIDTH)
    runner.prefill([1, 2])
    runner.reorder(torch.tensor([0, 0]))
    runner.decode(torch.tensor([5, 6]))
    assert_same_in_float64(runner.prefill([1, 2, 6, 7]), in_one_reading(model, [1, 2, 6, 7]))


def test_a_prompt_longer_than_the_positions_is_told_once(model, caplog):
    caplog.set_level(logging.WARNING, "agi2")
    runner = ModelRunner(model, WIDTH)
    runner.prefill(list(range(POSITIONS)))
    for token in range(20):
        runner.decode(torch.tensor([token]))
    assert caplog.messages == []
    prompt = list(range(20))
    assert_same_in_float64(
        ModelRunner(model, WIDTH).prefill(prompt), in_one_reading(model, prompt[-8:])
    )
    assert caplog.messages == [
        "the prompt has 20 tokens, the model sees 8 at a time: only the last are read"
    ]


def test_only_the_vocabulary_asked_for_is_offered(model):
    runner = ModelRunner(model, 7)
    assert runner.prefill([1]).shape == runner.decode(torch.tensor([2])).shape == (1, 7)


def test_a_prompt_that_is_empty_or_not_in_the_vocabulary_is_an_error():
    for prompt, message in (
        ([], "^the prompt has no tokens$"),
        ([1, 29], "^the prompt has a token above the vocabulary of 29$"),
        ([-1], "^the prompt has a token above the vocabulary of 29$"),
    ):
        with pytest.raises(AGI2Error, match=message):
            check_prompt(prompt, 29)
    check_prompt([1, 28], 29)


def test_an_end_that_is_no_token_is_refused():
    with pytest.raises(AGI2Error, match="end_token 9 is not in the vocabulary of 9 tokens"):
        check_prompt([1], 9, 9)


def test_rows_are_doubled_up_to_a_limit_and_only_the_first_is_kept():
    runner, sizes = ModelRunner(random_model(max_seq_len=8), WIDTH), []
    assert runner.cache_bytes == 0
    runner.release_rows()
    for rows in (1, 2, 3, 4, 5, 9, 11):
        runner.reserve_rows(rows, 10)
        sizes.append(runner.cache_bytes)
        if rows == 1:
            row = runner.cache_bytes
            runner.compute([Chunk(0, 0, [1, 2, 3])])
    assert [size // row for size in sizes] == [1, 2, 4, 4, 8, 10, 11]
    runner.compute([Chunk(10, 0, [5])])
    runner.release_rows()
    assert (runner.cache_bytes, runner.reusable(0, [1, 2, 3, 4])) == (row, 3)
    found = runner.compute([Chunk(0, 3, [4])])
    with torch.inference_mode():
        expected = runner.model(torch.tensor([[1, 2, 3, 4]]))[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_only_rows_that_pytorch_computes_on_a_cpu_need_a_grid():
    model = random_model()
    assert ModelRunner(model, WIDTH).grid == 1
    assert ModelRunner(model, WIDTH, batch_invariant=True).grid > 1
    meta = random_model().to("meta")
    assert ModelRunner(meta, WIDTH, batch_invariant=True).grid == 1


@pytest.mark.parametrize("block", [3, 4, 5, 6])
def test_a_prefix_is_restored_to_another_row_as_far_as_the_grid_allows(block, monkeypatch):
    monkeypatch.setattr("src.inference.model_runner.GRID", 4)
    tokens = list(range(14))
    for batch_invariant in (False, True):
        runner = ModelRunner(random_model(), WIDTH, batch_invariant=batch_invariant)
        cache = PrefixCache(2**20, block)
        runner.reserve_rows(2)
        expected = runner.compute([Chunk(0, 0, tokens)])
        runner.store(0, cache)
        whole = 12 if batch_invariant else 13
        length = whole // block * block
        while batch_invariant and length % 4:
            length -= block
        assert runner.restore(1, tokens, cache) == length
        assert runner.restore(1, tokens, cache) == length  # it holds them now
        found = runner.compute([Chunk(1, length, tokens[length:])])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        if batch_invariant:
            assert torch.equal(found, expected)
        assert runner.restore(0, tokens, cache) == whole  # the row holds more than the cache
