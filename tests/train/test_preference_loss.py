"""DPO: the loss and its gradients against the paper's formula in plain PyTorch, and the figures."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import Config
from src.data.windows import IGNORE_INDEX
from src.train import preference_loss
from src.train.loss import NextTokenLoss
from src.train.preference_figures import PairSums, figures, sums_over
from src.train.preference_loss import PreferenceLoss, make_loss
from src.train.state import RunState
from src.train.step import accumulate_gradients
from tests.bounds import assert_same_in_float64
from tests.tiny_models import random_model

CPU, WIDTH = torch.device("cpu"), 7
ROWS = 5


def policy(seed=1):
    """A model in training mode, in float64."""
    return random_model(seed).double().train()


def make_pairs(rows=ROWS, seed=0):
    """Inputs and targets of pairs, (B, 2 W): right-padded, the prompt without targets."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randint(1, 29, (rows, 2, WIDTH), generator=draw)
    targets = torch.randint(1, 29, (rows, 2, WIDTH), generator=draw)
    for row in range(rows):
        prompt = row % 3
        for side in range(2):
            end = prompt + 1 + (3 * row + side) % (WIDTH - prompt)
            targets[row, side, :prompt] = targets[row, side, end:] = IGNORE_INDEX
            inputs[row, side, end:] = 0
    return inputs.flatten(1), targets.flatten(1)


def log_probability(model, inputs, targets):
    """The sum over the targets of one conversation, without its padding."""
    counted = targets != IGNORE_INDEX
    end = int(counted.nonzero()[-1]) + 1
    scores = F.log_softmax(model(inputs[None, :end])[0], -1)
    places = counted[:end].nonzero()[:, 0]
    return scores[places, targets[places]].sum()


def dpo_loss(model, reference, inputs, targets, beta):
    """Equation 7 of Rafailov et al. (2023), conversation by conversation."""
    losses = []
    for row, wanted in zip(inputs, targets, strict=True):
        ratios = []
        for side in range(2):
            own = slice(side * WIDTH, (side + 1) * WIDTH)
            with torch.no_grad():
                before = log_probability(reference, row[own], wanted[own])
            ratios.append(log_probability(model, row[own], wanted[own]) - before)
        losses.append(-torch.log(torch.sigmoid(beta * ratios[0] - beta * ratios[1])))
    return torch.stack(losses).mean()


def reference_of(model, inputs, targets):
    with torch.no_grad():
        return PreferenceLoss(model, 1.0).log_probabilities(inputs, targets)


def batch_of(rows=ROWS, seed=0):
    inputs, targets = make_pairs(rows, seed)
    return inputs, targets, reference_of(policy(2), inputs, targets)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [3, 10**6])
@pytest.mark.parametrize("beta", [0.05, 0.7])
def test_the_loss_and_its_gradients_are_those_of_the_paper(beta, chunk, monkeypatch):
    monkeypatch.setattr(preference_loss, "logits_chunk_tokens", lambda _: chunk)
    inputs, targets, reference = batch_of()
    ours, plain = policy(), policy()
    loss = PreferenceLoss(ours, beta)(inputs, targets, reference)
    expected = dpo_loss(plain, policy(2), inputs, targets, beta)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    for name, gradient in gradients(plain).items():
        assert_same_in_float64(gradients(ours)[name], gradient)


def test_the_starting_model_has_the_loss_log_2_and_no_divergence():
    inputs, targets = make_pairs()
    module = PreferenceLoss(policy(), 0.3)
    loss = module(inputs, targets, reference_of(policy(), inputs, targets))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-12)
    found = figures(module.sums.tolist())
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-12)


