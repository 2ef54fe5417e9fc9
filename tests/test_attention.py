import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.attention import MultiHeadAttention, as_mask, attention_weights, causal_mask
from src.errors import AGI2Error
from src.nn.kv_cache import KVCache
from tests.bounds import assert_same_in_float64, by_chance, differs_in_float64, gamma

B, T, S, C, H = 2, 5, 7, 12, 3


def randn(*shape, **options) -> torch.Tensor:
    """In float64, where a fault is far above the rounding (see `tests.bounds`)."""
    return torch.randn(*shape, dtype=torch.float64, **options)


def reference(attention, query, key, value, allowed=None, added=None, causal=False):
    """Attention head by head in NumPy, float64: (B, T, C) and the weights (B, H, T, S).

    Masks are (T, S), or have a dimension of sequences before these, or also one of heads.
    """
    weight = attention.qkv.weight.detach().double().numpy().reshape(3, C, C)
    bias = np.zeros((3, C))
    if attention.qkv.bias is not None:
        bias = attention.qkv.bias.detach().double().numpy().reshape(3, C)
    projected = [
        (x.double().numpy() @ w.T + b).reshape(x.size(0), x.size(1), H, C // H)
        for x, w, b in zip((query, key, value), weight, bias, strict=True)
    ]
    q, k, v = projected
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(C // H)
    allowed, added = (
        mask.unsqueeze(1) if mask is not None and mask.dim() == 3 else mask
        for mask in (allowed, added)
    )
    if added is not None:
        scores = scores + added.double().numpy()
    if allowed is not None:
        scores = np.where(allowed.numpy(), scores, -np.inf)
    if causal:
        places = np.arange(T)[:, None] + S - T >= np.arange(S)
        scores = np.where(places, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    raised = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = raised.sum(axis=-1, keepdims=True)
    weights = raised / np.where(total == 0, 1, total)
    heads = np.einsum("bhts,bshd->bthd", weights, v).reshape(query.size(0), query.size(1), C)
    out = heads @ attention.proj.weight.detach().double().numpy().T
    if attention.proj.bias is not None:
        out = out + attention.proj.bias.detach().double().numpy()
    return out, weights


def make(bias: bool = True, dropout: float = 0.0) -> MultiHeadAttention:
    attention = MultiHeadAttention(C, H, dropout, bias=bias).double().eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.5)
    return attention


def check(attention, query, key, value, mask=None, allowed=None, added=None, causal=False):
    """Both ways through the layer, with and without weights, agree with the reference."""
    out = attention(query, key, value, mask, causal=causal)
    with_weights, weights = attention(query, key, value, mask, causal=causal, need_weights=True)
    expected, expected_weights = reference(attention, query, key, value, allowed, added, causal)
    assert_same_in_float64(out, torch.from_numpy(expected))
    assert_same_in_float64(with_weights, torch.from_numpy(expected))
    assert_same_in_float64(weights, torch.from_numpy(expected_weights))


def drawn(shape, density, seed):
    """A layer, its query, key and value, and a mask of booleans, of which such a share is true."""
    torch.manual_seed(seed)
    attention = make()
    return attention, (randn(B, T, C), randn(B, S, C), randn(B, S, C)), torch.rand(shape) < density


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_agrees_with_numpy(bias):
    x = randn(B, T, C)
    check(make(bias), x, x, x)


@pytest.mark.parametrize("bias", [True, False])
def test_cross_attention_agrees_with_numpy(bias):
    query, key, value = randn(B, T, C), randn(B, S, C), randn(B, S, C)
    check(make(bias), query, key, value)


def test_absent_key_and_value_are_the_query_and_the_key():
    attention, query, key = make(), randn(B, T, C), randn(B, S, C)
    assert_same_in_float64(attention(query), attention(query, query.clone(), query.clone()))
    assert_same_in_float64(attention(query, key), attention(query, key, key.clone()))


@given(
    shape=st.sampled_from([(T, S), (B, T, S), (1, T, S), (B, 1, T, S), (1, H, T, S), (B, H, T, S)]),
    causal=st.booleans(),
    floating=st.booleans(),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_masks_of_every_shape_and_kind_agree_with_numpy(shape, causal, floating, density, seed):
    attention, inputs, allowed = drawn(shape, density, seed)
    added = randn(shape) if floating else torch.zeros(shape)
    mask = added.masked_fill(~allowed, float("-inf")) if floating else allowed
    check(attention, *inputs, mask, allowed, added, causal)


@pytest.mark.parametrize("floating", [True, False])
def test_torchs_own_layer_gives_the_same(floating):
    attention = make()
    theirs = torch.nn.MultiheadAttention(C, H, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": attention.qkv.bias,
            "out_proj.weight": attention.proj.weight,
            "out_proj.bias": attention.proj.bias,
        }
    )
    query, key, value = randn(B, T, C), randn(B, S, C), randn(B, S, C)
    mask = torch.rand(T, S) < 0.6
    mask[:, 0] = True
    our_mask, their_mask = mask, ~mask  # PyTorch's layer means the opposite by True
    if floating:
        our_mask = their_mask = randn(T, S).masked_fill(~mask, float("-inf"))
    out, weights = attention(query, key, value, our_mask, need_weights=True)
    expected, expected_weights = theirs.eval()(
        query, key, value, attn_mask=their_mask, average_attn_weights=False
    )
    assert_same_in_float64(out, expected)
    assert_same_in_float64(weights, expected_weights)


@given(length=st.integers(1, 20), causal=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_weights_are_a_distribution_over_what_may_be_seen(length, causal, seed):
    torch.manual_seed(seed)
    x = randn(B, length, C)
    _, weights = make()(x, causal=causal, need_weights=True)
    assert weights.shape == (B, H, length, length)
    assert float(weights.detach().min()) >= 0
    assert_same_in_float64(weights.sum(-1), torch.ones(B, H, length).double())
    if causal:
        assert float(weights.detach().triu(1).abs().max()) == 0


def test_a_causal_query_is_not_changed_by_what_comes_after_it():
    attention, x = make(), randn(B, T, C)
    changed = x.clone()
    changed[:, 3:] = randn(B, T - 3, C)
    before, after = attention(x, causal=True), attention(changed, causal=True)
    assert_same_in_float64(before[:, :3], after[:, :3])
    assert differs_in_float64(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize(
    ("queries", "keys", "expected"),
    [
        (3, 3, [[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        (2, 4, [[1, 1, 1, 0], [1, 1, 1, 1]]),
        (1, 3, [[1, 1, 1]]),
        (3, 1, [[0], [0], [1]]),
    ],
)
def test_the_last_query_of_a_causal_mask_sees_every_key(queries, keys, expected):
    assert causal_mask(queries, keys).int().tolist() == expected


@pytest.mark.parametrize("floating", [True, False])
def test_a_query_that_may_see_nothing_gets_zeros_and_a_finite_gradient(floating):
    attention = make(bias=False)
    mask = torch.ones(T, T, dtype=torch.bool)
    mask[2] = False
    if floating:
        mask = torch.zeros(T, T).masked_fill(~mask, float("-inf"))
    x = randn(B, T, C, requires_grad=True)
    out = attention(x, mask=mask)
    same, weights = attention(x, mask=mask, need_weights=True)
    for result in (out, same):
        assert float(result[:, 2].detach().abs().max()) == 0
        assert float(result[:, 3].detach().abs().min()) > 0
    assert float(weights[:, :, 2].detach().abs().max()) == 0
    out.sum().backward()
    assert bool(x.grad.isfinite().all())


def test_attention_weights_without_a_mask_are_a_scaled_softmax():
    q, k = randn(1, 1, 2, 4), randn(1, 1, 3, 4)
    expected = torch.tensor(
        [[float(q[0, 0, t] @ k[0, 0, s]) / 2 for s in range(3)] for t in range(2)],
        dtype=torch.float64,
    ).softmax(-1)
    assert_same_in_float64(attention_weights(q, k)[0, 0], expected)


def test_a_cache_goes_on_where_earlier_tokens_ended():
    attention, x = make(), randn(B, T, C)
    whole = attention(x, causal=True)
    cache = KVCache(1, B, H, T, C // H, dtype=torch.float64).layers[0]
    parts = [attention(part, causal=True, cache=cache) for part in x.split([2, 1, 2], dim=1)]
    assert_same_in_float64(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 5, dtype=torch.bool)])
@torch.no_grad()
def test_rows_of_a_cache_that_differ_in_length_attend_to_their_own_tokens(mask):
    attention, lengths, x = make(), [3, 0, 1], randn(3, 5, C)
    cache = KVCache(1, 3, H, 5, C // H, dtype=torch.float64)
    for row, length in enumerate(lengths):
        view = cache.view(row, row + 1)
        attention(x[row : row + 1, :length], causal=True, cache=view.layers[0])
    cache.set_lengths(dict(enumerate(lengths)))
    new = torch.stack([x[row, length : length + 2] for row, length in enumerate(lengths)])
    found = attention(new, mask=mask, causal=True, cache=cache.layers[0])
    for row, length in enumerate(lengths):
        alone = attention(x[row : row + 1, : length + 2], causal=True)
        assert_same_in_float64(found[row], alone[0, length:])


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_on_the_weights_and_on_the_output_acts_in_training_only(need_weights):
    attention = make(bias=False, dropout=0.5).train()
    x = randn(1, 200, C)

    def run():
        out = attention(x, need_weights=need_weights)
        return out[0] if need_weights else out

    trained = run()
    # Half of the output is dropped; the rest differs by more than its factor of two, since
    # weights were dropped, too.
    assert float((trained == 0).float().mean()) == pytest.approx(
        0.5, abs=by_chance(0.5, trained.numel())
    )
    attention.eval()
    clean = run()
    assert_same_in_float64(run(), clean)
    kept = trained != 0
    assert differs_in_float64(trained[kept], 2 * clean[kept])


def test_a_width_that_heads_do_not_divide_is_an_error():
    with pytest.raises(AGI2Error, match=r"^d_model 10 is not divisible by n_heads 3$"):
        MultiHeadAttention(10, 3)


def test_a_row_that_a_float_mask_hides_has_finite_gradients_beside_its_weights():
    attention = MultiHeadAttention(8, 2, dropout=0.0).double()
    x = randn(1, 3, 8, requires_grad=True)
    mask = torch.zeros(3, 3)
    mask[1] = float("-inf")
    out, weights = attention(x, mask=mask, need_weights=True)
    assert torch.all(weights[:, :, 1] == 0)
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in attention.parameters())


def test_dropout_that_drops_nothing_attends_as_without_it():
    # On a CPU the one computes its weights, the other is a fused kernel.
    torch.manual_seed(0)
    attention = make(dropout=1e-9).train()
    x = randn(3, 11, C)
    assert_same_in_float64(attention(x, causal=True), attention.eval()(x, causal=True))


# --- one convention of masks --------------------------------------------------------------------


@given(
    shape=st.sampled_from(
        [(T, S), (1, S), (B, T, S), (B, 1, S), (1, T, S), (B, 1, T, S), (B, H, T, S), (B, 1, 1, S)]
    ),
    kind=st.sampled_from([torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, "numpy"]),
    density=st.floats(0, 1),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_integers_of_0_and_1_mean_what_booleans_mean(shape, kind, density, causal, seed):
    attention, inputs, allowed = drawn(shape, density, seed)
    mask = allowed.numpy() if kind == "numpy" else allowed.to(kind)
    expected = attention(*inputs, allowed, causal=causal)
    assert torch.equal(attention(*inputs, mask, causal=causal), expected)
    added = torch.zeros(shape, dtype=torch.float16).masked_fill(~allowed, -torch.inf)
    found = attention(*inputs, added, causal=causal)
    assert_same_in_float64(found, expected)
    assert bool(found.isfinite().all())
    plain, _ = reference(attention, *inputs, allowed, causal=causal)
    assert_same_in_float64(found, torch.from_numpy(plain))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.ones(T, S),
            r"^mask is of a floating type, .* contains only 0 and 1, .* mask.bool\(\)",
        ),
        (torch.eye(S)[:T].half(), r"^mask is of a floating type"),
        (torch.full((T, S), 2), r"^mask has numbers other than 0 and 1"),
        (torch.full((T, S), -1, dtype=torch.int8), r"^mask has numbers other than 0 and 1"),
        (torch.full((T, S), torch.nan), r"^mask has NaN or positive infinity"),
        (torch.full((T, S), torch.inf), r"^mask has NaN or positive infinity"),
        (torch.ones(T, S, dtype=torch.complex64), r"^mask must be boolean, 0 and 1, or floating"),
        ("causal", r"^mask must be a tensor, not str$"),
        *[
            (torch.ones(shape, dtype=torch.bool), r"^mask has the shape .* it must be \(T, S\), ")
            for shape in [
                (S,),
                (B, S),
                (T, S + 1),
                (T, 1),
                (H, T, S),
                (B, T, T, S),
                (1, B, H, T, S),
            ]
        ],
    ],
)
def test_a_mask_of_another_meaning_or_shape_is_one_line(mask, message):
    query, key = randn(B, T, C), randn(B, S, C)
    with pytest.raises(AGI2Error, match=message):
        make()(query, key, mask=mask)


def test_inputs_of_other_shapes_are_one_line():
    attention, x = make(), randn(B, T, C)
    for inputs, message in [
        ((x[0],), r"^query must be a floating-point tensor \(B, T, C\) with C = 12"),
        ((x, x[..., :5]), r"^key must be a floating-point tensor"),
        ((x, x.clone(), x.long()), r"^value must be a floating-point tensor"),
        ((x, x.clone(), x[:, 1:]), r"^key has the shape \(2, 5, 12\) and value \(2, 4, 12\)"),
        ((x, x[:1]), r"^query has a batch of 2 and key of 1: they must be equal$"),
    ]:
        with pytest.raises(AGI2Error, match=message):
            attention(*inputs)


def test_a_mask_goes_to_the_device_of_the_scores():
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert as_mask("mask", mask, torch.device("meta"), is_additive=True).is_meta


def test_values_of_a_mask_are_not_looked_at_while_compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    mask = torch.full((2, 2), 5)
    assert as_mask("mask", mask, torch.device("cpu"), is_additive=True).all()


@pytest.mark.parametrize("length", [7, 1025])
def test_attention_under_autocast_is_near_that_in_fp32(length):
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 2, 0.0).train()
    x = torch.randn(1, length, 16)
    expected = layer(x, causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x, causal=True)
    assert found.dtype == torch.bfloat16
    # Q, K and V, scores, weights, heads and the output are rounded.
    assert (found - expected).norm() <= gamma(7, torch.bfloat16) * expected.norm()


def test_dropout_of_the_weights_in_blocks_takes_the_layers_rate():
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 2, 0.5).train()
    layer.output_dropout = torch.nn.Identity()
    x = torch.randn(1, 6, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        first, second = layer(x, causal=True), layer(x, causal=True)
        torch.manual_seed(1)
        again = layer(x, causal=True)
        weighed, _ = layer.eval()(x, causal=True, need_weights=True)
        plain = layer(x, causal=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert (weighed - plain).norm() <= gamma(7, torch.bfloat16) * plain.norm()
