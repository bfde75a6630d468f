"""Run a job in its run folder: in this process, or in processes that this one coordinates: servers and workers."""

from __future__ import annotations

import logging
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

from crossfade.base import logs
from crossfade.base.errors import OptionError, as_typed, command, option_named, worded
from crossfade.base.exit_codes import STOPPED_EXIT_CODE
from crossfade.base.options import Port, option
from crossfade.base.text import counted
from crossfade.terminal import Progress, print_line
from crossfade.trainer.config.options import Roles

if TYPE_CHECKING:
    from crossfade.deploy.aws.spot import SpotMonitor
    from crossfade.deploy.capacity.plan_inputs import PlanInputs
    from crossfade.deploy.cluster.state_writer import StateWriter
    from crossfade.display import TrainDisplay
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.data.reporter import ProgressReporter
    from crossfade.trainer.data.split_names import SplitName
    from crossfade.trainer.monitoring.http import MetricsEndpoint
    from crossfade.trainer.runs.events import Event, EventSink
    from crossfade.trainer.runs.run_folder import EarlierRun, RunFolder

_logger = logging.getLogger(__name__)

_RESUME = f"resume with {option_named('resume')}"


_EXIT_CODES = {"done": 0, "failed": 1, "stopped": STOPPED_EXIT_CODE}
"""Exit codes of a standby by the end of the run that it waited for."""

_run = partial(option, group="run")
_display = partial(option, group="display")


class TrainOptions(Roles):
    """What to train, in which folder, and how progress is shown."""

    at_most_one = (("overwrite", "resume", "standby"),)

    sagemaker: Path | None = option(
        None, "train the SageMaker job in DIR; without JOB, the one in /opt/ml", group="job", value="DIR"
    )
    run_dir: Path | None = _run(None, "use DIR as the folder of the run (runs/NAME)", value="DIR")
    overwrite: bool = _run(False, "delete an earlier run in DIR instead of moving it aside")
    resume: bool = _run(False, "resume the run in DIR, or start one if there is none")
    standby: bool = _run(
        False, "wait while another process runs in DIR; resume the run if that process is killed, else exit as it did"
    )
    allow_restart_from_scratch: bool = _run(
        False,
        "start over at step 0 if a run that resumes has saved checkpoints, but none can be used, instead of ending "
        "with an error; checkpoints that cannot be used are kept",
    )
    spot: bool = _run(False, "drain when EC2 announces an interruption of this instance")
    progress: Progress | None = _display(
        None,
        "show progress as a bar, or as a line every ten seconds and at each evaluation, with the metric that selects "
        "the embeddings or with all metrics (default: a bar on a terminal, else lines)",
    )
    dashboard: Port | None = _display(
        None,
        "serve the dashboard of the run on loopback during training, and print its address (default: a free port)",
        value="PORT",
        without_value=0,
    )

    @model_validator(mode="after")
    def _check_restart(self) -> Self:
        if self.allow_restart_from_scratch and not (self.resume or self.standby):
            raise OptionError(
                "allow_restart_from_scratch",
                problem="a run that does not resume starts at step 0",
                fix=f"add {option_named('resume')}",
            )
        return self


def train(options: TrainOptions) -> int:
    """Train the job that is named, with ``standby`` once it is this process's turn, and return the exit code.

    Raises:
        StopSignal, SpotInterruption: the run was stopped.
        CrossfadeError: the job cannot run here, or failed.
    """
    from crossfade.trainer.runs.run_lock import RunInProgressError

    while True:
        try:
            return _train_once(options)
        except RunInProgressError as error:
            if not options.standby:
                raise
            _logger.info(f"{error.worded(as_typed)}; standing by again")


