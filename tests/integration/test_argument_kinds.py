"""Every argument of every public function: the types that mean the same, and those that do not.

`CASES` names each function with a value for each of its arguments, and what kind each is. A new
argument, or a new public name, without a kind here is a failure.
"""

import inspect
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import GeneratorType

import numpy as np
import pytest
import torch
from torch import nn

import src
from src import AGI2Error, TextDataset, cuda_utils, generation
from src.attention import MultiHeadAttention
from src.config import Config
from src.evaluation import loss as evaluation
from src.formats.export import export_model
from src.formats.model_dir import save_model
from src.tokenizer import BasicTokenizer, BPETokenizer
from tests.tiny_models import alphabet, random_model, tiny_config

# What means the same as a plain value, and what means nothing.
NUMBERS_NEVER = ["1", True, [1], object()]
# Arrays without dimensions have `__iter__`, which raises.
WITHOUT_ITEMS = [np.array(2), np.array("a"), torch.tensor(2), torch.tensor(True), np.array(None)]
KINDS = {
    "int": (lambda v: [np.int64(v), float(v), torch.tensor(v)], [*NUMBERS_NEVER, 1.5]),
    "end": (lambda v: [np.int64(v), [v], (v,), torch.tensor([v])], ["1", True, 1.5, [1.5], {}]),
    "float": (lambda v: [np.float64(v), torch.tensor(v, dtype=torch.float64)], NUMBERS_NEVER),
    "bool": (lambda v: [np.bool_(v), torch.tensor(v)], ["yes", 1, [True]]),
    "str": (lambda v: [np.str_(v)], [5, b"x", {}]),
    "strs": (lambda v: [tuple(v), iter(v), np.array(v)], [5, [5], b"x", *WITHOUT_ITEMS]),
    "choice": (lambda v: [np.str_(v)], ["nothing", 5, [1]]),
    "path": (lambda v: [str(v), Path(v)], [5, b"x", True, ""]),
    "texts": (lambda v: [[v], (v,), iter([v])], [5, b"x", {"a": 1}, [5], *WITHOUT_ITEMS]),
    "paths": (
        lambda v: [str(v), [v], (str(v),)], [5, b"x", [5], {"a": 1}, *WITHOUT_ITEMS],
    ),
    "ids": (
        lambda v: [tuple(v), np.array(v), torch.tensor(v), iter(v)],
        [5, [1.5], {1: 2}, [True], np.ones(2), torch.ones(1, 2), [[1]], *WITHOUT_ITEMS,
         torch.ones(2).to_sparse(), torch.ones(2, device="meta").long()],
    ),
    "rows": (
        lambda v: [v.tolist(), v.numpy(), v.int(), v.to(torch.uint8)],
        ["x", 5, [[1.5]], v_float := torch.ones(1, 2), np.ones((1, 2)), torch.ones(1, 2) > 0,
         torch.tensor([[10**6]]), torch.tensor([[-1]])],
    ),
    "rows of any shape": (
        lambda v: [v.tolist(), v.numpy(), v.int()],
        ["x", None, [[1.5]], np.ones((1, 2)), torch.tensor([[28]]), torch.tensor([[-1]])],
    ),
    "vectors": (
        lambda v: [v.clone()], ["x", None, torch.ones(1, 2, 3), v_float.long(), np.ones(3)],
    ),
    "mask": (
        lambda v: [v.long(), v.numpy(), v.tolist()],
        ["x", torch.ones(7, 3), 3 * torch.ones(1, 2)],
    ),
    "counts": (
        lambda v: [v.tolist(), v.numpy(), v.int()],
        ["x", 5, [1.5], [True], [0], [-1], [3], [1, 1], [[1]], torch.ones(1)],
    ),
    "path key": (lambda v: [str(v), Path(v)], [5, True]),  # "" is a key that is not set
    "device": (lambda v: [torch.device(v)], [5, "nowhere", [1]]),
    "dtype": (lambda v: [], ["float32", 5]),
    "function": (lambda v: [], ["x", 5]),
    "object": (lambda v: [], ["x", 5, [1], object()]),
    "optional": (lambda v: [], ["x", 5, [1], {"a": 1}, object()]),
    "batches": (lambda v: [tuple(v), iter(v)], ["x", 5, [1], object(), *WITHOUT_ITEMS]),
    "criteria": (
        lambda v: [v[0], tuple(v), iter(v)],
        ["x", 5, 0, [5], {"a": 1}, torch.ones(2), object(), *WITHOUT_ITEMS],
    ),
}  # fmt: skip
MOST_FORMS = 4  # that a kind has


