"""`Trainer`: a run that can be stopped and resumed exactly."""

from __future__ import annotations

import hashlib
import platform
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoint as checkpoints
from .checkpoint import FORMAT, Checkpoint
from .config import UNBOUNDED_EPOCHS, Config
from .cuda_utils import (
    can_compile,
    choose_micro_batch_size,
    describe_device,
    first_line,
    memory_stats,
    peak_flops,
    select_precision,
    training_flops,
)
from .dataset import EpochBatches, TextDataset
from .distributed import Processes, is_lost_process, launch_id
from .errors import AGI2Error
from .evaluation import Evaluation, evaluate
from .generation import generate_text
from .metrics import RunLog, RunningMean, TrainingDisplay, busy
from .model import GPT2Model
from .model_folder import (
    FREE_ARCHITECTURE_KEYS,
    WEIGHTS,
    describe_model,
    load_weights,
    save_weights,
)
from .optimization import learning_rate_factor, make_optimizers
from .sampling import sampling_keys
from .step import (
    LossFunction,
    NextTokenLoss,
    accumulate_gradients,
    apply_gradients,
    is_device_failure,
    is_out_of_memory,
)
from .tokenizer import Tokenizer
from .utils import (
    Background,
    Interrupt,
    human_time,
    keep_freed_memory,
    log,
    seed_everything,
    whole,
    writing,
)

History = dict[str, Any]

# A change of these would make another run: the data's order, or what the steps are.
FIXED_ON_RESUME = (
    "sources",
    "text_field",
    "val_fraction",
    "tokenizer",
    "seq_len",
    "batch_size",
    "seed",
    "optimizer",
    "lowercase",
    "fold_whitespace",
    "lora_rank",
)

# So many steps in a row whose gradients are no numbers end a run. In fp16 the first ones overflow
# until the scale is found, which is halved each time.
_SKIPPED_AT_MOST, _SKIPPED_IN_FP16 = 5, 30


