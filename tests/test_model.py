import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import Config, GPT2Config
from src.errors import AGI2Error
from src.inference.cuda_graph import GraphedBackend, StepModules
from src.inference.prepare import prepare_for_generation
from src.model import GPT2Model
from src.nn.decode_backend import EagerBackend
from src.nn.kv_cache import KVCache
from tests import tiny_models
from tests.bounds import assert_same_in_float64, deviation_by_chance, differs_in_float64
from tests.tiny_models import in_their_layout, transformers_twin


def random_model(*args, **options) -> GPT2Model:
    """In float64, where a fault is far above the rounding (see `tests.bounds`)."""
    return tiny_models.random_model(*args, **options).double()


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {}),
        (1, {"activation": "gelu", "d_ff": 24, "n_layers": 3, "vocab_size": 67}),
        (2, {"activation": "relu", "tie_weights": False, "n_heads": 4, "n_layers": 1}),
        (3, {"activation": "silu", "d_model": 48, "n_heads": 1, "max_seq_len": 40}),
    ],
)
def test_transformers_gives_the_same_logits_for_the_same_weights(seed, options):
    model = random_model(seed, std=0.15, position_embedding="learned", **options)
    twin = transformers_twin(model.config).double()
    twin.load_state_dict(in_their_layout(model.state_dict()))
    tokens = torch.randint(model.config.vocab_size, (3, model.config.max_seq_len))
    with torch.no_grad():
        expected = twin(tokens).logits
        logits = model(tokens)
    assert float(expected.std()) > 0.05
    assert_same_in_float64(logits, expected)


def test_transformers_gives_the_same_logits_at_the_full_size_of_124m():
    config = GPT2Config(position_embedding="learned", dropout=0.0)
    # Built without memory; the weights repeat one short random series, which is quick to make.
    with torch.device("meta"):
        model, twin = GPT2Model(config).eval(), transformers_twin(config)
    generator = torch.Generator().manual_seed(0)
    series = 0.05 * torch.randn(65_537, generator=generator, dtype=torch.float64)
    weights = {}
    for name, parameter in model.state_dict().items():
        repeats = math.ceil(parameter.numel() / len(series))
        weights[name] = series.repeat(repeats)[: parameter.numel()].view(parameter.shape)
        if name.endswith("norm.weight"):
            weights[name] = 1 + weights[name]
        series = series.roll(4099)
    model.load_state_dict(weights, assign=True)
    twin.load_state_dict(in_their_layout(weights), assign=True)
    twin.tie_weights()
    assert model.num_parameters() == 124_439_808
    tokens = torch.tensor([[0, 50256, 17, 4000, 4000, 31337, 9, 42]])
    with torch.no_grad():
        expected = twin(tokens).logits
        logits = model(tokens)
    assert float(expected.std()) > 0.1
    assert_same_in_float64(logits, expected)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 16), (3, 5)])
@pytest.mark.parametrize(
    "options", [{}, {"norm_position": "post"}, {"position_embedding": "learned"}]
)
def test_logits_have_one_row_for_each_token(batch, length, options):
    model = random_model(**options)
    tokens = torch.randint(29, (batch, length))
    logits = model(tokens)
    assert logits.shape == (batch, length, 29)
    assert_same_in_float64(model(tokens, last_only=True), logits[:, -1:])


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_number_of_layers_is_configurable(layers):
    model = random_model(n_layers=layers)
    calls = []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    model(torch.tensor([[1, 2]]))
    assert len(calls) == layers


def test_a_runs_configuration_makes_the_model_that_it_names():
    config = Config(
        model_layer=1, model_head=2, model_embd=8, model_positions=12, vocab_size=31, bias=False
    )
    model = GPT2Model(config)
    assert model.config == GPT2Config(
        n_layers=1, n_heads=2, d_model=8, max_seq_len=12, vocab_size=31, bias=False
    )
    assert model(torch.zeros(1, 12, dtype=torch.long)).shape == (1, 12, 31)


def test_a_length_of_2048_works_and_one_more_is_an_error():
    model = random_model(max_seq_len=2048, n_layers=1)
    tokens = torch.randint(29, (1, 2049))
    logits = model(tokens[:, :2048])
    assert logits.shape == (1, 2048, 29)
    assert bool(logits.isfinite().all())
    with pytest.raises(AGI2Error, match=r"^2049 positions requested, the model has 2048$"):
        model(tokens)


