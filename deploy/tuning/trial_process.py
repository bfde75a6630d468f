"""The process that trains the trials of a study: the same one for all, or one for each.

    with closing(TrialProcess()) as process:
        code = process.train(["job.yaml", "--run-dir", "a"], Path("a.log"), watch=lambda: False, warm=True)

A process that has trained before starts the next training at once, with its modules and compiled kernels. It is not the
process of the study, so a training that crashes, even by a signal, ends only itself; the next one gets a fresh process.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from crossfade.base.processes import die_with_parent

_POLL_SECONDS = 0.5


class TrialProcess:
    """Trains in child processes, one training at a time. They end when this process does, or at ``close``."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._host: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes | None] = queue.Queue()

    def train(self, arguments: Sequence[str], log: Path, watch: Callable[[], bool], *, warm: bool) -> int:
        """Run ``crossfade train`` with ``arguments``, append its output to ``log``, and return its exit code.

        ``watch`` is called twice a second, and returns whether to stop the training. ``warm`` is whether the process
        may train others, before and after; a training with servers has processes of its own anyway.
        """
        log.touch()
        if not warm:
            self.close()
            return self._train_alone(arguments, log, watch)
        host = self._warm_host(log)
        request = json.dumps({"arguments": list(arguments), "log": str(log)}) + "\n"
        with suppress(BrokenPipeError):  # it has been killed just now, so its answer is that it has ended
            host.stdin.write(request.encode())  # type: ignore[union-attr]
        is_stopping = False
        while True:
            if not is_stopping and (is_stopping := watch()):
                host.terminate()
            try:
                answer = self._answers.get(timeout=None if is_stopping else _POLL_SECONDS)
            except queue.Empty:
                continue
            code = int(answer) if answer is not None else host.wait()
            if is_stopping:  # it ends after this training
                self.close()
            return code

    def _train_alone(self, arguments: Sequence[str], log: Path, watch: Callable[[], bool]) -> int:
        with log.open("ab") as output:
            process = _start(["-m", "crossfade", "train", *arguments], subprocess.DEVNULL, output, output)
        try:
            while process.poll() is None:
                if watch():
                    process.terminate()
                    break
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
            return process.wait()
        finally:
            _end(process)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._host is not None:
            _end(self._host)
            self._host = None

    def _warm_host(self, log: Path) -> subprocess.Popen[bytes]:
        """Return a process that waits for a training; a new one writes to ``log`` until its first training does."""
        if self._host is not None and self._host.poll() is None:
            return self._host
        self.close()
        with log.open("ab") as output:
            host = _start(["-m", "crossfade.trial_host"], subprocess.PIPE, subprocess.PIPE, output)
        self._host, self._answers = host, queue.Queue()
        threading.Thread(target=_read, args=(host.stdout, self._answers), daemon=True).start()
        return host


def _start(arguments: list[str], stdin: int, stdout: int | IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-P", *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        bufsize=0,
        start_new_session=True,
        # It takes no locks. Only Linux can end a child with its parent.
        preexec_fn=(lambda: die_with_parent(parent)) if sys.platform == "linux" else None,  # noqa: PLW1509
    )


def _read(stdout: IO[bytes], answers: queue.Queue[bytes | None]) -> None:
    """Pass on the lines of a process, and None when it has ended."""
    with stdout:
        for line in stdout:
            answers.put(line)
    answers.put(None)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.terminate()
    process.wait()
