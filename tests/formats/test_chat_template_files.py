"""The chat template in model folders, and in exports to `transformers` and llama.cpp."""

import json

import pytest

from src.data.chat_template import FILE_NAME, JINJA, ChatTemplate
from src.errors import AGI2Error
from src.formats.export import export_model
from src.formats.huggingface import import_huggingface
from src.formats.model_dir import load_model
from src.generation import generate_text
from src.tokenizer import BPETokenizer
from tests.conftest import make_text
from tests.formats.test_gguf import LlamaCpp

MESSAGES = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": " Über naïve 鯨魚?\n\n  don't 3.50 € "},
    {"role": "assistant", "content": "The old whale."},
    {"role": "user", "content": "What did you just say?"},
]


@pytest.fixture(scope="module")
def with_roles():
    tokenizer = BPETokenizer(vocab_size=320)
    tokenizer.fit([make_text() + " Über naïve 鯨魚 cafés cost 3.50 €, don't they?"])
    ChatTemplate.add_to(tokenizer)
    return tokenizer


@pytest.fixture
def folder(saved, with_roles):
    _, folder = saved(tokenizer=with_roles, max_seq_len=160, position_embedding="learned")
    return folder


def test_it_is_stored_with_the_model(folder):
    assert (folder / FILE_NAME).read_text() == JINJA
    assert ChatTemplate.find(load_model(folder).tokenizer)


def test_transformers_reads_it_and_it_comes_back(folder, tmp_path, with_roles, caplog):
    from transformers import AutoTokenizer

    export_model(folder, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids, _ = ChatTemplate(with_roles).encode(MESSAGES, add_generation_prompt=True)
    found = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert found == ids
    ends = json.loads((tmp_path / "hf/generation_config.json").read_text())["eos_token_id"]
    assert ends == list(with_roles.end_tokens)
    import_huggingface(tmp_path / "hf", tmp_path / "back")
    assert "template" not in caplog.text
    back = load_model(tmp_path / "back").tokenizer
    assert back.end_tokens == with_roles.end_tokens
    assert ChatTemplate(back).encode(MESSAGES, add_generation_prompt=True)[0] == ids


@pytest.mark.parametrize("has_jinja", [True, False])
def test_llama_cpp_reads_it(folder, tmp_path, has_jinja):
    """With its Jinja engine, and without: then it does not strip white space around a message."""
    gguf = pytest.importorskip("gguf")
    export_model(folder, tmp_path / "m.gguf", "gguf")
    assert (
        gguf.GGUFReader(tmp_path / "m.gguf").get_field("tokenizer.chat_template").contents()
        == JINJA
    )
    trained = load_model(folder)
    template = ChatTemplate(trained.tokenizer)
    ids, _ = template.encode(MESSAGES, add_generation_prompt=True)
    server = LlamaCpp(tmp_path / "m.gguf", 160, use_jinja=has_jinja).server
    messages = MESSAGES
    if not has_jinja:
        messages = [{**message, "content": message["content"].strip()} for message in MESSAGES]
    found = server.handle_chat_completions(
        {"messages": messages, "max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    )
    assert found["usage"]["prompt_tokens"] == len(ids)
    ours = generate_text(
        trained.model, ids, 8, 0.0, tokenizer=trained.tokenizer, return_full_text=False
    )
    assert found["choices"][0]["message"]["content"].strip() == ours.strip()


def test_another_template_is_refused(folder):
    (folder / FILE_NAME).write_text("{{ messages }}")
    with pytest.raises(AGI2Error, match="is another chat template than AGI2's"):
        load_model(folder)
    (folder / FILE_NAME).unlink()
    (folder / FILE_NAME).mkdir()
    with pytest.raises(AGI2Error, match="cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("file", [FILE_NAME, "chat_template.json", "tokenizer_config.json"])
def test_an_import_with_another_template_is_refused_if_it_has_the_roles(folder, tmp_path, file):
    export_model(folder, tmp_path / "hf")
    path = tmp_path / "hf" / file
    notes = json.loads(path.read_text()) if file == "tokenizer_config.json" else {}
    path.write_text(json.dumps({**notes, "chat_template": "{{ messages }}"}))
    with pytest.raises(AGI2Error, match="its chat template is another one"):
        import_huggingface(tmp_path / "hf", tmp_path / "back")
