"""A real Prometheus on loopback, and its query API."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml
from object_store import free_ports
from scraping import installed
from server_process import is_ok, start_server


class Prometheus:
    """A Prometheus at ``address``, HOST:PORT."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **parameters: object) -> Any:
        """Return the data of a successful answer of its API."""
        result = requests.get(f"http://{self.address}/api/v1/{path}", parameters, timeout=60).json()
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
    process = start_server(
        [*command, f"--web.listen-address={address}"], folder / "log", lambda: is_ok(f"http://{address}/-/ready")
    )
    try:
        yield Prometheus(address)
    finally:
        process.kill()
        process.wait()
