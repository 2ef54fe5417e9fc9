"""Every setting of a Hugging Face model and tokenizer is imported, or refused by name."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.config_loader import make_config
from src.errors import AGI2Error
from src.formats.export import export_model
from src.formats.huggingface import import_huggingface
from src.formats.huggingface_config import from_hf_config
from src.formats.huggingface_tokenizer import load_hf_tokenizer
from src.formats.model_dir import load_model
from src.generation import generate_batch, generate_beam_text, generate_choices, generate_text
from src.tokenizer import BPETokenizer, load_tokenizer
from src.training import train_from_config
from tests.bounds import assert_same_in_float64
from tests.conftest import make_text
from tests.tiny_models import exact_logits, in_their_layout, random_model, transformers_twin

IM_END = "<|im_end|>"


def rewrite(path, **changes):
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    content = {key: value for key, value in {**content, **changes}.items() if value is not ...}
    path.write_text(json.dumps(content), "utf-8")


@pytest.fixture(scope="module")
def their_models(byte_pairs, tmp_path_factory):
    """A function that returns a model of `transformers` and its folder; neither is to change."""
    made = {}

    def make(rows=None, std=0.15, **changes):
        key = repr((rows, std, sorted(changes.items())))
        if key not in made:
            shape = {"vocab_size": rows or byte_pairs.vocab_size + 4, "d_model": 32}
            shape |= {"max_seq_len": 24, **changes}
            model = random_model(position_embedding="learned", std=std, **shape)
            twin = transformers_twin(model.config)
            twin.load_state_dict(in_their_layout(model.state_dict()))
            folder = tmp_path_factory.mktemp("their")
            twin.save_pretrained(folder)
            for name in ("config.json", "generation_config.json"):
                rewrite(folder / name, bos_token_id=..., eos_token_id=...)
            (folder / "tokenizer.json").write_text(byte_pairs.to_json(), "utf-8")
            (folder / "tokenizer_config.json").write_text("{}")
            made[key] = twin, folder
        return made[key]

    return make


@pytest.fixture
def theirs(their_models, tmp_path):
    """A function that writes a folder as `transformers` does, with more rows than tokens."""

    def make(*args, **changes):
        twin, folder = their_models(*args, **changes)
        return twin, shutil.copytree(folder, tmp_path / "theirs", dirs_exist_ok=True)

    return make


def added(id, content, **flags):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {str(id): {"content": content, **plain, "special": True, **flags}}


def with_im_end(folder, size):
    """The folder of a model whose texts end with a token that was added to the vocabulary."""
    rewrite(
        folder / "tokenizer_config.json",
        eos_token=IM_END,
        added_tokens_decoder=added(size, IM_END),
    )
    for name in ("config.json", "generation_config.json"):
        rewrite(folder / name, eos_token_id=size, bos_token_id=0)


def as_two_files(folder, content, **more):
    """GPT-2's own two files in place of tokenizer.json, with these tokens besides."""
    vocab = {**content["model"]["vocab"], **more}
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    (folder / "tokenizer.json").unlink()


def import_folder(folder, out):
    import_huggingface(str(folder), out)
    return load_model(out)


def their_tokens(twin, prompt, ends, count=40, **options):
    """What `transformers` writes, greedily."""
    with torch.no_grad():
        found = twin.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=min(count, twin.config.n_positions - len(prompt)),
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=0,
            **options,
        )
    return found[0, len(prompt) :].tolist()


# The head


@pytest.mark.parametrize("said", [True, False, ...])
def test_a_head_that_differs_from_the_embedding_is_kept(theirs, tmp_path, said):
    from transformers import GPT2LMHeadModel

    twin, folder = theirs(tie_weights=False)
    rewrite(folder / "config.json", tie_word_embeddings=said)
    ours = import_folder(folder, tmp_path / "in")
    assert not ours.model.config.tie_weights
    tokens = torch.randint(100, (2, 24))
    expected = exact_logits(twin, tokens)
    assert_same_in_float64(exact_logits(ours.model, tokens), expected)
    export_model(tmp_path / "in", tmp_path / "out")
    back = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert_same_in_float64(exact_logits(back, tokens), expected)


