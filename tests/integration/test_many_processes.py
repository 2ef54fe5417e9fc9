"""Training under torchrun in several processes, some of which are killed."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from src.config_loader import load_config, make_config, save_config
from src.errors import AGI2Error
from src.formats.model_dir import save_model
from src.model import GPT2Model
from src.train.checkpoint import newest_checkpoint, open_checkpoint
from src.train.trackers import read_metrics
from src.training import train_from_config
from tests.bounds import assert_same_in_float64, gamma, validation_bound
from tests.data.chats import (
    chat_tokenizer,
    messages_lines,
    preference_lines,
    random_conversations,
)
from tests.integration import train_in_processes
from tests.processes import needs_fork, run_python
from tests.tiny_models import tiny_config, tiny_model, training_in_float64

pytestmark = needs_fork

ROOT = Path(__file__).parents[2]
STEPS = 8
SHARED = {"max_steps": STEPS, "checkpoint_interval": 4, "eval_interval": 4, "dropout": 0.0}


# Processes that are forks of torchrun's own, which has imported PyTorch.
FORKED = ("--run-path", "--start-method=fork")


def torchrun(count, *arguments):
    """Start a script in a number of processes, with options of torchrun before it."""
    program = "from torch.distributed.run import main; main()"
    return run_python(
        "-c", program, "--standalone", f"--nproc-per-node={count}", *arguments, timeout=900
    )


def train_in_torchrun(folder, count, jobs, *options):
    """Each job's outcome on each process, and all that each process printed."""
    file = folder / f"jobs-{count}.json"
    file.write_text(json.dumps(jobs))
    logs = folder / f"logs-{count}"
    options += ("--redirects=3", f"--log-dir={logs}")
    done = torchrun(count, *FORKED, *options, "tests/integration/train_in_processes.py", file)
    printed = {
        rank: "".join(
            path.read_text(encoding="utf-8") for path in sorted(logs.glob(f"*/*/{rank}/std*.log"))
        )
        for rank in range(count)
    }
    assert done.returncode == 0, (done.stderr, printed)
    outcomes = [
        [json.loads(Path(f"{file}.{number}.{rank}").read_text()) for rank in range(count)]
        for number in range(len(jobs))
    ]
    return outcomes, printed


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """As `tiny_run`, for the whole module: plain keys, which become a run's configuration."""
    from tests.conftest import make_text

    folder = tmp_path_factory.mktemp("processes")
    (folder / "corpus.txt").write_text(make_text(), encoding="utf-8")
    lines = [json.dumps({"text": make_text(1 + seed % 7, seed)}) for seed in range(60)]
    (folder / "documents.jsonl").write_text("\n".join(lines), encoding="utf-8")
    chats = random_conversations(24, words=2)
    (folder / "chats.jsonl").write_bytes(messages_lines(chats))
    keys = {
        "sources": [str(folder / "corpus.txt")],
        "output_dir": str(folder / "trained"),
        "tokenizer": "basic",
        "model_layer": 2,
        "model_head": 2,
        "model_embd": 16,
        "model_positions": 16,
        "batch_size": 8,
        "log_interval": 1,
        "eval_tokens": 256,
        "sample_tokens": 4,
        "learning_rate": 0.01,
        "device": "cpu",
    }

    def keys_of(name, **changes):
        if "windows" in changes:
            sources = [str(folder / each) for each in ("corpus.txt", "documents.jsonl")]
            changes = {**changes, "sources": sources, "source_weights": [1, 2]}
        if "conversations" in changes:
            changes = {**changes, "conversations": [str(folder / "chats.jsonl")]}
        return {**keys, "model_name": name, **SHARED, **changes}

    return SimpleNamespace(folder=folder, keys=keys_of)


# All that the optimizers can do besides.
OPTIONS = {
    **{"optimizer": "muon", "normuon": True, "cautious_weight_decay": True, "ema_decay": 0.5},
    **{"weight_decay_schedule": "lr", "embedding_lr_factor": 2.0, "norm_lr_factor": 0.5},
}
KINDS = {
    "adamw": {"micro_batch_size": 2},  # of the four rows that a process has
    "muon": {**OPTIONS, "self_distillation": 0.5},
    "fsdp": {"micro_batch_size": 2, "parallel": "fsdp"},
    "packed": {"micro_batch_size": 2, "windows": "packed", "mask_documents": True},
    "chats": {"micro_batch_size": 2, "conversations": ["chats.jsonl"], "text_share": 0.3},
    "fsdp-muon": {**OPTIONS, "parallel": "fsdp"},
}


@pytest.fixture(scope="module")
def alone(make):
    """Each kind of run in one process, in float64."""
    with training_in_float64():
        return {
            kind: train_from_config(make_config(make.keys(f"alone-{kind}", **keys)))
            for kind, keys in KINDS.items()
        }


