"""The memory that KV caches take, and how many rows fit into what is available."""

from __future__ import annotations

from ..cuda_utils import available_memory
from ..errors import AGI2Error
from ..model import GPT2Model
from ..utils import human_bytes

# Maximum batch size: more rows do not raise throughput, and some work is quadratic in them.
_MAX_ROWS = 256


def cache_bytes(model: GPT2Model, tokens: int) -> int:
    """Return the bytes that the KV cache of one row of this many tokens takes at most."""
    config, size = model.config, next(model.parameters()).element_size()
    return 2 * size * config.n_layers * config.d_model * min(tokens, config.max_seq_len)


def max_batch_rows(model: GPT2Model) -> int:
    """Return the batch size whose KV cache fits into a quarter of the available memory."""
    budget = available_memory(model.device) // 4
    return max(1, min(_MAX_ROWS, budget // cache_bytes(model, model.config.max_seq_len)))


def check_rows(model: GPT2Model, rows: int, tokens: int, key: str) -> None:
    """Check that the KV cache of rows that must be decoded together fits into memory.

    Args:
        model: the model that decodes.
        rows: number of rows.
        tokens: maximum length of a row.
        key: the option that sets the number of rows, for the message.

    Raises:
        AGI2Error: if it does not fit; the message has both sizes.
    """
    needed, available = rows * cache_bytes(model, tokens), available_memory(model.device)
    if needed > available:
        raise AGI2Error(
            f"{key} = {rows}: their keys and values take {human_bytes(needed)}, this machine has "
            f"{human_bytes(available)}: lower {key} or max_length"
        )
