"""Numbers about a server in Prometheus's text format, made with its own client library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lit_llm.serving.record import Record

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_REQUEST = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128)

Gauges = dict[str, tuple[str, float]]
"""For each name, what it is and its value now."""


class Metrics:
    """The counters, gauges and histograms of one server. Its methods may be called from any thread.

    Args:
        model: the first one; the label of what belongs to the whole server.
        info: labels of a gauge that is always 1: what is served.
        gauges: called for the values of the moment when they are asked for.

    Raises:
        ModuleNotFoundError: the package prometheus_client is not installed.
    """

    def __init__(self, model: str, info: dict[str, str], gauges: Callable[[], Gauges]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self._registry = CollectorRegistry()
        self._began = time.monotonic()
        options = {"namespace": "lit_llm", "registry": self._registry}

        def histogram(name: str, help: str, labels: list[str], buckets: Iterable[float]) -> Any:
            return Histogram(name, help, labels, buckets=tuple(buckets), **options)

        self._requests = Counter("requests", "Requests that are over.", ["model", "route", "status"], **options)
        self._read = Counter("prompt_tokens", "Tokens of prompts that were taken.", ["model"], **options)
        self._written = Counter("completion_tokens", "Tokens that were written.", ["model"], **options)
        self._ends = Counter("finished_texts", "Texts that are over.", ["model", "finish_reason"], **options)
        self._first_token = histogram(
            "time_to_first_token_seconds", "From a request's head to its first token.", ["model"], _FIRST_TOKEN
        )
        self._token = histogram(
            "time_per_output_token_seconds", "From a token to the next, on average over a text.", ["model"], _TOKEN
        )
        self._request = histogram(
            "request_duration_seconds", "From a request's head to its answer's end.", ["model", "route"], _REQUEST
        )
        self._batch = histogram("batch_size", "Texts in a step of the engine.", ["model"], _BATCH)
        Gauge("info", "What is served.", ["model", *info], **options).labels(model, *info.values()).set(1)
        self._registry.register(_Now(model, lambda: {**self._uptime(), **gauges()}))
        ProcessCollector(registry=self._registry)  # memory, processor time and open files, on Linux
        for labelled in (self._read, self._written, self._first_token, self._token, self._batch):
            labelled.labels(model)  # there from the start, at zero

    def observe(self, record: Record) -> None:
        """Count a request that is over."""
        self._requests.labels(record.model, record.route, str(record.status)).inc()
        self._request.labels(record.model, record.route).observe(record.seconds)
        if record.prompt_tokens:
            self._read.labels(record.model).inc(record.prompt_tokens)
        if not record.written:  # as of a request for vectors
            return
        self._written.labels(record.model).inc(record.completion_tokens)
        if record.seconds_to_first_token is not None:
            self._first_token.labels(record.model).observe(record.seconds_to_first_token)
        for written in record.written:
            self._ends.labels(record.model, written.finish_reason or "none").inc()
            if written.seconds_per_token is not None:
                self._token.labels(record.model).observe(written.seconds_per_token)

    def observe_batch(self, model: str, size: int) -> None:
        """Count a step of the engine of a model, which its adapters share."""
        self._batch.labels(model).observe(size)

    def text(self) -> tuple[bytes, str]:
        """Return everything as a text, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _uptime(self) -> Gauges:
        return {"uptime_seconds": ("Since the server was made.", time.monotonic() - self._began)}


class _Now:
    """Gauges whose values are asked for when they are read."""

    def __init__(self, model: str, gauges: Callable[[], Gauges]) -> None:
        self._model, self._gauges = model, gauges

    def collect(self) -> Iterator[Any]:
        """Yield each gauge, as prometheus_client asks of a collector."""
        from prometheus_client.core import GaugeMetricFamily

        for name, (help, value) in self._gauges().items():
            family = GaugeMetricFamily(f"lit_llm_{name}", help, labels=["model"])
            family.add_metric([self._model], value)
            yield family
