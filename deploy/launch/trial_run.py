"""One training of a tuning study: a run of ``crossfade train`` in a child process, which leaves metrics only.

run = TrialRun(study_folder, "trial-0003", process)
exit_code = run.train({"optimizer.learning_rate": 0.02}, stop_requested=lambda: False, on_epochs=print)
run.valid_metric("ndcg@10")

STUDY/  trial-0003/  trial-0003.log

A process that has trained before starts the next training at once, with its modules and compiled kernels. It is not the
process of the study, so a training that crashes, even by a signal, ends only itself; the next one gets a fresh process.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from crossfade.base.processes import describe_exit
from crossfade.trainer.runs.run_folder import EVENTS_FILE, JOB_FILE, REPORT_FILE, RunFolder

_POLL_SECONDS = 0.5
_VALUES = {
    "train.save_embeddings": "none",
    "checkpoint.path": None,
    "checkpoint.keep_latest": 1,
    "metrics.port": None,
}
"""A trial leaves metrics and no embeddings, so it is not evaluated on the test split either."""


class TrialProcess:
    """Trains in child processes, one training at a time. They end when this process does, or at ``close``."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._host: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        self.end = self.error = ""
        """How the process ended in the newest training, and its last words; empty if it answered an exit code."""

    def train(self, options: Mapping[str, Any], log: Path, stop_requested: Callable[[], bool]) -> int:
        """Run ``crossfade train`` with ``options``, append its output to ``log``, and return its exit code.

        ``stop_requested`` is called twice a second, and returns whether to stop the training.
        """
        log.touch()
        host = self._host_for(log)
        request = json.dumps({"folder": str(Path.cwd()), "options": options, "log": str(log)}) + "\n"
        with suppress(BrokenPipeError):  # it has been killed just now, so its answer is that it has ended
            host.stdin.write(request.encode())  # type: ignore[union-attr]
        try:
            return self._await_answer(host, stop_requested)
        except BaseException:
            self.close()  # the next training would get the answer to this one
            raise

    def _await_answer(self, host: subprocess.Popen[bytes], stop_requested: Callable[[], bool]) -> int:
        is_stopping, self.end, self.error = False, "", ""
        while True:
            if not is_stopping and (is_stopping := stop_requested()):
                host.terminate()
            try:
                line = self._answers.get(timeout=None if is_stopping else _POLL_SECONDS)
            except queue.Empty:
                continue
            if line is None:
                code = host.wait()
                self.end = f"its process {describe_exit(code)}"
            elif "error" in (answer := json.loads(line)):  # the end of the process follows
                self.error = answer["error"]
                continue
            else:
                code = answer["code"]
            if is_stopping:  # it ends after this training
                self.close()
            return code

    def close(self) -> None:
        """End the process, if there is one."""
        if self._host is not None:
            self._host.stdin.close()  # type: ignore[union-attr]
            self._host.terminate()
            self._host.wait()
            self._host = None

    def _host_for(self, log: Path) -> subprocess.Popen[bytes]:
        """Return a process that waits for a training; a new one writes to ``log`` until its first training does."""
        if self._host is not None and self._host.poll() is None:
            return self._host
        self.close()
        with log.open("ab") as output:
            # The process arranges by itself to die with this one. A ``preexec_fn`` would run in a fork of this process,
            # after the fork handlers of all its libraries, and what ends such a fork leaves no message.
            host = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-P", "-m", "crossfade.cli.trial_host", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                bufsize=0,
                start_new_session=True,
            )
        self._host, self._answers = host, queue.Queue()
        threading.Thread(target=_read, args=(host.stdout, self._answers), daemon=True).start()
        return host


def _read(stdout: IO[bytes], answers: queue.Queue[bytes | None]) -> None:
    """Pass on the lines of a process, and None when it has ended."""
    with stdout:
        for line in stdout:
            answers.put(line)
    answers.put(None)


class TrialRun:
    """The training ``name`` of the study in a folder: its run folder and its log."""

    def __init__(self, study: Path, name: str, process: TrialProcess) -> None:
        self._job = study / JOB_FILE
        self._folder = RunFolder(study / name)
        self._log = study / f"{name}.log"
        self._process = process
        self._exit_code = 0
        self.epochs = 0
        """Epochs that have ended."""

    def train(
        self, values: Mapping[str, Any], stop_requested: Callable[[], bool], on_epochs: Callable[[int], None]
    ) -> int:
        """Train the study's job with other ``values`` by key, or resume, and return the exit code.

        ``stop_requested`` is called twice a second, and returns whether to stop the training, after a checkpoint.
        ``on_epochs`` receives how many epochs have ended since it was last called; epochs that a run repeats as it
        resumes count once.
        """
        reader = _Epochs(self._folder.path / EVENTS_FILE)

        def look() -> bool:
            newest = max(self.epochs, reader.read())
            on_epochs(newest - self.epochs)
            self.epochs = newest
            return stop_requested()

        paths = {"job": str(self._job), "run_dir": str(self._folder.path)}
        options = {**paths, "resume": True, "values": {**_VALUES, **values}}
        self._exit_code = self._process.train(options, self._log, look)
        return self._exit_code

    @property
    def is_finished(self) -> bool:
        """Whether the training has ended with a report."""
        return (self._folder.path / REPORT_FILE).exists()

    def report(self) -> dict[str, Any]:
        """Read the report of the finished training."""
        return self._folder.report()

    def valid_metric(self, name: str) -> float:
        """Return the metric ``name`` of the best epoch on valid; 0 if valid selected none, as without a query."""
        value: float = self.report()["metrics"].get("valid", {}).get(name, 0.0)
        return value

    def delete_checkpoints(self) -> None:
        """Delete the checkpoints of a training that will not resume."""
        shutil.rmtree(self._folder.path / "checkpoints", ignore_errors=True)

    def discard(self) -> None:
        """Delete what a training that failed has left but its log, so that it can start over."""
        shutil.rmtree(self._folder.path, ignore_errors=True)

    def describe_failure(self) -> str:
        """Return how the process ended, if it did, and the last line of the log or else the exit code; and the log."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = self._process.error or (lines[-1].removeprefix("crossfade: error: ") if lines else "no output")
        how = self._process.end or ("" if lines else f"exit code {self._exit_code}")
        return f"{'; '.join(filter(None, (how, said)))} (log: {self._log})"


class _Epochs:
    """Reads the ends of epochs from a run's ``events.jsonl`` while it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = self._newest = 0

    def read(self) -> int:
        """Return the newest epoch that has ended; 0 if none has."""
        if not self._path.exists():
            return self._newest
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                record = json.loads(line)
                if record["event"] == "epoch":
                    self._newest = max(self._newest, record["epoch"])
        return self._newest
