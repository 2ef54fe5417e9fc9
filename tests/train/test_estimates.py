import json
import random
import shutil
import string
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from src.config import GPT2Config
from src.config_loader import make_config
from src.formats.model_dir import WEIGHTS, save_model
from src.model import GPT2Model
from src.nn import linear
from src.nn.lora import add_lora, is_lora
from src.train.checkpoint import BEST, TENSORS, newest_checkpoint
from src.train.estimates import (
    CPU_ACTIVATION_BUDGET,
    activation_bytes,
    choose_micro_batch_size,
    disk_needed,
    free_disk,
    model_sizes,
    peak_flops,
    predict_memory,
    training_flops,
)
from src.train.loss import compile_blocks
from src.train.optimizer import make_optimizers
from src.train.setup import prepare
from src.training import train_from_config
from tests.processes import needs_fork, run_python

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


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


@needs_fork
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


@needs_fork
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
            "eval_tokens": 512,
        }
    )


def assert_memory_is_predicted(given):
    """Reckon what a run takes, then make it, both in a process of its own."""
    child = run_python("-c", PREDICT_AND_TRAIN, json.dumps(given))
    assert child.returncode == 0, child.stderr
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
        assert sizes.trainable == sizes.weights
        assert sizes.head == 4 * model.output_weight.numel()
        assert (sizes.muon_buffers > 0) == (optimizer == "muon")


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("conversations", [[], ["chats.jsonl"]])
def test_with_lora_only_its_own_weights_have_states(tiny_run, tmp_path, ties, conversations):
    config = tiny_run().changed(
        init_from=str(tmp_path),
        lora_rank=3,
        conversations=conversations,
        tie_weights=ties,
        vocab_size=30,
        weight_decay=0.0,
        dropout=0.0,
    )
    torch.manual_seed(0)
    model = GPT2Model(config)
    new = [1, 2, 3, 4] if conversations else []
    add_lora(model, 3, new)
    start = [p.detach().clone() for p in model.parameters()]
    model(torch.arange(12).view(1, -1)).square().sum().backward()
    (optimizer,) = make_optimizers(model, config)
    optimizer.step()
    states = [s for state in optimizer.state.values() for s in state.values() if s.dim()]
    sizes = model_sizes(config)
    assert sizes.weights == 4 * model.num_parameters()
    assert sizes.trainable == 4 * sum(p.numel() for p in model.parameters() if p.grad is not None)
    assert sizes.optimizer == 4 * sum(state.numel() for state in states)
    assert (sizes.head > 0) == bool(conversations)
    trained = 0
    for (name, parameter), before in zip(model.named_parameters(), start, strict=True):
        rows = (parameter != before).flatten(1).any(1).sum() if parameter.dim() > 1 else 0
        trained += parameter.numel() if is_lora(name) else int(rows) * parameter.size(-1)
    assert sizes.trained == 4 * trained < sizes.weights


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