def case(function, **arguments):
    """A function with (kind, value) of its arguments; a value may be a function of the world."""
    return function, arguments


class World:
    """What the arguments are, each made anew for each call that needs it."""

    def __init__(self, folder):
        self.folder = folder
        self.free = folder / f"new{len(list(folder.iterdir()))}"
        self.batches = [torch.arange(8).reshape(2, 4)]

    @cached_property
    def tokenizer(self):
        return alphabet()

    @cached_property
    def model(self):
        return random_model(vocab_size=28, dropout=0.0)

    @cached_property
    def text(self):
        path = self.folder / "text.txt"
        path.write_text("the quick brown fox jumps over the lazy dog " * 3, encoding="utf-8")
        return path

    @cached_property
    def toml(self):
        path = self.folder / "run.toml"
        path.write_text('sources = ["a"]\nmodel_name = "m"\n', encoding="utf-8")
        return path

    @cached_property
    def data(self):
        return TextDataset(self.text, self.tokenizer, 9, verbose=False)

    @cached_property
    def config(self):
        return tiny_config()

    @cached_property
    def saved(self):
        path = self.folder / "saved"
        if not path.exists():
            bpe = BPETokenizer(257)
            bpe.fit("ab", verbose=False)
            model = random_model(vocab_size=257, position_embedding="learned")
            save_model(model, bpe, Config(**{"model_layer": 2}), path)
        return path

    @cached_property
    def theirs(self):
        path = self.folder / "theirs"
        if not path.exists():
            export_model(self.saved, path, verbose=False)
        return path

    @cached_property
    def gguf(self):
        path = self.folder / "model.gguf"
        if not path.exists():
            export_model(self.saved, path, "gguf", verbose=False)
        return path

    @cached_property
    def optimizer(self):
        return torch.optim.SGD(self.model.parameters(), 0.1)

    @cached_property
    def attention(self):
        torch.manual_seed(0)
        return MultiHeadAttention(8, 2, 0.0).eval()

    @cached_property
    def block(self):
        torch.manual_seed(0)
        return src.TransformerBlock(8, 2, 9, 0.0).eval()


def w(name):
    return lambda world: getattr(world, name)


MODEL, TOKENIZER = ("object", w("model")), ("object", w("tokenizer"))
DRAWN = {
    "max_length": ("int", 4),
    "temperature": ("float", 0.5),
    "top_k": ("int", 5),
    "top_p": ("float", 0.5),
}
TEXT_OUT = {
    "model": MODEL,
    "prompt": ("str", "the"),
    **DRAWN,
    "tokenizer": TOKENIZER,
    "model_seed": ("str", "a"),
    "seed": ("int", 3),
}
BEAMS = {
    "model": MODEL,
    "prompt": ("str", "the"),
    "beam_size": ("int", 2),
    "max_length": ("int", 4),
    "length_penalty": ("float", 1.0),
    "tokenizer": TOKENIZER,
}
DIVERSE = {
    "early_stopping": ("choice", "never"),
    "groups": ("int", 1),
    "diversity_penalty": ("float", 0.5),
}
STOPPING = ("criteria", [lambda text: len(text) > 1])
SIZES = {"d_model": ("int", 8), "n_heads": ("int", 2)}
DROPOUT, BIAS, QUIET = ("float", 0.25), ("bool", True), ("bool", False)
EVALUATION = {"precision": ("dtype", torch.float32), "verbose": QUIET}

