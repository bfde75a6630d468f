"""Train with slow steps, so that a test can act while the training runs.

    with paced("train", "job.yaml", run_dir=folder / "run") as training:
        training.wait_for("checkpoint_saved")
        ...                                           # the training does not end meanwhile
        training.finish()                             # from here on it trains at full speed

The training imports a hook through ``sitecustomize`` that sleeps in each step until a release file exists.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from running_command import COMMAND_SECONDS, RunningCommand, records, started
from waiting import wait_until

STEP_SECONDS = 0.1
WAIT_SECONDS = 180.0
_RELEASE_VARIABLE = "CROSSFADE_TEST_RELEASE"
_SECONDS_VARIABLE = "CROSSFADE_TEST_STEP_SECONDS"
_HOOK = f"""
import os
import sys

# Not in the command that starts servers and workers, which takes no step.
words = sys.orig_argv
in_process = "crossfade.cli.trial_host" in words or ("train" in words and "--servers" not in words)
if in_process or "worker" in sys.orig_argv:
    import time

    from crossfade.trainer.training.loop import TrainLoop

    step = TrainLoop._step

    def slow_step(self, batch, progress):
        end = time.monotonic() + float(os.environ["{_SECONDS_VARIABLE}"])
        while not os.path.exists(os.environ["{_RELEASE_VARIABLE}"]) and time.monotonic() < end:
            time.sleep(0.02)
        step(self, batch, progress)

    TrainLoop._step = slow_step
"""


class Training:
    """A running ``crossfade train``."""

    def __init__(self, command: RunningCommand, run_dir: Path, release: Path) -> None:
        self.command = command
        self.run_dir = run_dir
        self._release = release

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the logged events of a kind."""
        return [record for record in records(self.run_dir) if record["event"] == kind]

    def wait(self, condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        """Return once ``condition()`` holds; fail if the training ends before."""

        def holds() -> object:
            assert self.command.process.poll() is None, self.command.finish()
            return condition()

        wait_until(holds, what, seconds=seconds)

    def wait_for(self, kind: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Return once one more event of a kind is logged, calling ``meanwhile`` again and again."""
        before = len(self.events(kind))

        def is_logged() -> bool:
            meanwhile()
            return len(self.events(kind)) > before

        self.wait(is_logged, f"'{kind}'")

    def finish(self, seconds: float = COMMAND_SECONDS) -> CompletedProcess[str]:
        """Let it run to its end at full speed and return its result."""
        self._release.touch()
        return self.command.finish(seconds)


@contextmanager
def paced(
    *arguments: object,
    run_dir: Path,
    variables: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
    hook: str = "",
    step_seconds: float = STEP_SECONDS,
) -> Iterator[Training]:
    """Start ``crossfade ARGUMENTS --run-dir RUN_DIR`` with slow steps, in the parent folder of ``run_dir``.

    Each of its processes first runs the source ``hook``.
    """
    folder = run_dir.parent
    release = folder / f"{run_dir.name}.release"
    with started(
        *arguments,
        "--run-dir",
        run_dir,
        cwd=folder,
        variables=pace(folder, release, variables, hook, step_seconds),
        within=within,
    ) as command:
        yield Training(command, run_dir, release)


def pace(
    folder: Path,
    release: Path,
    variables: Mapping[str, str] | None = None,
    hook: str = "",
    step_seconds: float = STEP_SECONDS,
) -> dict[str, str]:
    """Add to ``variables`` those that make the steps of a training slow until the file ``release`` exists."""
    release.unlink(missing_ok=True)
    (folder / "hook").mkdir(exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(hook + _HOOK)
    path = os.pathsep.join(filter(None, [str(folder / "hook"), os.environ.get("PYTHONPATH")]))
    paced = {"PYTHONPATH": path, _RELEASE_VARIABLE: str(release), _SECONDS_VARIABLE: str(step_seconds)}
    return {**(variables or {}), **paced}


def metrics_address(training: Training) -> str:
    """Return HOST:PORT of the metrics, as the command prints or logs it."""
    assert training.command.process.stderr is not None
    for line in training.command.process.stderr:
        if match := re.search(r"metrics: http://([^/]+)/metrics", line):
            return match[1]
    raise AssertionError("no address was printed")
