"""Run a job in its run folder: in this process, or on servers and workers that this process coordinates."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossfade.deploy.aws.spot import SpotMonitor
    from crossfade.deploy.capacity.inputs import PlanInputs
    from crossfade.deploy.cluster.state_writer import StateWriter
    from crossfade.display import TrainDisplay
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.monitoring.http import MetricsEndpoint
    from crossfade.trainer.runs.events import Event, EventSink
    from crossfade.trainer.runs.folder import RunFolder

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """What surrounds a run: metrics endpoint, spot monitor, state file, and whether it resumes an earlier run."""

    listener: MetricsEndpoint
    spot: SpotMonitor | None
    state: StateWriter
    resume: bool


@contextmanager
def serve_own_metrics(job: JobConfig) -> Iterator[MetricsEndpoint]:
    """Serve the metrics of this process while the context lasts."""
    from crossfade.deploy.cluster.process_metrics import process_metrics
    from crossfade.trainer.monitoring.http import serve_metrics

    role, stall = ("coordinator", None) if job.cluster.servers else ("in-process", job.cluster.stall_timeout_seconds)
    metrics = process_metrics(job.name, role, stall)
    with serve_metrics(metrics, job.metrics.port, job.metrics.host, job.cluster.host) as listener:
        yield listener


def serve_dashboard(folder: RunFolder, port: int | None) -> AbstractContextManager[None]:
    """Serve the dashboard of the run on ``port`` while the context lasts; None: do not serve it."""
    if port is None:
        return nullcontext()
    from tqdm import tqdm

    from crossfade.deploy.dashboard.sidecar import serve_sidecar

    return serve_sidecar(folder.path, port, lambda line: tqdm.write(line, file=sys.stderr))


def await_final_scrape(listener: MetricsEndpoint) -> None:
    """Wait until Prometheus has scraped the final values; a signal ends the wait, since the run is done."""
    from crossfade.signals import stopper

    seconds = listener.seconds_until_scrape()
    if seconds > 1.0:
        _print(f"waiting for Prometheus to scrape the final values: {seconds:.0f} s at most")
    with stopper.deferred():
        listener.await_final_scrape(is_canceled=lambda: stopper.number is not None)


def run_in_folder(
    job: JobConfig, folder: RunFolder, inputs: PlanInputs, display: TrainDisplay, context: RunContext
) -> dict[str, Any]:
    """Train in ``folder``, which this process has locked, and return the report; the final metrics are always kept.

    Raises:
        StopSignal, SpotInterruption: the run was stopped.
        CrossfadeError: the run failed.
    """
    from crossfade.signals import SpotInterruption, StopSignal
    from crossfade.trainer.data.manifest import data_fingerprint
    from crossfade.trainer.monitoring.final import merge_final_metrics
    from crossfade.trainer.runs.ownership import claim
    from crossfade.trainer.tracking.tracker import open_tracker

    inputs.selection.write(folder.path, job, data_fingerprint(inputs.folder))
    claim(folder.checkpoints(job), folder.run_id(), job.name, take_over=context.resume)
    folder.clear_metrics()
    try:
        tracker = open_tracker(job, folder, _logger.warning)

        def show(event: Event) -> None:
            tracker.take(event)
            display.show(event)

        with display, context.state:
            try:
                report = _train(job, folder, show, context)
            except BaseException as error:
                state = "stopped" if isinstance(error, StopSignal | SpotInterruption) else "failed"
                context.state.end(state, str(error))
                tracker.end(state)
                raise
            context.state.end("done")
            tracker.end("done", report)
            return report
    finally:
        merge_final_metrics(folder, job, context.listener.metrics)


def _train(job: JobConfig, folder: RunFolder, show: EventSink, context: RunContext) -> dict[str, Any]:
    from crossfade.trainer.embeddings.staged import StagedEmbeddings

    train = _train_on_servers if job.cluster.servers else _train_in_process
    report = train(job, folder, show, context)
    if not job.cluster.shared_run_dir and job.train.save_embeddings == "best":
        StagedEmbeddings(folder.checkpoints(job)).fetch(folder.embeddings)
    return report


def _train_in_process(job: JobConfig, folder: RunFolder, show: EventSink, context: RunContext) -> dict[str, Any]:
    from crossfade.signals import SpotInterruption, stopper
    from crossfade.trainer.runs.events import PhaseEvent
    from crossfade.trainer.training.checkpointing import StopResult
    from crossfade.trainer.training.hooks import TrainingHooks
    from crossfade.trainer.training.run import run_in_process

    spot = context.spot
    _describe_process(job, context)

    def take(event: Event) -> None:
        if isinstance(event, PhaseEvent) and event.name == "training":
            # Not earlier: invalid input is reported in a single line.
            _print_addresses(context.listener, folder)
        show(event)

    with stopper.deferred(job.cluster.grace_period_seconds):
        hooks = TrainingHooks(
            on_event=take,
            log=_logger.info,
            stop_requested=lambda: stopper.number is not None or (spot is not None and spot.notice() is not None),
            checkpoints_requested=spot.recommendations if spot else lambda: 0,
            metrics=context.listener.metrics,
        )
        report = run_in_process(job, folder, hooks, resume=context.resume)
    if not isinstance(report, StopResult):
        return report
    stopper.check(f"{report.explain()}; resume with --resume")
    assert spot is not None, "stopped without a request"
    raise SpotInterruption(f"{report.explain()}: {spot.notice()}; resume with --resume")


def _describe_process(job: JobConfig, context: RunContext) -> None:
    """Publish this process, the only one of its run, as scrape target and in the state file."""
    from crossfade.deploy.cluster.metrics import target

    listener = context.listener
    address, host = listener.address, socket.gethostname()
    listener.targets = lambda: [target(job.name, "in-process", host, address)] if address else []

    def status() -> dict[str, Any]:
        process = {"state": "running", "host": host, "metrics": address, "load": listener.metrics.snapshot()}
        return {"state": "running", "generation": 1, "processes": {"in-process": process}}

    context.state.watch(status)


def _train_on_servers(job: JobConfig, folder: RunFolder, show: EventSink, context: RunContext) -> dict[str, Any]:
    from crossfade.deploy.cluster import supervision
    from crossfade.signals import SpotInterruption, stopper

    roles = f"1 scheduler, {job.cluster.servers} servers, {job.cluster.workers} workers"
    _print(f"starting {roles} (logs: {folder.logs})")
    _print_addresses(context.listener, folder)
    how = ""
    with stopper.deferred():
        try:
            return supervision.run_job(
                job,
                folder,
                show,
                context.listener,
                context.state,
                resume=context.resume,
                stop_requested=lambda: stopper.number is not None,
                spot=context.spot,
            )
        except supervision.JobInterrupted as interrupted:
            raise SpotInterruption(f"{interrupted}; resume with --resume") from None
        except supervision.JobStopped as stopped:
            how = f"{stopped}; resume with --resume"
    stopper.check(how)
    raise AssertionError("stopped without a request")


def _print_addresses(listener: MetricsEndpoint, folder: RunFolder) -> None:
    """Print where the run can be monitored."""
    if listener.address is not None:
        _print(f"metrics: http://{listener.address}/metrics")
    _print(f"page: crossfade dashboard {folder.path}")


def _print(line: str) -> None:
    """Print ``line`` on stderr without a prefix, or as a log line if a log format was requested."""
    from crossfade import logs

    if logs.is_console():
        print(line, file=sys.stderr, flush=True)
    else:
        _logger.info(line)