CASES = {
    "GPT2Config": case(
        src.GPT2Config,
        vocab_size=("int", 9), max_seq_len=("int", 8), d_model=("int", 8), n_layers=("int", 1),
        n_heads=("int", 2), d_ff=("int", 16), dropout=DROPOUT, activation=("choice", "relu"),
        bias=BIAS, norm_position=("choice", "post"), position_embedding=("choice", "learned"),
        tie_weights=("bool", True), gradient_checkpointing=("bool", False),
    ),
    "GPT2Model": case(src.GPT2Model, config=("object", w("config"))),
    "TokenEmbeddings": case(
        src.TokenEmbeddings, vocab_size=("int", 9), d_model=("int", 8), dropout=DROPOUT
    ),
    "PositionEmbeddings": case(
        src.PositionEmbeddings, max_seq_len=("int", 9), d_model=("int", 8)
    ),
    "LearnedPositionEmbeddings": case(
        src.LearnedPositionEmbeddings, max_seq_len=("int", 9), d_model=("int", 8)
    ),
    "MultiHeadAttention": case(src.MultiHeadAttention, **SIZES, dropout=DROPOUT, bias=BIAS),
    "FeedForward": case(
        src.FeedForward, d_model=("int", 8), d_ff=("int", 9), dropout=DROPOUT,
        activation=("choice", "relu"), bias=BIAS,
    ),
    "TransformerBlock": case(
        src.TransformerBlock, **SIZES, d_ff=("int", 9), dropout=DROPOUT,
        activation=("choice", "relu"), bias=BIAS, norm_position=("choice", "post"),
    ),
    "KVCache": case(
        src.KVCache, n_layers=("int", 1), batch_size=("int", 2), n_heads=("int", 2),
        capacity=("int", 4), head_dim=("int", 4), device=("device", "cpu"),
        dtype=("dtype", torch.float32),
    ),
    "BasicTokenizer": case(
        src.BasicTokenizer, vocabulary=("strs", ["a", "b"]), lowercase=("bool", True),
        fold_whitespace=("bool", True), byte_fallback=("bool", True),
        special_tokens=("strs", ["<x>"]),
    ),
    "BPETokenizer": case(
        src.BPETokenizer, vocab_size=("int", 300), special_tokens=("strs", ["<x>"]),
        pretokenizer=("choice", "gpt4"), split_digits=("bool", True),
    ),
    "StreamDecoder": case(src.StreamDecoder, tokenizer=TOKENIZER, continues=("ids", [3, 4])),
    "load_tokenizer": case(src.load_tokenizer, path=("path", w("saved"))),
    "load_config": case(
        src.load_config, path=("path", w("toml")), kind=("choice", "training"),
        overrides=("strs", ["epochs=3"]),
    ),
    "TextDataset": case(
        src.TextDataset, sources=("paths", w("text")), tokenizer=TOKENIZER, seq_len=("int", 4),
        stride=("int", 2), text_field=("str", "text"), preprocess=("function", str.upper),
        seed=("int", 3), verbose=QUIET,
    ),
    "train_epoch": case(
        src.train_epoch, model=MODEL, dataloader=("batches", w("batches")),
        optimizer=("object", w("optimizer")), criterion=("object", nn.functional.cross_entropy),
        device=("device", "cpu"), clip_grad_norm=("float", 1.0), scheduler=("optional", None),
        verbose=QUIET,
    ),
    "train_model": case(
        lambda **given: src.train_model(**given, max_steps=1, sample_tokens=0, batch_size=2),
        model=MODEL, tokenizer=("object", w("tokenizer")), sources=("paths", w("text")),
        epochs=("int", 1), verbose=QUIET, output_dir=("path key", w("free")),
        seq_len=("int", 8), learning_rate=("float", 0.001), device=("device", "cpu"),
    ),
    "Trainer": case(
        src.Trainer, model=MODEL, tokenizer=TOKENIZER, train_data=("object", w("data")),
        val_data=("object", w("data")), config=("object", w("config")),
        folder=("path", w("free")), process_group=("optional", None),
        evaluate=("function", src.evaluate), sample=("function", lambda *_, **__: ""),
    ),
    "prepare_for_generation": case(
        src.prepare_for_generation, model=MODEL, quantize=("choice", "int8"), verbose=QUIET
    ),
    "save_model": case(
        src.save_model, model=MODEL, tokenizer=TOKENIZER, config=("object", w("config")),
        folder=("path", w("free")), verbose=QUIET,
    ),
    "load_model": case(
        src.load_model, folder=("path", w("saved")), device=("device", "cpu"), verbose=QUIET
    ),
    "import_huggingface": case(
        src.import_huggingface, source=("path", w("theirs")), folder=("path", w("free")),
        verbose=QUIET,
    ),
    "import_gguf": case(
        src.import_gguf, source=("path", w("gguf")), folder=("path", w("free")), verbose=QUIET
    ),
    "export_model": case(
        src.export_model, run=("path", w("saved")), out=("path", w("free")),
        format=("choice", "gguf"), quantize=("choice", "q8_0"), kv_cache=("bool", False),
        verbose=QUIET,
    ),
    "evaluate": case(
        src.evaluate, model=MODEL, dataset=("object", w("data")), tokenizer=TOKENIZER,
        batch_size=("int", 2), max_tokens=("int", 16), **EVALUATION,
    ),
    "evaluate_tokens": case(
        evaluation.evaluate_tokens, model=MODEL, tokens=("ids", [3, 4, 5]), tokenizer=TOKENIZER,
        stride=("int", 2), **EVALUATION,
    ),
    "evaluate_text": case(
        evaluation.evaluate_text, model=MODEL, documents=("strs", ["the fox"]),
        tokenizer=TOKENIZER, stride=("int", 2), **EVALUATION,
    ),
    "generate_text": case(
        src.generate_text, **TEXT_OUT, device=("device", "cpu"), stopping_criteria=STOPPING,
        return_full_text=("bool", True), on_text=("function", lambda piece: None),
    ),
    "generate_batch": case(
        lambda prompts, **given: src.generate_batch(prompts=prompts, **given),
        **{k: v for k, v in TEXT_OUT.items() if k != "prompt"}, prompts=("strs", ["the", "a"]),
        n=("int", 2), stopping_criteria=STOPPING, return_full_text=("bool", False),
    ),
    "stream_text": case(
        src.stream_text, **TEXT_OUT, stopping_criteria=STOPPING,
        skip_leading_space=("bool", False), runner=("optional", None),
    ),
    "generate_tokens": case(
        src.generate_tokens, model=MODEL, prompt=("ids", [3, 4]), **DRAWN, end_token=("end", 1),
        vocab_size=("int", 28), seed=("int", 3),
    ),
    "generate_choices": case(
        generation.generate_choices, **TEXT_OUT, runners_up=("int", 2)
    ),
    "generate_beam_text": case(
        generation.generate_beam_text, **BEAMS, return_full_text=("bool", True)
    ),
    "generate_beam_texts": case(
        src.generate_beam_texts, **BEAMS, **DIVERSE, results=("int", 1)
    ),
    "beam_search": case(
        src.beam_search, model=MODEL, prompt=("ids", [3, 4]), beam_size=("int", 2),
        max_length=("int", 4), length_penalty=("float", 1.0), **DIVERSE, end_token=("end", 1),
        vocab_size=("int", 28), is_finished=("function", lambda tokens: False),
    ),
    "generation_options": case(src.generation_options, config=("object", w("config"))),
    "InteractivePrompt": case(
        src.InteractivePrompt, model=MODEL, max_context_length=("int", 8), tokenizer=TOKENIZER,
        model_seed=("str", "a"), max_length=("int", 4), seed=("int", 3), system=("str", ""),
    ),
    "select_device": case(cuda_utils.select_device, preference=("choice", "cpu")),
    "memory_stats": case(
        lambda device: cuda_utils.memory_stats(device).device_total, device=("device", "cpu")
    ),
}  # fmt: skip

