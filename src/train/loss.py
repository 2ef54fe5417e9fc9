"""Chunked cross-entropy for next-token prediction, which never materializes all logits at once.

N tokens (B * T), B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..cuda_utils import logits_chunk_tokens
from ..data.windows import IGNORE_INDEX
from ..model import GPT2Model
from ..nn.training_kernels import has_kernels, softmax_gradient_

LossFunction = Callable[..., torch.Tensor]
"""Takes inputs, targets and optionally document ids, (B, T) each; returns the mean loss."""


def count_targets(targets: torch.Tensor) -> torch.Tensor:
    """Return the number of targets that are not `IGNORE_INDEX`, a scalar."""
    return (targets != IGNORE_INDEX).sum()


def compile_blocks(model: GPT2Model, backend: str) -> list[Callable[..., torch.Tensor]]:
    """Return the model's blocks compiled, for one shape of micro-batches."""
    # Otherwise a model of other sizes, in the same process, would be compiled for any sizes, 15%
    # slower on a GPU.
    return [torch.compile(block, backend=backend, dynamic=False) for block in model.blocks]


class NextTokenLoss(nn.Module):
    """A model and its loss as one module, which is wrapped in DDP or FSDP.

    Logits are materialized for at most `logits_chunk_tokens` tokens at a time.

    With a teacher, the gradient is that of the cross-entropy with other targets: of each token, 1 -
    w times the next token and w times what the teacher predicts (knowledge distillation; Hinton et
    al., 2015). The loss stays that of the next token.

    Args:
        model: the model.
        teacher_weight: w, in [0, 1).
    """

    count = staticmethod(count_targets)
    """Returns the number of what the loss is the mean of."""
    sums: torch.Tensor | None = None
    """Sums over the pairs of a step, of preferences; see `preference_figures`."""

    def __init__(self, model: GPT2Model, teacher_weight: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.teacher_weight = teacher_weight
        self._teacher: list[GPT2Model] = []  # in a list: its parameters are none of this module
        self._blocks: list[Callable[..., torch.Tensor]] | None = None
        self._softmax_gradient = _softmax_gradient

    @property
    def teacher(self) -> GPT2Model | None:
        """The model of the same vocabulary whose predictions are part of the targets."""
        return self._teacher[0] if self._teacher else None

    def set_teacher(self, teacher: GPT2Model) -> None:
        """Set the teacher."""
        self._teacher = [teacher]

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile the transformer block, once for all layers, and the loss after the LM head.

        As one graph, 12 layers took three times as long to compile, and a step was no faster. The
        matrix products of the loss gain nothing.
        """
        self._blocks = compile_blocks(self.model, backend)
        if self.model.device.type == "cuda" and backend == "inductor":  # pragma: needs gpu
            # Imported here: there is Triton only where there are GPUs.
            from ..nn.gpu_kernels import softmax_gradient_ as kernel

            self._softmax_gradient = kernel
        else:
            self._softmax_gradient = torch.compile(_softmax_gradient, backend=backend)

    def forward(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        document_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the mean cross-entropy, in nats per token, of inputs and targets (B, T).

        Targets that are `IGNORE_INDEX` do not count; if none counts, the loss is 0. `document_ids`
        are those of `GPT2Model.forward`.
        """
        hidden = self.model.hidden_states(inputs, document_ids=document_ids, blocks=self._blocks)
        hidden = hidden.flatten(0, 1)
        weight, targets = self.model.output_weight, targets.flatten()
        teacher = self._taught(inputs, document_ids)
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if dtype == torch.float16:
            # Its gradients underflow unless the scaler scales them while they are in fp32.
            logits = F.linear(hidden, weight).float()
            total = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
            if teacher is not None:
                total = total + _distilled(logits, targets, teacher)
            return total / count_targets(targets).clamp(min=1)
        loss: torch.Tensor = _LinearCrossEntropy.apply(
            hidden, weight, targets, dtype, self._softmax_gradient, teacher
        )
        return loss

    @torch.no_grad()
    def _taught(self, inputs: torch.Tensor, document_ids: torch.Tensor | None) -> _Teacher | None:
        """Return the hidden states of the teacher, (N, C), with its LM head; `None` without one."""
        if self.teacher is None:
            return None
        hidden = self.teacher.hidden_states(inputs, document_ids=document_ids)
        weight = self.teacher.output_weight.detach()
        return _Teacher(hidden.flatten(0, 1), weight, self.teacher_weight)


class _Teacher(NamedTuple):
    """What the loss takes of a teacher."""

    hidden: torch.Tensor
    """Its hidden states, (N, C)."""
    output_weight: torch.Tensor
    """The weight of its LM head, (V, C)."""
    weight: float
    """The weight of its predictions in the targets."""


def _distilled(logits: torch.Tensor, targets: torch.Tensor, teacher: _Teacher) -> torch.Tensor:
    """Return 0 with the gradient that a teacher adds to that of the sum of the losses.

    Args:
        logits: (N, V), of the model.
        targets: (N,).
        teacher: the teacher.
    """
    scores = F.linear(teacher.hidden, teacher.output_weight).float()
    ignored = targets == IGNORE_INDEX
    gradient = scores.softmax(-1)
    gradient[
        torch.arange(len(targets), device=targets.device), targets.masked_fill(ignored, 0)
    ] -= 1
    gradient.mul_(-teacher.weight).masked_fill_(ignored[:, None], 0.0)
    return ((logits - logits.detach()) * gradient).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    """cross_entropy(hidden @ weight.T, targets), with the gradients computed in `forward`.

    A chunk's logits are overwritten by their gradient and used at once: kept for `backward`, they
    would take N x V elements, the largest tensor of a step; recomputed, a third matrix product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        dtype: torch.dtype | None,
        softmax_gradient: Callable[..., tuple[torch.Tensor, torch.Tensor]],
        teacher: _Teacher | None,
    ) -> torch.Tensor:
        """Return the mean loss of hidden (N, C), weight (V, C) of the LM head and targets (N,).

        Matrix products are in `dtype`, or, if `None`, in that of the arguments. Long because all
        chunks share its buffers.
        """
        vocabulary = len(weight)
        matrix = weight.detach()
        if dtype is not None:
            matrix, hidden = _padded(matrix, dtype), hidden.to(dtype)
        taught = None if teacher is None else _TeacherGradient(teacher, dtype, softmax_gradient)
        ignored = targets == IGNORE_INDEX
        # A hidden state of 0 adds nothing to the weight's gradient, whatever the logits are.
        hidden = hidden.masked_fill(ignored[:, None], 0.0)
        loss = weight.new_zeros(())
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None  # not needed if the LM head is frozen, as with LoRA
        size = logits_chunk_tokens(hidden.device)
        # In fp32 all chunks use one buffer of padded rows (see `_row_length`).
        rows = weight.new_empty(0)
        if dtype is None:
            rows = weight.new_empty(min(len(hidden), size), _row_length(vocabulary))
        for x, y, grad in zip(
            hidden.split(size), targets.split(size), grad_hidden.split(size), strict=True
        ):
            if dtype is None:
                rows = rows[: len(y)]
                scores = rows[:, :vocabulary]
                torch.mm(x, matrix.T, out=scores)
                loss += _softmax_gradient_of_rows(rows, y, vocabulary)
                if taught is not None:
                    taught.subtract(rows, y)
                if grad_weight is not None:
                    grad_weight.addmm_(scores.T, x)
                elif ctx.needs_input_grad[1]:
                    grad_weight = scores.T @ x
            else:
                logits = x @ matrix.T
                logits[:, vocabulary:] = -torch.inf
                chunk_loss, scores = softmax_gradient(logits, y)
                del logits
                loss += chunk_loss
                if taught is not None:
                    taught.subtract(scores, y)
                if ctx.needs_input_grad[1]:
                    # Cast before: an addition of different dtypes is slow on a CPU.
                    part = (scores.T @ x)[:vocabulary].to(weight.dtype)
                    grad_weight = part if grad_weight is None else grad_weight.add_(part)
            torch.mm(scores, matrix, out=grad)
        grad_hidden.masked_fill_(ignored[:, None], 0.0)
        count = count_targets(targets).clamp(min=1)
        ctx.save_for_backward(grad_hidden, grad_weight, count)
        return loss / count

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None, None, None, None]:
        """Return the gradients of `hidden` and `weight`, scaled in place by `grad` / count."""
        grad_hidden, grad_weight, count = ctx.saved_tensors
        scale = grad / count
        if grad_weight is not None:
            grad_weight.mul_(scale)
        return grad_hidden.mul_(scale), grad_weight, None, None, None, None


class _TeacherGradient:
    """Subtracts what a teacher adds to the targets from the gradients of logits, chunk by chunk.

    With the targets (1 - w) one-hot + w softmax(t), the gradient of logits s is (softmax(s) -
    one-hot) - w (softmax(t) - one-hot): that of the teacher's logits t is computed as that of s.

    Args:
        teacher: the teacher.
        dtype: that of the matrix products; `None` for that of the arguments.
        softmax_gradient: computes the gradient of logits in `dtype`.
    """

    def __init__(
        self,
        teacher: _Teacher,
        dtype: torch.dtype | None,
        softmax_gradient: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        self._vocabulary, self._weight = len(teacher.output_weight), teacher.weight
        self._softmax_gradient = softmax_gradient
        matrix, self._hidden = teacher.output_weight, teacher.hidden
        if dtype is not None:
            matrix, self._hidden = _padded(matrix, dtype), self._hidden.to(dtype)
        self._matrix, self._is_fp32, self._next = matrix, dtype is None, 0

    def subtract(self, gradient: torch.Tensor, targets: torch.Tensor) -> None:
        """Subtract from the gradient of the next chunk's logits, (N, V and padding), in place."""
        x = self._hidden[self._next : self._next + len(targets)]
        self._next += len(targets)
        if self._is_fp32:
            other = torch.empty_like(gradient)
            torch.mm(x, self._matrix.T, out=other[:, : self._vocabulary])
            _softmax_gradient_of_rows(other, targets, self._vocabulary)
        else:
            logits = x @ self._matrix.T
            logits[:, self._vocabulary :] = -torch.inf
            _, other = self._softmax_gradient(logits, targets)
        gradient.sub_(other, alpha=self._weight)


def _padded(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight of the LM head, (V, C), in a dtype, with rows of 0 up to 64 x n rows.

    For tensor cores; the cast copies the weight anyway.
    """
    matrix = weight.new_empty(-(-len(weight) // 64) * 64, weight.size(1), dtype=dtype)
    matrix[: len(weight)] = weight
    matrix[len(weight) :] = 0.0
    return matrix


def _softmax_gradient_of_rows(
    rows: torch.Tensor, targets: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """Replace fp32 logits by their gradient, softmax - one-hot; return the sum of the losses.

    Args:
        rows: logits (N, V and padding), in rows of `_row_length`. In place, and on contiguous rows,
            padding included: 4 times as fast on a CPU.
        targets: (N,).
        vocabulary: V.
    """
    rows[:, vocabulary:] = -torch.inf
    torch.log_softmax(rows, -1, out=rows)
    ignored = targets == IGNORE_INDEX
    at = (torch.arange(len(targets), device=targets.device), targets.masked_fill(ignored, 0))
    loss = -rows[at].masked_fill(ignored, 0.0).sum()
    rows.exp_()
    rows[at] -= 1.0
    return loss


def _softmax_gradient(
    logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the losses, and the gradient of half-precision logits (N, V and padding).

    As `_softmax_gradient_of_rows`, by a softmax in fp32. Compiled code that changes its argument
    would copy all of it once more: the gradient is a new tensor, except by the CPU kernel.
    """
    dtype = logits.dtype
    if dtype == torch.bfloat16 and has_kernels(logits):
        return softmax_gradient_(logits, targets).sum(), logits
    scores = torch.log_softmax(logits, -1, dtype=torch.float32)
    ignored = targets == IGNORE_INDEX
    at = (torch.arange(len(targets), device=targets.device), targets.masked_fill(ignored, 0))
    chosen = scores[at]
    gradient = scores.exp_().to(dtype)
    # From fp32: the difference of a probability close to 1 and 1 would be lost.
    gradient[at] = chosen.expm1().to(dtype)
    return -chosen.masked_fill(ignored, 0.0).sum(), gradient


def _row_length(vocabulary: int) -> int:
    """Return the padded length of a row of fp32 logits: an odd number of 64-byte cache lines.

    Unaligned rows, and rows that map to the same cache sets (a stride of a power of two), make a
    matrix product up to 50% slower.
    """
    return 16 * (-(-vocabulary // 16) | 1)
