import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.embeddings import (
    LearnedPositionEmbeddings,
    PositionEmbeddings,
    TokenEmbeddings,
    as_token_ids,
)
from src.errors import AGI2Error
from tests.bounds import assert_within, by_chance, deviation_by_chance, gamma, unit

# A sine is at most 1, and is rounded to float32 once; its angle is at most 2,048, and takes a few
# operations of float64.
ROUNDED = unit() + 2048 * gamma(20, torch.float64)


def sine_table(length: int, width: int) -> torch.Tensor:
    """Vaswani et al., 2017, section 3.5, element by element."""
    table = np.empty((length, width))
    for position in range(length):
        for column in range(width):
            angle = position / 10000 ** (2 * (column // 2) / width)
            table[position, column] = np.cos(angle) if column % 2 else np.sin(angle)
    return torch.from_numpy(table)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 9), (3, 1), (4, 7), (2, 0)])
def test_each_token_becomes_its_row_of_the_table(batch, length):
    embeddings = TokenEmbeddings(11, 6)
    tokens = torch.randint(11, (batch, length))
    out = embeddings(tokens)
    assert out.shape == (batch, length, 6)
    for b in range(batch):
        for t in range(length):
            assert torch.equal(out[b, t], embeddings.weight[tokens[b, t]])


@pytest.mark.parametrize("kind", [TokenEmbeddings, LearnedPositionEmbeddings])
def test_weights_start_normal_with_mean_0_and_std_002(kind):
    torch.manual_seed(0)
    weight = kind(500, 200).weight.detach()
    draws = weight.numel()
    assert abs(float(weight.mean())) < 6 * 0.02 / draws**0.5  # its own standard deviations
    assert float(weight.std()) == pytest.approx(0.02, rel=deviation_by_chance(draws))
    # The share within one standard deviation tells a normal distribution from a uniform one.
    share = math.erf(0.5**0.5)
    found = float((weight.abs() < 0.02).double().mean())
    assert found == pytest.approx(share, abs=by_chance(share, draws))


def test_only_the_tokens_that_occur_get_a_gradient():
    embeddings = TokenEmbeddings(5, 4)
    embeddings(torch.tensor([[1, 3, 1]])).sum().backward()
    expected = torch.zeros(5, 4)
    expected[1], expected[3] = 2, 1
    assert torch.equal(embeddings.weight.grad, expected)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    embeddings = TokenEmbeddings(10, 50, dropout=0.25)
    tokens = torch.randint(10, (8, 20))
    dropped = embeddings(tokens)
    share = float((dropped == 0).double().mean())
    assert share == pytest.approx(0.25, abs=by_chance(0.25, dropped.numel()))
    kept = dropped != 0
    clean = embeddings.eval()(tokens)
    assert torch.equal(dropped[kept], clean[kept] * (1 / 0.75))
    assert torch.equal(clean, embeddings.weight[tokens])


@pytest.mark.parametrize(("length", "width"), [(1, 2), (12, 8), (40, 7), (5, 1)])
def test_sine_waves_follow_the_formula(length, width):
    table = PositionEmbeddings(length, width)(length)
    assert_within(table, sine_table(length, width), ROUNDED)


def test_a_position_of_2048_is_still_exact():
    table = PositionEmbeddings(2048, 4)(2048)
    assert_within(table[-1], sine_table(2048, 4)[-1], ROUNDED)


@given(length=st.integers(2, 300), half=st.integers(1, 16))
@settings(deadline=None, max_examples=20)
def test_no_two_positions_are_alike(length, half):
    table = PositionEmbeddings(length, 2 * half)(length)
    apart = torch.cdist(table.double(), table.double()) + torch.eye(length) * 9
    # Of the first two columns alone, positions k apart are 2 |sin(k / 2)| apart: far above the
    # rounding.
    assert float(apart.min()) > min(abs(math.sin(k / 2)) for k in range(1, length))


@pytest.mark.parametrize("kind", [PositionEmbeddings, LearnedPositionEmbeddings])
def test_an_offset_goes_on_where_earlier_positions_ended(kind):
    positions = kind(10, 6)
    whole = positions(10)
    assert whole.shape == (10, 6)
    assert torch.equal(torch.cat([positions(4), positions(6, offset=4)]), whole)
    chosen = torch.tensor([[9, 0], [3, 3]])
    assert torch.equal(positions.lookup(chosen), whole[chosen])


@pytest.mark.parametrize("kind", [PositionEmbeddings, LearnedPositionEmbeddings])
@pytest.mark.parametrize(("length", "offset"), [(11, 0), (1, 10), (4, 7)])
def test_more_positions_than_there_are_is_an_error_that_names_both(kind, length, offset):
    with pytest.raises(AGI2Error, match=rf"^{length + offset} positions .* has 10$"):
        kind(10, 6)(length, offset=offset)


def test_sine_waves_are_neither_learned_nor_saved():
    positions = PositionEmbeddings(10, 6)
    assert list(positions.parameters()) == []
    assert positions.state_dict() == {}


def test_learned_positions_are_learned_and_saved():
    positions = LearnedPositionEmbeddings(10, 6)
    positions(4).sum().backward()
    assert positions.weight.grad.sum(dim=1).tolist() == [6] * 4 + [0] * 6
    assert list(positions.state_dict()) == ["weight"]


def test_sine_waves_exist_also_where_a_model_is_built_without_memory():
    with torch.device("meta"):
        table = PositionEmbeddings(6, 4)(6)
    assert_within(table, sine_table(6, 4), ROUNDED)


def test_ids_go_to_the_device_of_the_weights():
    assert as_token_ids("tokens", [[1, 2]], torch.device("meta")).is_meta


@pytest.mark.parametrize(("seq_len", "offset"), [(-1, 0), (2, -1)])
def test_positions_begin_at_0(seq_len, offset):
    with pytest.raises(AGI2Error, match="must be at least 0"):
        PositionEmbeddings(8, 4)(seq_len, offset)
