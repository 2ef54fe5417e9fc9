"""Planning a run: the chosen configuration and the predicted result."""

import pytest
import torch

from src.config_loader import make_config
from src.data.documents import ReadOptions
from src.errors import AGI2Error
from src.tokenizer import BPETokenizer
from src.train import planner as planning
from src.train.planner import (
    SHAPES,
    Corpus,
    Throughput,
    choose_shape,
    vocabulary_for,
)
from tests.bounds import gamma, nearly
from tests.conftest import make_text

CPU = torch.device("cpu")


def test_a_larger_text_has_a_larger_vocabulary():
    sizes = [vocabulary_for(size) for size in (10**4, 10**5, 6 * 10**5, 10**6, 2 * 10**7, 10**9)]
    assert sizes == [512, 1024, 2048, 4096, 8192, 32_000]


@pytest.mark.parametrize("flops", [1e9, 4e10, 1e14])
@pytest.mark.parametrize("minutes", [0.1, 1, 10, 600])
@pytest.mark.parametrize(
    ("size", "widest"), [(1000, 64), (6000, 64), (80_000, 128), (1_000_000, 256), (10**7, 768)]
)
def test_no_plan_is_larger_than_its_text_can_use(monkeypatch, size, widest, minutes, flops):
    speeds(monkeypatch, flops)
    monkeypatch.setattr(planning, "available_memory", lambda device: 10**13)
    plan = choose_shape(Corpus(["a.txt"], size, 2.4, ""), minutes, CPU, "m")
    assert plan.keys["model_embd"] <= widest
    assert plan.parameters <= max(150_000, planning._MAX_PARAMETERS_PER_BYTE * size)
    assert plan.minutes <= minutes
    # As many passes as still add something, or as the smallest number of steps is.
    assert plan.epochs <= 45 * (1 + gamma(8, torch.float64)) or plan.steps <= planning._MIN_STEPS
    config = make_config(plan.keys)
    assert (config.max_steps is None) == (plan.minutes == minutes)
    if config.max_steps is not None:
        assert config.max_steps == plan.steps
    # A figure only where the formula holds.
    near = 843_000 / 2 < 0.9 * size < 2 * 1_094_000
    assert near or "the text has" in plan.outside


def test_shapes_that_the_text_cannot_use_or_that_are_slow_are_not_measured(monkeypatch):
    monkeypatch.setattr(planning, "available_memory", lambda device: 10**13)
    measured = []

    def measure(keys, corpus):
        measured.append(keys["model_embd"])
        return Throughput(flops / planning._flops(keys), 3.5)

    monkeypatch.setattr(planning, "_measure", measure)
    flops = 1e13
    choose_shape(Corpus(["a.txt"], 80_000, 2.4, ""), 600, CPU, "m")
    assert set(measured) <= {64, 128}
    # On a slow machine a day is enough for a model whose single step is not worth waiting for.
    measured.clear()
    flops = 2e9
    plan = choose_shape(Corpus(["a.txt"], 10**9, 2.4, ""), 100_000, CPU, "m")
    assert plan.keys["model_embd"] not in measured
    work = 2e9 / planning._flops({**plan.keys, "vocab_size": 32_000})
    assert planning._step_tokens(plan.keys) / work > planning._MAX_STEP_SECONDS


def test_measuring_ends_after_a_time(monkeypatch):
    monkeypatch.setattr(planning, "_MAX_BENCHMARK_SECONDS", 0)
    measured = []

    def measure(keys, corpus):
        measured.append(keys["model_embd"])
        return Throughput(1e13 / planning._flops(keys), 3.5)

    monkeypatch.setattr(planning, "_measure", measure)
    monkeypatch.setattr(planning.time, "monotonic", iter(range(100)).__next__)
    plan = choose_shape(Corpus(["a.txt"], 10**7, 2.4, ""), 600, CPU, "m")
    assert len(measured) == 1
    assert plan.keys["model_embd"] > measured[0]


