"""Where a process can be watched: a listener in a thread of its own.

    GET /metrics   Prometheus's text format
    GET /healthz   JSON: 200 if the process is well, 503 if not
    GET /targets   of 'crossfade train' alone: where all processes of the run listen, as Prometheus's http_sd has it

Whoever can reach the listener may read it: it binds to the address that the job says, by default loopback.
"""

from __future__ import annotations

import json
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from kvstore.errors import InputError
from trainer.monitoring.bounded_server import BoundedServer
from trainer.monitoring.registry import ProcessMetrics

Targets = Callable[[], list[dict[str, Any]]]
CLIENT_SECONDS = 5.0
"""How long a client may make a thread wait for its next bytes."""
FAREWELL_SECONDS = 20.0
"""How long the end of a run waits for Prometheus, at most, to have the last values."""
POLL_SECONDS = 0.05
_ANYWHERE = {"", "0.0.0.0"}  # noqa: S104 - compared with, not bound to


@dataclass
class MetricsEndpoint:
    """A listener: ``address`` is where others reach it, HOST:PORT; None if the job wants none."""

    metrics: ProcessMetrics
    address: str | None = None
    targets: Targets | None = field(default=None)
    """What /targets answers."""
    _scrapes: deque[float] = field(default_factory=lambda: deque([-math.inf, -math.inf], 2))
    """When Prometheus began the last two scrapes that it got an answer to, by the monotonic clock."""

    def was_scraped(self, begin: float) -> None:
        """Take it that Prometheus has what it began to ask for at ``begin``."""
        self._scrapes.append(begin)

    def farewell_seconds(self) -> float:
        """How long it should take until Prometheus, if it scrapes this, comes again; 0: it does not."""
        before, last = self._scrapes
        due = last + min(1.5 * (last - before), FAREWELL_SECONDS) - time.monotonic()
        return max(due, 0.0) if math.isfinite(before) else 0.0

    def await_final_scrape(self, enough: Callable[[], bool]) -> None:
        """Let Prometheus have the last values, if it has scraped this so far: until it was there, or ``enough()``."""
        begin = time.monotonic()
        deadline = begin + self.farewell_seconds()
        while time.monotonic() < deadline and self._scrapes[-1] < begin and not enough():
            time.sleep(POLL_SECONDS)


_SCRAPE_HEADER = "X-Prometheus-Scrape-Timeout-Seconds"


class _Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    timeout = CLIENT_SECONDS
    server: _Server
    server_version, sys_version = "crossfade", ""

    def do_GET(self) -> None:
        """Answer."""
        begin, path = time.monotonic(), self.path.partition("?")[0]
        try:
            status, kind, body = self._answer(path)
        except Exception:  # a fault of ours, which must not end the process that is watched
            traceback.print_exc()
            status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", b"error: see the log\n"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if path == "/metrics" and _SCRAPE_HEADER in self.headers:
            self.server.listener.was_scraped(begin)

    def _answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        listener = self.server.listener
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, listener.metrics.text()
        if path == "/healthz":
            well, told = listener.metrics.health()
            return (HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE), *_json(told)
        if path == "/targets" and listener.targets is not None:
            return HTTPStatus.OK, *_json(listener.targets())
        return HTTPStatus.NOT_FOUND, "text/plain", b"there are /metrics and /healthz\n"

    def log_message(self, *_: object) -> None:
        """Say nothing: scrapes would fill the log."""


def _json(value: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode() + b"\n"


class _Server(BoundedServer):
    def __init__(self, host: str, port: int, listener: MetricsEndpoint) -> None:
        self.listener = listener
        super().__init__(host, port, _Handler)


@contextmanager
def serve_metrics(
    metrics: ProcessMetrics, port: int | None, host: str | None, role_host: str, *, source: str = "metrics.port"
) -> Iterator[MetricsEndpoint]:
    """Answer for ``metrics`` while the context lasts, at ``port`` (0: a free one; None: not at all) of ``host``.

    Without ``host`` that is ``role_host``, at which the others reach this process. ``source`` names the port.

    Raises:
        InputError: nothing can listen there.
    """
    listener = MetricsEndpoint(metrics)
    if port is None:
        yield listener
        return
    host = role_host if host is None else host
    try:
        server = _Server(host, port, listener)
    except OSError as error:
        raise InputError(
            f"{source}: cannot listen on {host}:{port}: {error.strerror or error}; name another, or 0 for a free one"
        ) from error
    listener.address = f"{role_host if host in _ANYWHERE else host}:{server.server_port}"
    # A daemon: a role may end while its main thread is in MXNet.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
