"""The specification's example of use from Python, on a small corpus."""

from pathlib import Path

import pytest

CORPUS = "Hello world. How are you today? The whale is in the sea, and the ship is old. " * 30

CONFIG = """
sources = ["{folder}/corpus.txt"]
model_name = "my_model"
output_dir = "{folder}/trained"
epochs = 2
batch_size = 8
learning_rate = 3e-3
seq_len = 16

model_layer = 1
model_head = 2
model_embd = 16
model_positions = 32
vocab_size = 300

device = "auto"
resume = null

max_length = 10
temperature = 0.8
beam_size = 5
"""


@pytest.fixture
def config_path(tmp_path):
    (tmp_path / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    path = tmp_path / "my_project.toml"
    path.write_text(CONFIG.format(folder=tmp_path.as_posix()), encoding="utf-8")
    return str(path)


def test_the_example_works_as_it_is_written(config_path, tmp_path):
    from src.config_loader import load_config
    from src.interactive import InteractivePrompt
    from src.model import GPT2Model
    from src.tokenizer import BPETokenizer
    from src.training import train_model

    tokenizer = BPETokenizer(vocab_size=300)
    tokenizer.fit([CORPUS])

    # Load configuration
    config = load_config(config_path)

    # Initialize model
    model = GPT2Model(config)

    # Train model
    history = train_model(model, tokenizer, **config)

    # Generate text
    from src.generation import generate_text

    output = generate_text(model, "Hello world", max_length=50, tokenizer=tokenizer)
    assert output.startswith("Hello world")
    assert len(output) > len("Hello world")

    # Interactive conversation
    prompt = InteractivePrompt(model, max_context_length=1024, tokenizer=tokenizer)
    response = prompt.send_message("Hello, how are you today?")
    assert isinstance(response, str)

    # Continue conversation (context builds automatically)
    response2 = prompt.send_message("What did you just say?")
    assert isinstance(response2, str)

    # Clear context if needed
    prompt.clear_context()
    assert prompt.history == []

    assert len(history["train_loss"]) == 2
    assert history["train_loss"][1] < history["train_loss"][0]
    assert (tmp_path / "trained" / "my_model" / "model.safetensors").is_file()


def test_a_model_with_more_tokens_than_its_tokenizer_writes_only_known_ones(config_path):
    from src.config_loader import load_config
    from src.generation import generate_text
    from src.model import GPT2Model
    from src.tokenizer import BasicTokenizer
    from src.training import train_model

    tokenizer = BasicTokenizer()
    tokenizer.fit([CORPUS])
    config = load_config(config_path)
    model = GPT2Model(config)
    assert model.config.vocab_size > tokenizer.vocab_size
    train_model(model, tokenizer, **config)
    text = generate_text(model, "hello", 50, 3.0, tokenizer=tokenizer, seed=1)
    assert set(text) <= {*CORPUS.lower(), "�"}  # what stands for an unknown character


def test_training_resumes_from_python_as_well(config_path, tmp_path):
    from src import GPT2Model, load_config, load_model, train_model
    from src.tokenizer import BasicTokenizer

    tokenizer = BasicTokenizer()
    tokenizer.fit([CORPUS])
    size = f"vocab_size={tokenizer.vocab_size}"
    short = load_config(config_path, overrides=[size])
    train_model(GPT2Model(short), tokenizer, **short)
    longer = load_config(config_path, overrides=[size, "epochs=3", "resume=auto"])
    model = GPT2Model(longer)
    history = train_model(model, tokenizer, **longer)
    assert len(history["train_loss"]) == 3
    loaded = load_model(Path(longer["output_dir"]) / longer["model_name"])
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("The whale")) == "the whale"
