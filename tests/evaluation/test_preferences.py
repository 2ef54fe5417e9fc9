"""Evaluation on pairs of preferences, against the formula in plain PyTorch."""

import numpy as np
import pytest
import torch

from src.data.chat_template import ChatTemplate, Message
from src.data.preference_windows import PreferenceWindows
from src.evaluation.preferences import evaluate_pairs
from src.train.preference_loss import log_probabilities_of
from tests.data.chats import chat_tokenizer
from tests.data.test_preference_windows import write_pairs
from tests.tiny_models import random_model
from tests.train.test_preference_loss import log_probability

TOKENIZER = chat_tokenizer()
BETA = 0.3


def pair(number):
    """A pair of conversations, which differ in the reply."""
    asked = Message("user", "ab" * (1 + number % 3))
    return [[asked, Message("assistant", reply * (1 + number % 2))] for reply in ("c", "de")]


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    tokens = write_pairs(tmp_path_factory.mktemp("pairs"), [pair(number) for number in range(7)])
    return PreferenceWindows(tokens, 64, ChatTemplate(TOKENIZER))


def models():
    sizes = {"vocab_size": TOKENIZER.vocab_size, "max_seq_len": 64}
    return [random_model(seed, **sizes).double().train() for seed in (1, 2)]


def test_the_loss_and_the_figures_are_those_of_each_pair_alone(windows):
    model, start = models()
    windows.reference = log_probabilities_of(start, windows, 3, torch.float32)
    inputs, targets, _ = windows.batch(torch.arange(len(windows)), 0)
    width = inputs.size(1) // 2
    losses, margins = [], []
    for row, wanted in zip(inputs, targets, strict=True):
        ratios = []
        for own in (slice(0, width), slice(width, None)):
            with torch.no_grad():
                now, then = (
                    log_probability(each.eval(), row[own], wanted[own]) for each in (model, start)
                )
            ratios.append(float(now - then))
        margins.append(BETA * (ratios[0] - ratios[1]))
        losses.append(np.log1p(np.exp(-margins[-1])))
    model.train()
    for batch_size in (1, 3, 100):
        found = evaluate_pairs(model, windows, TOKENIZER, beta=BETA, batch_size=batch_size)
        assert found.loss == pytest.approx(np.mean(losses), rel=1e-12)
        assert found.figures["margin"] == pytest.approx(np.mean(margins), rel=1e-12)
        assert found.figures["accuracy"] == pytest.approx(np.mean(np.array(margins) > 0))
        assert found.pairs == 7
        assert found.bits_per_byte is None
    assert model.training
    part = evaluate_pairs(
        model, windows, TOKENIZER, beta=BETA, max_tokens=3 * (windows.seq_len - 1)
    )
    assert part.pairs == 3
    assert part.loss == pytest.approx(np.mean([losses[each] for each in (0, 3, 6)]), rel=1e-12)