def test_a_head_that_equals_the_embedding_is_tied(theirs, tmp_path):
    _, folder = theirs()
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    assert import_folder(folder, tmp_path / "in").model.config.tie_weights


# What ends a text


def test_the_end_that_a_folder_names_is_kept_on_every_way(theirs, byte_pairs, tmp_path):
    _, folder = theirs()
    size = byte_pairs.vocab_size
    with_im_end(folder, size)
    ours = import_folder(folder, tmp_path / "in")
    assert ours.tokenizer.end_tokens == (size,)
    assert ours.tokenizer.end_of_text == size
    assert ours.tokenizer.start_of_text == 0
    assert ours.tokenizer.token_bytes(size) == b""
    assert ours.tokenizer.encode("a whale" + IM_END) != [*ours.tokenizer.encode("a whale"), size]
    # Trained on, it is the same.
    (tmp_path / "a.txt").write_text(make_text())
    keys = {"max_steps": 2, "batch_size": 2, "sample_tokens": 2, "device": "cpu"}
    places = {"sources": str(tmp_path / "a.txt"), "output_dir": str(tmp_path), "model_name": "run"}
    given = {**keys, **places, "init_from": str(tmp_path / "in")}
    run = train_from_config(make_config(given, "training"))
    assert load_model(run.folder).tokenizer.end_tokens == (size,)
    check_export(run.folder, tmp_path / "out", size)


def check_export(folder, out, size):
    """`transformers` ends where the model in a folder ends."""
    from transformers import AutoTokenizer, GenerationConfig, GPT2LMHeadModel

    export_model(folder, out)
    assert GenerationConfig.from_pretrained(out).eos_token_id == size
    assert GPT2LMHeadModel.from_pretrained(out).generation_config.eos_token_id == size
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.eos_token_id, tokenizer.eos_token) == (size, IM_END)
    assert tokenizer("a whale")["input_ids"] == load_tokenizer(folder).encode("a whale")
    # And back.
    again = import_folder(out, out.with_name("again")).tokenizer
    assert again.fingerprint == load_tokenizer(folder).fingerprint


@pytest.mark.parametrize("kind", [int, list])
def test_texts_end_where_transformers_ends_them(theirs, byte_pairs, tmp_path, kind):
    """Greedy, sampled, in a batch, with beams: whichever of the ends comes first."""
    twin, folder = theirs(std=0.4)
    prompt = byte_pairs.encode("the old whale")
    free = their_tokens(twin, prompt, None)
    ends = list(dict.fromkeys([7, free[3], 9])) if kind is list else [free[3]]
    rewrite(folder / "generation_config.json", eos_token_id=ends if kind is list else ends[0])
    ours = import_folder(folder, tmp_path / "in")
    assert ours.tokenizer.end_tokens == tuple(ends)
    expected = their_tokens(twin, prompt, ends)
    assert expected[-1] in ends
    text = b"".join(map(ours.tokenizer.token_bytes, expected[:-1])).decode("utf-8", "replace")
    given = {"temperature": 0.0, "tokenizer": ours.tokenizer, "max_length": 40}
    assert generate_text(ours.model, "the old whale", **given) == "the old whale" + text
    found = generate_batch(ours.model, ["the old whale"], return_full_text=False, **given)
    assert found == [[text]]
    chosen = generate_choices(ours.model, "the old whale", **given)
    assert "".join(choice.text for choice in chosen) == text
    one = generate_text(ours.model, "the old whale", speculative="ngram", **given)
    assert one == "the old whale" + text
    beam = generate_beam_text(ours.model, "the old whale", 1, 40, 1.0, ours.tokenizer)
    assert beam == "the old whale" + text
    longer = generate_text(ours.model, "the old whale", min_length=12, **given)
    assert len(ours.tokenizer.encode(longer)) > len(expected)


