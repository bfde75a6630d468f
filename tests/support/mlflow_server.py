"""A real tracking server of MLflow on loopback, with SQLite, which can be frozen."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from object_store import free_ports
from waiting import wait_until

from crossfade.base.processes import die_with_parent

START_SECONDS = 180.0


class MlflowServer:
    """A server whose data is in ``folder``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.database, self._artifacts, self._log = folder / "mlflow.db", folder / "artifacts", folder / "log"
        self._port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Return the URI that clients track to."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        parent = os.getpid()
        stores = ["--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", str(self._artifacts)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", *stores),
                    *("--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"),
                ],
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - it takes no locks
            )
        wait_until(self._answers, "an answer of MLflow")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=60) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        return [*main.children(recursive=True), main]

    def stop(self) -> None:
        """Kill the server."""
        processes = self._processes()
        for process in processes:
            process.kill()
        assert self._process is not None
        self._process.wait()
        psutil.wait_procs(processes)

    def freeze(self) -> None:
        """Stop the server from answering, without closing connections, until ``thaw``."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """Let the server answer again."""
        for process in self._processes():
            process.resume()

    def run(self, experiment: str) -> Any:
        """Return the only run of ``experiment``."""
        (run,) = self._client().search_runs([self._client().get_experiment_by_name(experiment).experiment_id])
        return run

    def delete_experiment(self, name: str) -> None:
        """Create an experiment and delete it: the server then rejects runs in it."""
        self._client().delete_experiment(self._client().create_experiment(name))

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return steps and values of a metric of a run, in the order of steps."""
        return sorted((each.step, each.value) for each in self._client().get_metric_history(run_id, metric))

    def artifact(self, run_id: str, name: str, folder: Path) -> Path:
        """Download an artifact of a run into ``folder``."""
        return Path(self._client().download_artifacts(run_id, name, str(folder)))

    def _client(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.uri)
