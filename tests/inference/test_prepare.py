"""Preparation for generation: packed, int8 and int4 weights."""

import copy
import functools
import gc
import pickle
import weakref

import pytest
import torch
from torch.nn.functional import cross_entropy, gelu, linear

from src.config import Config
from src.errors import AGI2Error
from src.formats.gguf import export_gguf
from src.formats.huggingface import export_huggingface
from src.formats.model_dir import save_model, save_weights
from src.formats.onnx import export_onnx
from src.generation import generate_text, generate_tokens
from src.inference.beam_search import beam_search
from src.inference.prepare import prepare_for_generation
from src.nn.cpu_library import LIBRARY
from src.nn.decode_backend import EagerBackend
from src.nn.kernel_backend import KernelBackend
from src.nn.lora import add_lora, merge_lora
from src.nn.quantized import QuantizedLinear
from src.tokenizer import BPETokenizer
from src.train.loss import NextTokenLoss
from src.training import train_epoch
from tests.bounds import assert_each_operation_within, assert_within, gamma, product_bound
from tests.nn.kernels import needs_library
from tests.tiny_models import alphabet as tokenizer
from tests.tiny_models import random_model

SIZES = {"d_model": 64, "d_ff": 192, "n_heads": 4, "vocab_size": 83, "max_seq_len": 32}


def make(**changes):
    return random_model(**{**SIZES, "position_embedding": "learned", "std": 0.1, **changes})


def tokens(rows=3, length=20):
    return torch.randint(0, 83, (rows, length), generator=torch.Generator().manual_seed(0))


def assert_all_is_within(model, bits=32):
    """Every operation makes what float32 may make of the weights as they are multiplied with."""
    activation = functools.partial(gelu, approximate="tanh")
    assert_each_operation_within(model, tokens(), activation, bits)


@torch.inference_mode()
def log_probs(model, rows=3):
    return model(tokens(rows)).log_softmax(dim=-1)


BITS = {"none": 32, "int8": 8, "int4": 4}


@pytest.mark.parametrize("quantize", BITS)
@pytest.mark.parametrize("changes", [{}, {"tie_weights": False}, {"bias": False}])
def test_weights_are_multiplied_with_as_they_are(changes, quantize):
    """And packed ones are the same; what rounded ones may differ by, tests below say."""
    model = make(**changes)
    names = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    before = [model.get_submodule(name).weight.detach().clone() for name in names]
    prepared = prepare_for_generation(model, quantize)
    if quantize == "none":
        assert all(map(torch.equal, before, (model.get_submodule(n).weight for n in names)))
    # Without the compiled part no inputs are rounded.
    assert_all_is_within(prepared, 32 if LIBRARY is None else BITS[quantize])


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_tied_embeddings_are_the_heads_rows(quantize):
    model = prepare_for_generation(make(), quantize)
    assert torch.equal(model.token_embeddings(tokens()), model.head.weight[tokens()])


@pytest.mark.skipif(LIBRARY is None, reason="no C compiler at installation")
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_prepared_model_keeps_no_matrix_that_it_was_made_of(quantize):
    """Else it would take its memory twice."""
    model = make(n_layers=2, position_embedding="sinusoidal", tie_weights=False)
    arrays = {name: weight.numpy().copy() for name, weight in model.state_dict().items()}
    alive = [weakref.ref(array) for array in arrays.values() if array.ndim == 2]
    # A tensor that is made of an array keeps it for as long as its memory is used.
    model.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()}, assign=True)
    del arrays
    gc.collect()
    assert all(array() is not None for array in alive)
    prepare_for_generation(model, quantize)
    gc.collect()
    assert [array() for array in alive if array() is not None] == []