def kept_bytes(config, seq_len):
    """What autograd keeps of one sequence, weights and logits apart."""
    model = GPT2Model(config).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    tokens = torch.zeros(1, seq_len, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden_states(tokens)
    assert hidden.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("vocab_size", [50, 1000])
@pytest.mark.parametrize("n_layers", [1, 4])
@pytest.mark.parametrize(("dropout", "seq_len"), [(0.0, 64), (0.1, 64), (0.1, 128)])
def test_activations_are_estimated_near_what_autograd_keeps(vocab_size, n_layers, dropout, seq_len):
    config = GPT2Config(vocab_size, 128, 32, n_layers, 2, dropout=dropout)
    kept = kept_bytes(config, seq_len)
    assert kept < activation_bytes(config, seq_len) < 2.5 * kept


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_on_a_gpu_are_estimated_near_the_peak(dropout, is_compiled):
    config = GPT2Config(4096, 512, 512, 6, 8, dropout=dropout)
    model = GPT2Model(config).train().to(CUDA)
    blocks = compile_blocks(model, "inductor") if is_compiled else None
    tokens = torch.zeros(16, 512, dtype=torch.long, device=CUDA)

    def peak_bytes():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            hidden = model.hidden_states(tokens, blocks=blocks)
        hidden.sum().backward()
        return torch.cuda.max_memory_allocated() - before

    peak_bytes()  # also the gradients, and what libraries keep
    estimate = 16 * activation_bytes(config, 512, CUDA, "auto")
    assert peak_bytes() < estimate < 2.5 * peak_bytes()


def test_a_gpu_keeps_less_in_half_precision():
    """Than in fp32, and than a CPU."""
    for dropout in (0.0, 0.1):
        config = GPT2Config(dropout=dropout)
        sizes = [
            activation_bytes(config, 1024, torch.device(kind), precision)
            for kind, precision in (("cuda", "auto"), ("cuda", "fp32"), ("cpu", "auto"))
        ]
        assert sizes[0] < 0.7 * min(sizes[1:])


def test_gradient_checkpointing_keeps_less():
    sizes = [
        activation_bytes(GPT2Config(50, 64, 32, 6, 2, gradient_checkpointing=on), 64)
        for on in (True, False)
    ]
    assert sizes[0] < sizes[1]
    assert kept_bytes(GPT2Config(50, 64, 32, 6, 2, gradient_checkpointing=True), 64) < sizes[0]


@given(
    st.integers(1, 50),
    st.integers(1, 16),
    st.integers(1, 1024),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
    st.integers(1, 100),
)
@settings(max_examples=30, deadline=None)
def test_the_micro_batch_is_the_largest_divisor_that_fits(
    layers, heads, seq_len, dropout, checkpointing, batch_size
):
    config = GPT2Config(
        n_layers=layers,
        n_heads=heads,
        d_model=48 * heads,
        dropout=dropout,
        gradient_checkpointing=checkpointing,
    )
    size = choose_micro_batch_size(config, seq_len, batch_size, CPU)
    one = activation_bytes(config, seq_len)
    assert batch_size % size == 0
    assert size == 1 or size * one <= CPU_ACTIVATION_BUDGET
    larger = [n for n in range(size + 1, batch_size + 1) if batch_size % n == 0]
    assert all(n * one > CPU_ACTIVATION_BUDGET for n in larger)


def test_a_small_model_takes_the_whole_batch_and_gpt2_a_sequence():
    tiny = GPT2Config(vocab_size=100, d_model=16, n_layers=1, n_heads=1)
    assert choose_micro_batch_size(tiny, 64, 12, CPU) == 12
    assert choose_micro_batch_size(GPT2Config(), 1024, 12, CPU) == 1


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_s_micro_batch_fits_its_memory():
    size = choose_micro_batch_size(GPT2Config(), 1024, 64, CUDA, "auto")
    total = torch.cuda.get_device_properties(0).total_memory
    assert 64 % size == 0
    assert size == 1 or size * activation_bytes(GPT2Config(), 1024, CUDA, "auto") < total


@pytest.mark.parametrize("learned", [True, False])
def test_the_operations_of_a_step_are_those_that_pytorch_counts(learned, monkeypatch):
    """Forward and backward; attention is counted whole, not the causal half."""
    monkeypatch.setattr(linear, "_PREFERS_ONEDNN", False)  # whose products PyTorch does not count
    kind = "learned" if learned else "sinusoidal"
    sizes = {"vocab_size": 96, "max_seq_len": 64, "d_model": 32, "n_layers": 3, "n_heads": 2}
    model = GPT2Model(GPT2Config(**sizes, dropout=0.0, bias=False, position_embedding=kind))
    tokens = torch.randint(96, (2, 64))
    backend = torch.nn.attention.SDPBackend.MATH
    with torch.nn.attention.sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    expected = counter.get_total_flops() / tokens.numel()
    ours = training_flops(model.config, model.num_parameters(), 64)
    # The weights of the norms are in no product, and counted as if they were.
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert ours - 6 * norms == expected


def test_the_peak_of_a_cpu_is_measured_and_that_of_an_unknown_device_is_not_known():
    assert 1e8 < peak_flops(CPU) < 1e15
    assert peak_flops(torch.device("meta")) is None


@pytest.mark.gpu
@needs_cuda
def test_the_peak_of_a_gpu_is_what_its_maker_says():
    peak = peak_flops(CUDA, torch.bfloat16)
    assert peak is None or 1e13 < peak < 1e16


def make_tuned(tiny_run, base, **changes):
    """The configuration of a run that starts from a trained model."""
    plain = tiny_run("tuned", max_steps=2)
    keys = ("sources", "model_name", "output_dir", "batch_size", "max_steps", "device")
    given = {**{key: plain[key] for key in keys}, "init_from": str(base), **changes}
    return make_config(given, "training")