@given(
    rows=st.integers(1, 7),
    micro=st.integers(1, 4),
    processes=st.integers(1, 3),
    is_padded=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_micro_batches_and_processes_give_the_gradients_of_the_whole(
    rows, micro, processes, is_padded
):
    batch = batch_of(rows, seed=rows)
    whole = PreferenceLoss(policy(), 0.2)
    expected = whole(*batch)
    expected.backward()
    loss, sums = 0.0, torch.zeros(7, dtype=torch.float64)
    shared = {name: torch.zeros_like(p) for name, p in whole.model.named_parameters()}
    for rank in range(processes):
        own = slice(-(-rows * rank // processes), -(-rows * (rank + 1) // processes))
        module = PreferenceLoss(policy(), 0.2)
        loss += accumulate_gradients(
            module,
            [part[own] for part in batch],
            CPU,
            micro_batch_size=micro,
            num_targets=module.count(batch[1]),
            world_size=processes,
            min_micro_batches=-(-rows // (processes * micro)),
            is_padded=is_padded,
            count=module.count,
        )
        sums += module.sums
        for name, gradient in gradients(module.model).items():
            shared[name] += gradient / processes
    assert float(loss / processes) == pytest.approx(expected.item(), rel=1e-5)
    assert sums.tolist() == pytest.approx(whole.sums.tolist(), rel=1e-9)
    for name, gradient in gradients(whole.model).items():
        assert_same_in_float64(shared[name], gradient)


def test_rows_without_targets_change_nothing_and_alone_have_the_loss_0():
    inputs, targets, reference = batch_of(2)
    module = PreferenceLoss(policy(), 0.2)
    expected = module(inputs, targets, reference).item()
    none = torch.full_like(targets, IGNORE_INDEX)
    zeros = torch.zeros_like(reference)
    more = [torch.cat(both) for both in ((inputs, inputs), (targets, none), (reference, zeros))]
    assert module(*more).item() == pytest.approx(expected, rel=1e-12)
    loss = module(inputs, none, zeros)
    loss.backward()
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(module.model).values())
    assert len(gradients(module.model)) == len([*module.model.parameters()])


def test_compiled_blocks_have_the_same_loss():
    batch, module = batch_of(2), PreferenceLoss(policy(), 0.2)
    expected = module(*batch).item()
    module.compile_parts(backend="eager")
    assert module(*batch).item() == pytest.approx(expected, rel=1e-12)


def test_the_figures_are_those_of_the_pairs():
    inputs, targets, reference = batch_of()
    module = PreferenceLoss(policy(), 0.5)
    module(inputs, targets, reference)
    rewards, divergences = [], []
    for row in range(ROWS):
        for side in range(2):
            own = slice(side * WIDTH, (side + 1) * WIDTH)
            counted = targets[row, own] != IGNORE_INDEX
            with torch.no_grad():
                scores = F.log_softmax(policy()(inputs[row : row + 1, own])[0], -1)
                wanted = log_probability(policy(), inputs[row, own], targets[row, own])
            for place in counted.nonzero()[:, 0].tolist():
                ratio = scores[place, targets[row, own][place]] - reference[row, own][place]
                divergences.append(float(ratio.exp() - 1 - ratio))
            rewards.append(0.5 * float(wanted - reference[row, own].sum()))
    chosen, rejected = rewards[::2], rewards[1::2]
    assert figures(module.sums.tolist()) == pytest.approx(
        {
            "accuracy": sum(a > b for a, b in zip(chosen, rejected, strict=True)) / ROWS,
            "margin": (sum(chosen) - sum(rejected)) / ROWS,
            "chosen_reward": sum(chosen) / ROWS,
            "rejected_reward": sum(rejected) / ROWS,
            "kl": sum(divergences) / len(divergences),
        }
    )
    assert min(divergences) >= 0


def test_the_kl_estimate_is_right_for_samples_of_the_starting_model():
    draw = torch.Generator().manual_seed(0)
    start, now = (F.log_softmax(torch.randn(9, generator=draw), -1) for _ in range(2))
    sampled = torch.multinomial(start.exp(), 200_000, replacement=True, generator=draw)
    ratios = (now - start)[sampled].view(1, 2, -1)
    found = figures(sums_over(ratios, torch.ones_like(ratios, dtype=torch.bool), 0.1).tolist())
    exact = float((start.exp() * (start - now)).sum())
    deviation = float((ratios.exp() - 1 - ratios).std()) / 200_000**0.5
    assert found["kl"] == pytest.approx(exact, abs=4 * deviation)


def test_sums_are_saved_with_the_state_and_taken_once():
    steps = [torch.rand(7, dtype=torch.float64) for _ in range(3)]
    state = RunState()
    for each in steps[:2]:
        state.count_step(torch.tensor(0.5), True, 1, each)
    state.count_step(torch.tensor(0.5), False, 1, steps[2])  # skipped
    resumed = RunState.from_json(state.to_json())
    assert resumed.recent_pairs.take() == figures((steps[0] + steps[1]).tolist())
    assert resumed.recent_pairs.take() == {}
    earlier = {key: value for key, value in RunState().to_json().items() if "pairs" not in key}
    assert RunState.from_json(earlier).recent_pairs.state() == []
    assert math.isnan(PairSums([None] * 7).take()["margin"])


def test_the_keys_choose_the_loss():
    assert isinstance(make_loss(random_model(), Config()), NextTokenLoss)
    chosen = make_loss(random_model(), Config(preferences=["a"], dpo_beta=0.4))
    assert (type(chosen), chosen.beta) == (PreferenceLoss, 0.4)
