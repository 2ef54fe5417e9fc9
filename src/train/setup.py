"""What a run needs before training: its text, tokenizer, datasets and model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..config import FREE_ARCHITECTURE_KEYS, Config
from ..config_messages import NO_STARTING_MODEL
from ..cuda_utils import check_memory
from ..data.build import Corpus, prepare_corpus
from ..data.chat_template import ChatTemplate
from ..data.corpus_options import CorpusOptions, TokenizerSource
from ..data.decoded import DecodedDocuments
from ..data.documents import ReadOptions
from ..data.shards import ShardedTokens
from ..dataset import TextDataset
from ..errors import AGI2Error
from ..formats.model_dir import check_vocabulary, load_model, run_folder
from ..model import GPT2Model
from ..nn.lora import add_lora
from ..tokenizer import BasicTokenizer, BPETokenizer, Tokenizer, load_tokenizer, new_tokenizer
from ..transformer import TransformerBlock
from ..utils import log, plural, seed_everything
from .arguments import copy_vocabulary, fit_to, is_fitted, log_fitted
from .checkpoint import Checkpoint, find_checkpoint, newest_checkpoint
from .distributed import ProcessGroup, began_in_this_launch, launch_id
from .vocabulary import extend_vocabulary, role_ids


@dataclass(frozen=True)
class PreparedData:
    """The data and the tokenizer of a run."""

    tokenizer: Tokenizer
    train_data: TextDataset
    val_data: TextDataset | None
    documents: int
    """Number of documents of the text."""
    characters: int
    size: int
    """Number of UTF-8 bytes."""
    training_text: Sequence[str]
    """The preprocessed training documents; empty on ranks other than 0."""
    corpus: Corpus | None = None
    """The tokenized text on disk; `None` on ranks other than 0."""
    added: int = 0
    """Number of the tokenizer's tokens that were added for the roles of conversations."""


def prepare(
    config: Config, checkpoint: Checkpoint | None = None, tokenizer: Tokenizer | None = None
) -> PreparedData:
    """Read the text, load or fit the tokenizer, and tokenize the text into windows.

    What an earlier call with the same text, tokenizer and keys has written to the token cache is
    used again.

    Args:
        config: the run's configuration.
        checkpoint: the checkpoint to resume from, whose tokenizer is used.
        tokenizer: used instead of the configured tokenizer; fitted in place if it is not fitted.

    Raises:
        AGI2Error: if the text cannot be read, or the tokenizer cannot be loaded or fitted.
    """
    source = tokenizer_source(config, checkpoint, tokenizer)
    corpus = prepare_corpus(corpus_options(config), source, config.token_cache)
    train_data, val_data = _windows(corpus, config)
    # Preprocessed as the model's input is: memorized text is searched for in this.
    text = DecodedDocuments(corpus.train, corpus.tokenizer)
    sizes = (corpus.documents, corpus.characters, corpus.size)
    data = corpus.tokenizer, train_data, val_data
    return PreparedData(*data, *sizes, text, corpus, source.added)


def corpus_options(config: Config) -> CorpusOptions:
    """Return what the text of a run and its split depend on."""
    return CorpusOptions(
        config.sources,
        ReadOptions.from_config(config),
        config.val_fraction,
        config.seed,
        config.val_sources,
        config.dedup,
        config.conversations,
        config.val_conversations,
        config.preferences,
        config.val_preferences,
    )


