"""Run a measurement in a separate process, so that it starts with fresh memory and its own threads.

    result = run_module(sys.executable, "peers.fbgemm_bpr", task, timeout=600)
    with background(command, log) as process:       # ends it, with all that it started, at the end of the block
        wait_while(lambda: not there(), timeout, process)

The module gets ``task`` as JSON in its only argument and prints its result as a line of JSON, the last of its output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossfade.base.processes import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
MAX_REASON_LENGTH = 200
THREAD_VARIABLES = {"OPENBLAS_NUM_THREADS", "NUMBA_THREADING_LAYER_PRIORITY", "OMP_WAIT_POLICY", "KMP_DUPLICATE_LIB_OK"}
"""Set in this process when it imports ``kvstore``; each measurement chooses its own threads."""
NO_VARIABLES: Mapping[str, str] = {}
POLL_SECONDS = 0.05


class MeasurementError(Exception):
    """A measurement is not possible, or failed. The message is the reason that the page gives."""


def run_module(python: Path | str, module: str, task: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Run ``module`` of ``benchmarks/`` with the interpreter ``python``, and return what it prints.

    Raises:
        MeasurementError: it failed, ran longer than ``timeout`` seconds, or printed no JSON.
    """
    output = run_command(
        [str(python), "-W", "ignore", "-m", module, json.dumps(task)], timeout, {"PYTHONPATH": str(BENCHMARKS)}
    )
    try:
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        raise MeasurementError(f"{module} printed no result") from None
    return result


def run_command(command: list[str], timeout: float, variables: Mapping[str, str] = NO_VARIABLES) -> str:
    """Run ``command`` from the root of the project, with ``variables``, and return its standard output.

    Raises:
        MeasurementError: it failed, or ran longer than ``timeout`` seconds; its whole process group is ended.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=_environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise MeasurementError(f"it took longer than {timeout:.0f} s") from None
        raise
    if process.returncode:
        raise MeasurementError(_reason(process.returncode, errors))
    return output


@dataclass(frozen=True)
class Background:
    """A command that runs meanwhile, with its output in the file ``log``."""

    process: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> bool:
        """Return whether it has ended.

        Raises:
            MeasurementError: it failed.
        """
        code = self.process.poll()
        if code:
            raise MeasurementError(_reason(code, self.log.read_text(encoding="utf-8", errors="replace")))
        return code is not None


@contextmanager
def background(command: list[str], log: Path, variables: Mapping[str, str] = NO_VARIABLES) -> Iterator[Background]:
    """Run ``command`` as ``run_command`` does while the block runs; then end its process group.

    It dies with this process too, since it may run for hours by itself.
    """
    parent = os.getpid()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(variables),
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - it takes no locks
        )
    try:
        yield Background(process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_while(condition: Callable[[], bool], timeout: float, *commands: Background) -> None:
    """Wait while ``condition`` holds.

    Raises:
        MeasurementError: one of ``commands`` failed, or it took longer than ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    while condition():
        for command in commands:
            command.ended()
        if time.monotonic() > end:
            raise MeasurementError(f"it took longer than {timeout:.0f} s")
        time.sleep(POLL_SECONDS)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES} | dict(variables)


def _reason(code: int, errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    # MXNet ends its messages with a stack trace.
    lines = [line for line in lines if not line.startswith(("[bt]", "File ", "Stack trace"))]
    cause = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{cause}: {lines[-1][:MAX_REASON_LENGTH]}" if lines else cause