def keys_of_pairs(make, name):
    """Keys of a run on pairs of preferences, from a random model."""
    start, pairs = make.folder / "start", make.folder / "pairs.jsonl"
    if not start.exists():
        tokenizer = chat_tokenizer()
        sizes = {"vocab_size": tokenizer.vocab_size, "model_positions": 96}
        save_model(tiny_model(**sizes), tokenizer, tiny_config(**sizes), start)
        pairs.write_text(preference_lines(random_conversations(30, words=2)))
    keys = make.keys(name, micro_batch_size=2, parallel="fsdp")
    ours = {key: keys[key] for key in keys if key in ("model_name", *SHARED) or "model" not in key}
    del ours["tokenizer"], ours["sources"]
    ours |= {"init_from": str(start), "preferences": [str(pairs)], "sample_tokens": 0}
    found = make_config(ours, "training").items()
    return {key: value for key, value in found if value is not None}


def masked_job(make, name):
    return {"config": make.keys(name, micro_batch_size=2), "hazard": "masked"}


@pytest.fixture(scope="module")
def two(make):
    """Runs in two processes; those to compare with one process's are in float64, too."""
    jobs = {
        **{
            kind: {"config": make.keys(f"two-{kind}", **keys), "float64": True}
            for kind, keys in KINDS.items()
        },
        "masked": {**masked_job(make, "two-masked"), "float64": True},
        "pairs": {"config": keys_of_pairs(make, "two-pairs"), "float64": True},
        "dropout": {"config": make.keys("two-dropout", dropout=0.1)},
        "asked": {"config": make.keys("two-asked", checkpoint_interval=100), "hazard": "asked"},
        "memory": {"config": make.keys("two-memory"), "hazard": "memory"},
        "odd": {"config": make.keys("two-odd", batch_size=7)},
        # The last: all processes are started once more.
        "killed": {"config": make.keys("killed", dropout=0.1), "hazard": "killed"},
    }
    outcomes, printed = train_in_torchrun(make.folder, 2, [*jobs.values()], "--max-restarts=1")
    return SimpleNamespace(printed=printed, **dict(zip(jobs, outcomes, strict=True)))


def run_folder(make, name):
    return make.folder / "trained" / name


def losses(folder):
    return [entry["loss"] for entry in read_metrics(folder / "metrics.jsonl") if "loss" in entry]


def assert_same(weights, expected):
    """The same to the rounding of float64; what is counted, exactly."""
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        actual = torch.as_tensor(weights[name], dtype=tensor.dtype)
        if tensor.dtype == torch.float64:
            assert_same_in_float64(actual, tensor)
        else:
            assert torch.equal(actual, tensor), name


def near(training_losses):
    """Means of float64 losses, weighted and added in float32: as in `test_step`."""
    rows, processes = 8, 4
    return pytest.approx(training_losses, rel=gamma(4 * (rows + processes)), abs=0)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one_with_the_joined_batch(make, alone, two, kind):
    outcomes = getattr(two, kind)
    expected = alone[kind]
    # Both hold the same weights, or parts of them, and say the same.
    assert outcomes[1]["weights"] == ({} if "fsdp" in kind else outcomes[0]["weights"])
    assert outcomes[0]["history"] == outcomes[1]["history"]
    assert [outcome["is_main"] for outcome in outcomes] == [True, False]
    assert_same(outcomes[0]["weights"], expected.model.state_dict())
    folder = run_folder(make, f"two-{kind}")
    assert_same(load_file(folder / "model.safetensors"), expected.model.state_dict())
    assert losses(folder) == near(losses(expected.folder))
    assert outcomes[0]["history"]["train_loss"] == near(expected.history["train_loss"])
    bound = validation_bound(expected)
    for key in ("val_loss", "final_val_loss", "bits_per_byte"):
        wanted = pytest.approx(expected.history[key], rel=0, abs=bound)
        assert outcomes[0]["history"][key] == wanted
    mine, theirs = (everything(newest_checkpoint(f)) for f in (folder, expected.folder))
    assert_same(mine, theirs)


def test_two_processes_with_unequal_numbers_of_targets_equal_one_with_the_joined_batch(make, two):
    """The mean is over the targets that count in all micro-batches of both."""
    expected = train_in_processes.outcome(**masked_job(make, "alone-masked"), float64=True)
    weights = {
        name: torch.tensor(each, dtype=torch.float64) for name, each in expected["weights"].items()
    }
    assert_same(two.masked[0]["weights"], weights)
    assert two.masked[0]["history"]["train_loss"] == near(expected["history"]["train_loss"])
    assert losses(run_folder(make, "two-masked")) == near(losses(run_folder(make, "alone-masked")))


