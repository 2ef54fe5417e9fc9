import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from src.cuda_utils import autocast
from src.train import loss as loss_module
from src.train.loss import IGNORE_INDEX, NextTokenLoss
from src.train.step import split_batch
from tests.bounds import assert_same_in_float64, gamma
from tests.train.test_step import CPU, exact_model, gradients, plain_loss, tiny_model, tokens


@given(
    rows=st.integers(1, 6),
    chunk=st.integers(1, 50),
    tied=st.booleans(),
    scale=st.floats(0.1, 10.0),
)
@settings(max_examples=20, deadline=None)
def test_the_chunked_loss_and_its_gradients_are_those_of_all_logits(rows, chunk, tied, scale):
    inputs, targets = split_batch(tokens(rows, seed=rows))
    results = []
    for chunked in (False, True):
        model = exact_model(tie_weights=tied)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loss_module, "logits_chunk_tokens", lambda _: chunk)
            loss_of = NextTokenLoss(model) if chunked else plain_loss(model)
            loss = loss_of(inputs, targets)
            (scale * loss).backward()
        results.append({"loss": loss.detach(), **gradients(model)})
    for name, expected in results[0].items():
        assert_same_in_float64(results[1][name], expected)


@given(ignored=st.lists(st.booleans(), min_size=24, max_size=24), chunk=st.integers(1, 30))
def test_ignored_targets_count_neither_in_the_loss_nor_in_its_mean(ignored, chunk):
    inputs, targets = split_batch(tokens(3))
    targets = targets.masked_fill(torch.tensor(ignored).view(3, 8), IGNORE_INDEX)
    results = []
    for chunked in (False, True):
        model = exact_model()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loss_module, "logits_chunk_tokens", lambda _: chunk)
            if chunked:
                loss = NextTokenLoss(model)(inputs, targets)
            else:
                logits = model(inputs).flatten(0, 1)
                total = F.cross_entropy(logits, targets.flatten(), reduction="sum")
                loss = total / max(1, ignored.count(False))
            loss.backward()
        results.append({"loss": loss.detach(), **gradients(model)})
    for name, expected in results[0].items():
        assert_same_in_float64(results[1][name], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_of_ignored_targets_has_no_loss_and_no_gradient(dtype):
    model = tiny_model()
    inputs, targets = split_batch(tokens(2))
    with autocast(CPU, dtype):
        loss = NextTokenLoss(model)(inputs, torch.full_like(targets, IGNORE_INDEX))
    loss.backward()
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients(model).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_not_trained_has_no_gradient_and_changes_no_other(dtype):
    inputs, targets = split_batch(tokens(4))
    results = []
    for trained in (True, False):
        model = tiny_model()
        model.output_weight.requires_grad_(trained)
        with autocast(CPU, dtype):
            NextTokenLoss(model)(inputs, targets).backward()
        results.append(gradients(model))
    different = [name for name in results[0] if results[1][name] is None]
    assert different == ["token_embeddings.weight"]
    for name, expected in results[1].items():
        assert expected is None or torch.equal(results[0][name], expected)


@pytest.mark.uncounted
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX") or "g++") is None, reason="needs a C++ compiler"
)
def test_code_compiled_by_inductor_gives_the_same_loss_and_gradients():
    inputs, targets = split_batch(tokens(2))
    torch._dynamo.reset()
    results = []
    for is_compiled in (False, True):
        model = exact_model()
        module = NextTokenLoss(model)
        if is_compiled:
            module.compile_parts()
        loss = module(inputs, targets)
        loss.backward()
        results.append({"loss": loss.detach(), **gradients(model)})
    for name, expected in results[0].items():
        assert_same_in_float64(results[1][name], expected)


@pytest.mark.uncounted
def test_traced_code_masks_documents_as_other_code_does():
    inputs, targets = split_batch(tokens(3))
    ids = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]]).expand(3, 8)
    torch._dynamo.reset()
    results = []
    for is_traced in (False, True):
        model = exact_model()
        module = NextTokenLoss(model)
        if is_traced:
            module.compile_parts(backend="eager")
        loss = module(inputs, targets, ids)
        loss.backward()
        results.append({"loss": loss.detach(), **gradients(model)})
    for name, expected in results[0].items():
        assert_same_in_float64(results[1][name], expected)


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_with_autocast_of_all_logits(dtype, has_kernels, monkeypatch):
    if not has_kernels:
        monkeypatch.setattr(loss_module, "has_kernels", lambda _: False)
    inputs, targets = split_batch(tokens(4))
    results = []
    for chunked in (False, True):
        model = tiny_model()
        loss_of = NextTokenLoss(model) if chunked else plain_loss(model)
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_of(inputs, targets)
        loss.backward()
        results.append({"loss": loss.detach(), **gradients(model)})
    for name, expected in results[0].items():
        assert results[1][name].dtype == torch.float32
        # Ten matrices on the way there and back, whose inputs and results are rounded to `dtype`.
        assert (results[1][name] - expected).norm() <= gamma(20, dtype) * expected.norm()


def taught_loss(model, teacher, weight, inputs, targets):
    """The mean over the targets of the cross-entropy with one-hot and the teacher's predictions."""
    logits, targets = model(inputs).flatten(0, 1), targets.flatten()
    with torch.no_grad():
        predicted = teacher(inputs).flatten(0, 1).softmax(-1)
    hard = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    soft = -(predicted * logits.log_softmax(-1)).sum(-1).masked_fill(targets == IGNORE_INDEX, 0)
    count = (targets != IGNORE_INDEX).sum().clamp(min=1)
    return ((1 - weight) * hard + weight * soft).sum() / count


def teacher_of(model):
    """A model of the same shape with other weights."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@given(
    ignored=st.lists(st.booleans(), min_size=24, max_size=24),
    chunk=st.integers(1, 30),
    weight=st.floats(0.05, 0.95),
)
@settings(max_examples=20, deadline=None)
def test_a_teacher_changes_the_gradients_to_those_of_other_targets(ignored, chunk, weight):
    inputs, targets = split_batch(tokens(3))
    targets = targets.masked_fill(torch.tensor(ignored).view(3, 8), IGNORE_INDEX)
    teacher, expected = teacher_of(exact_model()), exact_model()
    taught_loss(expected, teacher, weight, inputs, targets).backward()
    model = exact_model()
    loss_of = NextTokenLoss(model, weight)
    without = loss_of(inputs, targets)
    loss_of.set_teacher(teacher)
    assert len(list(loss_of.parameters())) == len(list(model.parameters()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "logits_chunk_tokens", lambda _: chunk)
        loss = loss_of(inputs, targets)
        loss.backward()
    assert_same_in_float64(loss.detach(), without.detach())
    found = gradients(model)
    for name, gradient in gradients(expected).items():
        assert_same_in_float64(found[name], gradient)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision(dtype, has_kernels, monkeypatch):
    if not has_kernels:
        monkeypatch.setattr(loss_module, "has_kernels", lambda _: False)
    inputs, targets = split_batch(tokens(4))
    targets = targets.clone()
    targets[0, :3] = IGNORE_INDEX
    teacher, expected = teacher_of(tiny_model()), tiny_model()
    taught_loss(expected, teacher, 0.5, inputs, targets).backward()
    model = tiny_model()
    loss_of = NextTokenLoss(model, 0.5)
    loss_of.set_teacher(teacher)
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(inputs, targets)
    loss.backward()
    found = gradients(model)
    for name, gradient in gradients(expected).items():
        # As above, and a difference of two gradients.
        assert (found[name] - gradient).norm() <= gamma(40, dtype) * gradient.norm()
