"""Run the trainings of ``crossfade tune`` one after another: each but the first finds modules and kernels loaded.

    python -m crossfade.cli.trial_host PARENT

PARENT is the ID of the process that starts it, and with which it dies. A line on stdin is a request in JSON: the
current folder, from which paths count, the options of the training, and the log that gets its output. The answer is a
line on stdout, its exit code as ``{"code": 0}``. The process ends when stdin does, after a training that a signal has
stopped, and at an error of the program or of the log, which is then the answer as ``{"error": "..."}``, since a full
disk leaves no line in the log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, TextIO

from crossfade.base.errors import as_typed, reason_of
from crossfade.base.logs import configure_console
from crossfade.base.processes import die_with_parent
from crossfade.base.signals import stopper
from crossfade.cli.main import exit_code_of
from crossfade.cli.train import TrainCommand, train_and_log
from crossfade.kvstore.memory import release_free_memory
from crossfade.trainer.config.loading import change_job
from crossfade.trainer.config.schema import JobConfig


class TrialOptions(TrainCommand):
    """A training as ``crossfade train`` runs it, and values by key that replace others of its job."""

    values: dict[str, Any]

    def load_job(self) -> JobConfig:
        """Return the job in its file with the values."""
        return change_job(super().load_job(), self.values, str(self.job))


def serve(requests: TextIO, answers: TextIO) -> int:
    """Run each training that is requested; return the exit code of the last one."""

    def answer(**values: int | str) -> None:
        print(json.dumps(values), file=answers, flush=True)

    code = 0
    for line in requests:
        request = json.loads(line)
        try:
            os.chdir(request["folder"])
            code = _train(request["options"], request["log"])
        except Exception as error:
            answer(error=f"{type(error).__name__}: {reason_of(error)}")
            raise
        release_free_memory()
        answer(code=code)
        if stopper.number is not None:
            break
    return code


def _train(options: dict[str, Any], log: str) -> int:
    """Train with the output in the file ``log``; return the exit code of ``crossfade train``."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.close(file)
    configure_console()
    try:
        return exit_code_of(lambda: train_and_log(TrialOptions.of(**options)), as_typed)
    finally:
        sys.stdout.flush()
        for number in (signal.SIGINT, signal.SIGTERM):  # between trainings there is nothing to save
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    # Trainings get neither end of the pipes: what they print goes to their logs.
    pipes = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.exit(serve(*pipes))