def test_two_processes_equal_one_on_pairs_of_preferences(make, two):
    with training_in_float64():
        expected = train_from_config(make_config(keys_of_pairs(make, "alone-pairs")))
    folder = run_folder(make, "two-pairs")
    assert_same(load_file(folder / "model.safetensors"), expected.model.state_dict())
    assert losses(folder) == near(losses(expected.folder))
    mine, theirs = (newest_checkpoint(each) for each in (folder, expected.folder))
    assert_same(everything(mine), everything(theirs))
    assert any(name.startswith("reference.") for name in everything(mine))
    own, others = (
        [entry for entry in read_metrics(each / "metrics.jsonl") if "val_kl" in entry]
        for each in (folder, expected.folder)
    )
    assert len(own) == STEPS // SHARED["eval_interval"]
    for key in ("val_loss", "val_accuracy", "val_margin", "val_kl"):
        assert [each[key] for each in own] == near([each[key] for each in others])


def everything(checkpoint):
    """The float64 weights and the optimizer's state in a checkpoint, read by one process."""
    model = GPT2Model(load_config(checkpoint.run / "config.toml")).double()
    return {**checkpoint.load_into(model), **model.state_dict()}


def test_a_sharded_checkpoint_has_a_file_of_each_process_and_no_pickle(make, two):
    folder = newest_checkpoint(run_folder(make, "two-fsdp")).folder
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    assert {file.suffix for file in files} == {".json", ".safetensors", ".toml"}
    shards = [load_file(file) for file in files if file.parent.name == "shards"]
    assert len(shards) == 2
    weights = load_file(run_folder(make, "two-fsdp") / "model.safetensors")
    for name, weight in weights.items():
        assert sum(shard[name].numel() for shard in shards if name in shard) == weight.numel()
    # Damage is found in them as elsewhere.
    shard = next(file for file in files if file.parent.name == "shards")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AGI2Error, match="is damaged"):
        open_checkpoint(folder)
    shard.write_bytes(content)


def test_processes_draw_different_dropout(two):
    seeds = [outcome["seed"] for outcome in two.dropout]
    assert seeds[0] != seeds[1]


def test_all_stop_at_the_same_step_when_one_is_asked_to(make, two):
    assert [outcome["ended"] for outcome in two.asked] == ["interrupted"] * 2
    assert newest_checkpoint(run_folder(make, "two-asked")).state["step"] == 5


def test_what_no_process_can_do_alone_is_refused(two):
    ended = [outcome["ended"] for outcome in two.memory]
    for rank in range(2):
        assert (
            f"out of memory at step 0 on process {rank}, with 4 sequences at a time" in ended[rank]
        )
    assert "7 sequences cannot be shared equally by 2 processes" in two.odd[0]["ended"]


def test_only_the_main_process_prints(two):
    assert "step 8/8" in two.printed[0]
    assert two.printed[1] == ""


def test_a_run_goes_on_in_another_number_of_processes(make, two):
    """From two to one and to four, with whole models and with parts, from either to either."""

    def keys(source, parallel):
        folder = str(run_folder(make, f"two-{source}"))
        changes = {"max_steps": STEPS + 4, "resume": folder, "parallel": parallel}
        return make.keys(f"{source}-then-{parallel}", **changes)

    with training_in_float64():
        expected = train_from_config(make_config(keys("adamw", "ddp")))
        from_shards = train_from_config(make_config(keys("fsdp", "ddp")))
    assert_same(from_shards.model.state_dict(), expected.model.state_dict())
    ways = [("adamw", "ddp"), ("adamw", "fsdp"), ("fsdp", "fsdp"), ("fsdp", "ddp")]
    results, printed = train_in_torchrun(
        make.folder, 4, [{"config": keys(*way), "float64": True} for way in ways]
    )
    assert printed[0].count("processes was 2 in this run: the rounding changes") == len(ways)
    for way, outcomes in zip(ways, results, strict=True):
        assert_same(outcomes[0]["weights"], expected.model.state_dict())
        folder = run_folder(make, "{}-then-{}".format(*way))
        assert losses(folder) == near(losses(expected.folder))
    assert len({json.dumps(outcome["weights"]) for outcome in results[0]}) == 1


def test_a_killed_process_is_restarted_and_the_run_ends_as_if_nothing_had_happened(make, two):
    assert f"resuming {run_folder(make, 'killed')}/checkpoints/step-00000004" in two.printed[0]
    assert two.killed[0]["weights"] == two.dropout[0]["weights"]
    assert two.killed[0]["history"] == two.dropout[0]["history"]
    whole, broken = (run_folder(make, name) for name in ("two-dropout", "killed"))
    assert losses(broken) == losses(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_an_error_is_told_once(make):
    keys = make.keys("nothing", sources=["nothing.txt"])
    save_config(make_config(keys), make.folder / "nothing.toml")
    done = torchrun(2, *FORKED, "agi2_train.py", make.folder / "nothing.toml")
    assert done.returncode == 1  # torchrun's
    assert re.findall("^error: .*", done.stderr, re.MULTILINE) == [
        f"error: nothing.txt: no such file; paths are relative to {ROOT}"
    ]
