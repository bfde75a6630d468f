"""A real tracking server of MLflow on loopback, with SQLite, which can be frozen."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from object_store import free_ports
from server_process import is_ok, start_server


class MlflowServer:
    """A server whose data is in ``folder``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.database, port = folder / "mlflow.db", free_ports(1)[0]
        self.uri = f"http://127.0.0.1:{port}"
        """The URI that clients track to."""
        stores = ("--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", folder / "artifacts")
        address = ("--host", "127.0.0.1", "--port", port, "--workers", 1)
        self._process = start_server(
            [sys.executable, "-m", "mlflow", "server", *stores, *address],
            folder / "log",
            lambda: is_ok(f"{self.uri}/health"),
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )

    def _processes(self) -> list[psutil.Process]:
        main = psutil.Process(self._process.pid)
        return [*main.children(recursive=True), main]

    def kill(self) -> None:
        """Kill the server."""
        processes = self._processes()
        for process in processes:
            process.kill()
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


@contextmanager
def running_mlflow(folder: Path) -> Iterator[MlflowServer]:
    """Run a server with its data in the new folder ``folder`` while the context lasts."""
    server = MlflowServer(folder)
    try:
        yield server
    finally:
        server.kill()
