"""The keys of the configuration, by section: type, default, range and meaning of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .config_checks import MAX_VOCABULARY, generation_contradictions
from .config_section import Section

Activation = Literal["gelu_tanh", "gelu", "relu", "silu"]
NormPosition = Literal["pre", "post"]
PreTokenizer = Literal["gpt2", "gpt4"]
PositionKind = Literal["sinusoidal", "learned"]
Preset = Literal["small", "medium", "large", "xl"]
Normalization = Literal["none", "lines", "nfc", "nfkc"]
EarlyStopping = bool | Literal["never"]

# Upper bounds of the sizes, far beyond any GPT-2: a typo is an error before anything is allocated.
LARGEST = {
    "vocab_size": MAX_VOCABULARY,
    "max_seq_len": 2**20,
    "d_model": 2**16,
    "n_layers": 2**10,
    "n_heads": 2**16,
    "d_ff": 2**20,
}
MIN_TEMPERATURE = 1e-5
"""Minimum temperature; below it decoding is greedy, as division would overflow the logits."""
# Upper bound of counts (steps, tokens), far below 2**53: exact in float64.
_MAX_COUNT = 10**12


class DataConfig(Section):
    """Training data, output and tokenizer."""

    # Training data and output.
    sources: list[str] = Field(default_factory=list)
    """Training data: files, folders, globs, URLs (`https://`, `s3://`, `hf://datasets/...`) or
    `builtin:python-docs`. Required for training, unless there are `conversations` or `preferences`.
    """
    conversations: list[str] = Field(default_factory=list)
    """Conversations to train on, like `sources`, which they may replace: JSON lines with `messages`
    (OpenAI), `conversations` (ShareGPT) or `prompt` and `completion`; CSV or Parquet with such
    columns; or plain text with speakers. The loss is on what the assistant says.
    """
    text_share: float | None = Field(None, ge=0, lt=1)
    """Share of the `sources` in the training tokens, if there are `conversations`, too (0 to below
    1): an epoch has each conversation once; by default as much as there is of each.
    """
    speakers: str | None = None
    """Who speaks in `conversations` that are plain text: the names at the beginning of lines, the
    user's first, such as `Anna, Ben` (`Anna: Hello!`), or a regular expression with the groups
    `user` and `assistant`; by default `User|Human, Assistant|AI, System`.
    """
    source_weights: list[Annotated[float, Field(gt=0, le=1e9)]] = Field(default_factory=list)
    """Shares of the `sources` in the training tokens, in any unit (above 0), such as [3, 1]; by
    default as much as there is of each.
    """
    model_name: str = "model"
    """Name of the run and of its folder in `output_dir`. Always required."""
    output_dir: str = "trained"
    """Parent folder of all runs."""
    text_field: str | None = None
    """Field or column of JSON, CSV and Parquet files that contains the text; by default `text`, or
    the only one with text.
    """
    encoding: str | None = None
    """Encoding of text files without a byte-order mark; by default UTF-8, or a guess."""
    normalize: Normalization = "lines"
    """Line ends become LF (`lines`); also Unicode normalization (`nfc`, `nfkc`); or `none`."""
    clean: bool = True
    """Whether to remove Gutenberg licences, navigation of web pages, and page numbers and
    hyphenation of PDFs (true, false).
    """
    max_broken_lines: int = Field(100, ge=0, le=_MAX_COUNT)
    """Maximum number of broken JSON lines that are skipped in a file (0 or more)."""
    preprocess: str | None = None
    """Python function that is given the text of each document and returns it, changed or not; None
    to drop the document; or a list of texts: `module:function`, of a file beside this one.
    """
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Fraction held out for validation (0 to below 1): the end of each document, or complete
    documents.
    """
    val_sources: list[str] = Field(default_factory=list)
    """Text to validate on, like `sources`; then nothing is held out of `sources`."""
    val_conversations: list[str] = Field(default_factory=list)
    """Conversations to validate on, like `conversations`; then nothing is held out of these."""
    preferences: list[str] = Field(default_factory=list)
    """Pairs of replies to train on instead of `sources` and `conversations`, by DPO: JSON lines,
    CSV or Parquet with `chosen` and `rejected`: lists of messages; or, after `prompt`, texts.
    """
    val_preferences: list[str] = Field(default_factory=list)
    """Pairs to validate on, like `preferences`; then nothing is held out of these."""
    dedup: bool = False
    """Whether to remove copies and near copies of documents from the training text (true,
    false).
    """
    token_cache: str | None = None
    """Folder that keeps the tokens of a text for later runs, by default in the cache folder; or
    `off`.
    """

    # Tokenizer.
    tokenizer: str = "bpe"
    """`bpe` (byte-level), `basic` (characters), `gpt2`, or the path of a trained tokenizer."""
    vocab_size: int | Literal["auto"] = Field(50257)
    """Maximum vocabulary size (1 or more), or `auto`: by the size of the text, 512 to 32,000. A
    small text yields a smaller one.
    """
    pretokenizer: PreTokenizer = "gpt2"
    """How `bpe` splits text into words, in which bytes are merged: by the pattern of `gpt2`, or of
    `gpt4`, which splits numbers into groups of three digits.
    """
    split_digits: bool = False
    """Whether `bpe` makes every digit a token of its own (true, false)."""
    special_tokens: list[str] = Field(default_factory=list)
    """Names of special tokens to add to the vocabulary."""
    lowercase: bool = True
    """Whether the basic tokenizer lowercases the text (true, false)."""
    fold_whitespace: bool = True
    """Whether the basic tokenizer collapses each run of white space into one space (true,
    false).
    """
    byte_fallback: bool = False
    """Whether the basic tokenizer encodes other characters than those of the training text as UTF-8
    bytes instead of `<unk>` (true, false).
    """