def make_model(
    config: Config,
    tokenizer: Tokenizer,
    process_group: ProcessGroup,
    model: GPT2Model | None = None,
    is_resumed: bool = False,
    added: int = 0,
) -> tuple[GPT2Model, Config]:
    """Create a model, or adapt the one given, and move it to the device; seed everything first.

    Args:
        config: the run's configuration.
        tokenizer: the fitted tokenizer, whose vocabulary size a new model has.
        process_group: the process group.
        model: the model to train; by default a new one.
        is_resumed: whether a checkpoint is loaded later, so that `init_from` is ignored.
        added: number of tokens that were added to the tokenizer, which the model given lacks.

    Returns:
        The model, and the configuration with its vocabulary size.

    Raises:
        AGI2Error: if the model does not fit into memory, its vocabulary is smaller than the
            tokenizer's, it does not match the model of `init_from`, or there is no model to start
            from with preferences.
    """
    if config.preferences and model is None and config.init_from is None:
        raise AGI2Error(NO_STARTING_MODEL)
    seed_everything(config.seed)
    if config.threads != "auto":
        torch.set_num_threads(config.threads)
    if model is None:
        if config.init_from is None:
            config = config.changed(vocab_size=tokenizer.vocab_size)
        elif tokenizer.has_roles:  # perhaps more tokens than the model of `init_from` has
            size = max(config.architecture.vocab_size, tokenizer.vocab_size)
            config = config.changed(vocab_size=size)
        model = _new_model(config, process_group.device)
    elif added and (known := tokenizer.vocab_size - added) <= model.config.vocab_size:
        extend_vocabulary(model, known, tokenizer.vocab_size)
    check_vocabulary(tokenizer, model)
    if config.init_from is not None and not is_resumed:
        _load_pretrained(Path(config.init_from), model, tokenizer)
    for block in model.modules():
        if isinstance(block, TransformerBlock):
            block.skip_rate = config.stochastic_depth
    if config.lora_rank is not None:
        add_lora(model, config.lora_rank, role_ids(tokenizer) if config.has_messages else ())
    # FSDP moves the model shard by shard: the full model may not fit on the device.
    if not (config.parallel == "fsdp" and process_group.is_initialized):
        model.to(process_group.device)
    return model, config


def _new_model(config: Config, device: torch.device) -> GPT2Model:
    """Create a model on the CPU, if there is memory to train it on `device`."""
    # Bytes per parameter in fp32: weight, gradient and two AdamW moments. With LoRA few
    # parameters have the latter three; with FSDP all are sharded.
    has_full_state = config.lora_rank is None and config.parallel == "ddp"
    check_memory(config.architecture, "training a model", 16 if has_full_state else 4, device)
    with torch.device("cpu"):  # not the user's default device: the model is moved later
        return GPT2Model(config)


def _load_pretrained(folder: Path, model: GPT2Model, tokenizer: Tokenizer) -> None:
    """Load pretrained weights into a model (`init_from`).

    Raises:
        AGI2Error: if the pretrained model has another architecture or tokenizer.
    """
    trained = load_model(folder)
    if tokenizer.has_roles and not trained.tokenizer.has_roles:
        first = trained.tokenizer.vocab_size
        ChatTemplate.add_to(trained.tokenizer)
        extend_vocabulary(trained.model, first, trained.tokenizer.vocab_size)
    if trained.tokenizer.fingerprint != tokenizer.fingerprint:
        raise AGI2Error(f"init_from: {folder} has another tokenizer than this run: use its own")
    keys, pretrained_keys = model.config.to_keys(), trained.model.config.to_keys()
    for key in sorted(keys.keys() - (FREE_ARCHITECTURE_KEYS - {"vocab_size"})):
        if keys[key] != pretrained_keys[key]:
            raise AGI2Error(
                f"init_from: {folder} has {key} = {pretrained_keys[key]!r}, this run "
                f"{keys[key]!r}: both must be the same"
            )
    model.load_state_dict(trained.model.state_dict())


def find_checkpoint_to_resume(config: Config) -> Checkpoint | None:
    """Return the checkpoint of `resume`, or this launch's newest if torchrun restarted it."""
    if launch_id() is not None:
        newest = newest_checkpoint(run_folder(config))
        if newest is not None and began_in_this_launch(newest.state.get("launch")):
            return newest
    return find_checkpoint(config)


def prepare_on_rank_0(
    config: Config,
    checkpoint: Checkpoint | None,
    tokenizer: Tokenizer | None,
    process_group: ProcessGroup,
) -> PreparedData:
    """Call `prepare` on rank 0; broadcast its tokenizer and the paths of its tokens."""
    text = prepare(config, checkpoint, tokenizer) if process_group.is_main else None

    def without_text() -> PreparedData:
        assert text is not None
        return replace(text, training_text=[], corpus=None)

    received = process_group.broadcast_from_main(without_text)
    if text is not None:
        return text
    _check_shards(received, process_group)
    if tokenizer is not None:
        copy_vocabulary(tokenizer, received.tokenizer)
    return received


def _check_shards(text: PreparedData, process_group: ProcessGroup) -> None:
    """Check that this rank sees the shards that rank 0 has written."""
    for data in filter(None, (text.train_data, text.val_data)):
        assert isinstance(data.tokens, ShardedTokens)
        try:
            data.tokens.check()
        except AGI2Error as error:
            raise AGI2Error(
                f"process {process_group.rank}: {error}: set token_cache to a folder that all "
                "machines share"
            ) from error


