"""Run ``crossfade`` commands as processes, and find and kill whatever they start."""

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from waiting import MAX_SECONDS, wait_until

COMMAND_SECONDS = 240.0
_MARK_VARIABLE = "CROSSFADE_TEST_MARK"
_ROLE_VARIABLE = "CROSSFADE_ROLE"


class Mark:
    """An environment variable that identifies a process and all its descendants, orphans too."""

    def __init__(self) -> None:
        self._value = uuid.uuid4().hex

    def environment(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of this process, updated with ``variables`` and the mark."""
        return {**os.environ, **(variables or {}), _MARK_VARIABLE: self._value}

    def processes(self) -> list[psutil.Process]:
        """Return the running processes that carry the mark."""
        return [process for process in psutil.process_iter() if self._has_mark(process)]

    def _has_mark(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK_VARIABLE) == self._value and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def kill(self) -> None:
        """Kill all processes that carry the mark."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, also if nobody has waited for it."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


class RunningCommand:
    """A running ``crossfade`` command."""

    def __init__(
        self,
        arguments: Sequence[object],
        cwd: Path,
        variables: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        self.mark = Mark()
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", "crossfade", *map(str, arguments)],
            cwd=cwd,
            env=self.mark.environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def roles(self) -> dict[str, psutil.Process]:
        """Return the running role processes that the command started, by name, such as ``server-1``."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                name = child.environ().get(_ROLE_VARIABLE)
                if name is not None and child.status() != psutil.STATUS_ZOMBIE:
                    found[name] = child
        return found

    def finish(self, seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Wait for the command to end and return its result."""
        stdout, stderr = self.process.communicate(timeout=seconds)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, stdout, stderr)


@contextmanager
def started(
    *arguments: object, cwd: Path, variables: Mapping[str, str] | None = None, within: Sequence[str] = ()
) -> Iterator[RunningCommand]:
    """Start a command, optionally ``within`` another such as ``prlimit``; kill what still runs at the end."""
    command = RunningCommand(arguments, cwd, variables, within)
    try:
        yield command
    finally:
        command.mark.kill()
        command.process.communicate()


def crossfade(
    *arguments: object, cwd: Path, variables: Mapping[str, str] | None = None, seconds: float = COMMAND_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its result."""
    with started(*arguments, cwd=cwd, variables=variables) as command:
        return command.finish(seconds)


def succeeded(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Assert that ``result`` has exit code 0, and return it."""
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


_LOG_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z (?P<level>[A-Z]+) (?P<role>\S+)(?: generation=\d+)?(?: step=\d+)? (?P<message>.*)"
)
_PROGRESS = re.compile(r"\bepoch=\d+ step=\d+ |compiling kernels")


def messages(stderr: str) -> list[str]:
    """Return the messages of a command, without its progress: console lines, and log lines in the same form."""
    lines = []
    for line in stderr.splitlines():
        if _PROGRESS.search(line):
            continue
        if match := _LOG_LINE.fullmatch(line):
            lines.append(f"crossfade: {'error: ' * (match['level'] == 'ERROR')}{match['message']}")
        elif "crossfade: " in line:
            lines.append(line[line.index("crossfade: ") :])
    return lines


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Return the complete lines of ``events.jsonl`` so far."""
    try:
        text = (run_dir / "events.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for_steps(command: RunningCommand, run_dir: Path, seconds: float = MAX_SECONDS) -> None:
    """Return once the run has logged a step; fail if the command ends before."""

    def has_steps() -> bool:
        assert command.process.poll() is None, command.finish()
        return any(record["event"] == "step" for record in records(run_dir))

    wait_until(has_steps, f"a step in {run_dir}/events.jsonl", seconds=seconds)


def single_line(exit_code: int, stdout: str, stderr: str) -> str:
    """Return the one line on stderr of a command that rejected its input, without its prefix."""
    assert exit_code == 2, f"exit code {exit_code}\n{stdout}\n{stderr}"
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    [line] = messages(stderr)
    assert line.startswith("crossfade: error: ")
    return line.removeprefix("crossfade: error: ")
