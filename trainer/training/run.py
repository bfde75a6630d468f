"""A run of one worker, from its start or a checkpoint to the report."""

from __future__ import annotations

import time
from typing import Any

from crossfade.base.errors import CheckpointError
from crossfade.kvstore.store import RowStore
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.allreduce import AllReduce
from crossfade.trainer.runs.events import ReportEvent
from crossfade.trainer.runs.resumption import find_start, last_saved_step
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.training.checkpointing import StopResult
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.report import make_report
from crossfade.trainer.training.session import open_session

NO_HOOKS = TrainingHooks()


def run_training(
    job: JobConfig,
    folder: RunFolder,
    hooks: TrainingHooks = NO_HOOKS,
    *,
    servers: RowStore | None = None,
    checkpoint: str | None = None,
    all_reduce: AllReduce | None = None,
) -> dict[str, Any] | StopResult:
    """Train as one worker of ``job``, from ``checkpoint`` if there is one.

    The tables are on ``servers``, which may be the workers themselves, or in this process where that is None.

    Rank 0 writes the events, the checkpoints and the report; without a shared run folder it emits the report.
    ``all_reduce`` sums the gradients of dense layers where several workers train them.

    Returns the report or, if the run was stopped on request, where.

    Raises:
        CrossfadeError: the run failed; the error has an exit code.
    """
    assert all_reduce is not None or not job.all_reduces_dense
    started = time.perf_counter()
    with open_session(job, folder, hooks, servers, all_reduce) as session:
        state = session.restore(checkpoint)
        if not session.loop.run(state):
            return session.stop(state)
        finished = session.finish(state)
    session.check_has_output(state)
    restarts = folder.restarts()
    report = make_report(job, session.inputs.model, state, finished.metrics, session.composition, finished.traffic)
    report["popularity"] = finished.popularity
    report |= {"restarts": len(restarts), "restart_causes": restarts, "wall_seconds": time.perf_counter() - started}
    report |= {"run": folder.run_id(), "started": folder.started(), "kernels": session.kernels}
    if session.composition.store.rank == 0 and job.no_shared_run_dir:
        hooks.on_event(ReportEvent(report=report))
    elif session.composition.store.rank == 0:
        folder.write_report(report)
    return report


def run_in_process(
    job: JobConfig, folder: RunFolder, hooks: TrainingHooks = NO_HOOKS, *, resume: bool = False
) -> dict[str, Any] | StopResult:
    """Train ``job`` in this process, without servers; see ``run_training``.

    With ``resume`` it resumes from the newest checkpoint that can be read, and logs why newer ones were skipped. One
    that turns out to be corrupt while it is read is skipped too.
    """
    rejected: set[str] = set()
    saved_step = last_saved_step(folder.path) if resume else None
    while True:
        found = None
        if resume:
            found, skipped = find_start(folder.checkpoints(job), rejected, saved_step=saved_step)
            for reason in skipped:
                hooks.log(f"skipped a checkpoint: {reason}")
        checkpoint = found.uri if found else None
        if found:
            hooks.log(f"resuming from step {found.manifest.step:,}")
        try:
            return run_training(job, folder, hooks, checkpoint=checkpoint)
        except CheckpointError as error:
            if checkpoint is None or error.checkpoint != checkpoint:
                raise
            hooks.log(f"skipped a checkpoint: {error}")
            rejected.add(checkpoint)
