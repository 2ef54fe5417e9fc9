import pytest
import torch
from torch import nn

from src.attention import causal_mask
from src.errors import AGI2Error
from src.nn.kv_cache import KVCache
from src.transformer import TransformerBlock
from tests.bounds import assert_same_in_float64, by_chance

B, T, C, H, F = 2, 6, 12, 3, 20


# In float64, where a fault is far above the rounding (see `tests.bounds`).


def make(**options) -> TransformerBlock:
    torch.manual_seed(0)
    block = TransformerBlock(C, H, F, 0.0, **options).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(mean=0.1, std=0.4)
    return block


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("bias", [True, False])
def test_torchs_own_layer_gives_the_same(norm_position, bias):
    block = make(norm_position=norm_position, bias=bias, activation="relu")
    theirs = nn.TransformerEncoderLayer(
        C, H, F, 0.0, "relu", batch_first=True, norm_first=norm_position == "pre", bias=bias
    ).double()
    names = {
        "attention_norm.": "norm1.",
        "ffn_norm.": "norm2.",
        "attention.qkv.": "self_attn.in_proj_",
        "attention.proj.": "self_attn.out_proj.",
        "ffn.expand.": "linear1.",
        "ffn.contract.": "linear2.",
    }
    weights = {}
    for key, value in block.state_dict().items():
        start = next(name for name in names if key.startswith(name))
        weights[names[start] + key.removeprefix(start)] = value
    theirs.load_state_dict(weights)
    theirs.train()  # its shortcut for evaluation leaves other rounding behind
    x = torch.randn(B, T, C, dtype=torch.float64)
    expected = theirs(x, src_mask=~causal_mask(T, T))
    assert_same_in_float64(block(x), expected)
    assert_same_in_float64(block(x, causal=False), theirs(x))


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_sublayers_that_write_nothing_leave_the_residual_stream(norm_position):
    block = make(norm_position=norm_position)
    with torch.no_grad():
        for layer in (block.attention.proj, block.ffn.contract):
            layer.weight.zero_()
            layer.bias.zero_()
    x = torch.randn(B, T, C, dtype=torch.float64)
    expected = x if norm_position == "pre" else block.ffn_norm(block.attention_norm(x))
    assert torch.equal(block(x), expected)


def test_a_mask_narrows_what_a_causal_token_sees():
    block, x = make(), torch.randn(B, T, C, dtype=torch.float64)
    mask = torch.ones(T, T, dtype=torch.bool)
    mask[:, 1] = False
    mask[1, 1] = True
    without = torch.cat([x[:, :1], x[:, 2:]], dim=1)
    out = block(x, mask)
    assert_same_in_float64(out[:, 2:], block(without)[:, 1:])


def test_a_cache_goes_on_where_earlier_tokens_ended():
    block, x = make(), torch.randn(B, T, C, dtype=torch.float64)
    cache = KVCache(1, B, H, T, C // H, dtype=torch.float64).layers[0]
    parts = [block(part, cache=cache) for part in x.split([1, 3, 2], dim=1)]
    assert_same_in_float64(torch.cat(parts, dim=1), block(x))


def test_the_dropout_rate_reaches_both_sublayers():
    torch.manual_seed(0)
    block = TransformerBlock(C, H, F, 0.5)
    written = []
    for layer in (block.attention, block.ffn):
        layer.register_forward_hook(lambda _, __, out: written.append(out))
    x = torch.randn(20, 20, C)
    block(x)
    shares = [float((out == 0).float().mean()) for out in written]
    assert shares == pytest.approx([0.5, 0.5], abs=by_chance(0.5, x.numel()))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_an_unknown_place_for_the_norm_is_an_error():
    with pytest.raises(AGI2Error, match=r"^norm_position must be pre or post, not 'middle'$"):
        TransformerBlock(C, H, F, norm_position="middle")


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_skipped_sublayer_leaves_the_residual_stream_of_its_sequence(norm_position):
    """Each sequence has one of four outputs: with or without attention, and feed-forward layer."""
    block = TransformerBlock(16, 2, 32, dropout=0.0, norm_position=norm_position)
    x = torch.randn(1, 5, 16).expand(64, 5, 16)
    expected = block.eval()(x)
    block.skip_rate = 0.5
    assert torch.equal(block(x), expected)
    block.train()
    torch.manual_seed(0)
    found = block(x)
    torch.manual_seed(0)
    assert torch.equal(block(x), found)
    kept = torch.tensor([0.0, 2.0])

    def sublayers(attention, ffn):
        x1 = x[:1]
        if norm_position == "pre":
            x1 = x1 + attention * block.attention(block.attention_norm(x1), causal=True)
            return x1 + ffn * block.ffn(block.ffn_norm(x1))
        x1 = block.attention_norm(x1 + attention * block.attention(x1, causal=True))
        return block.ffn_norm(x1 + ffn * block.ffn(x1))

    outputs = torch.cat([sublayers(a, f) for a in kept for f in kept])
    distances = (found[:, None] - outputs[None]).abs().amax((2, 3))
    assert distances.min(1).values.max() < 1e-5
    assert set(distances.argmin(1).tolist()) == {0, 1, 2, 3}
