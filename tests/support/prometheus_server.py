"""A real Prometheus on loopback, and its query API."""

import json
import os
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from object_store import free_ports
from scraping import installed
from waiting import wait_until

from crossfade.base.processes import die_with_parent


class Prometheus:
    """A Prometheus at ``address``, HOST:PORT."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **parameters: object) -> Any:
        """Return the data of a successful answer of its API."""
        query = {key: value for key, value in parameters.items() if value is not None}
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query, doseq=True)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            result = json.load(answer)
        assert result["status"] == "success", result
        return result["data"]


@contextmanager
def running_prometheus(folder: Path, config: dict[str, Any]) -> Iterator[Prometheus]:
    """Run Prometheus with ``config``. Without Prometheus on this machine, skip the test; in CI, fail."""
    tool = installed("prometheus")
    folder.mkdir()
    config_file, address = folder / "prometheus.yml", f"127.0.0.1:{free_ports(1)[0]}"
    config_file.write_text(yaml.safe_dump(config))
    command = [tool, f"--config.file={config_file}", f"--storage.tsdb.path={folder}/data"]
    parent = os.getpid()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"],
            stdout=log,
            stderr=log,
            preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - it takes no locks
        )
    try:
        wait_until(lambda: _is_ready(process, address, folder / "log"), "Prometheus to be ready")
        yield Prometheus(address)
    finally:
        process.kill()
        process.wait()


def _is_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
