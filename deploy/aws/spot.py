"""Monitor EC2's spot interruption notices, which come two minutes before a host is reclaimed.

    with monitor_spot(log) as spot:
        spot.notice()               # None, or the interruption notice of this host

A thread polls the instance metadata service (version 2) every five seconds, as EC2 advises. The service listens on a
link-local address, which AWS_EC2_METADATA_SERVICE_ENDPOINT overrides as it does for the AWS SDKs. If it does not
answer, that is logged once and polling continues: it never ends the run.

Sources: EC2 user guide, "Use IMDSv2" and "Spot Instance interruption notices".
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from crossfade.base.errors import escape_unprintable, reason_of

POLL_SECONDS = 5.0
NOTICE_SECONDS = 110.0
"""Time that a host has after it reads the notice: EC2's two minutes, less polling and shutdown."""
_ENDPOINT_VARIABLE, _ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254"
_ACTION = "spot/instance-action"
"""Where the metadata service has an interruption, if one is coming."""
_TIMEOUT_SECONDS = 2.0
_TOKEN_SECONDS = "21600"  # noqa: S105 - the maximum lifetime of a token
_MAX_RESPONSE_BYTES = 1 << 20
_VERBS = {"terminate": "terminates", "stop": "stops", "hibernate": "hibernates"}


class SpotMonitor:
    """Collects the notices of the metadata service. ``poll`` is called by one thread, the others by any."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """``log`` receives a line for each new notice."""
        self._address = urlsplit(os.environ.get(_ENDPOINT_VARIABLE) or _ENDPOINT).netloc
        self._log, self._token = log, ""
        self._notice: str | None = None
        self._unreachable = False

    def notice(self) -> str | None:
        """Return the interruption notice of this host; None if there is none."""
        return self._notice

    def poll(self) -> None:
        """Read the metadata service once."""
        try:
            self._record(self._read(_ACTION))
        except (OSError, HTTPException, ValueError) as error:
            if not self._unreachable:
                reason = escape_unprintable(reason_of(error))
                self._log(f"cannot read spot notices, retrying every {POLL_SECONDS:g} s: {self._address}: {reason}")
            self._unreachable = True
        else:
            if self._unreachable:
                self._log("spot notices can be read again")
            self._unreachable = False

    def _record(self, action: str | None) -> None:
        if action is not None and self._notice is None:
            action_name, when = _fields(action, "action", "time")
            self._notice = f"EC2 {_VERBS.get(action_name, action_name)} this spot instance at {when}"
            self._log(self._notice)

    def _read(self, name: str) -> str | None:
        """Return the value of ``latest/meta-data/NAME``; None if there is no such key.

        Raises:
            OSError, HTTPException, ValueError: there is no answer, or not one of this service.
        """
        status, text = self._authorized(name)
        if status == HTTPStatus.UNAUTHORIZED:  # the token has expired
            self._token = ""
            status, text = self._authorized(name)
        if status not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
            raise ValueError(f"the metadata service answered {name} with status {status}")
        return text if status == HTTPStatus.OK else None

    def _authorized(self, name: str) -> tuple[int, str]:
        if not self._token:
            header = "X-aws-ec2-metadata-token-ttl-seconds"
            status, self._token = self._request("PUT", "/latest/api/token", header, _TOKEN_SECONDS)
            if status != HTTPStatus.OK:
                self._token = ""
                raise ValueError(f"the metadata service returned no token, but status {status}")
        return self._request("GET", f"/latest/meta-data/{name}", "X-aws-ec2-metadata-token", self._token)

    def _request(self, method: str, path: str, header: str, value: str) -> tuple[int, str]:
        # http.client, because urllib would send the request to a proxy that the environment names.
        with closing(HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)) as connection:
            connection.request(method, path, headers={header: value})
            response = connection.getresponse()
            return response.status, response.read(_MAX_RESPONSE_BYTES).decode("utf-8", errors="replace")


def _fields(text: str, *names: str) -> list[str]:
    """Return the strings ``names`` of the JSON object ``text``.

    Raises:
        ValueError: it is not JSON, or lacks one of them.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in names):
        raise ValueError(f"expected {', '.join(names)}, but found {text[:200]}")
    return [escape_unprintable(fields[name]) for name in names]


@contextmanager
def monitor_spot(log: Callable[[str], None], *, enabled: bool = True) -> Iterator[SpotMonitor | None]:
    """Poll the metadata service while the context lasts; yield None if not ``enabled``."""
    if not enabled:
        yield None
        return
    monitor, stopped = SpotMonitor(log), threading.Event()

    def poll() -> None:
        while not stopped.is_set():
            monitor.poll()
            stopped.wait(POLL_SECONDS)

    thread = threading.Thread(target=poll, name="spot-monitor", daemon=True)
    thread.start()
    try:
        yield monitor
    finally:
        stopped.set()  # no join: the thread is a daemon, and a request may still be pending
