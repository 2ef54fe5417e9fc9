"""PyTorch's global defaults (device, dtype) change no result."""

import json

import pytest

from tests.processes import needs_fork, run_python
from tests.tiny_models import saved_model

PROGRAM = """
import json, sys
import torch

folder, output, corpus, kind, place = sys.argv[1:]
torch.set_default_dtype(getattr(torch, kind))
torch.set_default_device(json.loads(place))

from src.config_loader import make_config
from src.evaluation.loss import evaluate_text
from src.generation import generate_batch, generate_beam_text, generate_choices, generate_text
from src.formats.model_dir import load_model
from src.inference.prepare import prepare_for_generation
from src.training import train_from_config

found = {}
for quantize in ("unprepared", "none", "int8", "int4"):
    trained = load_model(folder)
    model, tokenizer = trained.model, trained.tokenizer
    if quantize != "unprepared":
        prepare_for_generation(model, quantize)
    options = {"tokenizer": tokenizer, "seed": 3}
    found[quantize] = [
        generate_text(model, "abc", 6, temperature=0, tokenizer=tokenizer),
        generate_text(model, "abc", 6, 0.9, 20, 0.9, repetition_penalty=1.2, **options),
        generate_batch(model, ["a", "bcdef"], 5, n=2, **options),
        generate_beam_text(model, "abc", 2, 4, tokenizer=tokenizer),
        [choice.probability for choice in generate_choices(model, "abc", 3, **options)],
        evaluate_text(model, ["abc def abc"], tokenizer, 8).loss,
        sorted({str(tensor.dtype) for tensor in (*model.parameters(), *model.buffers())}),
    ]
config = make_config({
    "sources": [corpus], "model_name": "run", "output_dir": output, "tokenizer": "basic",
    "model_layer": 1, "model_head": 2, "model_embd": 16, "model_positions": 16, "batch_size": 8,
    "max_steps": 4, "eval_interval": 2, "checkpoint_interval": 2, "sample_tokens": 4,
    "device": "cpu", "optimizer": "muon",
})
run = train_from_config(config)
found["train"] = [run.history["train_loss"], run.history["val_loss"]]
found["weights"] = {name: w.double().sum().item() for name, w in run.model.state_dict().items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    saved_model(path, model_layer=1, model_embd=64, model_ff=64, model_positions=24)
    return path


@needs_fork
def test_no_default_of_pytorch_changes_a_result(folder, tmp_path, corpus):
    found = {}
    for kind, place in [("float32", None), ("bfloat16", None), ("float64", "meta")]:
        output = tmp_path / f"{kind}-{place}"
        done = run_python("-c", PROGRAM, folder, output, corpus, kind, json.dumps(place))
        assert done.returncode == 0, done.stderr[-3000:]
        found[kind, place] = json.loads(done.stdout)
    usual = found["float32", None]
    for default, results in found.items():
        assert results == usual, default
