"""`train_epoch`, `train_model` and `train_from_config`, end to end."""

import logging
import math
import re
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from src.config import GPT2Config
from src.config_loader import load_config, make_config
from src.dataset import TextDataset
from src.errors import AGI2Error
from src.evaluation.loss import evaluate
from src.formats.model_dir import load_model, run_folder, save_model, save_weights
from src.model import GPT2Model
from src.tokenizer import BasicTokenizer, load_tokenizer
from src.train.checkpoint import newest_checkpoint
from src.train.trackers import read_metrics
from src.training import train_epoch, train_from_config, train_model
from tests.bounds import (
    assert_same_in_float64,
    assert_within,
    rounding_in_float64,
    validation_bound,
)
from tests.conftest import raising
from tests.tiny_models import training_in_float64
from tests.train.trainers import at

TINY = GPT2Config(
    vocab_size=20, max_seq_len=8, d_model=16, n_layers=1, n_heads=2, dropout=0.0, bias=True
)


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    return GPT2Model(replace(TINY, **changes))


def windows(batches=3, rows=4, width=9):
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(20, (rows, width), generator=draw) for _ in range(batches)]


def same_weights(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def character_entropy(text):
    """What the best prediction costs that does not look at the context, in nats."""
    shares = [count / len(text) for count in Counter(text.lower()).values()]
    return -sum(share * math.log(share) for share in shares)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_train_epoch_equals_a_loop_written_by_hand(clip):
    ours, by_hand = tiny_model(), tiny_model()
    batches = [*windows(2), *windows(1, rows=2)]
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-2)
    mean = train_epoch(ours, batches, optimizer, F.cross_entropy, "cpu", clip)

    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2)
    total, tokens = 0.0, 0
    for batch in batches:
        optimizer.zero_grad()
        inputs, targets = batch[:, :-1], batch[:, 1:]
        loss = F.cross_entropy(by_hand(inputs).reshape(-1, 20), targets.reshape(-1))
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(by_hand.parameters(), clip)
        optimizer.step()
        total += loss.item() * targets.numel()
        tokens += targets.numel()
    assert mean == total / tokens
    assert same_weights(ours, by_hand)


def test_train_epoch_takes_pairs_as_well_as_windows():
    by_windows, by_pairs = tiny_model(), tiny_model()
    means = []
    for model, batches in (
        (by_windows, windows()),
        (by_pairs, [(batch[:, :-1], batch[:, 1:]) for batch in windows()]),
    ):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        means.append(train_epoch(model, batches, optimizer))
    assert means[0] == means[1]
    assert same_weights(by_windows, by_pairs)


def test_train_epoch_moves_weights_no_further_than_the_clipped_gradient():
    model = tiny_model().double()  # where a fault is far above the rounding
    (batch,) = windows(1)
    F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    train_epoch(model, [batch], torch.optim.SGD(model.parameters(), lr=1.0), clip_grad_norm=0.01)
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    # PyTorch divides by a little more than the norm.
    assert gradient.norm() > 0.01
    assert_same_in_float64(after - before, -0.01 * gradient / (gradient.norm() + 1e-6))


