"""Figures of a server for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

if TYPE_CHECKING:
    from .endpoints import Call
    from .models import ServedModel
    from .streaming import Generation

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Counters of requests and times, and the figures of the engines.

    Args:
        loaded: returns the models in memory.
    """

    def __init__(self, loaded: Callable[[], Iterable[ServedModel]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "agi2_requests", "Responses.", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "agi2_request_seconds",
            "Seconds of a request.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "agi2_first_token_seconds",
            "Seconds to the first token, the time in the queue included.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._finished = Counter(
            "agi2_texts", "Texts that have ended.", ["reason"], registry=self._registry
        )
        self._registry.register(_Engines(loaded))

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a response.

        Args:
            path: a route's, not a request's: there are few of them.
            status: HTTP status; 0 if the client went away before the response began.
            seconds: of the request.
        """
        self._requests.labels(path, str(status or "disconnected")).inc()
        self._seconds.labels(path).observe(seconds)

    def count_generation(self, generation: Generation) -> None:
        """Count the texts of a request at its end."""
        seconds = generation.seconds_to_first_token
        if seconds is not None:
            self._first_token.observe(seconds)
        for each in generation.sequences:
            self._finished.labels(each.finish_reason or "disconnected").inc()

    @property
    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """Figures of the engines, read when they are asked for."""

    _GAUGES = (
        ("running", "Texts that are generated now."),
        ("waiting", "Texts that wait for a row of the KV cache now."),
        ("kv_cache_bytes", "Size of the KV cache."),
        ("prefix_cache_bytes", "Size of the cached prompt prefixes."),
    )
    _COUNTERS = (
        ("prompt_tokens", "Prompt tokens of the texts that have begun."),
        ("cached_tokens", "Prompt tokens whose keys and values were cached."),
        ("generated_tokens", "New tokens."),
        ("steps", "Steps of the engine."),
    )

    def __init__(self, loaded: Callable[[], Iterable[ServedModel]]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of each model that is loaded."""
        stats = [(served.name, served.engine.stats) for served in self._loaded()]
        for name, text in self._GAUGES:
            gauge = GaugeMetricFamily(f"agi2_{name}", text, labels=["model"])
            for model, figures in stats:
                gauge.add_metric([model], getattr(figures, name))
            yield gauge
        for name, text in self._COUNTERS:
            counter = CounterMetricFamily(f"agi2_{name}", text, labels=["model"])
            for model, figures in stats:
                counter.add_metric([model], getattr(figures, name))
            yield counter


async def show_metrics(call: Call) -> Response:
    """Return the server's figures in Prometheus' text format."""
    return Response(call.state.metrics.text, media_type="text/plain; version=0.0.4; charset=utf-8")
