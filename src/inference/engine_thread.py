"""An engine in a thread of its own: sequences come from any thread and are generated together.

The engine's thread alone changes sequences; see `Sequence` for what other threads may read.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import AGI2Error, one_line
from ..utils import log, plural
from .engine import Engine
from .model_runner import ModelRunner, max_batch_rows
from .prefix_cache import PrefixCache
from .sequence import FinishReason, Sequence

SERVING_STEP_TOKENS = 256
"""Default limit of the tokens of a step: running sequences wait that long for a long prompt."""
_LONGEST_RETRY = 60.0
"""Maximum of `QueueFull.retry_after`, in seconds."""


class QueueFull(AGI2Error):
    """As many sequences wait as may.

    Args:
        limit: the maximum number of waiting sequences.
        retry_after: estimated seconds until another one is accepted.
    """

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(
            f"{plural(limit, 'request')} are waiting, the maximum: try again in "
            f"{retry_after:.0f} s"
        )
        self.retry_after = retry_after


class EngineClosed(AGI2Error):
    """The engine has been closed, or is closing."""

    def __init__(self) -> None:
        super().__init__("the model is being unloaded and accepts no more requests")


@dataclass(frozen=True)
class EngineStats:
    """Figures of an engine since it was started."""

    running: int
    """Sequences that have a row of the KV cache now."""
    waiting: int
    """Sequences that wait for a row now."""
    prompt_tokens: int
    """Prompt tokens of the sequences that have begun."""
    cached_tokens: int
    """Those whose keys and values were copied instead of computed."""
    generated_tokens: int
    steps: int
    """Forward passes."""
    kv_cache_bytes: int
    """Size of the KV cache's rows, allocated as needed."""
    prefix_cache_bytes: int


class _Request(NamedTuple):
    sequence: Sequence
    notify: Callable[[], object]
    deadline: float


