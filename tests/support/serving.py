"""A running ``crossfade serve``, and requests to it."""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from running_command import RunningCommand, started
from waiting import wait_until

Answer = tuple[int, Any]
"""A status and a body of JSON."""


class RunningServer:
    """A server that listens."""

    def __init__(self, command: RunningCommand, url: str, folder: Path) -> None:
        self.command, self.url, self._folder = command, url, folder

    def get(self, route: str, **parameters: Any) -> Answer:
        """Send a GET request."""
        return _answer(requests.get(f"{self.url}{route}", parameters))

    def post(self, route: str, body: Any) -> Answer:
        """Send a POST request with ``body`` as JSON, or as it is if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return _answer(requests.post(f"{self.url}{route}", data, headers={"Content-Type": "application/json"}))

    def text(self, route: str) -> str:
        """Return the body of a GET request as text."""
        return requests.get(f"{self.url}{route}").content.decode()

    def metric(self, name: str) -> float:
        """Return the value of the metric ``name``, with its labels, on /metrics; 0 if there is none."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.text("metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def is_healthy(self) -> bool:
        """Return whether the server answers."""
        try:
            return bool(self.get("healthz")[0] == 200)
        except OSError:
            return False

    def work_folder(self) -> Path:
        """Return the folder with the copies of the model."""
        [folder] = self._folder.glob("crossfade-model-*")
        return folder


def _answer(response: requests.Response) -> Answer:
    return response.status_code, response.json()


@contextmanager
def running_server(source: object, *options: object, cwd: Path) -> Iterator[RunningServer]:
    """Serve ``source`` at a free port until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="copies-", dir=cwd))  # the copy of a server that is killed stays
    variables = {"TMPDIR": str(folder)}
    with started("serve", source, "--port", 0, *options, cwd=cwd, variables=variables) as command:
        assert command.process.stdout is not None
        line = command.process.stdout.readline()
        found = re.fullmatch(r"serving .*: (http://127\.0\.0\.1:\d+/)\n", line)
        if found is None:
            raise AssertionError(f"expected the address, but found {line!r}\n{command.finish().stderr}")
        server = RunningServer(command, found[1], folder)
        wait_until(server.is_healthy, "the server answers")
        yield server
