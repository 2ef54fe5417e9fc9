"""PyTorch's global defaults (device, dtype) change no result."""

import json
import os

import pytest

from tests.conftest import run_python
from tests.tiny_models import saved_model

PROGRAM = """
import json, os, sys
import torch, torch._dynamo

def work(folder, output, corpus, kind, place):
    torch.set_default_dtype(getattr(torch, kind))
    torch.set_default_device(place)

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
    print(json.dumps(found), flush=True)

folder, output, corpus, defaults = sys.argv[1:]
for kind, place in json.loads(defaults):
    child = os.fork()  # of a process that has loaded nothing but PyTorch
    if not child:
        try:
            work(folder, os.path.join(output, f"{kind}-{place}"), corpus, kind, place)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, (kind, place)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    saved_model(path, model_layer=1, model_embd=64, model_ff=64, model_positions=24)
    return path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_no_default_of_pytorch_changes_a_result(folder, tmp_path, corpus):
    defaults = [("float32", None), ("bfloat16", None), ("float64", "meta")]
    done = run_python(PROGRAM, folder, tmp_path, corpus, json.dumps(defaults))
    assert done.returncode == 0, done.stderr[-3000:]
    usual, *others = map(json.loads, done.stdout.splitlines())
    assert len(others) == 2
    for found, default in zip(others, defaults[1:], strict=True):
        assert found == usual, default
