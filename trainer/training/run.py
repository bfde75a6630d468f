"""A run of one worker, from its start or a checkpoint to the report."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

from crossfade.base.errors import CheckpointError
from crossfade.kvstore.local import LocalStore
from crossfade.kvstore.store import RowStore
from crossfade.kvstore.torch.store import DeviceStore
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.allreduce import AllReduce
from crossfade.trainer.model.engines.choice import choose_engine, local_rank
from crossfade.trainer.model.engines.torch import torch_device
from crossfade.trainer.monitoring.registry import TableMetrics
from crossfade.trainer.runs.events import ReportEvent
from crossfade.trainer.runs.folder import RunFolder
from crossfade.trainer.runs.resumption import find_start, last_saved_step
from crossfade.trainer.training.checkpointing import StopResult
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.report import make_report
from crossfade.trainer.training.session import open_session

NO_HOOKS = TrainingHooks()


def run_training(
    job: JobConfig,
    folder: RunFolder,
    store: RowStore,
    hooks: TrainingHooks = NO_HOOKS,
    *,
    checkpoint: str | None = None,
    all_reduce: AllReduce | None = None,
) -> dict[str, Any] | StopResult:
    """Train as one worker of ``job`` on ``store``, from ``checkpoint`` if there is one.

    Rank 0 writes the events, the checkpoints and the report; without a shared run folder it emits the report.
    ``all_reduce`` sums the gradients of dense layers where several workers train them.

    Returns the report or, if the run was stopped on request, where.

    Raises:
        CrossfadeError: the run failed; the error has an exit code.
    """
    assert all_reduce is not None or not job.all_reduces_dense
    started = time.perf_counter()
    with open_session(job, folder, store, hooks, all_reduce) as session:
        state = session.restore(checkpoint)
        if not session.loop.run(state):
            return session.stop(state)
        metrics, traffic = session.finish(state)
    session.check_has_output(state)
    restarts = folder.restarts()
    report = make_report(job, session.inputs.model, state, metrics, store, session.engine, traffic)
    report |= {"restarts": len(restarts), "restart_causes": restarts, "wall_seconds": time.perf_counter() - started}
    report |= {"run": folder.run_id(), "started": folder.started(), "kernels": session.metadata.kernels}
    if store.rank == 0 and job.no_shared_run_dir:
        hooks.on_event(ReportEvent(report=report))
    elif store.rank == 0:
        folder.write_report(report)
    return report


def make_store(job: JobConfig) -> LocalStore | DeviceStore:
    """Create the store of a run without servers, in the memory that ``train.tables`` names.

    With ``auto``, tables are on the GPU where a step need not leave it: features and dense layers are computed on the
    host, as is what several GPUs have in common.

    Raises:
        MissingExtraError: it needs a package that is not installed.
        InputError: it needs a GPU that is not available.
    """
    train, choice = job.train, choose_engine(job.train, local_rank(0))
    is_resident = choice.engine == "torch" and choice.on_gpu and len(choice.devices) == 1 and not job.model.has_towers
    if train.tables == "host" or (train.tables == "auto" and not is_resident):
        return LocalStore()
    memory = train.device_memory_gib
    return DeviceStore(torch_device(choice.devices[0]), None if memory is None else round(memory * 2**30))


def run_in_process(
    job: JobConfig,
    folder: RunFolder,
    hooks: TrainingHooks = NO_HOOKS,
    *,
    resume: bool = False,
    allow_restart: bool = False,
) -> dict[str, Any] | StopResult:
    """Train ``job`` in this process, without servers; see ``run_training``.

    With ``resume`` it resumes from the newest checkpoint that can be read, and logs why newer ones were skipped. One
    that turns out to be corrupt while it is read is skipped too. Where none is usable, ``allow_restart`` is whether to
    start over at step 0, see ``find_start``.
    """
    rejected: set[str] = set()
    saved_step = last_saved_step(folder.path) if resume else None
    while True:
        found = None
        if resume:
            found, skipped = find_start(
                folder.checkpoints(job), rejected, saved_step=saved_step, allow_restart=allow_restart
            )
            for reason in skipped:
                hooks.log(f"skipped a checkpoint: {reason}")
        checkpoint = found.uri if found else None
        if found:
            hooks.log(f"resuming from step {found.manifest.step:,}")
        try:
            with closing(make_store(job)) as store:
                if hooks.metrics is not None:
                    hooks.metrics.register("rows", TableMetrics(store.stats))
                return run_training(job, folder, store, hooks, checkpoint=checkpoint)
        except CheckpointError as error:
            if checkpoint is None or error.checkpoint != checkpoint:
                raise
            hooks.log(f"skipped a checkpoint: {error}")
            rejected.add(checkpoint)