class ModelConfig(Section):
    """Fine-tuning and architecture."""

    # Fine-tuning.
    init_from: str | None = None
    """Folder of the pretrained model to fine-tune, which sets the architecture and tokenizer."""
    lora_rank: int | None = Field(None, ge=1, le=4096)
    """Fine-tune with LoRA adapters of this rank (1 or more); the weights of `init_from` are
    frozen.
    """
    dpo_beta: float = Field(0.1, gt=0, le=1e6)
    """beta of DPO, with `preferences` (above 0): the larger, the closer the model stays to that of
    `init_from`.
    """

    # Architecture.
    preset: Preset | None = None
    """GPT-2 size: `small`, `medium`, `large` or `xl`; explicit model_* keys override it."""
    model_layer: int = Field(12, ge=1, le=LARGEST["n_layers"])
    """Number of transformer blocks (1 or more)."""
    model_head: int = Field(12, ge=1, le=LARGEST["n_heads"])
    """Number of attention heads per block (1 or more); divides `model_embd`."""
    model_embd: int = Field(768, ge=1, le=LARGEST["d_model"])
    """Embedding size of the model (1 or more)."""
    model_ff: int = Field(0, ge=0, le=LARGEST["d_ff"])
    """Hidden size of the feed-forward layer (1 or more); 0 means 4 x `model_embd`."""
    model_positions: int = Field(1024, ge=1, le=LARGEST["max_seq_len"])
    """Maximum context length in tokens (1 or more)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout probability in training (0 to below 1); 0 with `preferences`, if it is not set."""
    activation: Activation = "gelu_tanh"
    """Activation of the feed-forward layer: `gelu_tanh` (GPT-2's), `gelu`, `relu` or `silu`."""
    bias: bool = True
    """Whether linear layers and layer norms have biases (true, false)."""
    norm_position: NormPosition = "pre"
    """Layer norm before each sublayer (`pre`, as in GPT-2) or after it (`post`)."""
    position_embedding: PositionKind = "sinusoidal"
    """Fixed position embeddings (`sinusoidal`), or learned ones as in GPT-2 (`learned`)."""
    tie_weights: bool = True
    """Whether the output head shares its weight with the token embedding (true, false)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (true, false): less memory, about a third more
    time.
    """


