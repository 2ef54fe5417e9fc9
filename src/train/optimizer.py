"""Parameter groups, optimizers, and their saved state."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..config import Config
from ..nn.lora import is_lora
from ..utils import full_tensor, shard_like

Optimizer = torch.optim.Optimizer
# A group of an optimizer's parameters.
_Group = dict[str, Any]
# The key of the second moments of the rows in Muon's state.
_ROWS = "row_squares"
AVERAGE = "average"
"""The key of the average of a parameter in its optimizer's state; see `averaging`."""


def make_optimizers(model: nn.Module, config: Config) -> list[Optimizer]:
    """Create the configured optimizers; a group's `initial_lr` is its peak learning rate.

    `adamw`: AdamW (Loshchilov and Hutter, 2019) for all parameters. `muon`: Muon for the matrices
    of the transformer blocks, AdamW for embeddings, LM head, biases and layer norms.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = {
        name: p
        for name, p in named
        if config.optimizer == "muon" and name.startswith("blocks.") and p.dim() == 2
    }
    rest = {name: p for name, p in named if name not in matrices}
    groups = parameter_groups(rest, config.weight_decay, config.lora_rank is not None)
    groups = _with_rates(groups, {p: name for name, p in rest.items()}, config)
    device = next(model.parameters()).device.type
    adamw = CautiousAdamW if config.cautious_weight_decay else torch.optim.AdamW
    optimizers: list[Optimizer] = [
        adamw(
            groups,
            lr=config.learning_rate,
            betas=(0.9, config.adam_beta2),
            fused=device in ("cpu", "cuda"),
        )
    ]
    if matrices:
        # Query, key and value are three matrices concatenated in one parameter.
        split = [
            {"params": [p], "parts": 3 if "qkv" in name else 1} for name, p in matrices.items()
        ]
        rates = config.muon_learning_rate, config.weight_decay
        optimizers.append(
            Muon(
                split,
                *rates,
                is_cautious=config.cautious_weight_decay,
                has_even_rows=config.normuon,
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
            group["initial_weight_decay"] = group["weight_decay"]
    return optimizers


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], weight_decay: float, has_lora: bool = False
) -> list[dict[str, Any]]:
    """Return groups with weight decay and without, if any.

    Matrices have weight decay, biases and layer norms have none. With LoRA only its own matrices
    have: the frozen rows of the embeddings would decay, too.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        has_decay = is_lora(name) if has_lora else parameter.dim() >= 2
        (decayed if has_decay else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _with_rates(
    groups: Sequence[Mapping[str, Any]], names: Mapping[nn.Parameter, str], config: Config
) -> list[dict[str, Any]]:
    """Split groups by the learning rates of their parameters; with one rate they stay the same."""
    split = []
    for group in groups:
        by_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            factor = _rate_factor(names[parameter], parameter, config)
            by_rate[config.learning_rate * factor].append(parameter)
        split += [{**group, "params": params, "lr": rate} for rate, params in by_rate.items()]
    return split


def _rate_factor(name: str, parameter: nn.Parameter, config: Config) -> float:
    """Return the factor of AdamW's learning rate for a parameter."""
    if name.startswith(("token_embeddings.", "position_embeddings.")):
        return config.embedding_lr_factor
    if name.startswith("head."):
        return config.head_lr_factor
    return config.norm_lr_factor if parameter.dim() < 2 else 1.0


class CautiousAdamW(torch.optim.AdamW):
    """AdamW with cautious weight decay (Chen et al., 2025).

    A weight decays only in a step that moves it towards zero, or that leaves it: where the update
    that is subtracted has its sign, or either is 0.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Perform one optimization step on the parameters that have a gradient."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and group["weight_decay"]:
                    # The update has the sign of its numerator, the new first moment.
                    moment = self.state.get(parameter, {}).get("exp_avg")
                    weight = 1 - group["betas"][0]
                    grad = parameter.grad
                    direction = grad if moment is None else moment.lerp(grad, weight)
                    _decay_cautiously(parameter, direction, group)
            group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def _decay_cautiously(
    parameter: torch.Tensor, update: torch.Tensor, group: Mapping[str, Any]
) -> None:
    """Apply decoupled weight decay where an update, subtracted later, has the weight's sign."""
    is_decayed = (parameter * update >= 0).to(parameter.dtype)
    parameter.mul_(1 - group["lr"] * group["weight_decay"] * is_decayed)


class Muon(Optimizer):
    """Muon: Nesterov momentum with orthogonalized updates (Jordan et al., 2024).

    Matrices of the same shape are orthogonalized in one batched matrix product.

    Args:
        params: parameter groups of matrices. A group's `parts` is the number of matrices that are
            concatenated along dim 0 in each of its parameters (3 for query, key, value); default 1.
        lr: the learning rate; the RMS of an update is about lr / sqrt(columns).
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        momentum: the Nesterov momentum.
        is_cautious: whether weight decay is cautious, as in `CautiousAdamW`.
        has_even_rows: whether to divide each row of an update by its RMS over the steps, as in
            NorMuon (Li et al., 2025); the update's norm stays.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        *,
        is_cautious: bool = False,
        has_even_rows: bool = False,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": 1}
        super().__init__(params, defaults)
        self._is_cautious, self._has_even_rows = is_cautious, has_even_rows
        self.found_inf: torch.Tensor | None = None
        """1 if a gradient is not finite, else 0, a scalar: as of PyTorch's fused optimizers."""

    @property
    def can_skip_on_device(self) -> bool:
        """Whether `found_inf` is supported."""
        return not (self._is_cautious or self._has_even_rows)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Perform one optimization step on the parameters that have a gradient."""
        members = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # 1, or 0 to leave everything as it is: a tensor, which needs no synchronization.
        is_taken = None if self.found_inf is None else 1 - self.found_inf
        updates = self._add_momentum(members, is_taken)
        by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
        for update, (_, group) in zip(updates, members, strict=True):
            for part in update.chunk(group["parts"]):
                # rows <= columns, so that x @ x.mT is the smaller Gram matrix.
                part = part.mT if part.size(0) > part.size(1) else part
                by_shape[part.shape].append(part)
        for parts in by_shape.values():
            torch._foreach_copy_(parts, orthogonalize(torch.stack(parts)).unbind())
        self._apply_updates(members, updates, is_taken)

    def _add_momentum(
        self, members: Sequence[tuple[nn.Parameter, _Group]], is_taken: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Update the momenta; return the updates before they are orthogonalized, unsharded."""
        for parameter, _ in members:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        updates: list[torch.Tensor] = []
        for rate, same in itertools.groupby(members, key=lambda each: each[1]["momentum"]):
            parameters = [parameter for parameter, _ in same]
            gradients = [p.grad for p in parameters if p.grad is not None]  # all have one
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            if is_taken is not None:  # a momentum stays if it is averaged with itself
                pairs = zip(gradients, momenta, strict=True)
                gradients = [torch.where(is_taken > 0, *pair) for pair in pairs]
            torch._foreach_lerp_(momenta, gradients, 1 - rate)
            updates += torch._foreach_lerp(gradients, momenta, rate)
        # Under FSDP, all-gather them: the singular values of a shard are different.
        return [full_tensor(update) for update in updates]

    def _apply_updates(
        self,
        members: Sequence[tuple[nn.Parameter, _Group]],
        updates: Sequence[torch.Tensor],
        is_taken: torch.Tensor | None,
    ) -> None:
        """Decay the weights and add the orthogonalized updates."""
        same: dict[tuple[float, float], list[tuple[torch.Tensor, torch.Tensor]]]
        same = defaultdict(list)
        for (parameter, group), update in zip(members, updates, strict=True):
            # Jordan et al. scale by sqrt(max(1, rows / columns)).
            aspect_ratio = update.size(0) / group["parts"] / update.size(1)
            if self._has_even_rows:
                state = self.state[parameter]
                if _ROWS not in state:
                    state[_ROWS] = update.new_zeros(update.size(0))
                even_rows(update, state[_ROWS], group["parts"])
            shard, decay = shard_like(update, parameter), group["lr"] * group["weight_decay"]
            if self._is_cautious:
                _decay_cautiously(parameter, shard, group)
                decay = 0.0
            rate = group["lr"] * math.sqrt(max(1.0, aspect_ratio))
            same[rate, decay].append((parameter, shard))
        for (rate, decay), pairs in same.items():
            parameters, shards = map(list, zip(*pairs, strict=True))
            if is_taken is not None:
                torch._foreach_mul_(shards, is_taken)
                torch._foreach_mul_(parameters, (1 - decay * is_taken.double()).float())
            elif decay:
                torch._foreach_mul_(parameters, 1 - decay)
            torch._foreach_add_(parameters, shards, alpha=-rate)


def can_skip_on_device(optimizer: Optimizer) -> bool:
    """Return whether an optimizer's step does nothing if its `found_inf` is 1, a tensor."""
    if isinstance(optimizer, Muon):
        return optimizer.can_skip_on_device
    is_fused = all(group.get("fused") for group in optimizer.param_groups)
    return type(optimizer) is torch.optim.AdamW and is_fused


def even_rows(update: torch.Tensor, squares: torch.Tensor, parts: int, beta: float = 0.95) -> None:
    """Divide the rows of an update by the root of their second moments, in place.

    Each part keeps its norm, so that the learning rate keeps its meaning; therefore a bias of the
    moments, which begin at 0, cancels.

    Args:
        update: (rows, columns), of matrices concatenated along dim 0.
        squares: (rows,), the moving averages of the rows' mean squares, which are updated.
        parts: number of matrices.
        beta: decay of the moving averages.
    """
    squares.lerp_(update.square().mean(dim=1), 1 - beta)
    for part, moments in zip(update.chunk(parts), squares.chunk(parts), strict=True):
        norm = part.norm()
        part.div_(moments.sqrt().clamp(min=1e-10)[:, None])
        part.mul_(norm / part.norm().clamp(min=1e-10))


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Orthogonalize matrices (N, rows, columns), rows <= columns, approximately.

    A quintic Newton-Schulz iteration with the coefficients of Jordan et al. (2024), which trade
    accuracy for speed: singular values converge to between about 0.7 and 1.2. It is stable in bf16,
    which is used on a GPU, and under autocast to it.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if x.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False):
        x = x.bfloat16()  # pragma: needs gpu
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """Return the optimizers' state as tensors named `optimizer.<parameter>.<key>`."""
    return {
        f"optimizer.{name}.{key}": torch.as_tensor(value, device=getattr(value, "device", "cpu"))
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Restore optimizer state from the tensors of `optimizer_tensors`; shard them as needed."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            prefix = f"optimizer.{names[parameter]}."
            optimizer.state[parameter] = {
                key.removeprefix(prefix): (
                    shard_like(value, parameter)
                    if value.shape == parameter.shape
                    else value.to(parameter.device)
                )
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
