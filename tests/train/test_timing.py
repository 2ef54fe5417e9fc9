import torch

from src.train.loss import NextTokenLoss
from src.train.setup import prepare
from src.train.timing import Duration, measure_step, predict_duration
from src.training import make_trainer


def test_real_steps_are_timed_and_nothing_is_written(tiny_run, tmp_path):
    before = set(tmp_path.rglob("*"))
    trainer = trainer_of(tiny_run(micro_batch_size=2, max_steps=5))
    weights = [p.clone() for p in trainer.model.parameters()]
    step, update = measure_step(trainer, seconds=60)
    assert 0 < update < step < 5
    assert not all(map(torch.equal, weights, trainer.model.parameters()))
    assert set(tmp_path.rglob("*")) == before


def test_the_steps_that_are_timed_have_a_teacher_as_those_of_the_run(tiny_run, monkeypatch):
    taught = []
    set_teacher = NextTokenLoss.set_teacher
    monkeypatch.setattr(
        NextTokenLoss,
        "set_teacher",
        lambda loss, each: taught.append(each) or set_teacher(loss, each),
    )
    trainer = trainer_of(tiny_run(ema_decay=0.9, self_distillation=0.5))
    measure_step(trainer, seconds=0)
    assert taught == [trainer.model]


def test_measuring_ends_with_its_time(tiny_run, monkeypatch):
    trainer = trainer_of(tiny_run(max_steps=1000))
    taken = []
    batch = trainer.batches.batch
    monkeypatch.setattr(trainer.batches, "batch", lambda step: taken.append(step) or batch(step))
    measure_step(trainer, seconds=0)
    assert taken == [0, 0]  # the warm-up, and one step


def test_time_is_reckoned_from_steps_or_from_the_clock(tiny_run):
    by_steps = trainer_of(tiny_run(max_steps=100, val_fraction=0.0))
    found = predict_duration(by_steps, 2.0, 0.5, 0)
    per_epoch = by_steps.batches.steps_per_epoch
    assert found == Duration(200.0, 100, 100 / per_epoch, 2.0 * per_epoch)
    by_clock = trainer_of(tiny_run(max_steps=None, max_minutes=1.0, val_fraction=0.0))
    found = predict_duration(by_clock, 2.0, 0.5, 0)
    assert (found.steps, found.seconds) == (30, 60.0)
    # Saving and validating take their share of the time.
    slow = predict_duration(by_clock, 2.0, 0.5, 10**11)
    assert slow.steps < found.steps
    validated = trainer_of(tiny_run(max_steps=100, eval_interval=1))
    assert predict_duration(validated, 2.0, 0.5, 0).seconds > 200


def trainer_of(config):
    return make_trainer(config, prepare(config))
