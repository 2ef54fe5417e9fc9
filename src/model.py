"""GPT-2 (Radford et al., 2019): architecture only.

B batch, T new tokens, S all tokens, those in the KV cache included, C channels, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .arguments import PositiveInt, checked, convert
from .attention import as_attention_mask, combined_mask, document_mask
from .config import Config, GPT2Config
from .embeddings import (
    INIT_STD,
    LearnedPositionEmbeddings,
    PositionEmbeddings,
    TokenEmbeddings,
    as_token_ids,
    init_normal,
)
from .errors import AGI2Error
from .nn.decode_backend import DecodeBackend, EagerBackend, watching_weights
from .nn.dropout import Dropout, is_training
from .nn.kv_cache import KVCache
from .transformer import TransformerBlock

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


class GPT2Model(nn.Module):
    """A decoder-only transformer language model: next-token logits for each token.

    Args:
        config: a `GPT2Config`, or a run's configuration as returned by `load_config`.
    """

    def __init__(self, config: GPT2Config | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(config, GPT2Config):
            config = GPT2Config.from_mapping(config)
        self.config = config
        learned = config.position_embedding == "learned"
        positions = LearnedPositionEmbeddings if learned else PositionEmbeddings
        self.token_embeddings = TokenEmbeddings(config.vocab_size, config.d_model)
        self.position_embeddings = positions(config.max_seq_len, config.d_model)
        # Embeddings of std 0.02 (tied weights) are too small next to sinusoids of amplitude 1.
        self.embedding_scale = 1.0 if learned else math.sqrt(config.d_model)
        self.embedding_dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config.d_model,
                config.n_heads,
                config.d_ff,
                config.dropout,
                activation=config.activation,
                bias=config.bias,
                norm_position=config.norm_position,
            )
            for _ in range(config.n_layers)
        )
        for block in self.blocks:
            cast(TransformerBlock, block).ffn.recomputes = not config.gradient_checkpointing
        pre_norm = config.norm_position == "pre"
        self.final_norm = (
            nn.LayerNorm(config.d_model, bias=config.bias, dtype=torch.float32)
            if pre_norm
            else nn.Identity()
        )
        self.head: nn.Module | None = (
            None
            if config.tie_weights
            else nn.Linear(config.d_model, config.vocab_size, bias=False, dtype=torch.float32)
        )
        self._decode_backend: DecodeBackend = EagerBackend()
        # The `quantize` with which `prepare_for_generation` has replaced the weights, if it has;
        # and the number of parameters before.
        self.prepared: str | None = None
        self._prepared_parameters = 0
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialize all weights.

        ==========================================  =================================
        token, position embeddings, untied head     normal, std 0.02
        matrices of linear layers                   normal, std 0.02
        residual projections (proj, contract)       normal, std 0.02 / sqrt(2 layers)
        biases                                      0
        layer norms                                 weight 1, bias 0
        ==========================================  =================================
        """
        self.require_weights("given other weights")
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                residual = name.endswith(("attention.proj.weight", "ffn.contract.weight"))
                init_normal(parameter, residual_std if residual else INIT_STD)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        cache: KVCache | None = None,
        last_only: bool = False,
        counts: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute next-token logits (B, T, V) for token ids (B, T).

        Args:
            input_ids: token ids, or with a cache only those after the tokens in it.
            attention_mask: boolean, or of 0 and 1. (B or 1, S), true for text and false for
                padding, on either side; or (B or 1, T, S) or (B or 1, H or 1, T, S), true if a
                token may attend. It is combined with the causal mask. Two dimensions are always a
                padding mask, whatever their sizes.
            cache: KV cache of the earlier tokens, to which the new ones are appended: in each row
                after its own tokens. Rows of different lengths take no `attention_mask`.
            last_only: return the logits of the last token only, (B, 1, V), as generation needs.
            counts: number of tokens (B,) of each row before padding on the right: return the logits
                of the last of them only, (B, 1, V).
            document_ids: integers (B, T) for documents that are packed into rows, without a cache
                or a mask: a run of equal ones is a document. Attention is within documents, and
                positions restart in each: its logits are those that it has alone.

        Raises:
            AGI2Error: if the sequence is longer than the model's positions, token ids are not
                integers (B, T) in the vocabulary, or the mask or `counts` has another type, shape
                or range.
        """
        if not isinstance(last_only, bool):
            last_only = convert(bool, "last_only", last_only)
        hidden = self.hidden_states(
            input_ids, attention_mask, cache=cache, document_ids=document_ids
        )
        if counts is not None:
            counts = as_token_ids("counts", counts, hidden.device)
            batch, tokens, _ = hidden.shape
            if counts.shape != (batch,) or not 1 <= counts.min() <= counts.max() <= tokens:
                raise AGI2Error(
                    f"counts must be {batch} integers from 1 to {tokens}: the tokens of each row"
                )
            return self.logits(
                hidden[torch.arange(batch, device=hidden.device), counts - 1].unsqueeze(1)
            )
        return self.logits(hidden[:, -1:] if last_only else hidden)

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        cache: KVCache | None = None,
        document_ids: torch.Tensor | None = None,
        blocks: Sequence[Callable[..., torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Compute the final hidden states (B, T, C).

        Args:
            input_ids: as in `forward`; also the mask, the cache and the document ids.
            blocks: called in place of the model's blocks, such as these blocks compiled.
        """
        input_ids = as_token_ids("input_ids", input_ids)
        if input_ids.dim() != 2:
            raise AGI2Error(
                f"input_ids has the shape {tuple(input_ids.shape)}: it must be (B, T), a row of "
                "token ids for each text"
            )
        x = self.token_embeddings(input_ids)
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        seen = 0
        if cache is not None:
            if not isinstance(cache, KVCache):
                convert(KVCache, "cache", cache)
            cache.check(x, self.config.n_layers, self.config.n_heads, self.config.head_dim)
            seen = cache.length
        mask = None
        is_ragged = cache is not None and cache.is_ragged
        if attention_mask is not None:
            if is_ragged:
                raise AGI2Error("attention_mask is for a cache whose rows have the same length")
            attention_mask = as_attention_mask(attention_mask, x, seen, self.config.n_heads)
        if document_ids is not None:
            if cache is not None or attention_mask is not None:
                raise AGI2Error("document_ids does not go with a cache or an attention_mask")
            mask, positions = document_mask(document_ids, input_ids)
            self.position_embeddings(input_ids.size(1))  # raises if the rows are too long
            x = x + self.position_embeddings.lookup(positions)
        elif attention_mask is not None and attention_mask.dim() == 2:
            x = x + self._positions_of_text(attention_mask, seen)
        elif cache is not None and is_ragged:
            x = x + self._positions_from(cache.lengths, input_ids.size(1))
        else:
            x = x + self.position_embeddings(input_ids.size(1), offset=seen)
        x = self.embedding_dropout(x)
        if cache is not None:
            decoded = self._decode_backend(x, attention_mask, cache)
            if decoded is not None:
                return cast(torch.Tensor, self.final_norm(decoded))
        if attention_mask is not None:
            mask = combined_mask(attention_mask, seen)
        elif cache is not None:
            mask = cache.layers[0].causal_mask(input_ids.size(1))
        for index, block in enumerate(blocks or list(self.blocks)):
            layer = cache.layers[index] if cache is not None else None
            if self.config.gradient_checkpointing and is_training(self) and layer is None:
                x = checkpoint(block, x, mask, causal=mask is None, use_reentrant=False)
            else:
                x = block(x, mask, causal=mask is None, cache=layer)
        return self.final_norm(x)

    def _positions_of_text(self, is_text: torch.Tensor, seen: int) -> torch.Tensor:
        """Return the new tokens' position embeddings, (B, T, C); padding does not count."""
        positions = (is_text.long().cumsum(-1) - 1).clamp(min=0)[:, seen:]
        self.position_embeddings(int(positions.max()) + 1)  # raises if the sequence is too long
        return self.position_embeddings.lookup(positions)

    def _positions_from(self, starts: Sequence[int], count: int) -> torch.Tensor:
        """Return the position embeddings (B, T, C) of T tokens from the positions `starts`."""
        self.position_embeddings(max(starts) + count)  # raises if the sequence is too long
        first = torch.tensor(starts, device=self.device).unsqueeze(1)
        return self.position_embeddings.lookup(first + torch.arange(count, device=self.device))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the head: hidden states (..., C) to logits (..., V)."""
        if self.head is None:
            return F.linear(hidden, self.token_embeddings.weight)
        out: torch.Tensor = self.head(hidden)
        return out

    @property
    def output_weight(self) -> torch.Tensor:
        """The head's matrix (V, C): the token embeddings if tied."""
        weight = self.token_embeddings.weight if self.head is None else self.head.weight
        return cast(torch.Tensor, weight)

    @property
    def decode_backend(self) -> DecodeBackend:
        """What computes the blocks for the new tokens of a KV cache."""
        return self._decode_backend

    def use_decode_backend(self, backend: DecodeBackend) -> None:
        """Compute the new tokens of KV caches with this backend, until the weights are moved."""
        self._decode_backend = backend

    def mark_prepared(self, quantize: str, parameters: int) -> None:
        """Mark the weights as packed or quantized in place: methods that need the originals raise.

        Args:
            quantize: the argument of `prepare_for_generation`.
            parameters: number of parameters before.
        """
        super().requires_grad_(False)
        self.eval()
        self.prepared, self._prepared_parameters = quantize, parameters

    @property
    def prepared_line(self) -> str:
        """A description of the prepared model, for messages."""
        return f'the model was prepared for generation (quantize = "{self.prepared}")'

    def require_weights(self, use: str) -> None:
        """Raise an `AGI2Error` if the model is prepared, so that `use` has no original weights."""
        if self.prepared is not None:
            raise AGI2Error(f"{self.prepared_line}: it cannot be {use}; load it again for that")

    # Saving, exporting, copying, training and moving a module all call one of these.

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """See `nn.Module.state_dict`; raises for a prepared model."""
        self.require_weights("saved or exported")
        out: dict[str, Any] = super().state_dict(*args, **kwargs)
        return out

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See `nn.Module.load_state_dict`; raises for a prepared model."""
        self.require_weights("given other weights")
        with watching_weights(self):
            return super().load_state_dict(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.require_weights("copied or pickled")
        return super().__reduce_ex__(protocol)

    def train(self, mode: bool = True) -> GPT2Model:
        """See `nn.Module.train`; raises for a prepared model if `mode` is true."""
        if mode:
            self.require_weights("trained")
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> GPT2Model:
        """See `nn.Module.requires_grad_`; raises for a prepared model, also for LoRA."""
        self.require_weights("trained")
        return super().requires_grad_(requires_grad)

    def _apply(self, fn: Any, recurse: bool = True) -> GPT2Model:
        """Implement `to`, `cuda`, `half` etc.; raises if a prepared model would change."""
        if self.prepared is not None:
            for tensor in (*self.parameters(), *self.buffers()):
                if fn(tensor.detach()).data_ptr() != tensor.data_ptr():
                    self.require_weights("moved, or turned into other numbers")
            return self
        with watching_weights(self):
            super()._apply(fn, recurse)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        # Each decode step asks: the first of all parameters would take ten times as long to find.
        weight = getattr(self.final_norm, "weight", None)
        if weight is None:
            weight = next(chain(self.parameters(), self.buffers()))
        return cast(torch.device, weight.device)

    @checked
    def new_cache(
        self, batch_size: PositiveInt = 1, capacity: PositiveInt | None = None
    ) -> KVCache:
        """Return an empty KV cache for `capacity` tokens, by default all positions."""
        config = self.config
        return KVCache(
            config.n_layers,
            batch_size,
            config.n_heads,
            capacity or config.max_seq_len,
            config.head_dim,
            self.device,
            next(chain(self.parameters(), self.buffers())).dtype,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        tokenizer: Tokenizer | None = None,
        config: Config | None = None,
        *,
        verbose: bool = True,
    ) -> None:
        """Save the model, and optionally its tokenizer, to a folder for `from_pretrained`.

        Args:
            folder: created if it does not exist.
            tokenizer: needed if `load_model` and the commands are to load the folder.
            config: keys to save in addition to the architecture, such as sampling parameters.
            verbose: whether to show progress (see `console.visible`).

        Raises:
            AGI2Error: if the folder cannot be written or has another model's tokenizer.
        """
        from .formats.model_dir import save_model

        config = config or Config()
        save_model(self, tokenizer, config, folder, verbose=verbose)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: torch.device | str = "cpu", *, verbose: bool = True
    ) -> GPT2Model:
        """Load a model saved by training or `save_pretrained`, in evaluation mode.

        `load_model` loads its tokenizer and configuration as well; `import_huggingface` converts a
        folder in Hugging Face's format.

        Raises:
            AGI2Error: if there is no model in the folder, or a file is corrupt.
        """
        from .formats.model_dir import load_architecture

        return load_architecture(folder, device, verbose=verbose)

    def num_parameters(self) -> int:
        """Return the number of parameters, tied ones once; for a prepared model, that before."""
        if self.prepared is not None:
            return self._prepared_parameters
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        """Return the number of parameters."""
        return f"parameters={self.num_parameters():,}"