@pytest.mark.skipif(LIBRARY is None, reason="no C compiler at installation")
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_prepared_model_writes_what_it_says_to_all_tokens_at_once(quantize):
    """The compiled part's sums are the same, bit for bit, for one token and for several."""
    model = prepare_for_generation(make(), quantize)
    written = list(generate_tokens(model, [1, 2, 3], 8, 0))
    with torch.inference_mode():
        logits = model(torch.tensor([[1, 2, 3, *written]]), cache=model.new_cache())[0]
    assert logits[2:-1].argmax(dim=-1).tolist() == written


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_without_the_compiled_part_the_logits_are_those_of_the_same_weights(
    quantize, monkeypatch, caplog
):
    compiled = prepare_for_generation(make(), quantize)
    assert not caplog.messages
    monkeypatch.setattr("src.nn.cpu_kernels.LIBRARY", None)
    plain = prepare_for_generation(make(), quantize)
    assert isinstance(plain.decode_backend, EagerBackend)
    assert ("saves memory here, but no time" in caplog.text) == (quantize != "none")
    assert_all_is_within(plain)
    monkeypatch.undo()
    assert torch.equal(expanding(compiled), expanding(plain))


@needs_library
@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("widths", [{"d_ff": 81}, {"d_model": 36, "d_ff": 5}])
def test_a_width_that_groups_do_not_divide_has_kernels(quantize, widths):
    model = prepare_for_generation(make(**widths), quantize)
    assert isinstance(model.decode_backend, KernelBackend)
    assert_all_is_within(model, BITS[quantize])


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_weights_that_are_no_numbers_are_one_clear_line(quantize):
    model = make()
    with torch.no_grad():
        model.blocks[1].ffn.expand.weight[3, 4] = float("nan")
    with pytest.raises(AGI2Error, match="has weights that are not finite"):
        prepare_for_generation(model, quantize)


