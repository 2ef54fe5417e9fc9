"""`train_epoch`: scheduler, log, and invalid arguments."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F

from src.errors import AGI2Error
from src.train.loss import IGNORE_INDEX
from src.training import train_epoch
from tests.bounds import unit
from tests.test_training import same_weights, tiny_model, windows


def sgd(model, rate=0.1):
    return torch.optim.SGD(model.parameters(), lr=rate)


def test_the_scheduler_is_stepped_after_each_optimizer_step():
    scheduled, by_hand = tiny_model(), tiny_model()
    optimizer = sgd(scheduled)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train_epoch(scheduled, windows(3), optimizer, scheduler=scheduler)
    assert scheduler.get_last_lr() == [0.1 * 0.5**3]
    for number, batch in enumerate(windows(3)):
        train_epoch(by_hand, [batch], sgd(by_hand, 0.1 * 0.5**number))
    assert same_weights(scheduled, by_hand)


def test_a_plateau_scheduler_is_given_the_mean_loss_of_the_epoch():
    model = tiny_model()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    mean = train_epoch(model, windows(3), optimizer, scheduler=scheduler)
    assert scheduler.best == mean
    assert scheduler.last_epoch == 1


def test_a_step_that_is_skipped_does_not_move_the_scheduler(caplog):
    def broken(logits, targets):
        return F.cross_entropy(logits, targets) * math.nan

    model, before = tiny_model(), tiny_model()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert math.isnan(train_epoch(model, windows(2), optimizer, broken, scheduler=scheduler))
    assert scheduler.last_epoch == 0
    assert same_weights(model, before)
    assert caplog.messages[:2] == [
        f"batch {number} skipped: its loss or gradients are not finite" for number in (1, 2)
    ]


def test_a_batch_whose_targets_are_all_ignored_is_skipped(caplog):
    batch = windows(1)[0]
    pairs = [
        (batch[:, :-1], torch.full_like(batch[:, 1:], IGNORE_INDEX)),
        (batch[:, :-1], batch[:, 1:]),
    ]
    model, other = tiny_model(), tiny_model()
    loss = train_epoch(model, pairs, sgd(model))
    assert loss == train_epoch(other, pairs[1:], sgd(other))
    assert same_weights(model, other)
    assert caplog.messages[0] == "batch 1 skipped: all of its targets are ignored"


def test_the_log_has_loss_rate_tokens_memory_and_progress(caplog):
    model = tiny_model()
    with caplog.at_level(logging.INFO, logger="agi2"):
        mean = train_epoch(model, windows(25), sgd(model))
    shown, end = caplog.messages[:-1], caplog.messages[-1]
    assert end.startswith(f"epoch  train loss {mean:.4f}  lr 0.1  800 tokens in ")
    assert "  memory " in end
    assert [line.split("  ")[1] for line in shown] == ["step 10/25", "step 20/25"]
    assert all("loss" in line and "left" in line for line in shown)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="agi2"):
        train_epoch(model, iter(windows(101)), sgd(model))
    assert [line.split("  ")[0] for line in caplog.messages[:-1]] == ["step 100"]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="agi2"):
        train_epoch(model, windows(25), sgd(model), verbose=False)
    assert caplog.messages == []


@pytest.mark.parametrize("device", [None, "cpu", "auto", torch.device("cpu")])
def test_the_device_is_the_models(device):
    model = tiny_model()
    assert train_epoch(model, windows(1), sgd(model), device=device) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gpt2"}, "model: str is not a torch.nn.Module"),
        ({"optimizer": 0.1}, "optimizer: float is not a torch.optim.Optimizer"),
        ({"criterion": None}, "criterion: NoneType cannot be called"),
        ({"scheduler": 3}, "scheduler: int has no method step"),
        ({"clip_grad_norm": 0}, "clip_grad_norm = 0: give a number above 0"),
        ({"clip_grad_norm": math.nan}, "clip_grad_norm = nan"),
        ({"clip_grad_norm": "1"}, "clip_grad_norm must be a number or None, not '1'"),
        ({"device": "gpu"}, "device = 'gpu': give cpu"),
        ({"device": 1.5}, "device = 1.5: give cpu"),
        ({"device": "meta"}, "device = 'meta', but the model is on cpu: move it first"),
        ({"dataloader": 7}, "dataloader: int is not iterable: give a DataLoader"),
        ({"dataloader": [torch.arange(9)]}, r"has the shape \(9,\), not .*wrap a dataset"),
        ({"dataloader": [torch.zeros(2, 1).long()]}, r"has the shape \(2, 1\)"),
        ({"dataloader": ["text"]}, "a batch is a str"),
        ({"dataloader": []}, "nothing to train on"),
    ],
)
def test_what_is_not_of_its_kind_is_named(changes, message):
    model = tiny_model()
    given = {"model": model, "dataloader": windows(1), "optimizer": sgd(model), **changes}
    with pytest.raises(AGI2Error, match=message) as refused:
        train_epoch(**given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_model_of_other_numbers_is_trained_in_them(kind):
    torch.manual_seed(0)
    model = tiny_model().to(kind)
    before = [p.detach().clone() for p in model.parameters()]
    batch = torch.randint(20, (4, 9))
    expected = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).item()
    loss = train_epoch(model, [batch], torch.optim.SGD(model.parameters(), lr=0.5))
    assert loss == pytest.approx(expected, rel=2 * unit(), abs=0)  # a mean in float32
    assert all(p.dtype == kind and p.isfinite().all() for p in model.parameters())
    assert not all(map(torch.equal, before, model.parameters()))


def test_weights_in_float16_are_not_trained():
    model = tiny_model().half()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(AGI2Error, match=r"^the model's weights are float16, .* model.float\(\)$"):
        train_epoch(model, [torch.zeros(1, 4).long()], torch.optim.SGD(model.parameters(), lr=1))
    assert all(map(torch.equal, before, model.parameters()))
