import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.nn.kv_cache import KVCache
from tests.tiny_models import random_model

LAYERS, B, H, S, D = 2, 3, 2, 8, 4


def fill(cache: KVCache, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Append random keys and values to every layer; return what each then holds."""
    held = []
    for layer in cache.layers:
        shape = (layer.keys.size(0), H, tokens, D)
        keys, values = layer.append(torch.randn(shape), torch.randn(shape))
        held.append((keys.clone(), values.clone()))
    return held


@given(parts=st.lists(st.integers(1, 3), min_size=1, max_size=4).filter(lambda p: sum(p) <= S))
@settings(deadline=None, max_examples=20)
def test_tokens_come_back_in_the_order_they_were_added(parts):
    layer = KVCache(1, B, H, S, D).layers[0]
    keys, values = torch.randn(B, H, sum(parts), D), torch.randn(B, H, sum(parts), D)
    for key, value in zip(keys.split(parts, 2), values.split(parts, 2), strict=True):
        all_keys, all_values = layer.append(key, value)
        length = layer.length
        assert torch.equal(all_keys, keys[:, :, :length])
        assert torch.equal(all_values, values[:, :, :length])
    assert layer.length == sum(parts)


def test_a_new_cache_is_empty_and_as_it_was_asked_for():
    cache = KVCache(LAYERS, B, H, S, D, dtype=torch.bfloat16)
    assert (cache.length, cache.capacity, len(cache.layers)) == (0, S, LAYERS)
    assert cache.layers[1].values.shape == (B, H, S, D)
    assert cache.layers[1].values.dtype == torch.bfloat16


def test_more_tokens_than_it_holds_are_an_error_and_change_nothing():
    cache = KVCache(LAYERS, B, H, S, D)
    (before, _), _ = fill(cache, S - 1)
    with pytest.raises(AGI2Error, match=f"^the cache holds {S} tokens, not {S + 1}$"):
        fill(cache, 2)
    assert cache.length == S - 1
    assert torch.equal(cache.layers[0].keys[:, :, : S - 1], before)


@pytest.mark.parametrize("shape", [(1, H, 1, D), (B, 1, 1, D), (B, H, 1, 1), (B + 1, H, 1, D)])
@pytest.mark.parametrize("is_value", [False, True])
def test_keys_and_values_of_other_sizes_are_an_error_and_change_nothing(shape, is_value):
    cache = KVCache(LAYERS, B, H, S, D)
    (before, _), _ = fill(cache, 2)
    parts = [torch.zeros(B, H, 1, D), torch.zeros(shape)]
    with pytest.raises(AGI2Error, match=r"^cache is for keys and values"):
        cache.layers[0].append(*(parts if is_value else parts[::-1]))
    assert cache.length == 2
    assert torch.equal(cache.layers[0].keys[:, :, :2], before)


@given(
    steps=st.lists(
        st.one_of(
            st.integers(1, 3),  # tokens to add
            st.lists(st.integers(0, 5), min_size=1, max_size=4),  # rows to go on from
            st.floats(0, 1),  # the share to keep
        ),
        max_size=12,
    )
)
@settings(deadline=None, max_examples=25)
def test_rows_hold_what_the_rows_they_go_on_from_held(steps):
    cache, expected = KVCache(LAYERS, 1, H, 40, D), [torch.empty(1, H, 0, D)] * LAYERS
    for step in steps:
        if isinstance(step, int):
            for index, layer in enumerate(cache.layers):
                keys = torch.randn(layer.keys.size(0), H, step, D)
                layer.append(keys, -keys)
                expected[index] = torch.cat([expected[index], keys], dim=2)
        elif isinstance(step, list):
            rows = torch.tensor(step) % expected[0].size(0)
            cache = cache.select(rows)
            expected = [keys[rows] for keys in expected]
        else:
            cache.truncate(int(step * cache.length))
            expected = [keys[:, :, : cache.length] for keys in expected]
        for layer, keys in zip(cache.layers, expected, strict=True):
            assert torch.equal(layer.keys[:, :, : layer.length], keys)
            assert torch.equal(layer.values[:, :, : layer.length], -keys)


def test_rows_in_their_own_order_cost_no_copy():
    cache = KVCache(LAYERS, B, H, S, D)
    fill(cache, 2)
    assert cache.select(torch.arange(B)) is cache


def test_truncating_forgets_the_newest_tokens():
    cache = KVCache(LAYERS, B, H, S, D)
    (keys, _), _ = fill(cache, 5)
    cache.truncate(2)
    assert cache.length == 2
    (after, _), _ = fill(cache, 1)
    assert torch.equal(after[:, :, :2], keys[:, :, :2])
    assert after.size(2) == 3


@pytest.mark.parametrize("length", [-1, 4])
def test_truncating_to_what_is_not_held_is_an_error(length):
    cache = KVCache(LAYERS, B, H, S, D)
    fill(cache, 3)
    with pytest.raises(AGI2Error, match=f"^cannot cut a cache of 3 tokens to {length}$"):
        cache.truncate(length)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 3), st.integers(1, 4), st.integers(1, 3)),
            st.tuples(st.just("shorten"), st.integers(0, 3), st.floats(0, 1)),
            st.tuples(st.just("copy"), st.integers(0, 3), st.integers(0, 3)),
            st.tuples(st.just("select"), st.lists(st.integers(0, 3), min_size=4, max_size=4)),
            st.tuples(st.just("truncate"), st.floats(0, 1)),
        ),
        max_size=25,
    )
)
@settings(deadline=None, max_examples=25)
def test_every_row_has_a_length_of_its_own(steps):
    """Rows grow alone, or several in a view, and never see what another row holds."""
    cache, expected = KVCache(LAYERS, 2, H, 20, D).grow(4), [torch.empty(H, 0, D)] * 4
    for layer in cache.layers:
        layer.keys.fill_(float("nan"))  # as uninitialized memory may be
        layer.values.fill_(float("inf"))
    for kind, *given_ in steps:
        if kind == "append":
            first, count, tokens = given_[0], min(given_[1], 4 - given_[0]), given_[2]
            rows = range(first, first + count)
            if max(expected[row].size(1) for row in rows) + tokens > 20:
                continue
            new = torch.randn(count, H, tokens, D)
            view = cache.view(rows.start, rows.stop)
            mask = view.layers[0].causal_mask(tokens)
            for layer in view.layers:
                keys, values = layer.append(new, -new)
                assert keys.isfinite().all() or mask is None
                assert values.isfinite().all() or mask is None
            assert cache.lengths == [each.size(1) for each in expected]  # not yet told
            for row, key in zip(rows, new, strict=True):
                if mask is not None:
                    length = expected[row].size(1)
                    assert mask[row - first].sum(dim=1).tolist() == [
                        length + token + 1 for token in range(tokens)
                    ]
                expected[row] = torch.cat([expected[row], key], dim=1)
            cache.set_lengths({row: expected[row].size(1) for row in rows})
        elif kind == "shorten":
            row, length = given_[0], int(given_[1] * expected[given_[0]].size(1))
            cache.set_lengths({row: length})
            expected[row] = expected[row][:, :length]
        elif kind == "copy":
            cache.copy_row(*given_)
            expected[given_[1]] = expected[given_[0]]
        elif kind == "select":
            cache = cache.select(torch.tensor(given_[0]))
            expected = [expected[row] for row in given_[0]]
        else:
            cache.truncate(int(given_[0] * cache.length))
            length = int(given_[0] * max(each.size(1) for each in expected))
            expected = [each[:, :length] for each in expected]
        assert cache.lengths == [each.size(1) for each in expected]
        for layer in cache.layers:
            for row, keys in enumerate(expected):
                assert torch.equal(layer.keys[row, :, : keys.size(1)], keys)
                assert torch.equal(layer.values[row, :, : keys.size(1)], -keys)


@pytest.mark.parametrize("first", [0, 1])
def test_a_view_forgets_an_interrupted_pass(first):
    """And a view of the first rows is the same object each time: a CUDA graph may belong to it."""
    cache = KVCache(LAYERS, B, H, S, D)
    view = cache.view(first, first + 2)
    view.layers[0].append(torch.randn(2, H, 3, D), torch.randn(2, H, 3, D))
    again = cache.view(first, first + 2)
    assert (again is view) == (first == 0)
    assert (again.lengths, cache.lengths) == ([0, 0], [0, 0, 0])
    cache.set_lengths({first + 1: 3})
    assert cache.view(first, first + 2).lengths == [0, 3]


@pytest.mark.parametrize("length", [-1, S + 1])
def test_a_length_that_no_row_can_have_is_an_error(length):
    cache = KVCache(LAYERS, B, H, S, D)
    with pytest.raises(
        AGI2Error, match=f"^a row of the cache holds 0 to {S} tokens, not {length}$"
    ):
        cache.set_lengths({0: length})


def test_tokens_of_a_row_are_copied_to_another():
    cache = KVCache(2, 3, 2, 8, 4)
    cache.set_lengths({0: 6, 1: 8, 2: 3})
    for number, layer in enumerate(cache.layers):
        layer.keys.normal_(generator=torch.Generator().manual_seed(number))
        layer.values.normal_(generator=torch.Generator().manual_seed(number + 9))
    copied = cache.read(0, 2, 5)
    assert copied.shape == (2, 2, 2, 3, 4)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    cache.write(1, 4, copied)
    assert cache.lengths == [6, 7, 3]
    for layer, buffers in zip(cache.layers, before, strict=True):
        for found, expected in zip((layer.keys, layer.values), buffers, strict=True):
            expected[1, :, 4:7] = expected[0, :, 2:5]
            assert torch.equal(found, expected)


def test_beams_do_not_share_what_was_written_to_one_of_them():
    cache = KVCache(1, 1, 1, 8, 1)
    for part in cache.layers:
        part.append(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1))
    cache.set_lengths({0: 4})
    cache = cache.select(torch.tensor([0, 0]))
    cache.write(1, 2, torch.ones(1, 2, 1, 2, 1))
    swapped = cache.select(torch.tensor([1, 0]))
    assert swapped.layers[0].keys[:, 0, :4, 0].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


def test_gradients_through_a_cache_are_those_without():
    """Keys and values lie in one tensor, but are tensors of their own."""
    model = random_model().double()
    tokens = torch.tensor([[3, 1, 4], [1, 5, 9]])
    gradients = []
    for cache in (None, model.new_cache(2)):
        model.zero_grad()
        model(tokens, cache=cache)[:, -1].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