class TrainConfig(Section):
    """Training, device and precision."""

    # Training.
    epochs: int = Field(10, ge=1, le=_MAX_COUNT)
    """Number of epochs (1 or more); unlimited if only `max_steps` or `max_minutes` is set."""
    max_steps: int | None = Field(None, ge=1, le=_MAX_COUNT)
    """Maximum number of optimizer steps (1 or more)."""
    max_minutes: float | None = Field(None, gt=0, le=1e9)
    """Maximum minutes (above 0); the schedule then follows the clock, and runs are not
    reproducible.
    """
    batch_size: int = Field(12, ge=1, le=2**20)
    """Sequences per optimizer step, over all processes (1 or more)."""
    micro_batch_size: int | Literal["auto"] = Field("auto")
    """Sequences per forward; divides `batch_size` (gradient accumulation). `auto`: fits memory."""
    seq_len: int = Field(1024, ge=1, le=_MAX_COUNT)
    """Tokens per training sequence (1 to `model_positions`, its default)."""
    windows: Literal["stream", "documents", "packed"] = "stream"
    """Training sequences: the text as a stream, cut anywhere (`stream`); one document each
    (`documents`); or as many as fit (`packed`). A longer document continues in other sequences.
    """
    mask_documents: bool = False
    """Whether tokens attend only to tokens of their document, with positions that restart in each
    (true, false).
    """
    stochastic_depth: float = Field(0.0, ge=0, lt=1)
    """Probability in training that a sequence skips the attention or the feed-forward layer of a
    block (0 to below 1).
    """
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw`, or `muon`: Muon for the blocks' matrices, AdamW for the other parameters."""
    learning_rate: float = Field(3e-4, gt=0, le=1e30)
    """Peak learning rate of AdamW (above 0), reached after warmup; 1e-5 with `preferences`, if it
    is not set.
    """
    embedding_lr_factor: float = Field(1.0, gt=0, le=1e6)
    """Factor of `learning_rate` for token and position embeddings, and a head tied to them (above
    0).
    """
    head_lr_factor: float = Field(1.0, gt=0, le=1e6)
    """Factor of `learning_rate` for the output head, if `tie_weights` is false (above 0)."""
    norm_lr_factor: float = Field(1.0, gt=0, le=1e6)
    """Factor of `learning_rate` for layer norms and biases (above 0)."""
    muon_learning_rate: float = Field(0.02, gt=0, le=1e30)
    """Peak learning rate of Muon (above 0)."""
    normuon: bool = False
    """Whether Muon divides each row of an update by its RMS over the steps (true, false)."""
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Schedule after warmup: `cosine`, `linear` or `wsd` (warmup-stable-decay), to zero; or
    `constant`.
    """
    lr_decay_fraction: float = Field(0.2, gt=0, le=1)
    """Length of the decay phase of `wsd`, as a fraction of the run (above 0, at most 1)."""
    warmup_steps: int = Field(100, ge=0, le=_MAX_COUNT)
    """Linear warmup steps (0 or more), limited to a tenth of the run."""
    weight_decay: float = Field(0.1, ge=0, le=1e30)
    """Decoupled weight decay (0 or more), applied to matrices only."""
    weight_decay_schedule: Literal["constant", "lr"] = "constant"
    """Weight decay is multiplied by the learning rate. `lr`: it also follows the schedule of that,
    from `weight_decay` at the peak to zero.
    """
    cautious_weight_decay: bool = False
    """Whether a weight decays only in a step that moves it towards zero (true, false)."""
    adam_beta2: float = Field(0.99, gt=0, lt=1)
    """beta2 of AdamW (between 0 and 1)."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights, such as 0.998 (between 0 and
    1): validations evaluate both, and the better of them counts.
    """
    self_distillation: float = Field(0.0, ge=0, lt=1)
    """Weight in the targets of what the average of the weights (`ema_decay`) predicts (0 to below
    1): for a text that is seen many times.
    """
    clip_grad_norm: float = Field(1.0, gt=0)
    """Maximum gradient norm (above 0); a huge number disables clipping."""
    seed: int = Field(1337, ge=0, le=2**62)
    """Random seed of training (0 or more)."""
    eval_interval: int = Field(250, ge=1, le=_MAX_COUNT)
    """Steps between validations (1 or more)."""
    eval_tokens: int = Field(65536, ge=0, le=_MAX_COUNT)
    """Tokens per evaluation, 0 for all; the last uses all, or as many as were trained on."""
    early_stopping_patience: int | None = Field(None, ge=1, le=_MAX_COUNT)
    """Stop after this many validations without a better val loss (1 or more)."""
    checkpoint_interval: int = Field(500, ge=1, le=_MAX_COUNT)
    """Steps between checkpoints (1 or more)."""
    keep_checkpoints: int = Field(2, ge=1, le=_MAX_COUNT)
    """Number of checkpoints kept on disk (1 or more)."""
    log_interval: int = Field(10, ge=1, le=_MAX_COUNT)
    """Steps between log lines (1 or more)."""
    sample_tokens: int = Field(64, ge=0, le=_MAX_COUNT)
    """Tokens to generate as a sample at each validation, 0 for none."""
    log_to: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    """Experiment trackers, in addition to `metrics.jsonl`: a list of `tensorboard`, `wandb`."""

    # Device and precision.
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`; the CPU is used if the device is not available."""
    threads: int | Literal["auto"] = Field("auto")
    """CPU threads in training (1 to 1024); `auto`: one per core, or those of the resumed run."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """In training: `fp32`, `bf16`, `fp16` (CUDA only); `auto`: bf16 or fp16 on CUDA, bf16 on a CPU
    that is fast in it, else fp32.
    """
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: replicate the model (`ddp`) or shard it (`fsdp`)."""
    compile: bool | Literal["auto"] = "auto"
    """Whether to train with `torch.compile` (true, false); `auto`: on CUDA."""
    resume: str | None = None
    """A checkpoint folder, a run folder, or `auto`: this run's newest checkpoint, if any."""