def _train_once(options: TrainOptions) -> int:
    """Train unless another process does.

    Raises:
        RunInProgressError: another process runs the job, such as another standby that has taken it over first.
    """
    from crossfade.deploy.aws.spot import monitor_spot
    from crossfade.deploy.cluster.state_writer import StateWriter
    from crossfade.deploy.cluster.store_choice import choose_store
    from crossfade.display import TrainDisplay, progress_bars
    from crossfade.next_command import use_commands
    from crossfade.trainer.runs.run_folder import RunFolder, default_run_dir

    job = choose_store(options.load_job(), _logger.info)
    logs.context.update(role="coordinator" if job.cluster.is_distributed else "in-process")
    folder = RunFolder(options.run_dir or default_run_dir(job))
    if options.standby and (ended := _wait_as_standby(job, folder)):
        _logger.info(f"{folder.path}: the run there is over ({ended}): nothing to resume")
        return _EXIT_CODES[ended]
    resume, allow_restart = options.resume or options.standby, options.allow_restart_from_scratch
    with progress_bars() as bars:
        inputs = check_runnable(
            job, folder, bars, resume=resume, allow_restart=allow_restart, dashboard=options.dashboard
        )
    job = inputs.job
    display = TrainDisplay(job.evaluate.best_metric, options.progress)
    with (
        serve_own_metrics(job) as listener,
        monitor_spot(_logger.info, enabled=options.spot) as spot,
        final_scrape(listener),
    ):
        with folder.open_run(job, overwrite=options.overwrite, resume=resume) as moved:
            if moved is not None:
                _describe_moved(folder, moved)
            note = note_without_valid(job, inputs)
            context = RunContext(listener, spot, StateWriter(folder), resume, note, allow_restart)
            with serve_dashboard(folder, options.dashboard):
                report = run_in_folder(job, folder, inputs, display, context)
        interactions: dict[str, int] = {name: split.rows for name, split in inputs.manifest.splits.items()}
        display.print_report(report, folder.path, interactions)
        for line in use_commands(folder.path, inputs.folder, inputs.manifest):
            print_line(f"next: {line}")
    return 0


def _describe_moved(folder: RunFolder, moved: EarlierRun) -> None:
    """Log where the earlier run in ``folder`` is now and, if it was not finished, how to resume it."""
    what = "" if moved.finished else ", which was not finished,"
    _logger.info(f"the earlier run in {folder.path}{what} was moved to {moved.path}")
    if not moved.finished:
        from crossfade.next_command import command_line
        from crossfade.trainer.runs.run_folder import JOB_FILE

        again = command_line("train", moved.path / JOB_FILE, run_dir=moved.path, resume=True)
        _logger.info(f"to resume it: {again}")


def _wait_as_standby(job: JobConfig, folder: RunFolder) -> str | None:
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
class RunContext:
    """What surrounds a run: metrics endpoint, spot monitor, state file, whether it resumes, and what to print first.

    ``allow_restart`` is whether a run that resumes may start over, as in ``find_start``.
    """

    listener: MetricsEndpoint
    spot: SpotMonitor | None
    state: StateWriter
    resume: bool
    note: str | None = None
    allow_restart: bool = False


def check_runnable(
    job: JobConfig,
    folder: RunFolder,
    progress: ProgressReporter,
    *,
    resume: bool,
    allow_restart: bool = False,
    dashboard: int | None = None,
) -> PlanInputs:
    """Reject a job that cannot run here, before an earlier run is touched; return its inputs, and the resolved job.

    ``allow_restart`` is whether a run that resumes may start over; ``dashboard`` is the port of the run's page, if it
    is to be served.

    Raises:
        InputError: the dataset, the options, or the machine do not fit the job.
    """
    from crossfade.deploy.capacity.plan import check_fits_this_machine
    from crossfade.deploy.capacity.plan_inputs import read_inputs
    from crossfade.trainer.data.vocabulary import check_vocabularies
    from crossfade.trainer.runs.ownership import check_claimable

    inputs = read_inputs(job, progress)
    job = inputs.job
    check_vocabularies(inputs.folder, inputs.manifest)
    if warning := check_fits_this_machine(inputs):
        _logger.warning(warning)
    _check_runtime(job)
    if dashboard is not None:
        _check_dashboard_port(dashboard)
    if job.checkpoint.warm_start_from is not None:
        from crossfade.trainer.training.restore import open_warm_start

        open_warm_start(job, inputs.model, inputs.manifest)
    if job.model.start and not resume:
        from crossfade.trainer.model.given_vectors import open_given_vectors

        for name, given in open_given_vectors(job, inputs.model, inputs.folder, inputs.manifest).items():
            found, rows = given.has_vector_R.sum(), len(given.has_vector_R)
            _logger.info(f"model.start: {found:,} of {rows:,} rows of {name} begin with given vectors")
    if resume:
        # Before the check below, which would create the folder of a disk that is not mounted.
        _check_resumable(inputs, folder, allow_restart=allow_restart)
    if job.checkpoint.path is not None and not folder.contains(job.checkpoint.path):
        # A new run owns none of the checkpoints that may be there; only a resumed run does.
        run_id = folder.run_id() if resume and folder.has_run_id() else None
        check_claimable(job.checkpoint.path, run_id, job.name, take_over=resume)
    if resume and not folder.has_run_id():
        _logger.info(f"{folder.path}: there is no run to resume, so a new one starts")
    return inputs


