"""Adapter to EleutherAI's `lm-eval`: log-likelihood and generation requests of its tasks.

Needs the package `lm-eval` (extra `eval`). P is the model's `max_seq_len`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from ..cuda_utils import autocast, first_line
from ..errors import AGI2Error
from ..formats.model_dir import TrainedModel
from ..inference.engine import Engine
from ..inference.model_runner import ModelRunner, max_batch_rows
from ..inference.requests import encode_prompt, text_request
from ..inference.sampling import sampling_config
from ..inference.sequence import Sequence as Request
from ..nn.dropout import evaluating
from ..utils import describe_path, log
from .loss import EVAL_TOKENS_PER_BATCH, evaluate_tokens

# Default of `max_gen_toks`, as in lm-eval.
_MAX_LENGTH = 256
_GENERATION_KEYS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


class AGI2LM(LM):
    """A trained model as an `LM` of lm-eval, for `lm_eval.simple_evaluate(model=...)`.

    Args:
        trained: result of `load_model`.
        precision: autocast type of the forward passes for log-likelihoods.
    """

    def __init__(self, trained: TrainedModel, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.tokenizer = trained.model, trained.tokenizer
        self.precision = precision
        self._has_truncated = False

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Compute the log-likelihood of each continuation, given its context.

        An empty context becomes the start-of-text token. A context that is too long is truncated
        on the left.

        Args:
            requests: pairs of context and continuation.

        Returns:
            For each, its log-likelihood in nats, and whether greedy decoding would generate it.

        Raises:
            AGI2Error: if a continuation has more than P tokens, or a likelihood is not finite.
        """
        pairs = [self._encode_pair(*request.args) for request in requests]
        # Batches of similar lengths need little padding.
        order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]))
        scores: dict[int, tuple[float, bool]] = {}
        while order:
            longest = len(pairs[order[-1]][0])
            rows = max(1, EVAL_TOKENS_PER_BATCH // longest)
            chosen, order = order[-rows:], order[:-rows]
            scores.update(zip(chosen, self._score([pairs[i] for i in chosen]), strict=True))
        return [scores[index] for index in range(len(pairs))]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Return the last P + 1 tokens of context and continuation, and the continuation's length.

        As in lm-eval, both are encoded together. The continuation gets trailing white space of the
        context, and a token that spans the boundary.
        """
        ids = self.tokenizer.encode(context + continuation)
        before = self.tokenizer.encode(context.rstrip())
        shared = 0
        while shared < min(len(ids), len(before)) and ids[shared] == before[shared]:
            shared += 1
        count = len(ids) - shared
        if shared == 0:
            ids = [self.tokenizer.start_of_text, *ids]
        positions = self.model.config.max_seq_len
        if count > positions:
            raise AGI2Error(
                f"a continuation has {count} tokens, the model {positions} positions: "
                f"{continuation[:40]!r} ..."
            )
        if len(ids) > positions + 1 and not self._has_truncated:
            log.warning("a context is longer than the model's positions: its end is used")
            self._has_truncated = True
        return ids[-(positions + 1) :], count

    def _score(self, pairs: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether greedy decoding gives it."""
        width = max(len(ids) for ids, _ in pairs)
        # Right padding needs no attention mask: attention is causal.
        padded = [ids + [0] * (width - len(ids)) for ids, _ in pairs]
        rows = torch.tensor(padded, device="cpu")
        device = self.model.device
        with evaluating(), autocast(device, self.precision):
            hidden = self.model.hidden_states(rows[:, :-1].to(device))
            scores = []
            for row, state, (ids, count) in zip(rows, hidden, pairs, strict=True):
                span = slice(len(ids) - count - 1, len(ids) - 1)
                log_probs = self.model.logits(state[span]).float().log_softmax(-1).cpu()
                targets = row[1:][span]
                total = log_probs.gather(1, targets[:, None]).double().sum().item()
                if not math.isfinite(total):
                    raise AGI2Error("a likelihood is not finite: the model's weights are broken")
                scores.append((total, bool((log_probs.argmax(-1) == targets).all())))
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Compute the log-likelihood of each text in nats, in windows of P tokens.

        The first token is predicted from the start-of-text token. See `evaluate_tokens`.
        """
        return [self._text_score(*request.args) for request in requests]

    def _text_score(self, text: str) -> float:
        if not text:
            return 0.0
        tokens = np.insert(self.tokenizer.encode_array(text), 0, self.tokenizer.start_of_text)
        stride = self.model.config.max_seq_len
        evaluation = evaluate_tokens(
            self.model, tokens, self.tokenizer, stride, precision=self.precision
        )
        return -evaluation.loss * evaluation.tokens

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Generate a continuation of each context; greedy unless the task sets `do_sample`.

        Each request has sampling parameters of its own; the engine decodes them together.

        Raises:
            AGI2Error: if a task sets an unsupported key in `generation_kwargs`.
        """
        sequences = [self._sequence(request, seed) for seed, request in enumerate(requests)]
        runner = ModelRunner(self.model, self.tokenizer.vocab_size)
        Engine(runner, max_batch_rows(self.model)).run(sequences)
        return [sequence.text for sequence in sequences]

    def _sequence(self, request: Instance, seed: int) -> Request:
        context, options = request.args
        unknown = options.keys() - _GENERATION_KEYS
        if unknown:
            raise AGI2Error(
                f"generation_kwargs: {min(unknown)} is not known here; there are "
                + ", ".join(sorted(_GENERATION_KEYS))
            )
        config = sampling_config(
            max_length=options.get("max_gen_toks", _MAX_LENGTH),
            temperature=options.get("temperature", 1.0) if options.get("do_sample") else 0.0,
            top_k=options.get("top_k"),
            top_p=options.get("top_p"),
            stop=options.get("until") or (),
        )
        ids = encode_prompt(context, self.tokenizer)
        return text_request(ids, config, self.model, self.tokenizer, seed=seed)


def run_tasks(
    model: AGI2LM, names: Sequence[str], folder: Path | None = None
) -> dict[str, dict[str, float]]:
    """Evaluate a model on tasks of lm-eval.

    Args:
        model: the model to evaluate.
        names: names of tasks or task groups.
        folder: folder of custom tasks (YAML files).

    Returns:
        For each task, its metrics by name, with their standard errors if lm-eval reports them.

    Raises:
        AGI2Error: if a task does not exist, or its data set cannot be loaded.
    """
    manager = _load_tasks(names, folder)
    evaluated = simple_evaluate(model, tasks=list(names), task_manager=manager, log_samples=False)
    return {
        task: {
            # lm-eval's keys are METRIC,FILTER.
            key.removesuffix(",none"): float(value)
            for key, value in metrics.items()
            if isinstance(value, int | float)
        }
        for task, metrics in evaluated["results"].items()
    }


def _load_tasks(names: Sequence[str], folder: Path | None) -> TaskManager:
    """Load tasks and their data sets, of `folder` if it has them all; return their manager."""
    if folder is not None and not folder.is_dir():
        raise AGI2Error(f"{folder} {describe_path(folder)}: name a folder with tasks")
    # Custom tasks first: indexing the thousands of files of lm-eval takes many seconds.
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    for name in names:
        if name not in manager.all_tasks:
            raise AGI2Error(
                f"lm-eval has no task {name!r}; lm-eval ls tasks shows its own, --task-path names "
                "a folder with yours"
            )
    try:
        manager.load(list(names))
    except Exception as error:  # an invalid file, or any network error
        raise AGI2Error(f"{', '.join(names)}: cannot be loaded: {first_line(error)}") from error
    return manager