METHODS = {
    "model.forward": case(
        lambda world, **given: world.model(**given),
        input_ids=("rows", torch.tensor([[3, 4]])),
        attention_mask=("mask", torch.tensor([[True, True]])), cache=("optional", None),
        last_only=("bool", False), counts=("counts", torch.tensor([1])),
        document_ids=("optional", None),
    ),
    "model.new_cache": case(
        lambda world, **given: world.model.new_cache(**given),
        batch_size=("int", 2), capacity=("int", 4),
    ),
    "model.from_pretrained": case(
        lambda world, **given: world.model.from_pretrained(**given),
        folder=("path", w("saved")), device=("device", "cpu"), verbose=QUIET,
    ),
    "model.save_pretrained": case(
        lambda world, **given: world.model.save_pretrained(**given),
        folder=("path", w("free")), tokenizer=TOKENIZER, config=("object", w("config")),
        verbose=QUIET,
    ),
    "model.token_embeddings.forward": case(
        lambda world, **given: world.model.token_embeddings(**given),
        tokens=("rows of any shape", torch.tensor([[3, 4]])),
    ),
    "model.position_embeddings.forward": case(
        lambda world, **given: world.model.position_embeddings(**given),
        seq_len=("int", 4), offset=("int", 1),
    ),
    "attention.forward": case(
        lambda world, **given: world.attention(**given),
        query=("vectors", torch.ones(1, 2, 8)), key=("optional", None), value=("optional", None),
        mask=("skip", torch.ones(2, 2, dtype=torch.bool)), causal=("bool", True),
        cache=("optional", None), need_weights=("bool", False),
    ),
    "block.forward": case(
        lambda world, **given: world.block(**given),
        x=("vectors", torch.ones(1, 2, 8)), mask=("skip", torch.ones(2, 2, dtype=torch.bool)),
        causal=("bool", True), cache=("optional", None),
    ),
    "block.ffn.forward": case(
        lambda world, **given: world.block.ffn(**given), x=("vectors", torch.ones(1, 2, 8))
    ),
    "tokenizer.encode": case(
        lambda world, **given: world.tokenizer.encode(**given),
        text=("str", "the"), allowed_special=("strs", ["<unk>"]),
    ),
    "tokenizer.decode": case(
        lambda world, **given: world.tokenizer.decode(**given),
        tokens=("ids", [3, 4]), skip_special_tokens=("bool", True),
    ),
    "tokenizer.fit": case(
        lambda world, **given: world.tokenizer.fit(**given), texts=("texts", "the"), verbose=QUIET
    ),
    "tokenizer.save": case(
        lambda world, **given: world.tokenizer.save(**given), path=("path", w("free"))
    ),
    "tokenizer.load": case(
        lambda world, **given: BPETokenizer.load(**given), path=("path", w("saved"))
    ),
    "data.from_tokens": case(
        lambda world, **given: TextDataset.from_tokens(**given),
        tokens=("ids", [3, 4, 5]), seq_len=("int", 2), stride=("int", 1),
    ),
}  # fmt: skip