def test_weights_start_as_the_table_says():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=400, d_model=64, n_layers=8, n_heads=2, position_embedding="learned"
    )
    model = GPT2Model(replace(config, tie_weights=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9)
    model.init_weights()
    groups: dict[str, list[torch.Tensor]] = {"normal": [], "residual": [], "zero": [], "one": []}
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            kind = "zero"
        elif "norm" in name:
            kind = "one"
        else:
            writes = name.endswith(("attention.proj.weight", "ffn.contract.weight"))
            kind = "residual" if writes else "normal"
        groups[kind].append(parameter.detach())
    # Embeddings, positions and head, and two matrices of every block.
    assert (len(groups["normal"]), len(groups["residual"])) == (3 + 2 * 8, 2 * 8)
    for kind, std in (("normal", 0.02), ("residual", 0.02 / math.sqrt(2 * 8))):
        for weight in groups[kind]:
            # Six standard deviations of what n draws of a normal distribution show.
            n = weight.numel()
            assert float(weight.std()) == pytest.approx(std, rel=deviation_by_chance(n))
            assert abs(float(weight.mean())) <= 6 * std / math.sqrt(n)
    assert all(bool((weight == 0).all()) for weight in groups["zero"])
    assert all(bool((weight == 1).all()) for weight in groups["one"])
    # Two linear layers and two norms in the block write with biases each, then the final norm.
    assert (len(groups["zero"]), len(groups["one"])) == (6 * 8 + 1, 2 * 8 + 1)


def test_without_biases_there_are_none():
    model = random_model(bias=False, position_embedding="learned", tie_weights=False)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_a_tied_head_is_the_embedding_and_counted_once():
    tied, untied = random_model(), random_model(tie_weights=False)
    assert tied.output_weight is tied.token_embeddings.weight
    assert untied.output_weight is not untied.token_embeddings.weight
    assert untied.num_parameters() - tied.num_parameters() == 29 * 16
    tokens = torch.tensor([[1, 2]])
    before = untied(tokens)
    with torch.no_grad():
        untied.head.weight.mul_(2)
    assert torch.equal(untied(tokens), 2 * before)  # powers of two are exact


def test_hidden_states_are_normalised_last_before_the_head():
    model = random_model()
    with torch.no_grad():
        model.final_norm.weight.fill_(1)
        model.final_norm.bias.zero_()
    entering = []
    model.final_norm.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    hidden = model.hidden_states(torch.tensor([[4, 5, 6]]))
    variance = entering[0].var(-1, correction=0)
    assert_same_in_float64(hidden.mean(-1), torch.zeros_like(variance))
    assert_same_in_float64(
        hidden.var(-1, correction=0), variance / (variance + model.final_norm.eps)
    )
    assert_same_in_float64(model.logits(hidden), hidden @ model.token_embeddings.weight.t())


def test_tokens_are_scaled_beside_sine_waves_only():
    tokens = torch.tensor([[3, 3, 7]])
    for kind, scale in (("sinusoidal", 4.0), ("learned", 1.0)):
        model = random_model(position_embedding=kind)
        entering = []
        model.blocks[0].register_forward_pre_hook(lambda _, args, seen=entering: seen.append(args))
        model(tokens)
        x = entering[0][0]
        expected = scale * model.token_embeddings.weight[tokens] + model.position_embeddings(3)
        assert_same_in_float64(x, expected)


def test_dropout_acts_in_training_only():
    model = random_model(dropout=0.5)
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


OPTIONS = st.fixed_dictionaries(
    {
        "position_embedding": st.sampled_from(["sinusoidal", "learned"]),
        "norm_position": st.sampled_from(["pre", "post"]),
        "bias": st.booleans(),
    }
)


@given(options=OPTIONS, data=st.data(), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=25)
def test_any_way_of_cutting_a_text_into_chunks_gives_the_same_logits(options, data, seed):
    model = random_model(seed, **options)
    length = data.draw(st.integers(1, 16))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, length - 1)), max_size=4)))
    tokens = torch.randint(29, (2, length), generator=torch.Generator().manual_seed(seed))
    cache = model.new_cache(2)
    edges = [0, *(cut for cut in cuts if cut < length), length]
    with torch.no_grad():
        parts = [model(tokens[:, a:b], cache=cache) for a, b in itertools.pairwise(edges)]
        whole = model(tokens)
    assert cache.length == length
    assert_same_in_float64(torch.cat(parts, dim=1), whole)


@given(options=OPTIONS, place=st.integers(1, 15), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=20)
def test_a_later_token_never_changes_an_earlier_logit(options, place, seed):
    model = random_model(seed, **options)
    tokens = torch.randint(29, (1, 16), generator=torch.Generator().manual_seed(seed))
    changed = tokens.clone()
    changed[:, place:] = (changed[:, place:] + 1) % 29
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert_same_in_float64(after[:, :place], before[:, :place])
    assert differs_in_float64(after[:, place], before[:, place])


