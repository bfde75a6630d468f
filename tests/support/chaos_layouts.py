"""Where a training runs that faults are injected into.

    host       on servers and workers of one host, with features of tracks, and checkpoints on a small disk
    sharded    on workers of one host that hold the tables, with features of tracks, and checkpoints on a small disk

with layout_of("host", folder) as layout, layout.running("disturbed", variables) as training:
    training.roles()["server-1"].kill()
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
from fault_runs import DISK_BYTES
from running_command import RunningCommand, records, started
from small_disk import mounted_disk

Name = Literal["host", "sharded"]
LAYOUTS: tuple[Name, ...] = ("host", "sharded")


class Layout:
    """The options and the surroundings of a training."""

    def __init__(self, name: Name, folder: Path, stack: ExitStack) -> None:
        self.name = name
        self.folder = folder
        self.workers, self.servers = 2, 0 if name == "sharded" else 2
        self.disk = stack.enter_context(mounted_disk(folder / "disk", DISK_BYTES))

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the sections of the job that differ between layouts."""
        tables: dict[str, Any] = {"servers": 2} if self.servers else {"store": "sharded"}
        return {"model": {"item_features": ["track", "genre"]}, "cluster": {**tables, "workers": 2}}

    def role_names(self) -> list[str]:
        """Return the names of all roles of a generation."""
        servers = ["scheduler", *(f"server-{number}" for number in range(self.servers))] if self.servers else []
        return [*servers, *(f"worker-{number}" for number in range(self.workers))]

    def checkpoints(self, run: str) -> str:
        """Return where the checkpoints of ``run`` are."""
        return str(self.disk / run)

    @contextmanager
    def running(self, run: str, job: Path, variables: Mapping[str, str]) -> Iterator[ChaosTraining]:
        """Run a training to its end while the context lasts."""
        with ExitStack() as stack:
            yield ChaosTraining(self, run, job, variables, stack)


@contextmanager
def layout_of(name: Name, folder: Path) -> Iterator[Layout]:
    """Prepare the surroundings of the layout ``name``, with files in ``folder``."""
    with ExitStack() as stack:
        yield Layout(name, folder, stack)


class ChaosTraining:
    """A training in a layout, whose command may be killed and started again."""

    def __init__(self, layout: Layout, run: str, job: Path, variables: Mapping[str, str], stack: ExitStack) -> None:
        self.layout = layout
        self.run_dir = layout.folder / run
        self._job, self._variables, self._stack = job, variables, stack
        self._commands: list[RunningCommand] = []
        self.command = self._start()

    def _start(self, *more: object) -> RunningCommand:
        options = ("--set", f"checkpoint.path={self.layout.checkpoints(self.run_dir.name)}")
        roles = ("--servers", self.layout.servers, "--workers", self.layout.workers)
        arguments = ("train", self._job, "--run-dir", self.run_dir, *options, *roles, *more)
        command = self._stack.enter_context(started(*arguments, cwd=self.layout.folder, variables=self._variables))
        self._commands.append(command)
        return command

    def resume(self) -> None:
        """Start the command again with ``--resume``."""
        self.command = self._start("--resume")

    def roles(self) -> dict[str, psutil.Process]:
        """Return the running roles by name."""
        return self.command.roles()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the logged events of a kind."""
        return [record for record in records(self.run_dir) if record["event"] == kind]

    def assert_running(self) -> None:
        """Fail if the command has ended."""
        assert self.command.process.poll() is None, self.command.finish()

    def finish(self, seconds: float) -> subprocess.CompletedProcess[str]:
        """Wait for the end, and assert that nothing is left; return the result of the training."""
        result = self.command.finish(seconds)
        assert result.returncode == 0, result.stderr
        left = [process for command in self._commands for process in command.mark.processes()]
        assert left == [], "processes of the run are left"
        return result
