"""Find what a generation starts from, in a thread: reading checkpoints may be slow, and agents must not wait."""

from __future__ import annotations

import threading
from pathlib import Path

from crossfade.base.errors import ClusterError, CrossfadeError, InputError
from crossfade.deploy.cluster.coordinator import Coordinator
from crossfade.deploy.cluster.job_state import GenerationSpec, State
from crossfade.deploy.cluster.rendezvous import Rendezvous
from crossfade.deploy.topology import Address, scheduler_address
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.folder import RunFolder
from crossfade.trainer.runs.resumption import find_start, last_saved_step


class StartFinder:
    """Gives the coordinator a start whenever it is preparing a generation."""

    def __init__(
        self,
        job: JobConfig,
        folder: RunFolder,
        resume: bool,
        rendezvous: Rendezvous | None = None,
        *,
        allow_restart: bool = False,
    ) -> None:
        """Search the checkpoints of ``job``; without ``resume`` the first generation starts from none.

        ``allow_restart`` is as in ``find_start``.
        """
        self._job, self._resume, self._rendezvous = job, resume, rendezvous
        self._run_dir, self._allow_restart = folder.path, allow_restart
        self._checkpoints = RunFolder(Path(folder.path).absolute()).checkpoints(job)
        self._searching = False
        self._result: GenerationSpec | Exception | None = None

    def run_once(self, coordinator: Coordinator) -> None:
        """Start a search if ``coordinator`` is preparing, and hand over the result of one that has finished."""
        if coordinator.state is State.PREPARING and not self._searching:
            self._searching, self._result = True, None
            fresh = coordinator.generation == 0 and not self._resume
            # A daemon: a job that is stopped does not wait for it.
            threading.Thread(target=self._search, args=(coordinator.rejected_checkpoints, fresh), daemon=True).start()
        result = self._result
        if result is not None:
            self._searching, self._result = False, None
            if isinstance(result, Exception):
                coordinator.start_failed(result)
            else:
                coordinator.start_generation(result)

    def _search(self, rejected: frozenset[str], fresh: bool) -> None:
        try:
            checkpoint, step, skipped = (None, 0, []) if fresh else self._find_checkpoint(rejected)
            rendezvous = self._rendezvous.new_generation() if self._rendezvous else None
            self._result = GenerationSpec(self._scheduler(), checkpoint, step, skipped, rendezvous)
        except (CrossfadeError, OSError) as error:
            self._result = error
        except Exception as error:  # an internal error must not leave the job waiting forever
            self._result = ClusterError(f"{type(error).__name__}: {error}")

    def _find_checkpoint(self, rejected: frozenset[str]) -> tuple[str | None, int, list[str]]:
        return find_start_checkpoint(self._checkpoints, rejected, self._run_dir, allow_restart=self._allow_restart)

    def _scheduler(self) -> Address:
        try:
            return scheduler_address(self._job.cluster)
        except InputError as error:
            # The address was usable when the job started, so it may be again.
            raise ClusterError(str(error)) from error


def find_start_checkpoint(
    checkpoints: str, rejected: frozenset[str], run_dir: Path, *, allow_restart: bool
) -> tuple[str | None, int, list[str]]:
    """Return the newest complete checkpoint that is not ``rejected``, its step, and why newer ones were skipped.

    The event log in ``run_dir`` has whether the run has saved checkpoints; ``allow_restart`` is as in ``find_start``.

    Raises:
        InputError: ``checkpoints`` is not the name of a folder, or none of the run's checkpoints is usable.
        CheckpointError: it cannot be read.
    """
    saved_step = last_saved_step(run_dir)
    checkpoint, skipped = find_start(checkpoints, rejected, saved_step=saved_step, allow_restart=allow_restart)
    return (checkpoint.uri, checkpoint.manifest.step, skipped) if checkpoint else (None, 0, skipped)