@given(
    options=OPTIONS,
    lengths=st.lists(st.integers(1, 10), min_size=1, max_size=3),
    extra=st.integers(0, 4),
    left=st.booleans(),
    cached=st.integers(0, 4),
    kind=st.sampled_from([torch.bool, torch.long, torch.float]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=15)
def test_padding_on_either_side_changes_nothing(options, lengths, extra, left, cached, kind, seed):
    """A batch of texts gives what each gives alone; `cached` tokens follow one by one."""
    model = random_model(seed, **options)
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(29, (length,), generator=generator) for length in lengths]
    width = max(lengths) + extra
    tokens = torch.randint(29, (len(texts), width + cached), generator=generator)
    mask = torch.zeros(tokens.shape, dtype=kind)
    mask[:, width:] = 1
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(0, len(text))
        tokens[row, place], mask[row, place] = text, 1
    cache = model.new_cache(len(texts), width + cached)
    with torch.no_grad():
        parts = [model(tokens[:, :width], mask[:, :width], cache=cache)]
        for end in range(width + 1, width + cached + 1):
            parts.append(model(tokens[:, end - 1 : end], mask[:, :end], cache=cache))
        batched = torch.cat(parts, dim=1)
        for row in range(len(texts)):
            kept = mask[row].bool()
            alone = model(tokens[row, kept].unsqueeze(0))[0]
            assert_same_in_float64(batched[row, kept], alone)
    assert bool(batched.isfinite().all())


def test_padding_takes_no_position():
    model = random_model(max_seq_len=4)
    tokens = torch.randint(29, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    assert_same_in_float64(model(tokens, mask)[0, 2:], model(tokens[:1, 2:])[0])
    mask[0, 1] = 1
    with pytest.raises(AGI2Error, match=r"^5 positions requested, the model has 4$"):
        model(tokens, mask)


def test_padding_gives_no_gradient_that_is_not_a_number():
    model = random_model().train()
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
    logits = model(torch.randint(29, (2, 4)), mask)
    logits[0, 2:].sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_a_custom_mask_hides_one_token_from_another():
    model = random_model(n_layers=1)
    tokens = torch.tensor([[1, 2, 3, 4]])
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 3, 1] = False
    changed = torch.tensor([[1, 9, 3, 4]])
    with torch.no_grad():
        assert_same_in_float64(model(tokens, mask)[:, 3], model(changed, mask)[:, 3])
        assert_same_in_float64(model(tokens, mask)[:, :3], model(tokens)[:, :3])
        assert differs_in_float64(model(tokens, mask)[:, 2], model(changed, mask)[:, 2])


def test_a_custom_mask_may_hide_a_token_from_itself():
    """The keys of a token then no longer matter to it, only its own query and residual."""
    model = random_model(n_layers=1)
    tokens = torch.tensor([[1, 2, 3]])
    mask = ~torch.eye(3, dtype=torch.bool).unsqueeze(0)
    heard = []
    model.blocks[0].attention.register_forward_hook(lambda _, __, out: heard.append(out))
    with torch.no_grad():
        model(tokens, mask)
        model(tokens[:, :2], torch.ones(1, 2, 2, dtype=torch.bool))
        narrow, wide = heard
    # Token 1 sees token 0 alone, so it hears exactly what token 0, which sees itself, hears.
    assert_same_in_float64(narrow[:, 1], narrow[:, 0])
    assert differs_in_float64(wide[:, 1], wide[:, 0])


@pytest.mark.parametrize(
    "shape", [(1, 5), (2, 4, 5), (3, 4), (2, 3, 4), (4,), (2, 3, 4, 4), (1, 1, 1, 2, 4)]
)
def test_a_mask_of_another_shape_is_an_error(shape):
    model = random_model()
    with pytest.raises(AGI2Error, match=r"^attention_mask has the shape \(.*\), the tokens need"):
        model(torch.zeros(2, 4, dtype=torch.long), torch.ones(shape, dtype=torch.bool))


def test_one_mask_serves_a_whole_batch():
    model = random_model()
    tokens = torch.randint(29, (3, 4))
    mask = torch.tensor([[0, 1, 1, 1]])
    assert_same_in_float64(model(tokens, mask), model(tokens, mask.expand(3, 4)))


