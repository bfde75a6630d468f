"""Metrics of the server, in Prometheus' format."""

from __future__ import annotations

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossfade.trainer.recommend.options import OnUnknown

disable_created_metrics()  # type: ignore[no-untyped-call]
_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

_REGISTRY = CollectorRegistry()
_REQUESTS = Counter("crossfade_serve_requests", "Requests answered.", ["route", "status"], registry=_REGISTRY)
_UNKNOWN = Counter(
    "crossfade_serve_unknown_queries",
    "Recommendations asked for by an ID that is unknown or has no trained vector, by what it gets.",
    ["on_unknown"],
    registry=_REGISTRY,
)
_SECONDS = Histogram(
    "crossfade_serve_request_seconds",
    "Time from a request to its response.",
    ["route"],
    buckets=_BUCKETS,
    registry=_REGISTRY,
)
_LOADED = Gauge(
    "crossfade_serve_version_loaded_timestamp_seconds", "When the version was loaded, in Unix time.", registry=_REGISTRY
)
_VERSION = Gauge("crossfade_serve_version", "Number of the version.", registry=_REGISTRY)
_REFRESHES = Counter(
    "crossfade_serve_refreshes",
    "New versions of the model, by whether they were written.",
    ["result"],
    registry=_REGISTRY,
)
_WRITTEN = Summary("crossfade_serve_version_write_seconds", "Time to write a version of the model.", registry=_REGISTRY)
_FAILED = Counter(
    "crossfade_serve_versions_failed", "New versions of the model that could not be opened.", registry=_REGISTRY
)
_UNKNOWN_ROUTE = "other"
_NO_RESPONSE = 500


def record_unknown(on_unknown: OnUnknown, count: int) -> None:
    """Record that a request has asked for ``count`` queries without a trained vector, which get ``on_unknown``."""
    _UNKNOWN.labels(on_unknown).inc(count)


def record_failed_version() -> None:
    """Record that a version could not be opened."""
    _FAILED.inc()


def record_failed_refresh() -> None:
    """Record that a new version could not be written."""
    _REFRESHES.labels("failure").inc()


def record_written(seconds: float) -> None:
    """Record that a version was written within ``seconds``."""
    _REFRESHES.labels("success").inc()
    _WRITTEN.observe(seconds)


def record_version(number: int) -> None:
    """Record that the version ``number`` answers."""
    _VERSION.set(number)
    _LOADED.set(time.time())


def exposition() -> bytes:
    """Return the metrics."""
    return generate_latest(_REGISTRY)


class RecordedRequests:
    """Records route, status and duration of every request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), _NO_RESPONSE

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            route = scope.get("route")
            # Unknown paths have one label together, so that their number is bounded.
            path = getattr(route, "path", _UNKNOWN_ROUTE)
            _REQUESTS.labels(path, str(status)).inc()
            _SECONDS.labels(path).observe(time.perf_counter() - start)
