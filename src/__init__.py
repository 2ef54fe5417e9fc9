"""AGI2: a GPT-2 on your own text.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "AGI2Error": "errors",
    "GPT2Config": "config",
    "Config": "config",
    "load_config": "config_loader",
    "TokenEmbeddings": "embeddings",
    "PositionEmbeddings": "embeddings",
    "LearnedPositionEmbeddings": "embeddings",
    "MultiHeadAttention": "attention",
    "FeedForward": "ffn",
    "TransformerBlock": "transformer",
    "GPT2Model": "model",
    "KVCache": "nn.kv_cache",
    "BasicTokenizer": "tokenizer",
    "BPETokenizer": "tokenizer",
    "StreamDecoder": "inference.detokenizer",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "TextDataset": "dataset",
    "train_epoch": "training",
    "train_model": "training",
    "Trainer": "training",
    "prepare_for_generation": "inference.prepare",
    "save_model": "formats.model_dir",
    "load_model": "formats.model_dir",
    "TrainedModel": "formats.model_dir",
    "import_huggingface": "formats.huggingface",
    "import_gguf": "formats.gguf_import",
    "export_model": "formats.export",
    "evaluate": "evaluation.loss",
    "generate_text": "generation",
    "generate_batch": "generation",
    "stream_text": "generation",
    "generate_tokens": "generation",
    "generate_beam_texts": "generation",
    "generation_options": "inference.sampling",
    "beam_search": "inference.beam_search",
    "InteractivePrompt": "interactive",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