def test_train_epoch_uses_the_criterion_it_is_given():
    def smoothed(logits, targets):
        return F.cross_entropy(logits, targets, label_smoothing=0.5)

    losses = []
    for criterion in (F.cross_entropy, smoothed):
        model = tiny_model()
        losses.append(
            train_epoch(model, windows(1), torch.optim.SGD(model.parameters()), criterion)
        )
    batch = windows(1)[0]
    expected = smoothed(tiny_model()(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    assert losses[1] == expected.item()
    assert losses[0] != losses[1]


def test_train_epoch_turns_training_mode_on():
    model = tiny_model().eval()
    train_epoch(model, windows(1), torch.optim.SGD(model.parameters()))
    assert model.training


def test_an_empty_loader_is_an_error():
    model = tiny_model()
    with pytest.raises(AGI2Error, match="nothing to train on"):
        train_epoch(model, [], torch.optim.SGD(model.parameters()))


def test_epochs_over_a_data_loader_lower_the_loss(corpus):
    tokenizer = BasicTokenizer()
    tokenizer.fit([corpus.read_text()])
    data = TextDataset(str(corpus), tokenizer, 9)
    loader = DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator())
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [train_epoch(model, loader, optimizer) for _ in range(5)]
    assert losses[-1] < losses[1] < losses[0]
    assert losses[-1] < character_entropy(corpus.read_text())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_lowers_the_loss(tiny_run, optimizer):
    run = train_from_config(tiny_run(max_steps=120, eval_interval=20, optimizer=optimizer))
    losses = run.history["val_loss"]
    assert losses[-1] < losses[0] < math.log(run.tokenizer.vocab_size)
    assert losses[-1] < character_entropy(run.training_text[0])


def test_the_history_says_what_happened(tiny_run):
    run = train_from_config(tiny_run(max_steps=None, epochs=2, eval_interval=10))
    history = run.history
    steps = history["steps"]
    assert set(history) == {
        *("train_loss", "val_loss", "val_steps", "steps", "seconds", "stopped"),
        *("best_val_loss", "final_val_loss", "bits_per_byte"),
    }
    assert len(history["train_loss"]) == 2
    assert history["train_loss"][1] < history["train_loss"][0]
    assert history["val_steps"] == sorted({*range(10, steps + 1, 10), steps})
    assert len(history["val_loss"]) == len(history["val_steps"])
    assert history["best_val_loss"] == min(history["val_loss"])
    assert history["stopped"] == "finished"
    assert history["seconds"] > 0


def test_the_final_loss_is_that_of_the_best_weights_on_all_held_out_text(tiny_run, corpus):
    with training_in_float64():
        run = train_from_config(tiny_run(max_steps=30, eval_interval=10))
    text = corpus.read_text()
    held_out = run.tokenizer.encode(text[int(0.9 * len(text)) :])
    # By hand: every target once, with what stands in its window before it.
    total, window = 0.0, 16
    run.model.eval()
    starts = list(range(0, len(held_out) - window, window))
    for start in starts:
        tokens = torch.tensor(held_out[start : start + window + 1])
        logits = run.model(tokens[None, :-1])[0]
        total += F.cross_entropy(logits, tokens[1:], reduction="sum").item()
    rest = len(held_out) - 1 - len(starts) * window
    if rest:
        tokens = torch.tensor(held_out[-window - 1 :])
        losses = F.cross_entropy(run.model(tokens[None, :-1])[0], tokens[1:], reduction="none")
        total += losses[-rest:].sum().item()
    mean = total / (len(held_out) - 1)
    assert run.history["final_val_loss"] == pytest.approx(mean, rel=0, abs=validation_bound(run))


def test_without_held_out_text_the_last_weights_are_kept(tiny_run):
    run = train_from_config(tiny_run(val_fraction=0.0, eval_interval=5, sample_tokens=4))
    assert run.history["val_loss"] == []
    assert "final_val_loss" not in run.history
    assert same_weights(run.model, load_model(run.folder).model)


def test_a_text_shorter_than_a_window_trains_on_shorter_ones(tiny_run, corpus, caplog):
    corpus.write_text("call me ishmael")
    config = tiny_run(model_positions=64, max_steps=40, val_fraction=0.2, sample_tokens=4)
    run = train_from_config(config)
    for text in ("the text has only", "the held-out text has only"):
        assert re.search(rf"{text} \d+ tokens: windows are that short", caplog.text)
    assert run.history["steps"] == 40
    assert run.history["val_loss"] != []


def test_held_out_text_of_one_token_does_not_validate(tiny_run, corpus, caplog):
    corpus.write_text("call me ishmael")
    run = train_from_config(tiny_run(max_steps=2, val_fraction=0.05))
    assert "too short to validate" in caplog.text
    assert run.history["val_loss"] == []


def test_equal_runs_give_equal_files(tiny_run):
    a = train_from_config(tiny_run("a", dropout=0.1, eval_interval=4))
    torch.manual_seed(99)
    b = train_from_config(tiny_run("b", dropout=0.1, eval_interval=4))
    c = train_from_config(tiny_run("c", dropout=0.1, eval_interval=4, seed=2))
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (a, b, c)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("micro", [1, 4])
def test_accumulated_gradients_give_the_run_of_the_large_batch(tiny_run, micro):
    options = {"dropout": 0.0, "max_steps": 5, "val_fraction": 0.0}
    with training_in_float64():
        whole = train_from_config(tiny_run("whole", micro_batch_size=8, **options))
        parts = train_from_config(tiny_run("parts", micro_batch_size=micro, **options))
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert_same_in_float64(b, a)


def test_train_model_trains_the_model_it_is_given(corpus, tmp_path):
    tokenizer = BasicTokenizer()
    tokenizer.fit([corpus.read_text()])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    before = evaluate(model, TextDataset(str(corpus), tokenizer, 9, stride=8), tokenizer)
    history = train_model(
        model,
        tokenizer,
        str(corpus),
        2,
        batch_size=8,
        learning_rate=0.01,
        model_name="given",
        output_dir=str(tmp_path),
        sample_tokens=0,
    )
    assert len(history["train_loss"]) == 2
    assert history["final_val_loss"] < before.loss
    loaded = load_model(tmp_path / "given")
    assert same_weights(model, loaded.model)
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    # The model's own architecture and positions are what is written down.
    assert loaded.model.config == model.config
    assert loaded.config.seq_len == 8


def test_train_model_passes_every_key_on(corpus, tmp_path):
    tokenizer = BasicTokenizer()
    tokenizer.fit([corpus.read_text()])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    options = {"output_dir": str(tmp_path), "sample_tokens": 0, "seq_len": 5}
    history = train_model(model, tokenizer, [str(corpus)], max_steps=3, **options)
    assert history["steps"] == 3
    assert load_model(tmp_path / "model").config.seq_len == 5
    with pytest.raises(AGI2Error, match="learning_rate"):
        train_model(model, tokenizer, str(corpus), learning_rat=1, **options)


def test_a_tokenizer_larger_than_the_model_is_refused(corpus, tmp_path):
    tokenizer = BasicTokenizer([chr(100 + i) for i in range(30)])
    with pytest.raises(AGI2Error, match="32 tokens, the model only 20"):
        train_model(tiny_model(), tokenizer, str(corpus), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["sources", "val_sources"])
def test_a_missing_source_is_found_before_anything_is_built(tiny_run, tmp_path, key):
    config = tiny_run(**{key: [str(tmp_path / "nothing.txt")]})
    with pytest.raises(AGI2Error, match=r"nothing\.txt"):
        train_from_config(config)
    assert not (tmp_path / "trained").exists()


def test_a_trained_tokenizer_is_taken_as_it_is(tiny_run, tmp_path):
    first = train_from_config(tiny_run("first", max_steps=1))
    path = first.folder / "tokenizer.json"
    second = train_from_config(tiny_run("second", max_steps=1, tokenizer=str(path)))
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_the_model_has_the_vocabulary_that_the_text_reached(tiny_run):
    run = train_from_config(tiny_run(tokenizer="bpe", vocab_size=300, max_steps=2))
    tokenizer = load_tokenizer(run.folder)
    assert run.model.config.vocab_size == tokenizer.vocab_size <= 300
    assert load_model(run.folder).config.vocab_size == tokenizer.vocab_size


def test_the_log_tells_the_training_loss_of_every_epoch(tiny_run, caplog):
    with caplog.at_level(logging.INFO, logger="agi2"):
        run = train_from_config(tiny_run(max_steps=None, epochs=2))
    for number, loss in enumerate(run.history["train_loss"], 1):
        assert f"epoch {number}  train loss {loss:.4f}" in caplog.text


# What a run starts from


@pytest.fixture
def base(copied_run):
    """The folder of a trained model."""
    return copied_run("base", tokenizer="bpe", vocab_size=280).folder


def make_tuned(tiny_run, base, **changes):
    """The configuration of a run that starts from a trained model: read as the command does it."""
    keys = {
        key: value
        for key, value in tiny_run("tuned").items()
        if key in tiny_run("tuned").model_fields_set
        and not key.startswith("model_")
        and key != "tokenizer"
    }
    given = {**keys, "model_name": "tuned", "init_from": str(base), **changes}
    return make_config(given, "training")


# Keys of a run that leaves its weights almost where they are.
HARDLY = {"learning_rate": 1e-30, "weight_decay": 0.0}


def assert_hardly_moved(model, start, steps):
    """By what AdamW can.

    A step is about a learning rate (Kingma and Ba, 2015, 2.1), at most 2.4 (by Cauchy-Schwarz, with
    betas of 0.9 and 0.99), and a weight that it is added to is rounded by no more than as much.
    """
    for moved, weight in zip(model.parameters(), start.parameters(), strict=True):
        assert_within(moved, weight, 2 * 2.4 * steps * HARDLY["learning_rate"])


def test_a_run_starts_from_the_weights_and_the_tokenizer_of_a_trained_model(tiny_run, base):
    config = make_tuned(tiny_run, base, **HARDLY)
    assert (config.model_embd, config.model_layer, config.model_positions) == (16, 1, 16)
    run = train_from_config(config)
    start = load_model(base)
    assert run.tokenizer.fingerprint == start.tokenizer.fingerprint
    assert_hardly_moved(run.model, start.model, config.max_steps)


def test_a_run_goes_on_from_the_loss_of_the_model_it_starts_from(tiny_run, base):
    history = train_from_config(make_tuned(tiny_run, base)).history
    assert history["best_val_loss"] < loss_of(base)


def loss_of(folder):
    """The last validation loss of a run."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [line["val_loss"] for line in lines if "val_loss" in line][-1]


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_resumed_run_needs_nothing_of_the_model_it_started_from(
    tiny_run, base, tmp_path, lora_rank
):
    keys = {"lr_schedule": "constant", "warmup_steps": 0, "lora_rank": lora_rank}
    whole = train_from_config(make_tuned(tiny_run, base, model_name="whole", **keys))
    begun = train_from_config(make_tuned(tiny_run, base, max_steps=4, **keys))
    base.rename(tmp_path / "moved")
    checkpoint = shutil.copytree(newest_checkpoint(begun.folder).folder, tmp_path / "copied")
    resumed = train_from_config(make_tuned(tiny_run, base, resume="auto", **keys))
    assert same_weights(resumed.model, whole.model)
    # On another machine: of the run and of the model that it started from, there is nothing.
    shutil.rmtree(tmp_path / "moved")
    shutil.rmtree(begun.folder)
    steps = tiny_run().max_steps
    changes = [f"resume={checkpoint}", "model_name=again", f"max_steps={steps}"]
    again = train_from_config(load_config(checkpoint / "config.toml", "training", changes))
    assert same_weights(again.model, whole.model)


@pytest.mark.parametrize("rank", [None, 3])
def test_a_resumed_run_keeps_its_rank(tiny_run, base, rank):
    train_from_config(make_tuned(tiny_run, base, lora_rank=2))
    with pytest.raises(AGI2Error, match=f"lora_rank = 2, now it is {rank}: set it back"):
        train_from_config(make_tuned(tiny_run, base, lora_rank=rank, resume="auto"))


def test_lora_learns_beside_weights_that_stay(tiny_run, base):
    # Large weights: beside those that are hardly trained nothing can be learned.
    trained = load_model(base)
    for weight in trained.model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    save_weights(trained.model.state_dict(), base / "model.safetensors", trained.tokenizer)
    still = train_from_config(make_tuned(tiny_run, base, lora_rank=2, learning_rate=1e-9))
    with training_in_float64():
        run = train_from_config(make_tuned(tiny_run, base, lora_rank=2, learning_rate=0.1))
    assert run.history["best_val_loss"] < still.history["best_val_loss"]
    start, found = load_model(base).model, load_model(run.folder).model
    difference = run.model.blocks[0].ffn.expand.weight - start.blocks[0].ffn.expand.weight
    values = torch.linalg.svdvals(difference.detach())
    assert values[2] <= rounding_in_float64(values) < values[1]  # of rank 2
    assert same_weights(found, run.model.float())
    changed = {
        key
        for key, weight in start.state_dict().items()
        if not torch.equal(weight, found.state_dict()[key])
    }
    layers = ("attention.qkv", "attention.proj", "ffn.expand", "ffn.contract")
    assert changed == {f"blocks.0.{layer}.weight" for layer in layers}
    assert found.state_dict().keys() == load_file(run.folder / "model.safetensors").keys()


@pytest.mark.parametrize("val_fraction", [0.1, 0.0])
def test_lora_resumes_exactly(tiny_run, base, val_fraction):
    options = {"lora_rank": 2, "val_fraction": val_fraction}
    options |= {"lr_schedule": "constant", "warmup_steps": 0}
    whole = train_from_config(make_tuned(tiny_run, base, model_name="whole", **options))
    train_from_config(make_tuned(tiny_run, base, max_steps=5, **options))
    resumed = train_from_config(make_tuned(tiny_run, base, resume="auto", **options))
    assert same_weights(resumed.model, whole.model)
    again = train_from_config(make_tuned(tiny_run, base, resume="auto", **options))
    assert same_weights(again.model, whole.model)


def test_a_lora_run_that_was_stopped_is_a_model_all_the_same(tiny_run, base):
    config = make_tuned(tiny_run, base, lora_rank=2)
    with pytest.raises(KeyboardInterrupt):
        train_from_config(config, kind=at("evaluate", 12, raising(KeyboardInterrupt)))
    names = load_file(run_folder(config) / "model.safetensors").keys()
    assert any("lora_up" in name for name in names)
    loaded = load_model(run_folder(config)).model
    assert loaded.state_dict().keys() == load_model(base).model.state_dict().keys()


def test_a_lora_run_is_not_resumed_without_lora(tiny_run, base):
    train_from_config(make_tuned(tiny_run, base, lora_rank=2, max_steps=4))
    with pytest.raises(AGI2Error, match="lora"):
        train_from_config(make_tuned(tiny_run, base, resume="auto"))


def test_a_model_with_more_tokens_than_its_tokenizer_keeps_them(tiny_run, base):
    trained = load_model(base)
    wide = GPT2Model(replace(trained.model.config, vocab_size=300))
    save_model(wide, trained.tokenizer, trained.config, base)
    config = make_tuned(tiny_run, base, max_steps=1)
    assert config.vocab_size == 300 > trained.tokenizer.vocab_size
    assert load_model(train_from_config(config).folder).model.config.vocab_size == 300


def test_a_given_model_starts_from_a_trained_one_too(tiny_run, base):
    config = make_tuned(tiny_run, base, max_steps=1, **HARDLY)
    start = load_model(base)
    model = GPT2Model(start.model.config)
    train_model(model, start.tokenizer, **config)
    assert_hardly_moved(model, start.model, 1)
    small = GPT2Model(replace(start.model.config, n_layers=2))
    with pytest.raises(AGI2Error, match="has model_layer = 1, this run 2"):
        train_model(small, start.tokenizer, **config)
    other = BasicTokenizer("abc")
    with pytest.raises(AGI2Error, match="another tokenizer than this run"):
        train_model(model, other, **config)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_on_cuda_lowers_the_loss(tiny_run, precision, optimizer):
    options = {"device": "cuda", "max_steps": 120, "eval_interval": 20}
    run = train_from_config(tiny_run(precision=precision, optimizer=optimizer, **options))
    assert run.model.device.type == "cuda"
    assert run.history["val_loss"][-1] < run.history["val_loss"][0]
    assert run.history["val_loss"][-1] < character_entropy(run.training_text[0])


@pytest.mark.gpu
@pytest.mark.parametrize("is_compiled", [False, True])
def test_training_on_documents_on_cuda_lowers_the_loss(tiny_run, is_compiled):
    """Their masks go through attention and, compiled, through a CUDA graph."""
    options = {"windows": "documents", "compile": is_compiled, "dropout": 0.1}
    run = train_from_config(tiny_run(device="cuda", max_steps=60, eval_interval=20, **options))
    assert run.history["val_loss"][-1] < run.history["val_loss"][0]


def test_a_checkpoint_of_another_version_is_refused_before_the_text_is_read(tiny_run, monkeypatch):
    train_from_config(tiny_run(max_steps=2))
    monkeypatch.setattr("src.train.checkpoint.FORMAT", 99)
    monkeypatch.setattr("src.train.setup.prepare", raising(AssertionError))
    with pytest.raises(
        AGI2Error, match="has the format 3, this version of AGI2 reads 99: resume with"
    ):
        train_from_config(tiny_run(max_steps=3, resume="auto"))


def test_a_model_beyond_the_memory_is_refused_before_it_is_built(tiny_run, monkeypatch, tmp_path):
    monkeypatch.setattr("src.training.GPT2Model", raising(AssertionError))
    config = tiny_run(model_embd=2**15, model_head=2, model_layer=1000)
    with pytest.raises(AGI2Error, match=r"training a model of .* parameters takes .*: lower model"):
        train_from_config(config)
    assert not (tmp_path / "trained").exists()
