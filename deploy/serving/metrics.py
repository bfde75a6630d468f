"""Metrics of the server, of all its processes, in Prometheus' format.

Each process writes its values to files in the folder that ``PROMETHEUS_MULTIPROC_DIR`` names; ``/metrics`` of any of
them adds them up. The variable must be set before this module is imported.
"""

from __future__ import annotations

import time
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

_REQUESTS = Counter("crossfade_serve_requests", "Requests answered.", ["route", "status"])
_SECONDS = Histogram(
    "crossfade_serve_request_seconds", "Time from a request to its response.", ["route"], buckets=_BUCKETS
)
_LOADED = Gauge(
    "crossfade_serve_version_loaded_timestamp_seconds",
    "When the process that was last to load a model loaded it, in Unix time.",
    multiprocess_mode="mostrecent",
)
_VERSION = Gauge(
    "crossfade_serve_version",
    "Number of the version that a process loaded last.",
    multiprocess_mode="mostrecent",
)
_REFRESHES = Counter(
    "crossfade_serve_refreshes", "New versions of the model, by whether they were written.", ["result"]
)
_FAILED = Counter("crossfade_serve_versions_failed", "New versions of the model that a process could not open.")


def record_failed_version() -> None:
    """Record that this process could not open a version."""
    _FAILED.inc()


def record_refresh(result: Literal["success", "failure"]) -> None:
    """Record that a new version was written, or could not be."""
    _REFRESHES.labels(result).inc()


def record_request(route: str, status: int, seconds: float) -> None:
    """Record a request that was answered."""
    _REQUESTS.labels(route, str(status)).inc()
    _SECONDS.labels(route).observe(seconds)


def record_version(number: int) -> None:
    """Record that this process has loaded the version ``number``."""
    _VERSION.set(number)
    _LOADED.set(time.time())


def exposition() -> bytes:
    """Return the metrics of all processes."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