def test_a_vocabulary_that_ends_with_another_token_gets_no_invented_one(
    theirs, byte_pairs, tmp_path
):
    _, folder = theirs()
    content = json.loads(byte_pairs.to_json())
    size = byte_pairs.vocab_size
    del content["model"]["vocab"]["<|endoftext|>"]
    as_two_files(folder, content, **{"</s>": size, "<pad>": 0})
    rewrite(folder / "config.json", eos_token_id=size)
    for said in ({"eos_token": "</s>"}, {}):
        (folder / "special_tokens_map.json").write_text(json.dumps(said))
        out = tmp_path / f"in-{len(said)}"
        ours = import_folder(folder, out)
        assert ours.tokenizer.end_tokens == (size,)
        assert ours.tokenizer.vocab_size == size + 1
        assert ours.tokenizer.encode("</s>") != [size]
    # As a tokenizer for a run of one's own, too.
    assert load_tokenizer(folder).end_of_text == size
    assert load_tokenizer(folder).vocab_size == size + 1


@pytest.mark.parametrize("where", ["added_tokens.json", "added_tokens_decoder", "nowhere"])
def test_added_tokens_of_other_files_have_their_ids(theirs, byte_pairs, tmp_path, where):
    _, folder = theirs()
    size = byte_pairs.vocab_size
    as_two_files(folder, json.loads(byte_pairs.to_json()))
    rewrite(folder / "special_tokens_map.json", eos_token={"content": IM_END})
    if where == "added_tokens.json":
        rewrite(folder / where, **{IM_END: size, "whalesea": size + 1})
    elif where == "added_tokens_decoder":
        tokens = {**added(size, IM_END), **added(size + 1, "whalesea", special=False)}
        rewrite(folder / "tokenizer_config.json", added_tokens_decoder=tokens)
    tokenizer = import_folder(folder, tmp_path / "in").tokenizer
    assert tokenizer.end_tokens == (size,)
    if where != "nowhere":
        assert tokenizer.encode("whalesea") == [size + 1]


def test_an_end_that_is_text_stays_text(theirs, byte_pairs, tmp_path):
    """Some models end with a line end."""
    _, folder = theirs()
    (line_end,) = byte_pairs.encode("\n")
    rewrite(folder / "config.json", eos_token_id=[line_end, 0])
    ours = import_folder(folder, tmp_path / "in")
    assert ours.tokenizer.end_tokens == (line_end, 0)
    assert ours.tokenizer.decode(ours.tokenizer.encode("a\nb")) == "a\nb"


def test_what_transformers_assumes_of_every_gpt2_is_no_end_where_no_token_has_it(theirs, tmp_path):
    _, folder = theirs()
    rewrite(folder / "config.json", eos_token_id=50256, bos_token_id=50256)
    tokenizer = import_folder(folder, tmp_path / "in").tokenizer
    assert (tokenizer.end_tokens, tokenizer.start_of_text) == ((0,), 0)


def test_an_empty_prompt_begins_with_the_token_that_begins_texts(theirs, byte_pairs, tmp_path):
    twin, folder = theirs()
    with_im_end(folder, byte_pairs.vocab_size)
    start = byte_pairs.encode("whale")[0]
    rewrite(folder / "generation_config.json", bos_token_id=start)
    ours = import_folder(folder, tmp_path / "in")
    expected = their_tokens(twin, [start], [byte_pairs.vocab_size], 10)
    text = b"".join(map(ours.tokenizer.token_bytes, expected)).decode("utf-8", "replace")
    assert generate_text(ours.model, "", 10, 0.0, tokenizer=ours.tokenizer) == text


