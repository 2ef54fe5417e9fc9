"""What is predicted before a run, beside what the run then takes."""

import json
import os
import random
import shutil
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from src.cli import doctor
from src.cli.doctor import examine
from src.config_loader import make_config
from src.cuda_utils import available_memory
from src.errors import AGI2Error
from src.formats.model_dir import WEIGHTS, load_model, save_model
from src.model import GPT2Model
from src.nn.lora import add_lora
from src.train.checkpoint import BEST, TENSORS, newest_checkpoint
from src.train.estimates import Memory, disk_needed, free_disk, model_sizes, predict_memory
from src.train.optimizer import make_optimizers
from src.train.setup import prepare
from src.train.timing import Duration, measure_step, predict_duration
from src.training import make_trainer, train_from_config

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def collect(config, lines):
    for line in examine(config):
        lines.append(line)


def trainer_of(config):
    return make_trainer(config, prepare(config))


def make_tuned(tiny_run, base, **changes):
    """The configuration of a run that starts from a trained model."""
    plain = tiny_run("tuned", max_steps=2)
    keys = ("sources", "model_name", "output_dir", "batch_size", "max_steps", "device")
    given = {**{key: plain[key] for key in keys}, "init_from": str(base), **changes}
    return make_config(given, "training")


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


PREDICT_AND_TRAIN = """
import json, sys
import psutil
import resource
from pathlib import Path
from src.cli import doctor
from src.config_loader import make_config
from src.train.setup import prepare
from src.training import train_from_config

config = make_config(json.loads(sys.argv[1]), "training")
text = prepare(config)
known = config if config.init_from else config.changed(vocab_size=text.tokenizer.vocab_size)
doctor._warm_up(known)
process = psutil.Process().memory_info().rss
rows, length = known.micro_batch_size, text.train_data.seq_len - 1
memory = doctor.predict_memory(known, rows, length, doctor.select_device("cpu"), process)
train_from_config(config)
unit = 1 if sys.platform == "darwin" else 1024
status = Path("/proc/self/status")
if status.exists():  # of this program alone: the other counts what it was started from, too
    peak = 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps([process, memory.total, peak]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
@pytest.mark.parametrize(
    "shape",
    [
        {"model_layer": 4, "model_embd": 128, "dropout": 0.0, "batch_size": 24},
        {
            "model_layer": 4,
            "model_embd": 128,
            "dropout": 0.1,
            "batch_size": 24,
            "gradient_checkpointing": True,
            "optimizer": "muon",
        },
    ],
)
def test_a_run_takes_the_memory_that_was_predicted(shape, tmp_path):
    text = tmp_path / "text.txt"
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(5_000)]
    text.write_text(" ".join(words), encoding="utf-8")
    given = {
        "sources": [str(text)],
        "model_name": "run",
        "output_dir": str(tmp_path),
        "vocab_size": 4096,
        "model_head": 4,
        "model_positions": 128,
        "micro_batch_size": shape["batch_size"],
        "max_steps": 2,
        "checkpoint_interval": 2,
        "sample_tokens": 0,
        "eval_tokens": 4096,
        "device": "cpu",
        **shape,
    }
    assert_memory_is_predicted(given)


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
@pytest.mark.parametrize("micro_batch_size", [2, 4])
def test_a_run_with_lora_takes_the_memory_that_was_predicted(tmp_path, micro_batch_size):
    """So wide a model that gradients and states of all of it would be far more."""
    text = tmp_path / "text.txt"
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(5_000)]
    text.write_text(" ".join(words), encoding="utf-8")
    run = {"sources": [str(text)], "output_dir": str(tmp_path), "device": "cpu"}
    shape = {"model_layer": 4, "model_head": 4, "model_embd": 512, "model_positions": 128}
    config = make_config({**run, **shape, "model_name": "base", "vocab_size": 1024})
    tokenizer = prepare(config).tokenizer
    config = config.changed(vocab_size=tokenizer.vocab_size)
    save_model(GPT2Model(config), tokenizer, config, tmp_path / "base")
    assert_memory_is_predicted(
        {
            **run,
            "model_name": "tuned",
            "init_from": str(tmp_path / "base"),
            "lora_rank": 4,
            "batch_size": 4,
            "micro_batch_size": micro_batch_size,
            "max_steps": 2,
            "sample_tokens": 0,
            "eval_tokens": 4096,
        }
    )


def assert_memory_is_predicted(given):
    """Reckon what a run takes, then make it, both in a process of its own."""
    child = subprocess.run(
        [sys.executable, "-c", PREDICT_AND_TRAIN, json.dumps(given)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    process, predicted, peak = json.loads(child.stdout.splitlines()[-1])
    # No rounding, but what a prediction is for: what the allocator keeps is not in any tensor.
    assert 0.85 <= predicted / peak <= 1.15
    # Nor does only the interpreter's share make it so.
    assert predicted - process > (peak - process) / 2


def test_the_sizes_are_those_of_the_tensors(tiny_run):
    for optimizer in ("adamw", "muon"):
        config = tiny_run(optimizer=optimizer)
        model = GPT2Model(config)
        optimizers = make_optimizers(model, config)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        for each in optimizers:
            each.step()
        states = [s for each in optimizers for state in each.state.values() for s in state.values()]
        held = sum(4 * tensor.numel() for tensor in states if tensor.dim())
        sizes = model_sizes(config)
        assert sizes.optimizer == held
        assert sizes.weights == 4 * model.num_parameters()
        assert sizes.trained == sizes.weights
        assert sizes.head == 4 * model.output_weight.numel()
        assert (sizes.muon_work > 0) == (optimizer == "muon")


def test_with_lora_only_its_own_weights_have_states(tiny_run, tmp_path):
    config = tiny_run().changed(init_from=str(tmp_path), lora_rank=3)
    model = GPT2Model(config)
    add_lora(model, 3)
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    sizes = model_sizes(config)
    assert 0 < trained < sizes.weights
    assert sizes.weights == 4 * model.num_parameters()
    assert (sizes.trained, sizes.optimizer, sizes.head) == (trained, 2 * trained, 0)


def test_predicted_memory_follows_what_is_asked_for(tiny_run):
    config = tiny_run()
    one, two = (predict_memory(config, rows, 16, CPU) for rows in (4, 8))
    assert one.process == 0
    assert predict_memory(config, 8, 16, CPU, process=7).total == two.total + 7
    assert predict_memory(config, 8, 16, torch.device("meta"), process=7).total == two.total
    assert two.activations < 2 * one.activations  # the sum of the parts' gradients stays
    assert two.logits == 2 * one.logits
    long = tiny_run(model_positions=4096)
    assert predict_memory(long, 8, 4096, CPU).logits == predict_memory(long, 8, 2048, CPU).logits


def bytes_of_tensors(files):
    """Without the counts of steps, which are a few bytes."""
    tensors = (tensor for file in files for tensor in load_file(file).values())
    return sum(tensor.nbytes for tensor in tensors if tensor.dim())


def test_the_disk_holds_what_a_run_leaves_there(tiny_run):
    config = tiny_run(model_embd=64, max_steps=6, checkpoint_interval=1, eval_interval=1)
    run = train_from_config(config)
    files = {file.stat().st_ino: file for file in run.folder.rglob("*.safetensors")}
    needed = disk_needed(config.changed(vocab_size=run.tokenizer.vocab_size))
    assert 0 < bytes_of_tensors(files.values()) <= needed
    one_less = disk_needed(config.changed(keep_checkpoints=1, vocab_size=30))
    assert one_less < needed


def test_the_disk_of_a_run_with_lora_holds_no_states_of_the_weights_that_stay(tiny_run):
    base = train_from_config(tiny_run("base", model_embd=64, max_steps=1))
    config = make_tuned(tiny_run, base.folder, lora_rank=2, checkpoint_interval=1, max_steps=4)
    run = train_from_config(config)
    newest = newest_checkpoint(run.folder).folder
    sizes = model_sizes(config)
    held = bytes_of_tensors(newest / name for name in (WEIGHTS, TENSORS, BEST))
    assert held == 2 * sizes.weights + sizes.optimizer


def test_the_free_disk_is_that_of_the_nearest_folder_there_is(tmp_path, monkeypatch):
    assert free_disk(tmp_path) > 0
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or usage)
    usage = SimpleNamespace(free=17)
    assert free_disk(tmp_path / "not" / "there") == 17
    assert asked == [tmp_path]


def test_real_steps_are_timed_and_nothing_is_written(tiny_run, tmp_path):
    before = set(tmp_path.rglob("*"))
    trainer = trainer_of(tiny_run(micro_batch_size=2, max_steps=5))
    weights = [p.clone() for p in trainer.model.parameters()]
    step, update = measure_step(trainer, seconds=60)
    assert 0 < update < step < 5
    assert not all(map(torch.equal, weights, trainer.model.parameters()))
    assert set(tmp_path.rglob("*")) == before


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
    monkeypatch.setattr(doctor, "_MEASURED_SECONDS", 0)
    many = list(examine(tiny_run(max_steps=None, epochs=50)))
    assert any("50 passes are many" in line and "lower epochs" in line for line in many)
    few = list(examine(tiny_run(max_steps=None, max_minutes=1e-9, batch_size=2)))
    assert any("too short for one pass" in line for line in few)
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
    process = doctor.memory_stats().process
    monkeypatch.setattr(doctor, "available_memory", lambda device: process - 1)
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
        assert doctor._micro_batch_size(config, trainer.batches, CPU) == trainer.micro_batch_size
