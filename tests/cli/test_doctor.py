"""The estimates of `agi2 doctor`, compared with measurements."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.cli import doctor
from src.cli.doctor import examine
from src.cuda_utils import available_memory
from src.errors import AGI2Error
from src.formats.model_dir import load_model, save_model
from src.model import GPT2Model
from src.nn.lora import add_lora
from src.train.estimates import Memory, predict_memory
from src.training import train_from_config
from tests.train.test_estimates import make_tuned
from tests.train.test_timing import trainer_of

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def collect(config, lines):
    for line in examine(config):
        lines.append(line)


def test_a_run_from_a_model_has_that_model_s_vocabulary(tiny_run):
    base = train_from_config(tiny_run("base", tokenizer="bpe", vocab_size=280, max_steps=1)).folder
    trained = load_model(base)
    wide = GPT2Model(replace(trained.model.config, vocab_size=300))
    save_model(wide, trained.tokenizer, trained.config, base)
    lines = list(examine(make_tuned(tiny_run, base)))
    assert any(f"model: {wide.num_parameters():,} parameters, " in line for line in lines)
    add_lora(wide, 3)
    few = sum(p.numel() for p in wide.parameters() if p.requires_grad)
    lines = list(examine(make_tuned(tiny_run, base, lora_rank=3)))
    said = f"model: {wide.num_parameters():,} parameters ({few:,} of them trained), "
    assert any(said in line for line in lines)


@pytest.mark.parametrize("key", ["sources", "val_sources"])
def test_a_missing_source_is_found_before_anything_is_measured(tiny_run, tmp_path, key):
    lines = []
    with pytest.raises(AGI2Error, match=r"gone\.txt: no such file"):
        collect(tiny_run(**{key: [str(tmp_path / "gone.txt")]}), lines)
    assert lines == []


def test_the_examination_tells_all_and_leaves_nothing(tiny_run, tmp_path):
    before = set(tmp_path.rglob("*"))
    lines = list(
        examine(tiny_run(tokenizer="bpe", vocab_size=300, max_steps=3, model_layer=3, dropout=0.0))
    )
    begun = [line.split(":")[0] for line in lines]
    assert begun[:8] == [
        *("text", "tokens", "vocabulary", "model", "batch", "memory", "disk", "speed")
    ]
    assert lines[-1] == "it fits"
    assert "for 3 steps" in next(line for line in lines if line.startswith("time:"))
    assert any(line.startswith("note: gradient_checkpointing = true") for line in lines)
    assert set(tmp_path.rglob("*")) == before


def test_too_many_passes_and_too_few_are_told(tiny_run, monkeypatch):
    monkeypatch.setattr(doctor, "_BENCHMARK_SECONDS", 0)
    many = list(examine(tiny_run(max_steps=None, epochs=50)))
    assert any("50 epochs are many" in line and "lower epochs" in line for line in many)
    few = list(examine(tiny_run(max_steps=None, max_minutes=1e-9, batch_size=2)))
    assert any("too short for one epoch" in line for line in few)
    enough = list(examine(tiny_run(max_steps=None, epochs=2)))
    assert not any(line.startswith("advice") for line in enough)


def test_what_does_not_fit_the_memory_is_not_built_but_advised(tiny_run, monkeypatch):
    def built(*_):
        raise AssertionError

    config = tiny_run(
        model_layer=4,
        model_embd=64,
        model_positions=64,
        batch_size=8,
        micro_batch_size=8,
        tokenizer="bpe",
        vocab_size=400,
    )
    monkeypatch.setattr(doctor, "available_memory", lambda device: 1)
    monkeypatch.setattr(doctor, "_measure", built)
    lines = []
    with pytest.raises(AGI2Error, match="it does not fit"):
        collect(config, lines)
    advice = [line for line in lines if line.startswith("advice")]
    for key in ("micro_batch_size = 4", "micro_batch_size = 1", "gradient_checkpointing = true"):
        assert any(key in line for line in advice)
    for key in ("seq_len = 32", "model_layer = 2", "model_embd = 32"):
        assert any(key in line for line in advice)
    assert all("(not enough)" in line for line in advice)


def test_advice_that_is_enough_says_so(tiny_run):
    config = tiny_run(micro_batch_size=8, model_positions=512, model_embd=128, vocab_size=20_000)
    memory = predict_memory(config, 8, 512, CPU)
    lines = list(doctor._advise(config, 8, 512, CPU, memory, memory.total - 1))
    assert any("vocab_size = 8192" in line for line in lines)
    assert all(line.endswith("(fits)") for line in lines)


def test_a_run_from_a_model_is_not_advised_to_have_another(tiny_run, tmp_path):
    config = tiny_run(micro_batch_size=8, model_layer=4, model_embd=128, vocab_size=20_000)
    config = config.changed(init_from=str(tmp_path), lora_rank=4)
    memory = predict_memory(config, 8, 16, CPU)
    advice = " ".join(doctor._advise(config, 8, 16, CPU, memory, memory.total // 2))
    assert "gradient_checkpointing" in advice
    assert "seq_len" in advice
    assert not any(key in advice for key in ("vocab_size", "model_layer", "model_embd"))


def test_a_full_disk_is_told(tiny_run, monkeypatch):
    monkeypatch.setattr(doctor, "free_disk", lambda folder: 10)
    lines = []
    with pytest.raises(AGI2Error, match="of 10 B"):
        collect(tiny_run(), lines)
    assert any(line.startswith("advice: free some disk") for line in lines)


def test_there_is_room_for_what_the_process_holds():
    assert available_memory(CPU) > doctor.memory_stats().process
    parts = Memory(1, 2, 3, 4, 5)
    assert parts.total == 15


def test_a_container_has_no_more_room_than_its_limit(monkeypatch):
    monkeypatch.setattr("src.cuda_utils.container_memory", lambda: 12345)
    assert available_memory(CPU) == 12345
    monkeypatch.setattr("src.cuda_utils.container_memory", lambda: 2**62)
    assert doctor.memory_stats().process < available_memory(CPU) < 2**62


def test_auto_takes_the_micro_batch_that_the_run_takes(tiny_run):
    for size in ("auto", 2, 8):
        config = tiny_run(micro_batch_size=size)
        trainer = trainer_of(config)
        config = trainer.config
        assert (
            doctor._micro_batch_size(config, trainer.batches, CPU)
            == trainer.runner.micro_batch_size
        )