def tokenizer_source(
    config: Config, checkpoint: Checkpoint | None, given: Tokenizer | None = None
) -> TokenizerSource:
    """Return the checkpoint's tokenizer if resumed; else the given or the configured one.

    For conversations, the tokens of the roles are added to a tokenizer that lacks them.
    """
    if checkpoint is not None and (given is None or not is_fitted(given)):
        saved = load_tokenizer(checkpoint.tokenizer)
        # A model that was given may lack the roles; its weights are loaded later.
        added = len(role_ids(saved))
        return _fitted(saved if given is None else copy_vocabulary(given, saved), added)
    if given is not None:
        added = _add_roles(given, config)
        if is_fitted(given):
            return _fitted(given, added)
        return _unfitted(given, config.architecture.vocab_size, added)
    tokenizer, is_new = new_tokenizer(
        config.tokenizer,
        config.vocab_size,
        lowercase=config.lowercase,
        fold_whitespace=config.fold_whitespace,
        byte_fallback=config.byte_fallback,
        pretokenizer=config.pretokenizer,
        split_digits=config.split_digits,
        special_tokens=config.special_tokens,
    )
    added = _add_roles(tokenizer, config)
    if not is_new:
        return _fitted(tokenizer, added)

    def fit(texts: Iterable[str]) -> Tokenizer:
        tokenizer.fit(texts)
        return tokenizer

    keys = (
        "tokenizer",
        "vocab_size",
        "lowercase",
        "fold_whitespace",
        "byte_fallback",
        "pretokenizer",
        "split_digits",
        "special_tokens",
    )
    identity = str([*(config[key] for key in keys), config.has_messages])
    return TokenizerSource(identity, fit, load_tokenizer, added=added)


def _add_roles(tokenizer: Tokenizer, config: Config) -> int:
    """Add the tokens of the roles that a tokenizer lacks, if there are conversations or pairs.

    Returns:
        Their number.
    """
    count = ChatTemplate.add_to(tokenizer) if config.has_messages else 0
    if count:
        log.info("%s for the roles of conversations in the vocabulary", plural(count, "new token"))
    return count


def _fitted(tokenizer: Tokenizer, added: int) -> TokenizerSource:
    identity = tokenizer.fingerprint
    return TokenizerSource(identity, lambda _: tokenizer, lambda _: tokenizer, True, added)


def _unfitted(tokenizer: Tokenizer, vocab_size: int, added: int) -> TokenizerSource:
    """Return a tokenizer that was given, to be fitted in place."""
    identity = None  # of a user's own class it is not known on what its vocabulary depends
    size: int | None = getattr(tokenizer, "max_vocab_size", None)
    if type(tokenizer) in (BPETokenizer, BasicTokenizer):
        identity = str([type(tokenizer).__name__, size, vocab_size, tokenizer.to_json()])

    def load(folder: Path) -> Tokenizer:
        copy_vocabulary(tokenizer, load_tokenizer(folder))
        if isinstance(tokenizer, BPETokenizer) and size is not None:  # as `fit_to` leaves it
            tokenizer.max_vocab_size = min(size, vocab_size)
        log_fitted(tokenizer)
        return tokenizer

    def fit(texts: Iterable[str]) -> Tokenizer:
        return fit_to(tokenizer, texts, vocab_size)

    return TokenizerSource(identity, fit, load, added=added)


def _windows(corpus: Corpus, config: Config) -> tuple[TextDataset, TextDataset | None]:
    """Return datasets of windows of seq_len + 1 tokens: seq_len inputs and targets each."""
    if len(corpus.train) < 3:  # an end-of-text token before the text
        count = plural(max(0, len(corpus.train) - 1), "token")
        if len(corpus.val) and not config.val_sources:
            what = f"the text that is left to train on has {count}: at least 2 are needed"
            raise AGI2Error(f"{what}; lower val_fraction, {config.val_fraction}")
        raise AGI2Error(f"the text has {count}: at least 2 are needed")
    seq_len = config.seq_len
    train_data = TextDataset.from_shards(corpus.train, seq_len + 1, stride=seq_len)
    if len(corpus.val) < 2:
        if corpus.val.figures.documents:
            log.warning("the held-out text is too short to validate on")
        return train_data, None
    # Not longer than the training windows, which a short text makes shorter than seq_len.
    width = min(seq_len, train_data.seq_len - 1)
    return train_data, TextDataset.from_shards(
        corpus.val, width + 1, stride=width, text="held-out text"
    )
