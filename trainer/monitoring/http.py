"""Serve a process's metrics and health over HTTP, in a background thread.

    GET /metrics   Prometheus's text format
    GET /healthz   JSON: 200 if the process is healthy, 503 if not
    GET /targets   only 'crossfade train': the addresses of all processes of the run, for Prometheus's http_sd

There is no authentication, so the server binds to loopback unless the job names another address.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from crossfade.base.errors import InputError, Text
from crossfade.trainer.monitoring.bounded_server import BoundedHandler, BoundedServer
from crossfade.trainer.monitoring.registry import ProcessMetrics

Targets = Callable[[], list[dict[str, Any]]]
MAX_FINAL_WAIT_SECONDS = 20.0
"""Maximum time that a finished run waits for Prometheus to scrape its last values."""
POLL_SECONDS = 0.05
_ALL_ADDRESSES = {"", "0.0.0.0"}  # noqa: S104 - compared with, not bound to


@dataclass
class MetricsEndpoint:
    """A running endpoint. ``address`` is where others reach it, HOST:PORT; None if the job has none."""

    metrics: ProcessMetrics
    address: str | None = None
    targets: Targets | None = field(default=None)
    """Returns the answer to /targets."""
    _scrapes: deque[float] = field(default_factory=lambda: deque([-math.inf, -math.inf], 2))
    """When the last two answered scrapes by Prometheus began, in monotonic seconds."""

    def note_scrape(self, began_at: float) -> None:
        """Record that Prometheus received the answer to a scrape that began at ``began_at``."""
        self._scrapes.append(began_at)

    def seconds_until_scrape(self) -> float:
        """Return how long the next scrape should take to come, by the last two; 0 if none is expected."""
        before, last = self._scrapes
        due = last + min(1.5 * (last - before), MAX_FINAL_WAIT_SECONDS) - time.monotonic()
        return max(due, 0.0) if math.isfinite(before) else 0.0

    def await_final_scrape(self, is_canceled: Callable[[], bool]) -> None:
        """Wait until Prometheus has scraped the last values, if it scraped before, or until ``is_canceled()``."""
        began_at = time.monotonic()
        deadline = began_at + self.seconds_until_scrape()
        while time.monotonic() < deadline and self._scrapes[-1] < began_at and not is_canceled():
            time.sleep(POLL_SECONDS)


_logger = logging.getLogger(__name__)
_SCRAPE_HEADER = "X-Prometheus-Scrape-Timeout-Seconds"


class _Handler(BoundedHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer a request."""
        self.admit()
        began_at, path = time.monotonic(), self.path.partition("?")[0]
        try:
            status, kind, body = self._answer(path)
        except Exception:  # an internal error must not end the process
            _logger.exception("GET %s failed", path)
            status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"error: see the log\n"
        self.answer(status, body, kind)
        if path == "/metrics" and _SCRAPE_HEADER in self.headers:
            self.server.endpoint.note_scrape(began_at)

    def _answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        endpoint = self.server.endpoint
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, endpoint.metrics.text()
        if path == "/healthz":
            healthy, status = endpoint.metrics.health()
            return (HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE), *_json(status)
        if path == "/targets" and endpoint.targets is not None:
            return HTTPStatus.OK, *_json(endpoint.targets())
        return HTTPStatus.NOT_FOUND, "text/plain", b"not found; available are /metrics and /healthz\n"


def _json(value: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode() + b"\n"


class _Server(BoundedServer):
    def __init__(self, host: str, port: int, endpoint: MetricsEndpoint) -> None:
        self.endpoint = endpoint
        super().__init__(host, port, _Handler)


@contextmanager
def serve_metrics(
    metrics: ProcessMetrics, port: int | None, host: str | None, role_host: str, *, source: Text = "metrics.port"
) -> Iterator[MetricsEndpoint]:
    """Serve ``metrics`` while the context lasts.

    Args:
        metrics: the metrics of this process.
        port: the port, 0 for a free one, or None to serve nothing.
        host: the address to bind to; ``role_host`` if None.
        role_host: the address at which others reach this process.
        source: the option or key that set the port, for errors.

    Raises:
        InputError: the address cannot be bound.
    """
    endpoint = MetricsEndpoint(metrics)
    if port is None:
        yield endpoint
        return
    host = role_host if host is None else host
    try:
        server = _Server(host, port, endpoint)
    except OSError as error:
        raise InputError(
            source, f": cannot listen on {host}:{port}: {error.strerror or error}; name another, or 0 for a free one"
        ) from error
    endpoint.address = f"{role_host if host in _ALL_ADDRESSES else host}:{server.server_port}"
    with server.running():
        yield endpoint