def test_a_corpus_keeps_a_bounded_sample(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(planning, "_SAMPLE_CHARACTERS", 3000)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(make_text(400), encoding="utf-8")
    with caplog.at_level("INFO", "agi2"):
        corpus = Corpus.read([str(tmp_path)], is_logged=False)
    assert "read " not in caplog.text
    assert 2500 <= len(corpus.sample) <= 3000 + len("\n\n") * 2
    assert corpus.bytes > 3 * 1200


def test_what_was_skipped_is_logged_if_too_little_is_left(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("short", encoding="utf-8")
    (tmp_path / "b.pdf").write_bytes(b"broken")
    with pytest.raises(AGI2Error, match="too few to plan for"):
        Corpus.read([str(tmp_path)], is_logged=False)
    assert "1 damaged" in caplog.text


def speeds(monkeypatch, flops):
    """A machine that does so many operations a second, whatever the shape."""
    monkeypatch.setattr(
        planning, "_measure", lambda keys, corpus: Throughput(flops / planning._flops(keys), 3.5)
    )


def test_more_time_and_a_faster_machine_make_a_larger_model(monkeypatch):
    monkeypatch.setattr(planning, "available_memory", lambda device: 10**12)
    corpus = Corpus(["a.txt"], 1_200_000, 2.5, "")
    large = Corpus(["a.txt"], 2_000_000_000, 2.5, "")
    plans = []
    for flops, minutes, what in (
        (4e10, 1, corpus),
        (4e10, 30, corpus),
        (4e10, 600, corpus),
        (4e14, 600, large),
    ):
        speeds(monkeypatch, flops)
        plans.append(choose_shape(what, minutes, CPU, "m"))
    sizes = [plan.parameters for plan in plans]
    assert sizes == sorted(set(sizes))
    assert plans[-1].parameters > 100_000_000
    assert [plan.keys["optimizer"] for plan in plans] == ["muon"] * 3 + ["adamw"]
    short, long = plans[0], plans[2]
    assert long.bits_per_byte < short.bits_per_byte
    assert long.keys["weight_decay"] > short.keys["weight_decay"] == 0.1
    assert plans[-1].keys["weight_decay"] == 0.1  # AdamW's


def test_what_a_plan_says_fits_together(monkeypatch):
    speeds(monkeypatch, 4e10)
    plan = choose_shape(Corpus(["a.txt"], 1_200_000, 2.5, ""), 10, CPU, "m")
    config = make_config(plan.keys)
    assert plan.tokens == plan.steps * config.batch_size * config.seq_len
    assert plan.epochs == nearly(3.5 * plan.tokens / 1_080_000, 8)
    assert 9 <= plan.steps / config.eval_interval <= 11


def test_no_shape_is_chosen_that_does_not_fit(monkeypatch):
    speeds(monkeypatch, 4e14)
    monkeypatch.setattr(planning, "available_memory", lambda device: 0)
    plan = choose_shape(Corpus(["a.txt"], 2_000_000_000, 2.5, ""), 600, CPU, "m")
    assert plan.keys["model_embd"] == SHAPES[0].width


def test_every_shape_is_a_configuration():
    for shape in SHAPES:
        config = make_config(planning._keys(Corpus(["a"], 10**6, 2.0, ""), shape, "m"))
        assert config.model_embd % config.model_head == 0
    sizes = [shape.layers * shape.width**2 for shape in SHAPES]
    assert sizes == sorted(sizes)


# Keys that the user has set


def planned(monkeypatch, minutes=10, size=1_200_000, text="", flops=4e10, **given):
    speeds(monkeypatch, flops)
    plan = choose_shape(Corpus(["a.txt"], size, 2.5, text), minutes, CPU, "m", given)
    return plan, make_config(plan.keys)


@pytest.mark.parametrize(
    "given",
    [
        {"model_embd": 96},
        {"model_head": 3},
        {"seq_len": 64},
        {"micro_batch_size": 4},
        {"preset": "small"},
        {"dropout": 0.3, "eval_interval": 7, "learning_rate": 0.5},
        {"vocab_size": 300},
        {"max_minutes": 3.5},
        {"device": "cpu", "temperature": 0.5, "top_k": None},
    ],
    ids=str,
)
def test_every_given_key_is_kept(given, monkeypatch):
    plan, config = planned(monkeypatch, **given)
    assert {key: config[key] for key in given} == given
    assert plan.given == given.keys()
    assert plan.tokens == plan.steps * config.batch_size * config.seq_len


def test_a_preset_is_not_overridden_by_the_plan(monkeypatch):
    _, config = planned(monkeypatch, preset="medium")
    assert (config.model_layer, config.model_head, config.model_embd) == (24, 16, 1024)


def test_a_key_that_goes_with_no_shape_is_one_line(monkeypatch):
    with pytest.raises(AGI2Error, match="model_embd 97 is not divisible by model_head 2"):
        planned(monkeypatch, model_embd=97)


def test_adamw_has_no_learning_rate_of_muon(monkeypatch):
    assert planned(monkeypatch)[1].learning_rate > 1e-3
    assert planned(monkeypatch, optimizer="adamw")[1].learning_rate == 1e-3
    assert planned(monkeypatch, optimizer="adamw", learning_rate=0.1)[1].learning_rate == 0.1


@pytest.mark.parametrize("given", [{"max_steps": 40}, {"epochs": 1}])
def test_a_run_is_not_planned_longer_than_the_user_allows(given, monkeypatch):
    plan, config = planned(monkeypatch, minutes=100, **given)
    free, _ = planned(monkeypatch, minutes=100)
    assert plan.steps < free.steps
    assert plan.minutes < 100 <= free.minutes
    assert plan.epochs <= 1.01
    assert config.max_minutes == 95  # the time limit stays


def test_the_vocabulary_is_by_the_size_of_the_text_when_it_is_trained(monkeypatch):
    monkeypatch.setattr(planning, "_MAX_PARAMETERS_PER_BYTE", 1e9)
    for size in (10_000, 100_000, 1_000_000):
        plan, config = planned(monkeypatch, size=size, val_fraction=0.0)
        assert config.vocab_size == "auto"
        known = {**plan.keys, "vocab_size": vocabulary_for(size)}
        assert plan.parameters == planning._parameters(known)
    # Near a bound, what is held out decides.
    keys = {"vocab_size": "auto", "val_fraction": 0.1}
    assert planning._vocabulary(Corpus(["a.txt"], 55_000, 2.5, ""), keys) == 512
    assert (
        planning._vocabulary(Corpus(["a.txt"], 55_000, 2.5, ""), {**keys, "val_sources": ["b"]})
        == 1024
    )


def test_other_tokenizers_have_their_own_vocabulary(tmp_path):
    corpus = Corpus(["a.txt"], 55_000, 2.5, "the whale swam in the sea")
    assert planning._vocabulary(corpus, {"tokenizer": "basic"}) == len(set(corpus.sample)) + 2
    tokenizer = BPETokenizer(270)
    tokenizer.fit([corpus.sample])
    tokenizer.save(tmp_path)
    found = planning._vocabulary(corpus, {"tokenizer": str(tmp_path)})
    assert found == tokenizer.vocab_size < 512


def test_a_corpus_is_read_as_the_options_say(tmp_path):
    (tmp_path / "a.csv").write_text("title,body\n" + "t,the old whale swam\n" * 100)
    corpus = Corpus.read([str(tmp_path / "a.csv")], ReadOptions(text_field="body"))
    assert corpus.bytes == 100 * len("the old whale swam")


def test_a_shape_is_measured_with_the_keys_of_the_user(monkeypatch):
    monkeypatch.setattr(planning, "_BENCHMARK_SECONDS", 0)
    seen = []
    made = planning.make_model
    monkeypatch.setattr(
        planning, "make_model", lambda config, *rest: made(seen.append(config) or config, *rest)
    )
    corpus = Corpus(["none.txt"], 50_000, 2.5, make_text(300))
    given = {"encoding": "cp1252", "text_field": "x", "val_sources": ["none"], "activation": "relu"}
    keys = planning._keys(corpus, SHAPES[0], "m", given)
    speed = planning._measure({**keys, "vocab_size": 300}, corpus)
    assert speed.tokens_per_second > 0
    assert [(each.activation, each.encoding, each.vocab_size <= 300) for each in seen] == [
        ("relu", None, True)
    ]
