"""docker-compose.yml as a test runs it: on its own engine, with ports of its own, and the runs in a folder of the test.

Grafana's image is left out: there is nothing that it could be made of here.
"""

import json
import os
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from docker_engine import ROOT, Engine
from object_store import free_ports
from running_command import records
from waiting import wait_until

PROJECT = "crossfade-test"
USER_ID = 10001
"""Of the image's user."""
OVERRIDE = {
    "services": {
        "grafana": {"profiles": ["never"]},
        # Nothing is fetched, so that what stands in for the sample is the same everywhere.
        "loader": {"networks": "RESET"},
    },
    "volumes": {"runs": {"driver_opts": {"type": "none", "o": "bind", "device": "RUNS"}}},
}
PORTS = ("PROMETHEUS_PORT", "DASHBOARD_PORT", "GRAFANA_PORT")


class ComposeJob:
    """One job, whose files are in ``folder``."""

    def __init__(self, engine: Engine, folder: Path, **variables: object) -> None:
        self._engine, self.runs = engine, folder / "runs"
        self.runs.mkdir()
        os.chown(self.runs, USER_ID, USER_ID)
        override = folder / "override.yaml"
        text = yaml.safe_dump(OVERRIDE).replace("RUNS", str(self.runs)).replace("RESET", "!override [inside]")
        override.write_text(text)
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        given = {"CROSSFADE_JOB": "/runs/job.yaml", **self.ports, **variables}
        self._environment = engine.environment | {name: str(value) for name, value in given.items()}
        self._command = ("docker", "compose", "--project-name", PROJECT, "--ansi", "never", "--progress", "plain")
        self._command += ("--file", str(ROOT / "docker-compose.yml"), "--file", str(override))

    @property
    def run_dir(self) -> Path:
        """The folder of the run."""
        return self.runs / "sample"

    def write_job(self, text: str) -> None:
        """Write the job file, for whoever starts from now on."""
        (self.runs / "job.yaml").write_text(text)

    def compose(self, *arguments: str) -> str:
        """What ``docker compose`` says."""
        return self._engine.run(*self._command, *arguments, variables=self._environment).stdout

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[str]]:
        """``docker compose up`` as README has it, in the foreground."""
        command = [*self._command, "up", "--exit-code-from", "job", "job"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)

    def container(self, service: str, number: int = 1) -> str:
        """The name of a container."""
        return f"{PROJECT}-{service}-{number}"

    def inspect(self, service: str, number: int = 1) -> dict[str, Any]:
        """What the engine knows of a container."""
        return self._engine.inspect(self.container(service, number))

    def kill(self, service: str, number: int = 1) -> None:
        """``docker kill`` a container."""
        self._engine.docker("kill", self.container(service, number))

    def exit_code(self, service: str, number: int = 1) -> int | None:
        """That of a container, once it has ended."""
        state = self.inspect(service, number)["State"]
        return None if state["Running"] else int(state["ExitCode"])

    def logs(self) -> str:
        """The end of what the containers of the job have said."""
        return self.compose(
            "logs", "--no-color", "--tail", "30", "loader", "scheduler", "standby", "server", "worker", "job"
        )

    def records(self) -> list[dict[str, Any]]:
        """What the run has recorded."""
        return records(self.run_dir)

    def step(self) -> int:
        """The last step that is recorded."""
        return max((record["step"] for record in self.records() if record["event"] == "step"), default=0)

    def restarts(self) -> list[str]:
        """Why the job was started again, each time."""
        path = self.run_dir / "restarts.json"
        return [restart["cause"] for restart in json.loads(path.read_text())] if path.exists() else []

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait for ``condition``; what the containers say is told if it does not come."""
        try:
            wait_until(condition, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from error

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers."""
        query = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/query?{query}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found
