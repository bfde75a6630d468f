"""Run a job in its run folder: in this process, or in processes that this one coordinates: servers and workers."""

from __future__ import annotations

import logging
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from crossfade.base import logs
from crossfade.base.command_line import command_line
from crossfade.base.errors import Option, Text, as_typed, command, escape_unprintable, worded
from crossfade.base.text import counted

if TYPE_CHECKING:
    from crossfade.deploy.aws.spot import SpotMonitor
    from crossfade.deploy.capacity.plan_inputs import PlanInputs
    from crossfade.deploy.cluster.state_writer import StateWriter
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.data.split_names import SplitName
    from crossfade.trainer.monitoring.http import MetricsEndpoint
    from crossfade.trainer.runs.events import Event, EventSink
    from crossfade.trainer.runs.run_folder import RunFolder

_logger = logging.getLogger(__name__)

_RESUME = ("; resume with ", Option("resume"))


class Display(Protocol):
    """Shows the events of a run, from its start to its end."""

    def __enter__(self) -> Self:
        """Begin to show them."""

    def __exit__(self, *_: object) -> None:
        """End."""

    def show(self, event: Event) -> None:
        """Show one event."""


def wait_as_standby(job: JobConfig, folder: RunFolder) -> str | None:
    """Wait while another process runs in ``folder``; return how it ended, or None if there is a run to resume.

    Meanwhile only loopback is listened on: on another address, clients would mistake this process for the coordinator.
    """
    from crossfade.deploy.cluster.process_metrics import process_metrics
    from crossfade.deploy.cluster.supervision import is_loopback
    from crossfade.trainer.monitoring.http import serve_metrics

    metrics = process_metrics(job.name, "coordinator")
    metrics.state = lambda: "standing by"
    # On loopback, the job's port belongs to the running process.
    metrics_port = None if is_loopback(job.cluster.host) else job.metrics.port
    with serve_metrics(metrics, metrics_port, "127.0.0.1", "127.0.0.1"):
        return folder.lock.wait_for_end(
            lambda: _logger.info(f"{folder.path}: a run is in progress; standing by"),
            job.cluster.standby_timeout_seconds,
        )


@dataclass(frozen=True)
class _RunContext:
    """What surrounds a run: metrics endpoint, spot monitor, state file, whether it resumes, and what to print first."""

    listener: MetricsEndpoint
    spot: SpotMonitor | None
    state: StateWriter
    resume: bool
    note: str | None


def _note_without_valid(inputs: PlanInputs) -> str | None:
    """Return what the user should read first where nothing will choose among the epochs."""
    valid = inputs.manifest.splits.get("valid")
    if inputs.job.train.save_embeddings != "best" or (valid is not None and valid.rows):
        return None
    return (
        f"{inputs.folder.uri}: has no valid split, so training takes all its epochs and keeps the embeddings of the "
        f"last; prepare it as with {command('prepare', hold_out_valid='random:0.05')} to keep those of the best"
    )


def serve_own_metrics(job: JobConfig) -> AbstractContextManager[MetricsEndpoint]:
    """Serve the metrics of this process while the context lasts."""
    from crossfade.deploy.cluster.process_metrics import process_metrics
    from crossfade.trainer.monitoring.http import serve_metrics

    is_distributed, timeout = job.cluster.is_distributed, job.cluster.stall_timeout_seconds
    role, stall = ("coordinator", None) if is_distributed else ("in-process", timeout)
    metrics = process_metrics(job.name, role, stall)
    return serve_metrics(metrics, job.metrics.port, job.metrics.host, job.cluster.host)


@contextmanager
def final_scrape(listener: MetricsEndpoint) -> Iterator[None]:
    """Let Prometheus scrape the final values of a run that is done or has failed, so that its alerts see the end.

    A run that is stopped ends without it, at once.
    """
    from crossfade.base.errors import CrossfadeError
    from crossfade.base.signals import stopper

    try:
        yield
    except (CrossfadeError, OSError):
        if stopper.number is None:
            _await_final_scrape(listener, "the run has failed; ")
            stopper.forget()  # a signal has ended only the wait
        raise
    _await_final_scrape(listener)


def _await_final_scrape(listener: MetricsEndpoint, outcome: str = "") -> None:
    """Wait until Prometheus has scraped the final values; a signal ends the wait, since the run has ended."""
    from crossfade.base.signals import stopper

    seconds = listener.seconds_until_scrape()
    if seconds > 1.0:
        _print(f"{outcome}waiting for Prometheus to scrape the final values: {seconds:.0f} s at most")
    with stopper.deferred():
        listener.await_final_scrape(is_canceled=lambda: stopper.number is not None)


