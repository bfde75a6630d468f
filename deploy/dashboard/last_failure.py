"""Find the last failure of a run: what happened to which process, and what was lost.

failure = find_failure(reader, "failed", message)
failure.text  # server-0 on b2 was killed by SIGKILL
failure.work()  # 12 steps since the last checkpoint, 3.0 s
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from crossfade.base.formatting import lost
from crossfade.deploy.cluster.state_writer import IN_PROCESS
from crossfade.deploy.dashboard.run_reader import RunReader, StateFile
from crossfade.trainer.runs.events import FailureEvent, RestartEvent


@dataclass(frozen=True)
class LastFailure:
    """A failure. ``time`` is Unix time; what is not known is None."""

    time: float
    text: str
    """Role, host, and cause in one line."""
    role: str | None
    host: str | None
    cause: str
    error: str | None
    """The last line of the role's error."""
    log: str | None
    """Where the role's log is, on its host."""
    ends_run: bool
    """Whether no generation followed it."""
    step: int
    lost_steps: int
    lost_seconds: float | None
    after_results: bool | None = None
    """Whether all results had been written, so that the run is done."""

    def work(self) -> str:
        """Describe what was lost: ``333 steps since the last checkpoint, 5.6 s``."""
        return lost(self.lost_steps, self.lost_seconds, from_step=self.step - self.lost_steps)


def find_failure(run: RunReader, state: str, message: str) -> LastFailure | None:
    """Return the last failure of ``run``, whose ``state`` is described by ``message``. Hold its ``lock``."""
    if state == "lost" and run.state is not None:
        return _of_lost_command(run, run.state, message)
    found: LastFailure | None = None
    for time, event in run.processes.events:
        if isinstance(event, FailureEvent):
            found = _of_event(time, event)
        elif isinstance(event, RestartEvent) and found is not None and event.lost_steps is not None:
            # Newer checkpoints may not have been usable: then more was lost than the failure has.
            found = replace(found, lost_steps=event.lost_steps, lost_seconds=event.lost_seconds)
    return found


def _of_event(time: float, event: FailureEvent) -> LastFailure:
    values = {name: value for name, value in event if name != "generation"}
    return LastFailure(time=time, text=event.describe(), **values)


def _of_lost_command(run: RunReader, state: StateFile, message: str) -> LastFailure:
    """Return the failure of a command that could not record it, as far as the events of the training have it."""
    work, host = run.training.work, state.command.get("host")
    step = run.training.step  # also of events other than steps, of which the log has a sample
    return LastFailure(
        time=state.time,
        text=message,
        role="coordinator" if run.setting("cluster", "servers") else IN_PROCESS,
        host=host if isinstance(host, str) else None,
        cause=message,
        error=None,
        log=None,
        ends_run=True,
        step=step,
        lost_steps=max(0, step - work.checkpoint_step),
        lost_seconds=work.since(work.checkpoint_step)[1],
    )