def test_several_ends_go_to_gguf_as_far_as_it_has_places(theirs, tmp_path):
    from gguf import GGUFReader

    _, folder = theirs()
    rewrite(folder / "config.json", eos_token_id=[5, 0, 7], bos_token_id=3)
    import_folder(folder, tmp_path / "in")
    export_model(tmp_path / "in", tmp_path / "m.gguf", "gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    kinds = ("bos", "eos", "eot", "eom")
    names = [f"tokenizer.ggml.{kind}_token_id" for kind in kinds]
    assert [int(reader.fields[name].parts[-1][0]) for name in names] == [3, 5, 0, 7]
    rewrite(folder / "config.json", eos_token_id=[5, 0, 7, 8])
    import_folder(folder, tmp_path / "four")
    with pytest.raises(AGI2Error, match="ends with one of 4 tokens: GGUF supports at most three"):
        export_model(tmp_path / "four", tmp_path / "n.gguf", "gguf")


# What cannot be kept is refused by name, or told.


def change(file, **changes):
    return lambda folder: rewrite(folder / file, **changes)


def change_tokenizer(**changes):
    return lambda folder: rewrite(folder / "tokenizer.json", **changes)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    },
}
DEEP = "[" * 99_999 + "]" * 99_999


def double(folder):
    weights = load_file(folder / "model.safetensors")
    weights["wte.weight"] = weights["transformer.wte.weight"].clone()
    save_file(weights, folder / "model.safetensors")


def whole_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"] = torch.ones(32, 128, dtype=torch.int8)
    save_file(weights, folder / "model.safetensors")


def in_two_files(names):
    def split(folder):
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        for name in ("a.safetensors", "b.safetensors"):
            save_file(weights, folder / name)
        rewrite(folder / "model.safetensors.index.json", weight_map=dict(enumerate(names)))

    return split


def end_without_token(folder):
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["added_tokens"] = []
    content["model"]["vocab"]["end"] = content["model"]["vocab"].pop("<|endoftext|>")
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")


def with_ends(count):
    return change("generation_config.json", eos_token_id=list(range(count)))


def with_added(count):
    """That many added tokens, as a hostile file may list: more are never compared pairwise."""
    names = {f"<{index}>": 320 + index for index in range(count)}
    return change("added_tokens.json", **names)


def broken_link(name):
    def link(folder):
        (folder / name).unlink()
        (folder / name).symlink_to("nowhere")

    return link