def _check_dashboard_port(port: int) -> None:
    """Reject a port in use on loopback: the run would go on without its page."""
    from crossfade.deploy.topology import Address, check_free_port

    fix = "name another port, or none to use a free one"
    check_free_port(option_named("dashboard", port), Address("127.0.0.1", port), fix)


def _check_resumable(inputs: PlanInputs, folder: RunFolder, *, allow_restart: bool) -> None:
    """Reject a run whose files cannot be read, whose checkpoints are lost, or whose dataset has changed."""
    from crossfade.base.errors import CheckpointError, InputError
    from crossfade.trainer.data.manifest import data_fingerprint
    from crossfade.trainer.runs.resumption import check_same_data, find_start, last_saved_step
    from crossfade.trainer.runs.run_folder import JOB_FILE

    job = inputs.job
    folder.check_readable()
    if folder.has_run_id() and (folder.path / JOB_FILE).exists():
        before, now = folder.job().values(), job.values()
        dense_key = ["model.dense.learning_rate"] if job.model.has_dense_layers else []
        for key in ("optimizer.learning_rate", *dense_key):
            if now[key] != before[key]:
                _logger.warning(f"{key} was {before[key]:g} and is {now[key]:g} from here on")
    checkpoints = folder.checkpoints(job)
    try:
        start, _ = find_start(checkpoints, saved_step=last_saved_step(folder.path), allow_restart=allow_restart)
    except CheckpointError as error:
        raise InputError(f"checkpoint.path: {checkpoints} cannot be read: {error.__cause__ or error}") from error
    if start is not None:
        check_same_data(start, job.with_absolute_paths().data.path, data_fingerprint(inputs.folder))


def _check_runtime(job: JobConfig) -> None:
    """Reject a job whose packages or GPUs are missing, or whose hosts and ports do not fit this machine."""
    from crossfade.deploy.cluster.store_choice import require_store
    from crossfade.trainer.config.sections import on_gpu
    from crossfade.trainer.tracking.tracker import check_tracking

    check_tracking(job)
    if job.train.engine == "torch":
        from crossfade.kvstore.torch.device import require_torch

        require_torch()
    if job.train.engine == "mxnet":
        from crossfade.kvstore.mxnet.imports import require_mxnet

        require_mxnet()
    require_store(job)
    if on_gpu(job.train.devices) and not job.cluster.is_distributed:
        from crossfade.trainer.model.engines.engine import choose_engine

        choose_engine(job.train)
    if job.cluster.is_distributed:
        from crossfade.deploy.cluster.supervision import check_hosts

        check_hosts(job.cluster)


def note_without_valid(job: JobConfig, inputs: PlanInputs) -> str | None:
    """Return what the user should read first where nothing will choose among the epochs."""
    valid = inputs.manifest.splits.get("valid")
    if job.train.save_embeddings != "best" or (valid is not None and valid.rows):
        return None
    return (
        f"{inputs.folder.uri}: has no valid split, so training takes all its epochs and keeps the embeddings of the "
        f"last; prepare it as with {command('prepare', hold_out_valid='random:0.05')} to keep those of the best"
    )


@contextmanager
def serve_own_metrics(job: JobConfig) -> Iterator[MetricsEndpoint]:
    """Serve the metrics of this process while the context lasts."""
    from crossfade.deploy.cluster.process_metrics import process_metrics
    from crossfade.trainer.monitoring.http import serve_metrics

    is_distributed, timeout = job.cluster.is_distributed, job.cluster.stall_timeout_seconds
    role, stall = ("coordinator", None) if is_distributed else ("in-process", timeout)
    metrics = process_metrics(job.name, role, stall)
    with serve_metrics(metrics, job.metrics.port, job.metrics.host, job.cluster.host) as listener:
        yield listener


