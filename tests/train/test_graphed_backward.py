"""Micro-batches whose forward and backward pass is over static tensors; on a GPU a CUDA graph."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import Config, GPT2Config
from src.model import GPT2Model
from src.train.graphed_backward import GraphedBackward
from src.train.loss import NextTokenLoss
from src.train.optimizer import make_optimizers
from src.train.step import accumulate_gradients, apply_gradients, backward_of
from src.training import train_from_config
from tests.bounds import assert_same_in_float64

CPU = torch.device("cpu")
STEPS = 4


def tiny_model(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "max_seq_len": 8, "d_model": 16, "n_layers": 2, "n_heads": 2}
    return GPT2Model(GPT2Config(**{**sizes, "dropout": 0.0, **changes}))


def train(model, device, is_graphed, rows=5, micro=2, precision=torch.float32, is_compiled=False):
    """Return the losses and grad norms of a few steps, the weights, and what was graphed."""
    optimizers = make_optimizers(model, Config(optimizer="muon", learning_rate=1e-2))
    module, graph = NextTokenLoss(model), None
    if is_compiled:
        module.compile_parts()
    if is_graphed:
        backward = backward_of(module, device, precision)
        graph = GraphedBackward(backward, module)
    found = []
    for step in range(STEPS):
        torch.manual_seed(step)
        batch = torch.randint(20, (rows, 9)).to(device)
        torch.manual_seed(step)
        if graph is not None:
            graph.attach()
        loss = accumulate_gradients(
            module,
            batch,
            device,
            micro_batch_size=micro,
            precision=precision,
            backward=graph,
            is_padded=True,
        )
        norm, is_taken = apply_gradients(optimizers, 1.0, precision=precision)
        assert is_taken
        found += [loss.cpu(), norm.cpu()]
    return torch.stack(found), torch.cat([p.detach().flatten() for p in model.parameters()]), graph


@given(rows=st.integers(1, 5), micro=st.integers(1, 5))
@settings(max_examples=6, deadline=None)
def test_static_tensors_give_the_same_steps(rows, micro):
    plain, static = (
        train(tiny_model().double(), CPU, is_graphed, rows, micro) for is_graphed in (False, True)
    )
    assert_same_in_float64(static[0], plain[0])
    assert_same_in_float64(static[1], plain[1])
    assert static[2].graph is None


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_graph_gives_the_steps_that_launches_give(precision, is_compiled):
    """Also its dropout masks, which the seed of a step determines."""
    device, results = torch.device("cuda"), []
    for is_graphed in (False, True):
        model = tiny_model(dropout=0.2).to(device).train()
        options = {"precision": precision, "is_compiled": is_compiled}
        results.append(train(model, device, is_graphed, **options))
    (losses, weights, _), (replayed, replayed_weights, graph) = results
    assert graph.graph is not None
    torch.testing.assert_close(replayed, losses, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(replayed_weights, weights, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_a_compiled_run_on_a_gpu_replays_its_steps(tiny_run, monkeypatch):
    graphs = []
    make = GraphedBackward.__init__

    def kept(self, *arguments):
        graphs.append(self)
        make(self, *arguments)

    monkeypatch.setattr(GraphedBackward, "__init__", kept)
    run = train_from_config(tiny_run(device="cuda", max_steps=6, compile=True))
    assert run.history["steps"] == 6
    assert [graph.graph is not None for graph in graphs] == [True]