def test_another_device_keeps_its_weights():
    model = make().to("meta")
    assert prepare_for_generation(model) is model
    with pytest.raises(AGI2Error, match=r'^quantize = "int8" is for a CPU'):
        prepare_for_generation(model, "int8")


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_a_prepared_model_reads_in_bfloat16_with_the_products_there_are(quantize):
    """Bit for bit: of float32 the compiled part's, of what autocasting has rounded PyTorch's."""
    model = prepare_for_generation(make(), quantize)
    read = []
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            layer.register_forward_hook(lambda layer, x, out: read.append((layer, *x, out)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert log_probs(model).isfinite().all()
    assert {x.dtype for _, x, _ in read} == {torch.float32, torch.bfloat16}
    for layer, x, out in read.copy():
        has_kernel = LIBRARY is not None and x.dtype == torch.float32
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=not has_kernel):
            bias = layer._weights.bias
            expected = layer(x) if has_kernel else linear(x, layer.weight, bias)
        assert torch.equal(out, expected)


# A prepared model is not what it was: each use of it works right, or is refused at once.


SAVED = (
    'the model was prepared for generation (quantize = "{}"): it cannot be {}; load it again '
    "for that"
)


def optimised(model, _):
    batches = [tokens(2, 9)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return train_epoch(model, batches, optimizer)


REFUSED = {
    "state_dict": (lambda model, _: model.state_dict(), "saved or exported"),
    "save_weights": (lambda m, path: save_weights(m.state_dict(), path / "w"), "saved or exported"),
    "save_model": (
        lambda model, path: save_model(model, tokenizer(), Config(), path / "model"),
        "saved or exported",
    ),
    "export_huggingface": (
        lambda model, path: export_huggingface(model, BPETokenizer(257), path / "hf"),
        "saved or exported",
    ),
    "export_gguf": (
        lambda model, path: export_gguf(model, BPETokenizer(257), path / "gguf"),
        "saved or exported",
    ),
    "export_onnx": (lambda model, path: export_onnx(model, path / "onnx"), "saved or exported"),
    "torch.save": (lambda model, path: torch.save(model, path / "m"), "copied or pickled"),
    "pickle": (lambda model, _: pickle.dumps(model), "copied or pickled"),
    "copy": (lambda model, _: copy.copy(model), "copied or pickled"),
    "deepcopy": (lambda model, _: copy.deepcopy(model), "copied or pickled"),
    "load_state_dict": (lambda m, _: m.load_state_dict(make().state_dict()), "given other weights"),
    "init_weights": (lambda model, _: model.init_weights(), "given other weights"),
    "train": (lambda model, _: model.train(), "trained"),
    "train_epoch": (optimised, "trained"),
    "requires_grad": (lambda model, _: model.requires_grad_(), "trained"),
    "add_lora": (lambda model, _: add_lora(model, 2), "trained"),
    "merge_lora": (lambda model, _: merge_lora(model), "trained"),
    "to a device": (lambda model, _: model.to("meta"), "moved, or turned into other numbers"),
    "to_empty": (lambda m, _: m.to_empty(device="cpu"), "moved, or turned into other numbers"),
    "bfloat16": (lambda model, _: model.bfloat16(), "moved, or turned into other numbers"),
    "double": (lambda model, _: model.double(), "moved, or turned into other numbers"),
    "half": (lambda model, _: model.half(), "moved, or turned into other numbers"),
}


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("use", REFUSED)
def test_what_a_prepared_model_no_longer_is_is_refused_in_one_line(use, quantize, tmp_path):
    model = prepare_for_generation(make(tie_weights=quantize == "int8"), quantize)
    expected = log_probs(model)
    act, what = REFUSED[use]
    with pytest.raises(AGI2Error) as caught:
        act(model, tmp_path)
    assert str(caught.value) == SAVED.format(quantize, what)
    assert torch.equal(log_probs(model), expected)  # and changes nothing
    assert [path.name for path in tmp_path.iterdir() if path.name != "m"] == []


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_what_a_prepared_model_still_does_is_right(quantize):
    plain = make()
    model = prepare_for_generation(copy.deepcopy(plain), quantize)
    assert model.num_parameters() == plain.num_parameters()
    assert prepare_for_generation(model, quantize) is model
    assert model.to("cpu") is model.float() is model.eval() is model.cpu() is model
    assert generate_text(model, "abc", 5, tokenizer=tokenizer(), device="cpu", temperature=0)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # The loss is that of the logits.
    ids = tokens(2, 9)
    with torch.inference_mode():
        hidden = model.hidden_states(ids[:, :-1])
        logits = hidden.double() @ model.output_weight.double().T
        loss = NextTokenLoss(model)(ids[:, :-1], ids[:, 1:])
        expected = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    # A loss is off by what two logits are, and by a sum of 83 powers and its logarithm.
    of_logits = product_bound(hidden, model.output_weight).max()
    assert_within(loss, expected, 2 * of_logits + gamma(128) * (1 + logits.abs().max()))


@pytest.mark.parametrize("other", ["none", "int4"])
def test_a_model_is_prepared_in_one_way(other):
    model = prepare_for_generation(make(), "int8")
    with pytest.raises(
        AGI2Error, match=r'^the model was prepared .*"int8"\): load it again to quan'
    ):
        prepare_for_generation(model, other)
    with pytest.raises(AGI2Error, match=r"^quantize must be one of none, int8, int4, not 'fp8'$"):
        prepare_for_generation(model, "fp8")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_a_model_of_other_numbers_stays_as_it_is_or_is_refused(kind, some):
    def other():
        model = make()
        (model.blocks[0].ffn_norm if some else model).to(kind)
        return model

    model = prepare_for_generation(other())
    assert model.prepared is None
    assert isinstance(model.decode_backend, EagerBackend)
    if not some:  # PyTorch does not multiply numbers of different kinds
        assert torch.equal(log_probs(model), log_probs(other()))
        assert len(generate_text(model, "abc", 5, tokenizer=tokenizer(), temperature=0)) >= 3
        assert beam_search(model, [1, 2], 2, 4)
    for quantize in ("int8", "int4"):
        with pytest.raises(AGI2Error, match=rf'^quantize = "{quantize}" needs a model in float32'):
            prepare_for_generation(other(), quantize)


def test_a_weight_that_is_refused_leaves_the_model_as_it_was():
    model = make()
    with torch.no_grad():
        model.blocks[-1].ffn.contract.weight[3, 4] = float("nan")
    before = [type(module) for module in model.modules()]
    with pytest.raises(AGI2Error, match=r"^blocks.1.ffn.contract.weight of the model"):
        prepare_for_generation(model, "int8")
    assert [type(module) for module in model.modules()] == before


def expanding(model):
    """The first layer's widening matrix, as it is multiplied with."""
    return model.blocks[0].ffn.expand.weight