def run_in_folder(
    inputs: PlanInputs,
    folder: RunFolder,
    display: Display,
    listener: MetricsEndpoint,
    *,
    resume: bool,
    spot: SpotMonitor | None = None,
) -> dict[str, Any]:
    """Train the job of ``inputs`` in ``folder``, which this process has locked, and return the report.

    Raises:
        StopSignal, SpotInterruption: the run was stopped.
        CrossfadeError: the run failed.
    """
    from crossfade.base.signals import SpotInterruption, StopSignal
    from crossfade.deploy.cluster.state_writer import StateWriter
    from crossfade.trainer.embeddings.files import partial_folder
    from crossfade.trainer.runs.ownership import claim
    from crossfade.trainer.tracking.tracker import open_tracker

    job = inputs.job
    context = _RunContext(listener, spot, StateWriter(folder), resume, _note_without_valid(inputs))
    claim(folder.checkpoints(job), folder.run_id(), job.name, folder.lock.command, take_over=resume)
    tracker = open_tracker(job, folder, _logger.warning)

    def show(event: Event) -> None:
        tracker.take(event)
        display.show(event)

    with display, context.state:
        try:
            report = _train(job, folder, show, context)
        except BaseException as error:
            if folder.lock.is_owned():
                if isinstance(error, StopSignal | SpotInterruption):
                    context.state.end("stopped", worded(error.args, as_typed))
                    tracker.end("stopped")
                else:
                    context.state.fail(error)
                    tracker.end("failed")
                # No process on this host writes them any more, and their disk may be full.
                shutil.rmtree(partial_folder(folder.embeddings), ignore_errors=True)
            raise
        context.state.end("done")
        tracker.end("done", report)
        return report


def _train(job: JobConfig, folder: RunFolder, show: EventSink, context: _RunContext) -> dict[str, Any]:
    from crossfade.trainer.embeddings.staged import StagedEmbeddings

    train = _train_distributed if job.cluster.is_distributed else _train_in_process
    report = train(job, folder, show, context)
    if not job.cluster.shared_run_dir and job.train.save_embeddings == "best":
        StagedEmbeddings(folder.checkpoints(job)).fetch(folder.embeddings)
    if report["metrics"]:
        report["baselines"] = _compare_with_baselines(job, report["metrics"])
        folder.write_report(report)
    return report


def _compare_with_baselines(job: JobConfig, metrics: dict[SplitName, dict[str, float]]) -> dict[str, Any]:
    """Return the metrics of the baselines; a note if they fail, since the run itself is done."""
    from crossfade.base.errors import CrossfadeError
    from crossfade.trainer.evaluation.shortfall import compare_with_baselines

    try:
        return compare_with_baselines(job, metrics, in_training=True)
    except CrossfadeError as error:
        return {"shortfall": None, "metrics": {}, "notes": [f"baselines are not computed: {error}"]}


def _train_in_process(job: JobConfig, folder: RunFolder, show: EventSink, context: _RunContext) -> dict[str, Any]:
    from crossfade.base.signals import SpotInterruption, stopper
    from crossfade.trainer.runs.events import PhaseEvent
    from crossfade.trainer.training.checkpointing import StopResult
    from crossfade.trainer.training.hooks import TrainingHooks
    from crossfade.trainer.training.run import run_in_process

    spot = context.spot
    _describe_process(job, context)

    def take(event: Event) -> None:
        context.state.take(event)
        if isinstance(event, PhaseEvent) and event.name == "training":
            # Not earlier: invalid input is reported in a single line.
            _print_addresses(context, folder)
        show(event)

    def stop_requested() -> bool:
        folder.lock.check_owned()  # this process may have been frozen
        return stopper.number is not None or (spot is not None and spot.notice() is not None)

    with stopper.deferred(job.cluster.grace_period_seconds):
        hooks = TrainingHooks(
            on_event=take,
            log=_logger.info,
            stop_requested=stop_requested,
            metrics=context.listener.metrics,
        )
        report = run_in_process(job, folder, hooks, resume=context.resume)
    if not isinstance(report, StopResult):
        return report
    stopper.check(report.explain(), _RESUME)
    assert spot is not None, "stopped without a request"
    raise SpotInterruption(f"{report.explain()}: {spot.notice()}", _RESUME)


def _describe_process(job: JobConfig, context: _RunContext) -> None:
    """Publish this process, the only one of its run, as scrape target and in the state file."""
    from crossfade.deploy.cluster.process_metrics import target

    listener = context.listener
    address, host = listener.address, socket.gethostname()
    listener.targets = lambda: [target(job.name, "in-process", host, address)] if address else []

    def status() -> dict[str, Any]:
        process = {"state": "running", "host": host, "metrics": address, "load": listener.metrics.snapshot()}
        return {"state": "running", "generation": 1, "processes": {"in-process": process}}

    context.state.watch(status)


def _train_distributed(job: JobConfig, folder: RunFolder, show: EventSink, context: _RunContext) -> dict[str, Any]:
    from crossfade.base.signals import SpotInterruption, stopper
    from crossfade.deploy.cluster import supervision

    servers, workers = counted(job.cluster.servers, "server"), counted(job.cluster.workers, "worker")
    is_held = job.cluster.workers_hold_tables
    roles = f"{workers}, which hold the tables" if is_held else f"1 scheduler, {servers}, {workers}"
    _print(f"starting {roles} (logs: {folder.logs})")
    _print_addresses(context, folder)
    how: tuple[Text, ...] = ()
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
        except supervision.JobStopped as stopped:
            how = (str(stopped), _RESUME)
    stopper.check(*how)
    raise SpotInterruption(*how)


def _print_addresses(context: _RunContext, folder: RunFolder) -> None:
    """Print where the run can be monitored, after the note on it."""
    if context.note is not None:
        _print(context.note)
    if context.listener.address is not None:
        _print(f"metrics: http://{context.listener.address}/metrics")
    _print(f"to see it: {command_line('dashboard', folder.path)}")


def _print(line: str) -> None:
    """Print ``line`` on stderr without a prefix, or as a log line if a log format was requested."""
    if logs.is_console():
        print(escape_unprintable(line), file=sys.stderr, flush=True)
    else:
        _logger.info(line)
