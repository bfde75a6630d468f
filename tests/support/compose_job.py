"""Run docker-compose.yml on a test's engine and ports, with runs in a folder of the test.

Grafana is left out, since its image cannot be built from packages.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml
from docker_engine import ROOT, STAND_INS, Engine, tag_of
from object_store import free_ports
from running_command import records
from waiting import wait_until

PROJECT = "crossfade-test"
USER_ID = 10001
"""The image's user."""
OVERRIDE: dict[str, Any] = {
    "services": {
        "grafana": {"profiles": ["never"]},
        # Without a network, the loader falls back to synthetic data, which is the same everywhere.
        "loader": {"networks": "RESET"},
    },
    "volumes": {"runs": {"driver_opts": {"type": "none", "o": "bind", "device": "RUNS"}}},
}
PORTS = ("PROMETHEUS_PORT", "DASHBOARD_PORT", "GRAFANA_PORT", "SERVE_PORT")


class ComposeJob:
    """A job of docker-compose.yml, with its files in ``folder``."""

    def __init__(self, engine: Engine, folder: Path, **variables: object) -> None:
        self._engine, self.runs = engine, folder / "runs"
        self.runs.mkdir()
        os.chown(self.runs, USER_ID, USER_ID)
        override = folder / "override.yaml"
        services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
        for service in STAND_INS:
            OVERRIDE["services"][service] = {"image": tag_of(services[service]["image"])}
        text = yaml.safe_dump(OVERRIDE).replace("RUNS", str(self.runs)).replace("RESET", "!override [inside]")
        override.write_text(text)
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        defined = {"CROSSFADE_JOB": "/runs/job.yaml", **self.ports, **variables}
        self._environment = engine.environment | {name: str(value) for name, value in defined.items()}
        self._command = ("docker", "compose", "--project-name", PROJECT, "--ansi", "never", "--progress", "plain")
        self._command += ("--file", str(ROOT / "docker-compose.yml"), "--file", str(override))

    @property
    def run_dir(self) -> Path:
        return self.runs / "sample"

    def write_job(self, text: str) -> None:
        """Write the job file, which containers read as they start."""
        (self.runs / "job.yaml").write_text(text)

    def compose(self, *arguments: str) -> str:
        """Run ``docker compose`` and return its output."""
        return self._engine.run(*self._command, *arguments, variables=self._environment).stdout

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[str]]:
        """Run ``docker compose up`` in the foreground, as in README."""
        command = [*self._command, "up", "--exit-code-from", "job", "job"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=240)

    def container(self, service: str, number: int = 1) -> str:
        return f"{PROJECT}-{service}-{number}"

    def inspect(self, service: str, number: int = 1) -> dict[str, Any]:
        """Return what ``docker inspect`` prints of a container."""
        return self._engine.inspect(self.container(service, number))

    def kill(self, service: str, number: int = 1) -> None:
        """Kill a container with SIGKILL."""
        self._engine.docker("kill", self.container(service, number))

    def exit_code(self, service: str, number: int = 1) -> int | None:
        """Return the exit code of a container, or None while it runs."""
        state = self.inspect(service, number)["State"]
        return None if state["Running"] else int(state["ExitCode"])

    def logs(self) -> str:
        """Return the last log lines of the job's containers."""
        return self.compose(
            "logs", "--no-color", "--tail", "30", "loader", "scheduler", "standby", "server", "worker", "job"
        )

    def records(self) -> list[dict[str, Any]]:
        """Return the run's events."""
        return records(self.run_dir)

    def step(self) -> int:
        """Return the last step in the event log, or 0."""
        return max((record["step"] for record in self.records() if record["event"] == "step"), default=0)

    def restarts(self) -> list[str]:
        """Return the cause of each restart."""
        path = self.run_dir / "restarts.json"
        return [restart["cause"] for restart in json.loads(path.read_text())] if path.exists() else []

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait for ``condition``; a timeout error has the containers' logs."""
        try:
            wait_until(condition, what, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from error

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of a Prometheus query."""
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/query"
        result: list[dict[str, Any]] = requests.get(url, {"query": expression}, timeout=60).json()["data"]["result"]
        return result
