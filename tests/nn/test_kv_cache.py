import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import AGI2Error
from src.nn.kv_cache import KVCache

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
@settings(deadline=None, max_examples=150)
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
