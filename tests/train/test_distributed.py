"""The process group: here with one process; with several in `integration/`."""

import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from src.cli.main import main
from src.config import GPT2Config
from src.config_loader import save_config
from src.console import setup_logging
from src.errors import AGI2Error
from src.formats.model_dir import load_model
from src.model import GPT2Model
from src.train import distributed
from src.train.checkpoint import newest_checkpoint
from src.train.distributed import (
    LostProcess,
    ProcessGroup,
    began_in_this_launch,
    init_distributed,
    report_on_rank_0,
)
from src.train.loss import NextTokenLoss
from src.train.trackers import read_metrics
from src.train.trainer import Trainer
from src.training import train_from_config
from src.utils import log
from tests.train.trainers import at

CPU = torch.device("cpu")


@pytest.fixture
def under_torchrun(monkeypatch):
    """The environment that torchrun gives to a process that is the only one."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    for key, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "launch",
        "TORCHELASTIC_RESTART_COUNT": 0,
    }.items():
        monkeypatch.setenv(key, str(value))


def test_without_torchrun_a_process_is_alone_and_shares_nothing():
    with init_distributed("cpu") as processes:
        assert not dist.is_initialized()
        assert (processes.rank, processes.world_size, processes.is_main) == (0, 1, True)
        assert processes.broadcast_from_main(lambda: "made") == "made"
        assert processes.all_reduce_mean(torch.tensor(3.0)) == 3
        assert processes.all_reduce_stop(True, 2.5) == (True, 2.5)
        module = torch.nn.Linear(1, 1)
        assert processes.wrap_ddp(module)[0] is module


def test_sigterm_ends_a_process_that_waits_for_others(under_torchrun, monkeypatch):
    """A handler in Python would not be called before the others are there."""
    handlers, join = [], dist.init_process_group

    def joining(*arguments, **options):
        handlers.append(signal.getsignal(signal.SIGTERM))
        join(*arguments, **options)

    def enter():
        with init_distributed("cpu"):
            pass

    monkeypatch.setattr(dist, "init_process_group", joining)
    before = signal.signal(signal.SIGTERM, joining)
    try:
        with init_distributed("cpu"):
            assert signal.getsignal(signal.SIGTERM) is joining
        with ThreadPoolExecutor(1) as pool:  # only the main thread may set handlers
            pool.submit(enter).result()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert handlers == [signal.SIG_DFL, joining]


def test_a_group_is_left_also_after_an_error_and_can_be_joined_again(under_torchrun):
    def fail():
        with init_distributed("cpu") as processes:
            assert dist.get_backend() == "gloo"
            assert processes.all_reduce_stop(False, 2.5) == (False, 2.5)
            assert processes.all_reduce_stop(True, 2.5) == (True, 2.5)
            processes.barrier()
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert not dist.is_initialized()


def test_a_broken_connection_is_told_from_other_errors(under_torchrun):
    for text, error in (
        ("[/gloo/transport/tcp/pair.cc:456] Connection closed by peer", LostProcess),
        ("size mismatch", RuntimeError),
    ):
        with pytest.raises(error) as raised, init_distributed("cpu"):
            raise RuntimeError(text)
        assert isinstance(raised.value, AGI2Error) == (error is LostProcess)


def test_a_run_in_a_group_of_one_equals_a_run_alone(tiny_run, under_torchrun, monkeypatch):
    options = {"dropout": 0.1, "micro_batch_size": 2, "sample_tokens": 4}
    shared = train_from_config(tiny_run("shared", **options))
    for key in ("RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(key)
    alone = train_from_config(tiny_run("alone", **options))
    for name, weights in alone.model.state_dict().items():
        assert torch.equal(shared.model.state_dict()[name], weights)
    assert {**shared.history, "seconds": 0} == {**alone.history, "seconds": 0}


def test_a_restarted_launch_goes_on_and_another_begins_anew(tiny_run, under_torchrun, monkeypatch):
    train_from_config(tiny_run(max_steps=4))
    longer = tiny_run(max_steps=6)
    assert start_steps(train_from_config(longer)) == [0, 4]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert start_steps(train_from_config(longer)) == [0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_sharded_run_equals_a_whole_one_and_either_goes_on_from_the_other(
    tiny_run, under_torchrun, monkeypatch, optimizer
):
    """In a group of one: the same sums in the same order, to the last bit."""
    options = {"optimizer": optimizer, "dropout": 0.1, "micro_batch_size": 2, "sample_tokens": 4}
    runs = [
        train_from_config(tiny_run(parallel, parallel=parallel, **options))
        for parallel in ("fsdp", "ddp")
    ]
    for parallel in ("fsdp", "ddp"):
        for source in ("fsdp", "ddp"):
            folder = str(runs[0].folder.with_name(source))
            changes = {"parallel": parallel, "max_steps": 15, "resume": folder}
            runs.append(train_from_config(tiny_run(f"{source}-{parallel}", **options, **changes)))
    for group in (runs[:2], runs[2:]):
        for run in group[1:]:
            assert same_weights(run.model, group[0].model)
            assert {**run.history, "seconds": 0} == {**group[0].history, "seconds": 0}
    assert not same_weights(runs[0].model, runs[2].model)


def same_weights(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_a_sharded_run_without_held_out_text_leaves_its_last_weights(tiny_run, under_torchrun):
    run = train_from_config(tiny_run(parallel="fsdp", val_fraction=0.0))
    model = GPT2Model(run.model.config)
    newest_checkpoint(run.folder).load_into(model)
    assert same_weights(model, load_model(run.folder).model)


def test_a_shard_that_cannot_be_written_is_one_line(tiny_run, under_torchrun, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dcp.HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(AGI2Error, match=r"cannot write .*step-00000012.*No space left on device"):
        train_from_config(tiny_run(parallel="fsdp"))


def test_a_sharded_run_in_fp16_is_refused(tiny_run, under_torchrun, monkeypatch):
    monkeypatch.setattr("src.train.step_runner.select_precision", lambda *_: torch.float16)
    with pytest.raises(AGI2Error, match='parallel = "fsdp" needs "bf16" or "fp32"'):
        train_from_config(tiny_run(parallel="fsdp"))


def start_steps(run):
    """The steps at which a run was started."""
    return [e["step"] for e in read_metrics(run.folder / "metrics.jsonl") if "start" in e]


@pytest.mark.parametrize(
    ("launch", "now", "restarts", "expected"),
    [
        ("a", "a", 0, True),  # a machine came or went: torchrun counts no restart
        ("a", "b", 1, False),
        ("none", "none", 0, False),  # the name of every launch without a rendezvous
        ("none", "none", 1, True),
        (None, None, 0, False),
    ],
)
def test_which_checkpoints_are_this_launchs(monkeypatch, launch, now, restarts, expected):
    if now is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", now)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
    assert began_in_this_launch(launch) == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_speaks_first(monkeypatch, capsys, rank):
    waited = []
    monkeypatch.setattr(distributed.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(SystemExit):
        main(["train", "nothing.toml"])
    assert "error: nothing.toml: no such file" in capsys.readouterr().err
    own = list(waited)
    assert bool(own) == (rank == 1)
    waited.clear()
    report_on_rank_0(LostProcess("gone"))
    assert waited[0] > max([0, *own])


def rank_of(rank, world_size):
    """Return a class of trainers of one of several processes, and a list of those made."""
    trainers = []

    class OneOfSeveral(Trainer):
        def __init__(self, *args, **options):
            super().__init__(*args[:-1], ProcessGroup(CPU, rank, world_size), **options)
            trainers.append(self)

        def evaluate(self, max_tokens=0):
            assert rank == 0
            return super().evaluate(max_tokens)

    return OneOfSeveral, trainers


def test_a_process_that_is_not_the_main_one_writes_nothing(tiny_run, tmp_path):
    """Process 1 of two, whose companion takes part in nothing."""
    kind, trainers = rank_of(1, 2)
    config = tiny_run(max_steps=6, log_interval=1, checkpoint_interval=2, val_fraction=0.0)
    train_from_config(config, kind=kind)
    assert trainers[0].step == 6
    assert trainers[0].runner.micro_batch_size == 4
    assert not (tmp_path / "trained").exists()


def test_the_log_of_other_processes_is_silent(monkeypatch, capsys):
    for rank, said in ((0, "heard\n"), (1, "")):
        monkeypatch.setenv("RANK", str(rank))
        setup_logging()
        log.error("heard")
        assert capsys.readouterr().err == said


def test_only_the_main_process_prints_samples(tiny_run, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("src.training.train_from_config", lambda _: SimpleNamespace(is_main=False))
    save_config(tiny_run(), tmp_path / "run.toml")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path / "run.toml")])
    assert not ended.value.code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("asked", [True, False])
def test_a_process_that_was_asked_to_stop_does_not_complain_that_others_have(
    tiny_run, under_torchrun, asked
):
    def lose_the_others():
        if asked:
            signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("[gloo/transport] Connection closed by peer")

    with pytest.raises(KeyboardInterrupt if asked else LostProcess):
        train_from_config(tiny_run(), kind=at("step", 0, lose_the_others))


def test_out_of_memory_in_one_of_several_processes_ends_the_run(tiny_run, monkeypatch):
    monkeypatch.setattr(NextTokenLoss, "forward", lambda *_: torch.empty(2**60))
    with pytest.raises(AGI2Error, match="out of memory at step 0 on process 0, with 4 sequences"):
        train_from_config(tiny_run(), kind=rank_of(0, 2)[0])


def test_a_batch_that_cannot_be_shared_equally_is_refused(tiny_run):
    kind = rank_of(0, 3)[0]
    with pytest.raises(AGI2Error, match=r"8 sequences cannot be shared equally by 3 processes$"):
        train_from_config(tiny_run(), kind=kind)
    # A text of fewer windows than a batch is shared as far as it goes.
    run = train_from_config(tiny_run(batch_size=3000, max_steps=2), kind=kind)
    assert run.history["steps"] == 2


def test_gradients_are_shared_under_the_bare_models_names(under_torchrun):
    model = GPT2Model(GPT2Config(vocab_size=8, max_seq_len=4, d_model=4, n_layers=1, n_heads=1))
    with init_distributed("cpu") as processes:
        shared, no_sync = processes.wrap_ddp(NextTokenLoss(model))
        tokens = torch.tensor([[1, 2, 3]])
        with no_sync():
            shared(tokens, tokens).backward()
        assert all(p.grad is not None for p in model.parameters())
        assert list(model.state_dict()) == [n for n, _ in model.named_parameters()]


@pytest.mark.gpu
def test_each_process_takes_the_device_of_its_number(under_torchrun, monkeypatch):
    with init_distributed("auto") as processes:
        assert processes.device == torch.device("cuda", 0)
        assert processes.all_reduce_mean(torch.ones((), device="cuda")) == 1
        assert processes.all_reduce_stop(True, 2.5) == (True, 2.5)
    with pytest.raises(AGI2Error, match='has no device of its own: set device = "cuda"'):
        init_distributed("cuda:0").__enter__()
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(AGI2Error, match="--nproc-per-node to at most"):
        init_distributed("cuda").__enter__()