class EngineThread:
    """An engine that is stepped in its own thread while there are sequences.

    Args:
        runner: the model; reserved until the engine is closed.
        max_rows: maximum number of sequences that run at once; fewer if memory is short (see
            `max_batch_rows`).
        max_waiting: maximum number of sequences that wait for a row.
        prefix_cache: stores keys and values of sequences for later ones; None for none.
        max_tokens: maximum number of tokens of a step.

    Raises:
        AGI2Error: if the runner is in use.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        max_rows: int,
        max_waiting: int,
        prefix_cache: PrefixCache | None = None,
        max_tokens: int = SERVING_STEP_TOKENS,
    ) -> None:
        runner.batch_invariant = True
        rows = min(max_rows, max_batch_rows(runner.model))
        self._engine = Engine(runner, rows, max_tokens, prefix_cache)
        self._max_waiting = max_waiting
        self._max_unfinished = self._engine.scheduler.max_rows + max_waiting
        self._wake = threading.Condition()
        # The rest is guarded by it.
        self._requests: dict[int, _Request] = {}
        """The unfinished ones, by the id of their sequences."""
        self._submitted: list[Sequence] = []
        self._cancelled: list[Sequence] = []
        self._finish_times: deque[float] = deque(maxlen=64)
        self._is_closing = False
        self._is_stopping = False
        self._resources = ExitStack()
        self._resources.enter_context(runner.reserved())
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(
        self, sequence: Sequence, notify: Callable[[], object], deadline: float | None = None
    ) -> None:
        """Add a sequence to the queue; see `submit_all`."""
        self.submit_all([sequence], notify, deadline)

    def submit_all(
        self,
        sequences: Iterable[Sequence],
        notify: Callable[[], object],
        deadline: float | None = None,
    ) -> None:
        """Add sequences to the queue, all or none. May be called from any thread.

        Args:
            sequences: new ones.
            notify: called in the engine's thread after each step in which one of them got a token
                or ended, once for each; must not block. If it raises, the sequence is cancelled.
            deadline: value of `time.monotonic()` at which an unfinished sequence ends with the
                reason "deadline"; None for none.

        Raises:
            QueueFull: if more than `max_waiting` would wait.
            EngineClosed: after `close`.
            AGI2Error: if there are more sequences than ever fit, or one has speculative decoding.
        """
        added, ends = list(sequences), math.inf if deadline is None else deadline
        if len(added) > self._max_unfinished:
            raise AGI2Error(
                f"{len(added)} texts at once are more than the {self._max_unfinished} that may run "
                "and wait: ask for fewer"
            )
        if any(each.options.speculative != "none" for each in added):
            raise AGI2Error('speculative = "ngram" decodes one sequence at a time: remove it')
        with self._wake:
            if self._is_closing:
                raise EngineClosed
            excess = len(self._requests) + len(added) - self._max_unfinished
            if excess > 0:
                raise QueueFull(self._max_waiting, self._seconds_until_finished(excess))
            for each in added:
                self._requests[id(each)] = _Request(each, notify, ends)
            self._submitted += added
            self._wake.notify_all()

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence before the next step, which frees its row. May be called from any thread.

        Does nothing if the sequence has ended or was not submitted.
        """
        with self._wake:
            if id(sequence) in self._requests:
                self._cancelled.append(sequence)
                self._wake.notify_all()

    def close(self, timeout: float = 0.0) -> None:
        """Refuse new sequences, finish those submitted, and end the thread.

        Not to be called from `notify`.

        Args:
            timeout: seconds after which unfinished sequences are cancelled.
        """
        with self._wake:
            self._is_closing = True
            self._wake.wait_for(lambda: not self._requests, timeout)
            self._cancelled += [request.sequence for request in self._requests.values()]
            self._is_stopping = True
            self._wake.notify_all()
        self._thread.join()

    @property
    def stats(self) -> EngineStats:
        """Figures up to now."""
        with self._wake:
            unfinished = len(self._requests)
        engine = self._engine
        running = min(unfinished, len(engine.scheduler.running))
        return EngineStats(
            running,
            unfinished - running,
            engine.counts.prompt_tokens,
            engine.counts.cached_tokens,
            engine.counts.generated_tokens,
            engine.counts.steps,
            engine.runner.cache_bytes,
            0 if engine.prefix_cache is None else engine.prefix_cache.bytes,
        )

    def _seconds_until_finished(self, count: int) -> float:
        """Estimate the seconds until `count` sequences finish, from when the last ones did."""
        times = self._finish_times
        if len(times) < 2:
            return 1.0
        seconds = count * (times[-1] - times[0]) / (len(times) - 1)
        return min(max(seconds, 1.0), _LONGEST_RETRY)

    def _run(self) -> None:
        """Step the engine until it is closed."""
        try:
            while self._receive():
                self._finish_requests(self._step())
        finally:
            # After `close` there are none. Nobody must wait for a thread that has failed.
            with self._wake:
                self._is_closing = True
                unfinished = [request.sequence for request in self._requests.values()]
            self._end(unfinished, "error", "the engine has failed")
            self._finish_requests([])
            self._resources.close()

    def _receive(self) -> bool:
        """Wait for something to do and take what other threads have asked for.

        Returns:
            Whether there may be anything to compute; false once the engine is closed.
        """
        with self._wake:
            while not self._requests and not self._is_stopping:
                self._engine.runner.release_rows()
                self._wake.wait()
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
            now = time.monotonic()
            requests = self._requests.values()
            expired = [each.sequence for each in requests if each.deadline <= now]
            is_open = bool(self._requests)
        for each in submitted:
            self._engine.add(each)
        self._end(cancelled, "cancelled")
        self._end(expired, "deadline")
        return is_open

    def _step(self) -> list[Sequence]:
        """Run a step; return the sequences that got a token. If it fails, they end."""
        try:
            return self._engine.step()
        except Exception as error:
            self._log("a step of the engine failed", error)
            is_known = isinstance(error, AGI2Error)
            self._end(self._begun(), "error", str(error) if is_known else "an internal error")
            self._engine.scheduler.remove_finished()  # all of the rows, so that none moves
            return []

    def _begun(self) -> list[Sequence]:
        """Return the unfinished sequences that do not wait; the first that wait if all do."""
        waiting = list(self._engine.scheduler.waiting)
        with self._wake:
            others = {id(each) for each in (*waiting, *self._submitted)}
            requests = [each.sequence for key, each in self._requests.items() if key not in others]
        begun = [each for each in requests if each.finish_reason is None]
        return begun or waiting[: self._engine.scheduler.max_rows]

    def _finish_requests(self, changed: SequenceOf[Sequence]) -> None:
        """Forget requests that have ended; notify those and the ones that have changed."""
        with self._wake:
            ids = {id(each) for each in changed}
            told = []
            for key, request in list(self._requests.items()):
                if request.sequence.finish_reason is not None:
                    del self._requests[key]
                    self._finish_times.append(time.monotonic())
                    told.append(request)
                elif key in ids:
                    told.append(request)
            if not self._requests:
                self._wake.notify_all()
        for request in told:
            self._notify(request)

    def _notify(self, request: _Request) -> None:
        try:
            request.notify()
        except Exception as error:  # such as a closed event loop: nobody reads the sequence
            self._log("a consumer of the engine failed: its sequence is cancelled", error)
            with self._wake:
                key = id(request.sequence)
                if key in self._requests:
                    self._requests[key] = request._replace(notify=lambda: None)
                    self._cancelled.append(request.sequence)

    @staticmethod
    def _log(what: str, error: Exception) -> None:
        """Log a failure in one line; with its traceback if it is a bug."""
        is_known = isinstance(error, AGI2Error)
        log.error("%s: %s", what, one_line(str(error)), exc_info=None if is_known else error)

    @staticmethod
    def _end(sequences: Iterable[Sequence], reason: FinishReason, error: str | None = None) -> None:
        for each in sequences:
            each.finish(reason, error)