FUNCTIONS = CASES | METHODS

# Those that nobody calls with arguments of their own, or that pydantic checks (`test_config.py`).
NOT_CALLED = {"__version__", "AGI2Error", "Config", "Tokenizer", "TrainedModel"}


# What messages call them.
CALLED = {"preference": "device", "input_ids": "input_ids|token id", "tokens": "token"}


def names_of(function):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return {each.name for each in found if each.kind not in kinds and each.name != "self"}


def test_every_public_function_has_a_kind_for_each_argument(tmp_path):
    assert set(src.__all__) <= CASES.keys() | NOT_CALLED
    for name, (function, arguments) in CASES.items():
        public = getattr(src, name, function)
        assert names_of(public) <= arguments.keys(), name
    world = World(tmp_path)
    for name, (_, arguments) in METHODS.items():
        function = world
        for part in name.split("."):
            function = getattr(function, part)
        assert names_of(function) <= arguments.keys(), name


def plain(value):
    """A result in what can be compared."""
    if isinstance(value, GeneratorType):
        return [plain(each) for each in value]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, TextDataset):
        return [value[i].tolist() for i in range(len(value))]
    if isinstance(value, BasicTokenizer | BPETokenizer):
        return value.to_json(), getattr(value, "max_vocab_size", 0)
    if isinstance(value, src.KVCache):
        return [layer.keys.shape for layer in value.layers]
    if isinstance(value, nn.Module):
        return repr(value)
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items() if key != "seconds"}
    if isinstance(
        value, src.StreamDecoder | src.InteractivePrompt | src.Trainer | src.TrainedModel
    ):
        return type(value)
    return value


def called(world, name, changes=None):
    """What a call returns, with some arguments other than the plain ones."""
    function, arguments = FUNCTIONS[name]
    given = {key: value for key, (_, value) in arguments.items()}
    given = {
        key: value(world) if getattr(value, "__name__", "") == "<lambda>"
        and arguments[key][0] != "function" else value
        for key, value in given.items()
    }  # fmt: skip
    given |= {key: change(given[key]) for key, change in (changes or {}).items()}
    if name in METHODS:
        given["world"] = world
    return plain(function(**given))


def kinds_of(name):
    """The arguments of a function whose kind has other forms, or values that mean nothing."""
    return {key: kind for key, (kind, _) in FUNCTIONS[name][1].items() if kind in KINDS}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """A function that gives what a call with plain arguments returns."""
    known = {}

    def find(name):
        if name not in known:
            known[name] = called(World(tmp_path_factory.mktemp("plain")), name)
        return known[name]

    return find


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


def nth_form(kind, index):
    """A function that gives the nth form of a value, or the value if it has fewer."""

    def change(plain):
        forms = KINDS[kind][0](plain)
        assert len(forms) <= MOST_FORMS
        return forms[index] if index < len(forms) else plain

    return change


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_means_the_same_gives_the_same(name, expected, folder):
    """All arguments at once, each in its first form, then each in its second, and so on."""
    for index in range(MOST_FORMS):
        changes = {key: nth_form(kind, index) for key, kind in kinds_of(name).items()}
        found = called(World(folder), name, changes)
        assert found == expected(name), f"in form {index} of each"


def refusal(world, name, argument, value):
    """The message of the error that a value is refused with."""
    try:
        found = called(world, name, {argument: lambda _: value})
    except AGI2Error as error:
        return str(error)
    pytest.fail(f"{argument} = {value!r} gives {found}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_means_nothing_is_one_line_that_names_the_argument(name, folder):
    world = World(folder)  # a call that is refused changes nothing
    for argument, kind in kinds_of(name).items():
        for bad in KINDS[kind][1]:
            message = refusal(world, name, argument, bad)
            assert re.search(CALLED.get(argument, argument), message), (argument, bad)