class Trainer:
    """A run: a model, its data and its folder, from any step to the end.

    Args:
        model: on the device to train on.
        tokenizer: fitted.
        train_data: windows of T + 1 tokens with stride T.
        val_data: the same of held-out text, if any.
        config: the run's.
        folder: where everything is written; made where it is not there.
        processes: those that train together; each has the same data and learns from its own rows
            of every batch, and the main one writes. By default there is one.

    Raises:
        AGI2Error: where the batch cannot be shared equally.
    """

    def __init__(
        self,
        model: GPT2Model,
        tokenizer: Tokenizer,
        train_data: TextDataset,
        val_data: TextDataset | None,
        config: Config,
        folder: Path,
        processes: Processes | None = None,
    ) -> None:
        self.model = model
        self.processes = processes or Processes(model.device)
        self.tokenizer = tokenizer
        self.val_data = val_data
        self.config = config
        self.folder = folder
        self.weights = folder / WEIGHTS
        self.device = self.processes.device
        self.precision = select_precision(config.precision, self.device)
        self.sharded = config.parallel == "fsdp" and self.processes.are_joined
        if self.sharded and self.precision == torch.float16:
            raise AGI2Error('precision: parallel = "fsdp" needs "bf16" or "fp32", not fp16')
        self._module = NextTokenLoss(model)
        if self.sharded:
            self._keep_local = self.processes.shard(self._module, model.blocks)
        self.whole = model
        """The model as a process can use it by itself: a copy, made anew, where it is sharded."""
        self.batches = EpochBatches(train_data, config.batch_size, config.seed)
        self.optimizers = make_optimizers(model, config)
        self._rows = self._own_rows()
        self.micro_batch_size = min(self._rows, self._micro_batch_size())
        # Compiling measured no gain on a CPU.
        wanted = self.device.type == "cuda" and not self.sharded
        self.compiled = wanted if config.compile == "auto" else config.compile
        self._saving = Background()
        if val_data is None and config.early_stopping_patience is not None:
            log.warning("early_stopping_patience has no effect without text to validate on")
        self.total_steps = config.epochs * self.batches.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.has_begun = False
        """Whether the run has a folder with a log of its own."""
        # Everything below is saved in a checkpoint.
        self.scaler = self._scaler()
        self.step = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.seconds = 0.0
        self.epoch_loss = RunningMean()
        self.recent_loss = RunningMean()
        self.evaluated_at = 0
        self.best_loss = float("inf")
        self.evaluations_without_gain = 0
        self.history: History = {"train_loss": [], "val_loss": [], "val_steps": []}

    def _scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)

    def _own_rows(self) -> int:
        """How many sequences of each batch are this process's."""
        batch, count = self.batches.batch_size, self.processes.count
        if batch % count:
            raise AGI2Error(
                f"batch_size: {batch} sequences cannot be shared equally by {count} processes"
                + (", and the text has no more" if batch < self.config.batch_size else "")
            )
        return batch // count

    def _micro_batch_size(self) -> int:
        size = self.config.micro_batch_size
        if size == "auto":
            return choose_micro_batch_size(
                self.model.config, self.batches.dataset.seq_len, self._rows, self.device
            )
        return size

    # What a checkpoint holds.

    def state_dict(self) -> dict[str, Any]:
        """Everything but tensors that a resumed run needs, as JSON can hold it."""
        return {
            "format": FORMAT,
            "step": self.step,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "seconds": self.seconds,
            "epoch_loss": self.epoch_loss.state(),
            "recent_loss": self.recent_loss.state(),
            "evaluated_at": self.evaluated_at,
            "best_loss": self.best_loss if self.best_loss < float("inf") else None,
            "evaluations_without_gain": self.evaluations_without_gain,
            # A copy: it is written while training goes on.
            "history": {key: list(values) for key, values in self.history.items()},
            "metrics_size": self.metrics.size,
            "micro_batch_size": self.micro_batch_size,
            "compiled": self.compiled,
            "precision": _name_of(self.precision),
            "processes": self.processes.count,
            "threads": torch.get_num_threads(),
            "scaler": self.scaler.state_dict(),
            "total_steps": self.total_steps,
            "tokenizer": self.tokenizer.fingerprint,
            "text": self._text_hash(),
            "fixed": self._fixed(),
            "launch": launch_id(),
            "config": dict(self.config),
        }

    def _fixed(self) -> dict[str, Any]:
        """What may not change when a run is resumed."""
        architecture = self.model.config.to_keys()
        return {
            **{key: self.config[key] for key in FIXED_ON_RESUME},
            **{k: v for k, v in architecture.items() if k not in FREE_ARCHITECTURE_KEYS},
        }

    def _text_hash(self) -> str:
        """What the training and validation tokens are, as a hash."""
        digest = hashlib.sha256(self.batches.dataset.tokens.data)
        if self.val_data is not None:
            digest.update(self.val_data.tokens.data)
        return digest.hexdigest()

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Become the run that wrote this checkpoint.

        Raises:
            AGI2Error: where model, tokenizer or configuration do not belong to it.
        """
        state = checkpoint.state
        if state["tokenizer"] != self.tokenizer.fingerprint:
            raise AGI2Error(f"{checkpoint.folder} was trained with another tokenizer")
        for key, now in self._fixed().items():
            before = state["fixed"].get(key)
            if before != now:
                raise AGI2Error(
                    f"{checkpoint.folder} was trained with {key} = {before!r}, now it is {now!r}: "
                    "set it back, or start anew without resume"
                )
        if state["text"] != self._text_hash():
            raise AGI2Error(
                f"the text has changed since {checkpoint.folder}: put it back as it was, or start "
                "anew without resume"
            )
        tensors = checkpoint.load_into(self.model)
        checkpoints.load_optimizer_tensors(self.model, self.optimizers, tensors)
        self.step = state["step"]
        self.skipped_steps = state["skipped_steps"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.seconds = state["seconds"]
        self.epoch_loss = RunningMean(*state["epoch_loss"])
        self.recent_loss = RunningMean(*state["recent_loss"])
        self.evaluated_at = state["evaluated_at"]
        self.best_loss = float("inf") if state["best_loss"] is None else state["best_loss"]
        self.evaluations_without_gain = state["evaluations_without_gain"]
        self.history = state["history"]
        # These change rounding: what the run chose by itself stays as it was.
        if self.config.micro_batch_size == "auto":
            self.micro_batch_size = min(self._rows, state["micro_batch_size"])
        if state["processes"] == self.processes.count:
            torch.set_num_threads(state["threads"])
        if self.config.compile == "auto":
            self.compiled = state["compiled"]
        if self.config.precision == "auto":
            # As `select_precision`: fp16 is CUDA's alone.
            half_elsewhere = state["precision"] == "float16" and self.device.type != "cuda"
            self.precision = torch.float32 if half_elsewhere else getattr(torch, state["precision"])
        self.scaler = self._scaler()
        for name, now in (
            ("micro_batch_size", self.micro_batch_size),
            ("compiled", self.compiled),
            ("precision", _name_of(self.precision)),
            ("processes", self.processes.count),
        ):
            if state[name] != now:
                log.warning("%s was %s in this run: the rounding changes", name, state[name])
        if self.scaler.is_enabled() and state["scaler"]:  # pragma: needs gpu
            self.scaler.load_state_dict(state["scaler"])
        log.info("resuming %s at step %d", checkpoint.folder, self.step)
        for key, before in state["config"].items():
            if key != "resume" and before != self.config.get(key):
                log.info("%s is now %r, it was %r", key, self.config.get(key), before)
        if state["total_steps"] != self.total_steps:
            log.info(
                "the run is now %d steps long, not %d: the learning rate follows the new length",
                self.total_steps,
                state["total_steps"],
            )

    # The run.

    def fit(self, checkpoint: Checkpoint | None = None) -> History:
        """Train to the end, from a checkpoint or from the start.

        Ctrl-C or SIGTERM saves a checkpoint and leaves with `KeyboardInterrupt`; a second one
        leaves at once. The model ends with its best weights.

        Returns:
            `train_loss` (one mean an epoch, the last perhaps of a part), `val_loss` and
            `val_steps`, `best_val_loss`, `final_val_loss` (of the best weights, on all held-out
            text) and `bits_per_byte`, `steps`, `seconds`, and `stopped`: `finished`, `time` or
            `early`.

        Raises:
            AGI2Error: where the folder cannot be written, memory does not suffice, the loss stays
                no number, or the device fails; what was saved stays.
            LostProcess: where one of several processes is gone.
        """
        keep_freed_memory()
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        self._prepare_loss()
        self._peak_flops = peak_flops(self.device, self.precision)
        bounded = self.config.epochs < UNBOUNDED_EPOCHS or self.config.max_steps is not None
        display = TrainingDisplay(self.total_steps if bounded else None)
        interrupt = Interrupt()
        try:
            if self.processes.is_main:
                self._prepare_folder(checkpoint)
            with interrupt, display as self.display:
                stopped = self._loop(interrupt)
                # Before the last validation, so that whatever happens in there loses nothing.
                self._save_whole()
            return self._finish(stopped)
        except (RuntimeError, MemoryError) as error:
            # Once a process is gone, torchrun asks the others to stop.
            if interrupt.asked and is_lost_process(error):
                raise KeyboardInterrupt from error
            if is_out_of_memory(error):
                raise self._out_of_memory() from error
            if not is_device_failure(error):
                raise
            raise AGI2Error(
                f"{self.device} failed at step {self.step} ({first_line(error)}): when it works "
                "again, or with another device, go on with --resume"
            ) from error
        finally:
            if self.has_begun:
                self.metrics.close()

    def _prepare_loss(self) -> None:
        """The model with its loss, shared with the other processes, compiled if it can be."""
        self.compiled = self.compiled and can_compile(self.device)
        shared: nn.Module = self._module
        if not self.sharded:
            shared, self._keep_local = self.processes.share(self._module)
        self.loss: LossFunction = torch.compile(shared) if self.compiled else shared

    def _prepare_folder(self, checkpoint: Checkpoint | None) -> None:
        """Go on in the run's folder as it was at the checkpoint, or begin a new one."""
        logged = 0
        if checkpoint is not None and checkpoint.run.resolve() == self.folder.resolve():
            logged = checkpoint.state["metrics_size"]
            checkpoints.forget_after(self.folder, self.step)
        else:
            checkpoints.make_room(self.folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        describe_model(self.model.config, self.tokenizer, self.config, self.folder)
        if checkpoint is not None:
            checkpoint.restore_best(self.weights)
        checkpoints.clear_leftovers(self.folder)
        self.metrics = RunLog(self.config, self.folder, logged, self.step)
        self.has_begun = True
        self._write({"step": self.step, "start": self._describe()})

    def _write(self, entry: dict[str, Any]) -> None:
        """A line of the log, which is the main process's."""
        if self.processes.is_main:
            self.metrics.write(entry)

    def _describe(self) -> dict[str, Any]:
        """What begins here, for whoever reads the log."""
        data = self.batches.dataset
        return {
            "time": datetime.now().isoformat(" ", "seconds"),
            "parameters": self.model.num_parameters(),
            "total_steps": self.total_steps,
            "tokens_per_step": self._tokens_per_step,
            "train_tokens": len(data.tokens),
            "train_bytes": int(self.tokenizer.byte_lengths()[data.tokens].sum()),
            "val_tokens": len(self.val_data.tokens) if self.val_data else 0,
            "processes": self.processes.count,
            "micro_batch_size": self.micro_batch_size,
            "precision": _name_of(self.precision),
            "compiled": self.compiled,
            "device": describe_device(self.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }

    def _loop(self, interrupt: Interrupt) -> str:
        """Step until something ends the run; say what."""
        self.model.train()
        self._first_step, self._first_second = self.step, self.seconds
        self._started = time.monotonic()
        self._busy_seconds, self._busy_steps = 0.0, 0
        self._upcoming: torch.Tensor | None = None
        while True:
            # After this step's checkpoint, so that a crash in here loses nothing.
            if self.step % self.config.eval_interval == 0 and self.evaluated_at != self.step:
                self._validate()
            if self._patience_is_over():
                return "early"
            if self.step >= self.total_steps:
                return "finished"
            if self._time_is_over():
                return "time"
            self._train_one_step()
            self._stop_if_diverged()
            # The same on all, at the same step.
            asked, self.seconds = self.processes.agree(interrupt.asked, self.seconds)
            if asked:
                place = self._save_whole()
                log.info("interrupted: saved %s; go on with --resume", place)
                raise KeyboardInterrupt
            if self.step % self.config.checkpoint_interval == 0:
                self.save()

    def _train_one_step(self) -> None:
        config = self.config
        started = time.monotonic()
        factor = self._learning_rate_factor()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        loss = self._accumulate()
        self._upcoming = self._fetch(self.step + 1)  # while a GPU works
        norm, taken = apply_gradients(self.optimizers, config.clip_grad_norm, self.scaler)
        self.step += 1
        if taken:
            self.epoch_loss.add(loss)
            self.recent_loss.add(loss)
            self.skipped_in_a_row = 0
        else:
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            log.warning("step %d left out: its loss or gradients are not finite", self.step)
        now = time.monotonic()
        self.seconds = self._first_second + now - self._started
        self._busy_seconds += now - started
        self._busy_steps += 1
        if self.step % config.log_interval == 0 or self.step == self.total_steps:
            self._log_step(config.learning_rate * factor, norm)
        elif self.step == self._first_step + 1:
            self._show(loss.item())
        if self.step % self.batches.steps_per_epoch == 0:
            self._log_epoch()

    def _fetch(self, step: int) -> torch.Tensor:
        """A step's batch, on its way to the device."""
        batch = self.batches.batch(step, self.processes.rank, self.processes.count)
        if self.device.type == "cuda":  # pragma: needs gpu
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch

    def _accumulate(self) -> torch.Tensor:
        """The batch's gradients and its mean loss; in smaller parts where memory runs out."""
        batch = self._upcoming if self._upcoming is not None else self._fetch(self.step)
        while True:
            # Dropout is a function of the step, so that one that is repeated or resumed is equal;
            # and of the process, so that no two draw the same.
            seed = self.config.seed * 1_000_033 + self.step + self.processes.rank * 2**40
            seed_everything(seed % 2**63)
            try:
                loss = accumulate_gradients(
                    self.loss,
                    batch,
                    self.device,
                    micro_batch_size=self.micro_batch_size,
                    precision=self.precision,
                    scaler=self.scaler,
                    keep_local=self._keep_local,
                )
                return self.processes.mean(loss)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback holds on to the tensors.
            self._shrink_micro_batch()

    def _shrink_micro_batch(self) -> None:
        """Halve the micro-batch, or go down to the next divisor of the batch."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":  # pragma: needs gpu
            torch.cuda.empty_cache()
        if self.processes.count > 1 or self.micro_batch_size == 1:
            raise self._out_of_memory()
        whole, half = self.batches.batch_size, self.micro_batch_size // 2
        smaller = max(n for n in range(1, half + 1) if whole % n == 0)
        log.warning(
            "out of memory with %d sequences at a time: going on with %d (the same gradients)",
            self.micro_batch_size,
            smaller,
        )
        self.micro_batch_size = smaller

    def _out_of_memory(self) -> AGI2Error:
        """What to do where smaller micro-batches cannot help, or are not in one's own hand."""
        who = f" on process {self.processes.rank}" if self.processes.count > 1 else ""
        return AGI2Error(
            f"out of memory at step {self.step}{who}, with {self.micro_batch_size} sequences at a "
            "time: lower micro_batch_size, set gradient_checkpointing = true, or lower seq_len, "
            "vocab_size, model_layer or model_embd"
            + ('; or share the model: parallel = "fsdp"' if who else "")
        )

    def _stop_if_diverged(self) -> None:
        """End the run where too many steps in a row were left out."""
        limit = _SKIPPED_IN_FP16 if self.scaler.is_enabled() else _SKIPPED_AT_MOST
        if self.skipped_in_a_row < limit:
            return
        place = self._save_whole()
        raise AGI2Error(
            f"{limit} steps in a row gave no finite loss: lower learning_rate (now "
            f"{self.config.learning_rate:g}) and go on from a checkpoint: the last good weights "
            f"are in {place}"
        )

    def _progress(self) -> float:
        """The share of the run that is done, by steps or by the clock."""
        done = self.step / self.total_steps
        if self.config.max_minutes is not None:
            done = max(done, self.seconds / (60 * self.config.max_minutes))
        return min(done, 1.0)

    def _learning_rate_factor(self) -> float:
        warmup = min(self.config.warmup_steps, self.total_steps // 10)
        start = warmup / self.total_steps
        progress = (self._progress() - start) / (1 - start)
        return learning_rate_factor(
            self.config.lr_schedule, progress, self.step, warmup, self.config.lr_decay_fraction
        )

    def _time_is_over(self) -> bool:
        limit = self.config.max_minutes
        return limit is not None and self.seconds >= 60 * limit

    def _patience_is_over(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.evaluations_without_gain >= patience

    def _log_step(self, rate: float, norm: torch.Tensor) -> None:
        loss = self.recent_loss.take()
        memory = memory_stats(self.device)
        self._write(
            {
                "step": self.step,
                "epoch": self.step / self.batches.steps_per_epoch,
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm.item(),
                "skipped_steps": self.skipped_steps,
                "tokens": self.step * self._tokens_per_step,
                "tokens_per_second": self._speed(),
                "share_of_peak": self._share_of_peak(),
                "seconds": self.seconds,
                "process_memory": memory.process,
                "device_memory": memory.device_peak,
            }
        )
        self._show(loss)
        self._busy_seconds, self._busy_steps = 0.0, 0

    @property
    def _tokens_per_step(self) -> int:
        return self.batches.batch_size * (self.batches.dataset.seq_len - 1)

    def _speed(self) -> float:
        """Tokens per second of the steps since the last line of the log."""
        return self._busy_steps * self._tokens_per_step / max(self._busy_seconds, 1e-9)

    def _share_of_peak(self) -> float | None:
        """The share of the device's peak FLOP/s that the steps reach, where the peak is known."""
        if self._peak_flops is None:  # pragma: needs gpu
            return None
        each = training_flops(
            self.model.config, self.model.num_parameters(), self.batches.dataset.seq_len - 1
        )
        return self._speed() * each / self._peak_flops

    def _show(self, loss: float) -> None:
        progress = self._progress()
        self.display.update(
            self.step,
            progress,
            loss,
            speed=self._speed(),
            seconds_left=self.seconds * (1 - progress) / max(progress, 1e-9),
            val_loss=self.history["val_loss"][-1] if self.history["val_loss"] else None,
            share_of_peak=self._share_of_peak(),
            memory=memory_stats(self.device),
        )

    def _log_epoch(self) -> None:
        loss = self.epoch_loss.take()
        self.history["train_loss"].append(loss)
        epoch = len(self.history["train_loss"])
        self._write({"step": self.step, "epoch": epoch, "epoch_loss": loss})
        log.info("epoch %d  training loss %.4f", epoch, loss)

    def _validate(self) -> None:
        """Evaluate, keep the weights if they are the best, and write a sample."""
        self.evaluated_at = self.step
        self._gather()
        if self.val_data is not None:
            result = self.processes.from_main(lambda: self.evaluate(self.config.eval_tokens))
            self._log_validation(result)
            if result.loss < self.best_loss:
                self.best_loss = result.loss
                self.evaluations_without_gain = 0
                if self.processes.is_main:
                    self._saving.wait()  # a checkpoint may be writing, or linking, the same file
                    save_weights(self.whole.state_dict(), self.weights, self.tokenizer)
            else:
                self.evaluations_without_gain += 1
        if self.config.sample_tokens and self.processes.is_main:
            text = self.sample(self.config.sample_tokens, seed=self.config.seed + self.step)
            self._write({"step": self.step, "sample": text})
            log.info("sample: %s", " ".join(text.split()))
        self.whole = self.model  # a copy is not kept

    def _gather(self) -> None:
        """Make `whole` the model as it is now, on the main process; all of them take part."""
        if not self.sharded:
            return
        weights = {}
        for name, tensor in self.model.state_dict().items():
            gathered = whole(tensor)  # one at a time: the others keep none
            if self.processes.is_main:
                weights[name] = gathered
        if self.processes.is_main:
            with torch.device("meta"):
                self.whole = GPT2Model(self.model.config)
            self.whole.load_state_dict(weights, assign=True)
            self.whole.to(self.device)

    def _log_validation(self, result: Evaluation) -> None:
        loss, bits = result.loss, result.bits_per_byte
        self.history["val_loss"].append(loss)
        self.history["val_steps"].append(self.step)
        self._write({"step": self.step, "val_loss": loss, "val_bits_per_byte": bits})
        log.info(
            "step %d  validation loss %.4f (%.3f bits per byte)  memory %s",
            self.step,
            loss,
            bits,
            memory_stats(self.device),
        )

    def evaluate(self, max_tokens: int = 0) -> Evaluation:
        """The model's loss on the held-out text, or on part of it."""
        assert self.val_data is not None
        return evaluate(
            self.whole,
            self.val_data,
            self.tokenizer,
            batch_size=self.micro_batch_size,
            max_tokens=max_tokens,
            precision=self.precision,
        )

    def sample(self, tokens: int, seed: int) -> str:
        """Text as the model writes it now."""
        keys = {**sampling_keys(self.config), "max_length": tokens, "min_length": 0}
        return generate_text(
            self.whole, self.config.model_seed, tokenizer=self.tokenizer, seed=seed, **keys
        )

    def save(self) -> Path:
        """Write a checkpoint; the run's weights too, while no validation has chosen any.

        From a GPU the state is copied first and written while training goes on. Of several
        processes the main one writes.
        """
        place = checkpoints.checkpoint_folder(self.folder, self.step)
        if self.processes.is_main:
            self.metrics.sync()
        if self.sharded:
            self._save_shards()
            return place
        if not self.processes.is_main:
            return place
        chosen = self.best_loss < float("inf")
        weights = self.model.state_dict()
        tensors = checkpoints.optimizer_tensors(self.model, self.optimizers)
        state = self.state_dict()

        def write() -> None:
            checkpoints.save_checkpoint(
                self.folder,
                state["step"],
                weights,
                tensors,
                state,
                self.config.keep_checkpoints,
                best=self.weights if chosen else None,
            )
            if not chosen:
                save_weights(weights, self.weights, self.tokenizer)

        self._saving.wait()
        if self.device.type == "cpu":
            write()
        else:  # pragma: needs gpu
            weights = {name: tensor.cpu() for name, tensor in weights.items()}
            tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
            self._saving.start(write)
        return place

    def _save_shards(self) -> None:
        """As `save`, each process its own parts."""
        chosen = self.best_loss < float("inf")
        checkpoints.save_shards(
            self.folder,
            self.step,
            self.model.state_dict(),
            checkpoints.optimizer_tensors(self.model, self.optimizers),
            self.state_dict() if self.processes.is_main else {},
            self.config.keep_checkpoints,
            self.weights if chosen else None,
            self.processes,
        )
        if not chosen:
            self._gather()
            if self.processes.is_main:
                save_weights(self.whole.state_dict(), self.weights, self.tokenizer)
            self.whole = self.model

    def _save_whole(self) -> Path:
        """Write a checkpoint, and go on only when it is whole: in no process before."""
        place = self.save()
        self._saving.wait()
        self.processes.wait_for_all()
        return place

    def _finish(self, stopped: str) -> History:
        """Validate a last time, and leave the best weights in the model."""
        if self.evaluated_at != self.step:
            self._validate()
            self.save()  # with what it found: a longer run may go on from here
        self._saving.wait()
        self._load_best()
        history = {**self.history, "steps": self.step, "seconds": self.seconds, "stopped": stopped}
        if self.epoch_loss.count:  # the epoch that the end broke off
            history["train_loss"] = [*history["train_loss"], self.epoch_loss.take()]
            log.info("last epoch, in part  training loss %.4f", history["train_loss"][-1])
        if self.val_data is not None:
            with busy("validating on all held-out text"):
                final = self.processes.from_main(self.evaluate)
            history["best_val_loss"] = self.best_loss
            history["final_val_loss"] = final.loss
            history["bits_per_byte"] = final.bits_per_byte
            log.info(
                "best weights: validation loss %.4f, perplexity %.2f, %.3f bits per byte",
                final.loss,
                final.perplexity,
                final.bits_per_byte,
            )
        log.info(
            "%s after %d steps, %s: %s",
            {"early": "stopped early", "time": "time is over"}.get(stopped, stopped),
            self.step,
            human_time(self.seconds),
            self.folder,
        )
        return history

    def _load_best(self) -> None:
        """Leave the best weights in the model."""
        if self.sharded:
            self.processes.wait_for_all()  # until the main process has written them
            load_weights(self.model, self.weights)
            self._gather()
            return
        if self.processes.is_main:
            load_weights(self.model, self.weights)
        self.processes.copy_from_main(self.model.state_dict().values())


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