@pytest.mark.parametrize(
    "change",
    [
        *({"n_layers": 1}, {"n_layers": 3}, {"batch_size": 1}, {"batch_size": 3}),
        *({"n_heads": 1}, {"n_heads": 4}, {"head_dim": 1}, {"head_dim": 32}),
        *({"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"device": "meta"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("prepared", [False, True])
def test_a_cache_that_is_not_for_the_model_and_its_tokens_is_one_line(prepared, change):
    model = tiny_models.random_model()
    if prepared:
        prepare_for_generation(model, verbose=False)
    config, tokens = model.config, torch.tensor([[1, 2], [3, 4]])
    sizes = {"n_layers": config.n_layers, "n_heads": config.n_heads, "head_dim": config.head_dim}
    cache = KVCache(**{**sizes, "batch_size": 2, "capacity": 4, **change})
    with torch.inference_mode(), pytest.raises(AGI2Error, match=r"^cache (has|is) .*new_cache"):
        model(tokens, cache=cache)
    assert cache.length == 0


@pytest.mark.parametrize("other", [{}, (), "x", [torch.ones(1, 2, 3, 4)]], ids=repr)
def test_what_is_no_cache_is_one_line(other):
    model = tiny_models.random_model()
    with pytest.raises(AGI2Error, match=r"^cache must be a KVCache, not"):
        model(torch.tensor([[1, 2]]), cache=other)
    with pytest.raises(AGI2Error, match=r"^cache must be a LayerCache, not"):
        model.blocks[0](torch.ones(1, 2, model.config.d_model), cache=other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_autocast_a_cache_may_have_the_dtype_of_the_products(dtype):
    model = tiny_models.random_model()
    config, tokens = model.config, torch.tensor([[1, 2]])
    cache = KVCache(config.n_layers, 1, config.n_heads, 4, config.head_dim, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(tokens, cache=cache).isfinite().all()
    assert cache.length == 2


def test_a_cache_of_its_own_size_ends_where_it_is_full():
    model = random_model()
    cache = model.new_cache(capacity=3)
    model(torch.tensor([[1, 2]]), cache=cache)
    with pytest.raises(AGI2Error, match=r"^the cache holds 3 tokens, not 4$"):
        model(torch.tensor([[3, 4]]), cache=cache)


@given(
    held=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    width=st.integers(1, 4),
    learned=st.booleans(),
)
@settings(deadline=None, max_examples=20)
@torch.no_grad()
def test_rows_of_a_cache_may_differ_in_length(held, width, learned):
    model = random_model(position_embedding="learned" if learned else "sinusoidal").double()
    tokens = torch.randint(29, (len(held), 6 + width))
    cache = model.new_cache(len(held), 6 + width)
    for row, length in enumerate(held):
        if length:
            model(tokens[row : row + 1, :length], cache=cache.view(row, row + 1))
    cache.set_lengths(dict(enumerate(held)))
    new = torch.stack([tokens[row, length : length + width] for row, length in enumerate(held)])
    found = model(new, cache=cache)
    assert cache.lengths == [length + width for length in held]
    for row, length in enumerate(held):
        alone = model(tokens[row : row + 1, : length + width])
        assert_same_in_float64(found[row], alone[0, length:])
    counts = torch.randint(1, width + 1, (len(held),))
    cache.set_lengths(dict(enumerate(held)))
    last = model(new, cache=cache, counts=counts)
    assert_same_in_float64(last[:, 0], found[range(len(held)), counts - 1])


def test_a_mask_does_not_go_with_rows_of_different_lengths():
    model = random_model()
    cache = model.new_cache(2)
    cache.set_lengths({0: 1})
    with pytest.raises(AGI2Error, match=r"^attention_mask is for a cache whose rows have the same"):
        model(torch.tensor([[1], [2]]), torch.ones(2, 2), cache=cache)
    cache.set_lengths({0: 16})
    with pytest.raises(AGI2Error, match=r"^17 positions requested, the model has 16$"):
        model(torch.tensor([[1], [2]]), cache=cache)


# Documents that are packed into rows.


@given(
    options=OPTIONS,
    lengths=st.lists(st.lists(st.integers(1, 16), min_size=1, max_size=5), min_size=1, max_size=3),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=25)
@torch.no_grad()
def test_packed_documents_have_the_logits_that_they_have_alone(options, lengths, seed):
    model = random_model(seed, **options)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(29, (len(lengths), 16), generator=generator)
    ids = torch.zeros_like(tokens)
    pieces = []
    for row, counts in enumerate(lengths):
        place = 0
        for number, count in enumerate(counts):
            end = min(place + count, 16)
            ids[row, place:end] = (number * 7 + 5) % 3  # any numbers that differ from neighbors
            pieces.append((row, slice(place, end)))
            place = end
        ids[row, place:] = 99
    logits = model(tokens, document_ids=ids)
    for row, piece in pieces:
        if piece.start < piece.stop:
            alone = model(tokens[row : row + 1, piece])[0]
            assert_same_in_float64(logits[row, piece], alone)


def test_a_packed_document_does_not_depend_on_the_others():
    model = random_model()
    tokens = torch.arange(12).view(1, 12)
    ids = torch.tensor([[0] * 5 + [1] * 7])
    unmasked = model(tokens)
    masked = model(tokens, document_ids=ids)
    assert_same_in_float64(masked[:, :5], unmasked[:, :5])
    assert differs_in_float64(masked[:, 5:], unmasked[:, 5:])
    assert torch.equal(model(tokens, document_ids=ids.tolist()), masked)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"document_ids": [[0, 0]]}, r"of the shape \(1, 3\), one per token, not torch.int64"),
        ({"document_ids": torch.zeros(1, 3)}, "must be integers .* not torch.float32"),
        ({"document_ids": [[0, 0, 1]], "attention_mask": torch.ones(1, 3)}, "does not go with a"),
        ({"document_ids": [[0, 0, 1]], "cache": "new"}, "does not go with a cache"),
    ],
)
def test_document_ids_are_one_integer_for_each_token(options, problem):
    model = random_model()
    if "cache" in options:
        options = {**options, "cache": tiny_cache(model)}
    with pytest.raises(AGI2Error, match=f"^document_ids .*{problem}"):
        model(torch.tensor([[1, 2, 3]]), **options)


def tiny_cache(model):
    return model.new_cache(1)


def test_packed_rows_are_not_longer_than_the_positions():
    with pytest.raises(AGI2Error, match=r"^17 positions requested, the model has 16$"):
        random_model()(torch.zeros(1, 17).long(), document_ids=torch.arange(17).view(1, 17))


@pytest.mark.parametrize("padded", [True, False])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(padded):
    results = []
    for checkpointing in (False, True):
        model = random_model(gradient_checkpointing=checkpointing, dropout=0.2).train()
        recomputed = []
        model.blocks[0].register_forward_pre_hook(lambda *_, seen=recomputed: seen.append(1))
        torch.manual_seed(0)
        tokens = torch.randint(29, (3, 9))
        mask = torch.ones(3, 9) if padded else None
        logits = model(tokens, mask)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        loss.backward()
        assert len(recomputed) == (2 if checkpointing else 1)
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for plain, checkpointed in zip(*results, strict=True):
        assert_same_in_float64(checkpointed, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_logits():
    model = random_model()
    tokens = torch.randint(29, (2, 16))
    mask = torch.ones(2, 16)
    mask[0, :5] = 0
    documents = torch.tensor([[0] * 5 + [1] * 11, [0] * 16])
    expected = model(tokens), model(tokens, mask), model(tokens, document_ids=documents)
    model.cuda()
    assert model.device.type == "cuda"
    tokens, mask = tokens.cuda(), mask.cuda()
    cache = model.new_cache(2)
    cached = torch.cat([model(part, cache=cache) for part in tokens.split([7, 1, 8], 1)], dim=1)
    assert_same_in_float64(model(tokens).cpu(), expected[0])
    assert_same_in_float64(cached.cpu(), expected[0])
    assert_same_in_float64(model(tokens, mask).cpu(), expected[1])
    assert_same_in_float64(model(tokens, document_ids=documents.cuda()).cpu(), expected[2])


def test_a_mask_of_three_dimensions_that_is_not_boolean_is_refused():
    model = random_model()
    with pytest.raises(AGI2Error, match=r"^attention_mask of 3 dimensions is boolean"):
        model(torch.tensor([[1, 2]]), torch.zeros(1, 2, 2))


def test_keys_that_a_mapping_leaves_out_have_their_defaults():
    model = GPT2Model({"model_layer": 2, "model_embd": 16, "model_head": 2, "vocab_size": 9})
    assert model.config == GPT2Config(n_layers=2, d_model=16, n_heads=2, vocab_size=9)


def test_weights_that_are_assigned_end_what_reads_the_earlier_ones():
    model, other = random_model(), random_model()
    model.use_decode_backend(GraphedBackend(StepModules.of(model)))
    model.load_state_dict(other.state_dict())
    assert isinstance(model.decode_backend, GraphedBackend)
    model.load_state_dict(other.state_dict(), True, True)  # strict, assign
    assert isinstance(model.decode_backend, EagerBackend)