class GenerationConfig(Section):
    """Generation, beam search and chat: of a run, or of one request (a `Sequence`).

    The options of `generate_text` and the other functions are these keys. A request names the
    tokens of `logit_bias` by id, too.
    """

    # Generation.
    max_length: int = Field(100, ge=1, le=2**30)
    """Maximum number of new tokens (1 or more)."""
    min_length: int = Field(0, ge=0, le=_MAX_COUNT)
    """New tokens before an end token or a sentence's end may stop generation (0 to `max_length`);
    `stop` always may.
    """
    samples: int = Field(1, ge=1, le=10_000)
    """Number of texts to generate from a prompt (1 or more); several need a temperature above 0."""
    temperature: float = Field(0.8, ge=0)
    """Sampling temperature (0 or more); 0 is greedy decoding."""
    top_k: int | None = Field(None, ge=1, le=_MAX_COUNT)
    """Sample from the k most likely tokens (1 or more)."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling: sample from the most likely tokens with this total probability (above 0, to
    1).
    """
    min_p: float | None = Field(None, gt=0, le=1)
    """Sample from tokens with at least this fraction of the highest probability (above 0, to 1)."""
    typical_p: float | None = Field(None, gt=0, le=1)
    """Locally typical sampling (Meister et al., 2023): sample from the tokens whose information
    content is closest to the entropy, with this total probability (above 0, to 1).
    """
    repetition_penalty: float = Field(1.0, ge=1e-4, le=1e4)
    """Above 1 makes tokens of the prompt and the new text less likely, below 1 more likely (as in
    CTRL).
    """
    presence_penalty: float = Field(0.0, ge=-1e4, le=1e4)
    """Subtracted from the logits of tokens that occur in the new text; negative values encourage
    them.
    """
    frequency_penalty: float = Field(0.0, ge=-1e4, le=1e4)
    """Subtracted from the logits of tokens for each occurrence in the new text."""
    no_repeat_ngram: int | None = Field(None, ge=1, le=_MAX_COUNT)
    """N-grams of this size (1 or more) occur only once, in prompt and new text together."""
    logit_bias: dict[str | int, Annotated[float, Field(ge=-1e4, le=1e4)]] = Field(
        default_factory=dict
    )
    """Added to the logits of tokens, given by their text, such as { " the" = -5.0 }."""
    stop: list[str] = Field(default_factory=list)
    """Stop strings: generation ends before any of them."""
    stop_at_sentence_end: bool = False
    """Whether generation ends at the end of a sentence (true, false)."""
    model_seed: str = ""
    """Text put before every prompt."""
    sampling_seed: int | None = Field(None, ge=0, le=2**62)
    """Random seed of sampling (0 or more); by default a new one for each text."""
    quantize: Literal["none", "int8", "int4"] = "none"
    """Weight quantization for generation on a CPU: `none`, `int8` or `int4`; faster, slightly less
    accurate.
    """
    speculative: Literal["none", "ngram"] = "none"
    """`none`, or `ngram`: speculative decoding by prompt lookup; greedy decoding only, with the
    same result.
    """
    beam_size: int = Field(5, ge=1, le=2**10)
    """Number of beams (1 or more)."""
    length_penalty: float = Field(1.0, ge=-10, le=10)
    """Exponent of the length by which beam scores are divided; a higher one prefers longer
    texts.
    """
    beam_results: int = Field(1, ge=1, le=_MAX_COUNT)
    """Number of texts that `agi2 beam` shows (1 to `beam_size`); above 1, each with its score."""
    beam_early_stopping: EarlyStopping = "never"
    """As in `transformers`: true (at `beam_size` texts), false (heuristic), `never` (exact)."""
    beam_groups: int = Field(1, ge=1, le=_MAX_COUNT)
    """Number of groups in diverse beam search (1 or more); divides `beam_size`."""
    diversity_penalty: float = Field(0.5, ge=0, le=1e6)
    """Subtracted from the log-probability of a token for each beam of an earlier group that chose
    it at this step (0 or more).
    """
    max_context_length: int = Field(1024, ge=1, le=_MAX_COUNT)
    """Maximum number of conversation tokens in a chat's context (1 or more); `model_positions` by
    default.
    """
    chat_stats: bool = True
    """Whether a chat shows speed and context after each reply, in a terminal (true, false)."""

    @property
    def is_greedy(self) -> bool:
        """Whether decoding is greedy (argmax)."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def needs_prompt(self) -> bool:
        """Whether a logits processor depends on the tokens of the prompt."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram is not None

    def _contradictions(self) -> list[str]:
        return generation_contradictions(self)