def two_ends(folder):
    rewrite(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    rewrite(folder / "special_tokens_map.json", eos_token={"content": "whale"})


def too_large(folder):
    with open(folder / "config.json", "ab") as file:
        file.truncate(16_000_001)


def without_vocabulary(folder):
    content = {"type": "basic", "lowercase": True, "fold_whitespace": True, "vocabulary": ["a"]}
    (folder / "tokenizer.json").write_text(json.dumps(content))


REFUSED = {
    "too many ends": (with_ends(61), r"61 end tokens \(eos_token_id\): AGI2 keeps at most 60"),
    "too many added tokens": (with_added(100_000), "theirs has over 2,000 added tokens"),
    "a link to nothing": (broken_link("generation_config.json"), "generation_config.json is dam"),
    "a tokenizer that is a link to nothing": (broken_link("tokenizer.json"), "tokenizer.json is d"),
    "a file without end": (too_large, "config.json is damaged: is larger than 16.0 MB"),
    "a character tokenizer": (without_vocabulary, "tokenizer.json is of the kind 'basic': only"),
    "two end tokens": (
        two_ends,
        "eos_token = '<|endoftext|>' in tokenizer_config.json and 'whale' in special_tokens_map",
    ),
    "added tokens in a list": (
        change("tokenizer_config.json", added_tokens_decoder=[1]),
        r"added_tokens_decoder = \[1\] is not an object of tokens by id",
    ),
    "an id of 5,000 digits": (
        change("tokenizer_config.json", added_tokens_decoder={"9" * 5000: {"content": "x"}}),
        "tokenizer_config.json: added_tokens_decoder: '9999",
    ),
    "a truth value as text": (
        change("tokenizer_config.json", add_bos_token="false"),
        "tokenizer_config.json: add_bos_token = 'false' is neither true nor false",
    ),
    "a leading space as text": (
        change("tokenizer_config.json", add_prefix_space="yes"),
        "tokenizer_config.json: add_prefix_space = 'yes' is neither true nor false",
    ),
    "an order that is no truth value": (
        change("config.json", reorder_and_upcast_attn="x"),
        "config.json: reorder_and_upcast_attn = 'x' is neither",
    ),
    "a number as truth value": (change("config.json", scale_attn_weights=1), "attn_weights = 1; A"),
    "an end that no token has": (change("config.json", eos_token_id=322), "eos_token_id 322 is"),
    "an end that is no number": (change("config.json", eos_token_id="x"), "eos_token_id = 'x' is"),
    "an end below 0": (change("generation_config.json", eos_token_id=-1), "eos_token_id = -1 is"),
    "a truth value as end": (change("config.json", eos_token_id=[True]), r"eos_token_id = \[True"),
    "a start that no token has": (change("config.json", bos_token_id=321), "bos_token_id 321 is"),
    "an end token that is none": (change("tokenizer_config.json", eos_token=5), "eos_token = 5 is"),
    "no end": (end_without_token, "names no end-of-text token"),
    "a token before each text": (change("tokenizer_config.json", add_bos_token=True), "add_bos_to"),
    "a token after each text": (change("tokenizer_config.json", add_eos_token=True), "add_eos_tok"),
    "a template": (change_tokenizer(post_processor=TEMPLATE), "post_processor 'TemplateProcess"),
    "a post-processor": (
        change_tokenizer(post_processor={"type": "X"}),
        "post_processor X is unkn",
    ),
    "post-processors": (change_tokenizer(post_processor=[3]), "post_processor has no type"),
    "two ids": (
        change("tokenizer_config.json", added_tokens_decoder=added(320, "<|endoftext|>")),
        "'<|endoftext|>' has the id 320 in one file, 0 in another",
    ),
    "a gap among ids": (
        change("tokenizer_config.json", added_tokens_decoder=added(322, IM_END)),
        "token '<|im_end|>' cannot have the id 322",
    ),
    "an id that is none": (
        change("added_tokens.json", x="5"),
        "added_tokens.json: the id of 'x' is not an in",
    ),
    "added tokens that are none": (
        change("tokenizer_config.json", added_tokens_decoder={"x": 5}),
        "tokenizer_config.json: added_tokens_decoder: 'x' = 5 is not a token by its id",
    ),
    "quantized weights": (
        change("config.json", quantization_config={}),
        "quantization_config = {}",
    ),
    "pruned heads": (change("config.json", pruned_heads={"0": [1]}), "pruned_heads = "),
    "a scale by layer": (change("config.json", scale_attn_by_inverse_layer_idx=True), "scale_attn"),
    "cross-attention": (change("config.json", add_cross_attention=True), "add_cross_attention"),
    "two lengths": (change("config.json", n_ctx=12), "n_positions = 24 and n_ctx = 12 contra"),
    "two widths": (change("config.json", hidden_size=12), "n_embd = 32 and hidden_size = 12 con"),
    "a tie that is none": (change("config.json", tie_word_embeddings="no"), "tie_word_embeddings"),
    "a truth value as size": (change("config.json", n_layer=True), "n_layer = True is not an int"),
    "too many layers": (
        change("config.json", n_layer=10**9),
        "n_layer = 1000000000 is not an integer from 1 to",
    ),
    "a tensor twice": (double, "a tensor twice, with and without transformer."),
    "whole numbers as weights": (whole_numbers, "h.0.mlp.c_fc.weight is of the type int8"),
    "a tensor in two files": (in_two_files(["a.safetensors", "b.safetensors"]), "is in two of"),
    "a file elsewhere": (
        in_two_files(["../a.safetensors"]),
        "names '../a.safetensors', which is no",
    ),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(theirs, tmp_path, damage, message):
    _, folder = theirs()
    damage(folder)
    with pytest.raises(AGI2Error, match=message.replace("|", r"\|")) as error:
        import_huggingface(str(folder), tmp_path / "in")
    assert "theirs" in str(error.value)
    assert len(error.value.args) == 1
    assert not (tmp_path / "in").exists()


ODD_SIZES = (None, True, 0, -1, 2.0, float("nan"), 2**31, 10**400, "", "32", [], {})
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


@pytest.mark.parametrize("key", SIZES + RATES)
def test_a_wrong_value_of_a_config_names_file_and_key(key):
    sizes = {"vocab_size": 9, "n_positions": 4, "n_embd": 4, "n_layer": 1, "n_head": 2}
    good = {"model_type": "gpt2", **sizes}
    assert from_hf_config(good, "m").d_model == 4
    for odd in ODD_SIZES:
        if (key, odd) == ("n_inner", None) or (key in RATES and odd == 0 and odd is not True):
            assert from_hf_config({**good, key: odd}, "m").d_ff == 16
            continue
        with pytest.raises(AGI2Error, match=f"^m: config.json: {key} = .* is not an? ") as error:
            from_hf_config({**good, key: odd}, "m")
        assert len(error.value.args) == 1


FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
FILES += ["special_tokens_map.json", "added_tokens.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [DEEP, "9" * 5000, "[]", "{", '{"a": ' + DEEP + "}"])
def test_a_deep_or_broken_file_is_one_line(theirs, tmp_path, file, content):
    _, folder = theirs()
    (folder / file).write_text(content)
    with pytest.raises(AGI2Error, match=f"{file} is damaged") as error:
        import_huggingface(str(folder), tmp_path / "in")
    assert len(error.value.args) == 1


def test_what_is_left_out_is_told(theirs, tmp_path, caplog):
    _, folder = theirs()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    rewrite(folder / "tokenizer_config.json", pad_token="<|endoftext|>")
    rewrite(folder / "generation_config.json", temperature=0.6)
    rewrite(folder / "config.json", attn_pdrop=0.5)
    with caplog.at_level(logging.WARNING, "agi2"):
        import_huggingface(str(folder), tmp_path / "in")
    for what in ("chat template", "pad_token", "temperature = 0.6", "attn_pdrop = 0.5"):
        assert sum(what in message for message in caplog.messages) == 1


def test_a_warning_names_a_few_of_many_settings(theirs, tmp_path, caplog):
    _, folder = theirs()
    rewrite(folder / "generation_config.json", **{f"key_{index}": 1 for index in range(3000)})
    with caplog.at_level(logging.WARNING, "agi2"):
        import_huggingface(str(folder), tmp_path / "in")
    assert [message.count("key_") for message in caplog.messages] == [8]
    assert "and 2,992 more of generation_config.json" in caplog.text


NFC = {"normalizer": {"type": "NFC"}}
CLASSES = [
    (None, NFC, False),
    ("GPT2Tokenizer", {}, False),
    ("PreTrainedTokenizerFast", NFC, False),
]
CLASSES += [("GPT2Tokenizer", NFC, True), ("BertTokenizer", {}, True), (5, {}, True)]


@pytest.mark.parametrize(("kind", "changes", "told"), CLASSES)
def test_a_class_that_may_replace_parts_of_a_tokenizer_is_told(
    theirs, tmp_path, caplog, kind, changes, told
):
    """`transformers` 5 loads the vocabulary alone for such a class, version 4 the whole file."""
    _, folder = theirs()
    rewrite(folder / "tokenizer_config.json", tokenizer_class=kind)
    rewrite(folder / "tokenizer.json", **changes)
    model = json.loads((folder / "config.json").read_text())
    with caplog.at_level(logging.WARNING, "agi2"):
        load_hf_tokenizer(folder, "theirs", model)
    assert [f"tokenizer_class = {kind!r}" in message for message in caplog.messages] == [
        True
    ] * told


def test_merges_with_line_ends_of_windows_give_the_same_tokens(theirs, byte_pairs, tmp_path):
    _, folder = theirs()
    as_two_files(folder, json.loads(byte_pairs.to_json()))
    merges = (folder / "merges.txt").read_bytes().replace(b"\n", b"\r\n")
    (folder / "merges.txt").write_bytes(merges)
    tokenizer = import_folder(folder, tmp_path / "in").tokenizer
    assert tokenizer.encode(make_text()) == byte_pairs.encode(make_text())


def test_many_added_tokens_take_no_long_time(theirs, byte_pairs, tmp_path, monkeypatch):
    """The tokenizer is serialized a fixed number of times, not once for each token."""
    _, folder = theirs(rows=byte_pairs.vocab_size + 300)
    size, calls = byte_pairs.vocab_size, []
    tokens = [added(size + index, f"<{index}>") for index in range(300)]
    merged = {id: token for each in tokens for id, token in each.items()}
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder=merged)
    to_json = BPETokenizer.to_json
    monkeypatch.setattr(BPETokenizer, "to_json", lambda self: calls.append(1) or to_json(self))
    load_hf_tokenizer(folder, "theirs", json.loads((folder / "config.json").read_text()))
    assert len(calls) < 5


def test_other_names_of_the_sizes_are_read(theirs, tmp_path):
    twin, folder = theirs()
    rewrite(folder / "config.json", n_embd=..., hidden_size=32, n_layer=..., num_hidden_layers=2)
    ours = import_folder(folder, tmp_path / "in").model
    tokens = torch.randint(100, (2, 24))
    assert_same_in_float64(exact_logits(ours, tokens), exact_logits(twin, tokens))


def test_a_leading_space_that_no_text_has_is_refused_by_name(theirs, tmp_path):
    _, folder = theirs()
    rewrite(folder / "tokenizer_config.json", add_prefix_space=True)
    with pytest.raises(AGI2Error, match="add_prefix_space puts a space before every text"):
        import_huggingface(str(folder), tmp_path / "in")


def test_merges_that_are_no_text_are_one_line(theirs, byte_pairs, tmp_path):
    _, folder = theirs()
    as_two_files(folder, json.loads(byte_pairs.to_json()))
    Path(folder / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(AGI2Error, match=r"theirs: merges\.txt is not UTF-8"):
        import_huggingface(str(folder), tmp_path / "in")


def places_in(value, place=()):
    """The place of every value inside, of a long list or object only the first one."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in list(inside)[: 12 if len(value) <= 12 else 1]:
        yield (*place, key)
        if isinstance(each, dict | list):
            yield from places_in(each, (*place, key))


ODD = (None, True, -1, 2**70, "", "x", [], [[]], [5], {}, {"content": 1}, {"type": ["a"]})
ODD_PARTS = (
    {"type": "TemplateProcessing", "single": 5},
    {"type": "TemplateProcessing", "single": [5, {"Sequence": {}}]},
    {"type": "ByteLevel", "processors": 5},
    {"type": "Sequence", "processors": [None]},
)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_whatever_stands_anywhere_in_a_file_is_read_or_one_line(theirs, tmp_path, file):
    _, folder = theirs()
    model = json.loads((folder / "config.json").read_text())
    named = {"content": "<|endoftext|>", "special": True}
    rewrite(folder / "tokenizer_config.json", added_tokens_decoder={"0": named})
    original = (folder / file).read_text()
    refused = []
    for place in [*places_in(json.loads(original)), ("post_processor",), ("eos_token",)]:
        for odd in ODD + ODD_PARTS * (place == ("post_processor",)):
            content = json.loads(original)
            inside = content
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = odd
            (folder / file).write_text(json.dumps(content))
            try:
                load_hf_tokenizer(folder, "theirs", model)
            except AGI2Error as error:
                refused.append(len(error.args))
    assert set(refused) == {1}


def test_a_file_without_a_vocabulary_is_refused_by_name(theirs, tmp_path):
    _, folder = theirs()
    rewrite(folder / "tokenizer.json", model=[])
    with pytest.raises(AGI2Error, match=r"tokenizer\.json"):
        import_huggingface(str(folder), tmp_path / "in")


def test_a_token_that_cannot_have_its_id_is_refused_by_name(theirs, tmp_path):
    _, folder = theirs()
    rewrite(folder / "tokenizer_config.json", eos_token=" ")
    with pytest.raises(AGI2Error, match="token ' ' cannot keep its id"):
        import_huggingface(str(folder), tmp_path / "in")


def test_a_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gpt2").write_text("x")
    with pytest.raises(AGI2Error, match="gpt2 is a file: name the folder that it is in"):
        import_huggingface("gpt2", "out")