def serve_dashboard(folder: RunFolder, port: int | None) -> AbstractContextManager[None]:
    """Serve the dashboard of the run on ``port`` while the context lasts; None: do not serve it."""
    if port is None:
        return nullcontext()
    from tqdm import tqdm

    from crossfade.deploy.dashboard.server import serve_sidecar

    return serve_sidecar(folder.path, port, lambda line: tqdm.write(line, file=sys.stderr))


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
    job: JobConfig, folder: RunFolder, inputs: PlanInputs, display: TrainDisplay, context: RunContext
) -> dict[str, Any]:
    """Train in ``folder``, which this process has locked, and return the report; the final metrics are always kept.

    Raises:
        StopSignal, SpotInterruption: the run was stopped.
        CrossfadeError: the run failed.
    """
    from crossfade.base.signals import SpotInterruption, StopSignal
    from crossfade.trainer.data.manifest import data_fingerprint
    from crossfade.trainer.embeddings.files import partial_folder
    from crossfade.trainer.monitoring.final import merge_final_metrics
    from crossfade.trainer.runs.ownership import claim
    from crossfade.trainer.tracking.tracker import open_tracker

    inputs.selection.write(folder.path, job, data_fingerprint(inputs.folder))
    claim(folder.checkpoints(job), folder.run_id(), job.name, folder.lock.command, take_over=context.resume)
    folder.clear_metrics()
    try:
        tracker = open_tracker(job, folder, _logger.warning)

        def show(event: Event) -> None:
            tracker.take(event)
            display.show(event)

        with display, context.state:
            try:
                report = _train(job, folder, show, context)
                display.finish(report)
            except BaseException as error:
                if folder.lock.is_owned():
                    if isinstance(error, StopSignal | SpotInterruption):
                        context.state.end("stopped", worded(str(error), as_typed))
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
    finally:
        if folder.lock.is_owned():
            merge_final_metrics(folder, job, context.listener.metrics)


def _train(job: JobConfig, folder: RunFolder, show: EventSink, context: RunContext) -> dict[str, Any]:
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


def _train_in_process(job: JobConfig, folder: RunFolder, show: EventSink, context: RunContext) -> dict[str, Any]:
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
            checkpoints_requested=spot.recommendations if spot else lambda: 0,
            metrics=context.listener.metrics,
        )
        report = run_in_process(job, folder, hooks, resume=context.resume, allow_restart=context.allow_restart)
    if not isinstance(report, StopResult):
        return report
    stopper.check(f"{report.explain()}; {_RESUME}")
    assert spot is not None, "stopped without a request"
    raise SpotInterruption(f"{report.explain()}: {spot.notice()}; {_RESUME}")


def _describe_process(job: JobConfig, context: RunContext) -> None:
    """Publish this process, the only one of its run, as scrape target and in the state file."""
    from crossfade.deploy.cluster.process_metrics import target

    listener = context.listener
    address, host = listener.address, socket.gethostname()
    listener.targets = lambda: [target(job.name, "in-process", host, address)] if address else []

    def status() -> dict[str, Any]:
        process = {"state": "running", "host": host, "metrics": address, "load": listener.metrics.snapshot()}
        return {"state": "running", "generation": 1, "processes": {"in-process": process}}

    context.state.watch(status)


def _train_distributed(job: JobConfig, folder: RunFolder, show: EventSink, context: RunContext) -> dict[str, Any]:
    from crossfade.base.signals import SpotInterruption, stopper
    from crossfade.deploy.cluster import supervision

    servers, workers = counted(job.cluster.servers, "server"), counted(job.cluster.workers, "worker")
    is_held = job.cluster.workers_hold_tables
    roles = f"{workers}, which hold the tables" if is_held else f"1 scheduler, {servers}, {workers}"
    _print(f"starting {roles} (logs: {folder.logs})")
    _print_addresses(context, folder)
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
                allow_restart=context.allow_restart,
                stop_requested=lambda: stopper.number is not None,
                spot=context.spot,
            )
        except supervision.JobInterrupted as interrupted:
            raise SpotInterruption(f"{interrupted}; {_RESUME}") from None
        except supervision.JobStopped as stopped:
            how = f"{stopped}; {_RESUME}"
    stopper.check(how)
    raise AssertionError("stopped without a request")


def _print_addresses(context: RunContext, folder: RunFolder) -> None:
    """Print where the run can be monitored, after the note on it."""
    from crossfade.next_command import command_line

    if context.note is not None:
        _print(context.note)
    if context.listener.address is not None:
        _print(f"metrics: http://{context.listener.address}/metrics")
    _print(f"to see it: {command_line('dashboard', folder.path)}")


def _print(line: str) -> None:
    """Print ``line`` on stderr without a prefix, or as a log line if a log format was requested."""
    if logs.is_console():
        print_line(line, file=sys.stderr, flush=True)
    else:
        _logger.info(line)
