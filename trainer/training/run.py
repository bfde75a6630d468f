"""A run of one worker, from its start or a checkpoint to the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

from kvstore.errors import CheckpointError
from kvstore.local import LocalStore
from kvstore.store import RowStore
from trainer.config.schema import JobConfig
from trainer.model.allreduce import AllReduce
from trainer.monitoring.registry import ProcessMetrics, TableMetrics
from trainer.runs.events import EventSink, ReportEvent, StoppedEvent
from trainer.runs.folder import RunFolder
from trainer.training.checkpointing import StopResult, latest_usable
from trainer.training.report import make_report, total_traffic
from trainer.training.session import open_session


def run_training(
    job: JobConfig,
    folder: RunFolder,
    store: RowStore,
    emit: EventSink,
    *,
    checkpoint: str | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    checkpoints_requested: Callable[[], int] = lambda: 0,
    metrics: ProcessMetrics | None = None,
    reduction: AllReduce | None = None,
) -> dict[str, Any] | StopResult:
    """Train as one worker of ``job`` on ``store``, on from ``checkpoint`` if one is given; ``metrics`` show it.

    Rank 0 writes the records, the checkpoints and the report. Where several workers train dense layers, ``reduction``
    sums their gradients. Returns the report or, where ``stop_requested`` said at any worker that the run shall stop,
    where that was. A checkpoint is written whenever ``checkpoints_requested`` has grown.

    Raises:
        CrossfadeError: the run failed; its exit code says how.
    """
    assert reduction is not None or not job.all_reduces_dense
    started = time.perf_counter()
    with ExitStack() as opened:
        run = open_session(
            job,
            folder,
            store,
            emit,
            opened,
            metrics or ProcessMetrics(job.name, "worker"),
            stop_requested,
            checkpoints_requested,
        )
        run.towers.dense.all_reduce = reduction
        loop = run.loop()
        progress = run.restore_or_create(checkpoint)
        run.train_metrics.attach(progress)
        run.saver.begin(progress)
        if not loop.run(progress):
            stop = run.saver.stop(progress)
            run.log_event(StoppedEvent(step=stop.step, checkpoint=stop.checkpoint))
            return stop
        run.saver.save_last(progress)
        quality = run.quality(progress)
        run.train_metrics.done()
        traffic = total_traffic(progress, store)
    run.check_final_checkpoint(progress)
    report = make_report(job, run.model, progress, quality, store, traffic)
    report |= {"restarts": len(folder.restarts()), "restart_causes": folder.restarts()}
    report["wall_seconds"] = time.perf_counter() - started
    if store.rank == 0 and job.no_shared_run_dir:
        emit(ReportEvent(report=report))
    elif store.rank == 0:
        folder.write_report(report)
    return report


def run_in_process(
    job: JobConfig,
    folder: RunFolder,
    emit: EventSink,
    *,
    resume: bool,
    stop_requested: Callable[[], bool],
    checkpoints_requested: Callable[[], int] = lambda: 0,
    say: Callable[[str], None],
    metrics: ProcessMetrics | None = None,
) -> dict[str, Any] | StopResult:
    """``run_training`` without servers; with ``resume``, on from the newest checkpoint that proves to be whole.

    ``say`` gets a line for each that does not, and for the one that does.
    """
    refused: set[str] = set()
    while True:
        found = latest_usable(folder.checkpoints(job), refused, say) if resume else None
        checkpoint = found.uri if found else None
        if found:
            say(f"resuming from step {found.manifest.step:,}")
        try:
            with closing(LocalStore()) as store:
                if metrics is not None:
                    metrics.register("rows", TableMetrics(store.stats))
                return run_training(
                    job,
                    folder,
                    store,
                    emit,
                    checkpoint=checkpoint,
                    stop_requested=stop_requested,
                    checkpoints_requested=checkpoints_requested,
                    metrics=metrics,
                )
        except CheckpointError as error:
            if checkpoint is None or error.checkpoint != checkpoint:
                raise
            say(f"skipped a checkpoint: {error}")
            refused.add(checkpoint)
