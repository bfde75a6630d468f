"""``crossfade train``: run a job, in this process or as a distributed one, on this host or with others."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.commands.dashboard import port
from crossfade.options.job import add_job, add_sizes, load_job_arguments

if TYPE_CHECKING:
    from crossfade.display import TrainDisplay
    from deploy.aws.spot import SpotMonitor
    from deploy.capacity.memory import PlanInputs
    from deploy.cluster.state_writer import StateWriter
    from trainer.config.schema import JobConfig
    from trainer.monitoring.http import MetricsEndpoint
    from trainer.runs.folder import RunFolder

_logger = logging.getLogger(__name__)

_EPILOG = """\
Examples:
  crossfade train jobs/lastfm.yaml                               in this process
  crossfade train jobs/lastfm.yaml --servers 2 --workers 2       the same job on MXNet's dist_sync store
  crossfade train jobs/lastfm.yaml --set train.epochs=5 --set optimizer.learning_rate=0.05
  crossfade train --explain                                      every key of a job file: type, default and meaning

The run folder gets job.yaml (as resolved), events.jsonl, metrics.prom, report.json, embeddings/ (those that did best
on the valid split), checkpoints/, state.json and processes.jsonl (how its processes are, for 'crossfade status' and
'crossfade dashboard') and, for a distributed job, logs/ and metrics/ (one file a role). A folder that holds an earlier
run is moved aside, unless --resume takes that run up: from its newest whole checkpoint, with the same job but for
cluster.*, checkpoint.*, metrics.* and how long to train.

A distributed job outlives its processes. When one dies, or none makes progress for cluster.stall_timeout_seconds, all are ended
and start again from the newest whole checkpoint: at once, then after 1, 2, 4 ... 60 seconds, until cluster.max_restarts
in a row have brought no new checkpoint. Wrong input and diverging training end it at once. report.json counts restarts.

SIGINT (Ctrl-C) and SIGTERM: the workers write a checkpoint and the command ends with 130 or 143, after
cluster.grace_period_seconds at the latest. A second signal ends it at once.

On a spot instance: with --spot the run heeds EC2's notices. When EC2 announces that it takes this host back, the run
writes a checkpoint and ends with exit code 75; --resume goes on, here or elsewhere, if checkpoint.path outlives the host.
When EC2 says that the host is at risk (a rebalance recommendation), a checkpoint is written and training goes on.

To watch it: 'crossfade dashboard' serves a page (--dashboard does while it trains, and prints the address), 'crossfade
status' shows the same in the terminal; see docs/dashboard.md. For Prometheus the address of /metrics is printed, and
/targets beside it lists all processes. metrics.port fixes the port; see docs/metrics.md.

More hosts: say where this one listens, and start an agent on each of the others (see crossfade agent --help):
  export CROSSFADE_TOKEN=$(openssl rand -hex 32)        the same on all hosts
  crossfade train jobs/lastfm.yaml --servers 2 --workers 4 --run-dir /shared/lastfm \\
      --set cluster.hosts=2 --set cluster.host=10.0.0.1 --set cluster.coordinator_address=10.0.0.1:7070
"""


class _Explain(argparse.Action):
    """``--explain``: print the keys of a job file and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print them."""
        from trainer.config.explain import explain_fields

        rows = [("KEY", "TYPE", "DEFAULT", "MEANING"), *explain_fields()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[3]}")
        parser.exit()


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "train",
        help="train embeddings as a job file says",
        description="Train embeddings as a job file says.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_job(parser, optional=True)
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    add_sizes(parser, "servers", "workers")
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--overwrite", action="store_true", help="delete an earlier run in DIR instead of moving it aside"
    )
    earlier.add_argument(
        "--resume", action="store_true", help="take an earlier run in DIR up, if there is one, and go on with it"
    )
    earlier.add_argument(
        "--standby",
        action="store_true",
        help="wait while another process runs in DIR; if that is killed, go on as with --resume, else end as it did",
    )
    parser.add_argument(
        "--progress",
        choices=("bar", "lines"),
        default="bar",
        help="show progress as a bar, or as lines for a log, one every ten seconds and one an epoch (default: bar)",
    )
    parser.add_argument(
        "--sagemaker",
        type=Path,
        metavar="DIR",
        help="train what SageMaker asks for in DIR, as without JOB in its container, where DIR is /opt/ml",
    )
    parser.add_argument(
        "--spot", action="store_true", help="heed EC2's notices that it takes this host back (a spot instance)"
    )
    parser.add_argument(
        "--dashboard",
        type=port,
        nargs="?",
        const=0,
        metavar="PORT",
        help="serve the page of the run on loopback while it trains, and print its address (default: a free port)",
    )
    parser.add_argument("--explain", action=_Explain, nargs=0, help="print every key of a job file, and end")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print how it went."""
    if arguments.job is None or arguments.sagemaker is not None:
        return _run_in_container(arguments)
    from crossfade.display import TrainDisplay, progress_bars
    from crossfade.spot import spot_monitor
    from deploy.capacity.fit import check_fits_this_machine
    from deploy.capacity.plan import read_inputs
    from deploy.cluster.state_writer import StateWriter
    from trainer.runs.folder import RunFolder, default_run_dir
    from trainer.runs.ownership import check_claimable
    from trainer.training.warm_start import open_warm_start

    job = load_job_arguments(arguments, "servers", "workers")
    folder = RunFolder(arguments.run_dir or default_run_dir(job))
    if arguments.standby:
        if ended := _stand_by(job, folder):
            _logger.info(f"{folder.path}: the run there is over ({ended}): nothing to take up")
            return int(ended != "done")
        arguments.resume = True
    with progress_bars() as bars:
        inputs = read_inputs(job, bars)
    if warning := check_fits_this_machine(inputs):
        _logger.info(warning)
    _check_runtime(job)
    open_warm_start(job, inputs.model, inputs.manifest)
    if job.checkpoint.path is not None and not folder.holds(job.checkpoint.path):
        # What begins is another run than any before, unless it takes one up.
        run_id = folder.run_id() if arguments.resume and folder.has_run_id() else None
        check_claimable(job.checkpoint.path, run_id, job.name, take_over=arguments.resume)
    if arguments.resume and not folder.has_run_id():
        _logger.info(f"{folder.path}: there is no run to take up, so one begins")
    display = TrainDisplay(job.evaluate.best_metric, lines=arguments.progress == "lines")
    with _watched(job) as listener, spot_monitor(arguments.spot) as spot:
        with folder.open_run(job, overwrite=arguments.overwrite, resume=arguments.resume) as moved:
            if moved is not None:
                print(f"the earlier run in {folder.path} was moved to {moved}")
            around = _RunContext(listener, spot, StateWriter(folder), resume=arguments.resume)
            with _page(folder, arguments.dashboard):
                report = _run(job, folder, inputs, display, around)
        display.print_report(report, folder.path)
        _await_final_scrape(listener)
    return 0


def _stand_by(job: JobConfig, folder: RunFolder) -> str | None:
    """Wait while another process runs in ``folder``; gives how that ended, or None if there is a run to take up.

    Meanwhile loopback alone is listened on: anywhere else this would be taken for the process that runs.
    """
    from deploy.cluster.metrics import process_metrics
    from deploy.cluster.supervision import is_loopback
    from trainer.monitoring.http import serve_metrics

    metrics = process_metrics(job.name, "coordinator")
    metrics.state = lambda: "standby"
    # On loopback, the job's port is that of the process that runs.
    port = None if is_loopback(job.cluster.host) else job.metrics.port
    with serve_metrics(metrics, port, "127.0.0.1", "127.0.0.1"):
        return folder.wait_for_end(lambda: _logger.info(f"{folder.path}: a run is going on in it; standing by"))


def _run_in_container(arguments: argparse.Namespace) -> int:
    """Train what SageMaker has started this container for."""
    from crossfade import sagemaker_entry as sagemaker
    from crossfade.main import make_parser
    from deploy.aws.sagemaker.container import Paths
    from kvstore.errors import InputError

    paths = Paths(arguments.sagemaker) if arguments.sagemaker else Paths()
    if arguments.job is not None or not paths.has_job():
        found = "one and --sagemaker" if arguments.job is not None else f"none, nor {paths.config}, as SageMaker makes"
        raise InputError(f"expected a job file, as in 'crossfade train jobs/lastfm.yaml', but found {found}")
    return sagemaker.run(paths.base, make_parser().parse_args)


@contextmanager
def _watched(job: JobConfig) -> Iterator[MetricsEndpoint]:
    """What shows this command's metrics while the context lasts."""
    from deploy.cluster.metrics import process_metrics
    from trainer.monitoring.http import serve_metrics

    role, stall = ("coordinator", None) if job.cluster.servers else ("in-process", job.cluster.stall_timeout_seconds)
    metrics = process_metrics(job.name, role, stall)
    with serve_metrics(metrics, job.metrics.port, job.metrics.host, job.cluster.host) as listener:
        yield listener


def _page(folder: RunFolder, page_port: int | None) -> AbstractContextManager[None]:
    """Serves the page of the run while the context lasts, if that is wanted."""
    if page_port is None:
        return nullcontext()
    from tqdm import tqdm

    from deploy.dashboard.sidecar import serve_sidecar

    return serve_sidecar(folder.path, page_port, lambda line: tqdm.write(line, file=sys.stderr))


def _await_final_scrape(listener: MetricsEndpoint) -> None:
    """Let Prometheus see that the run has ended, and how; a signal ends the wait, since the run is done."""
    from crossfade.signals import stopper

    seconds = listener.farewell_seconds()
    if seconds > 1.0:
        print(f"waiting for Prometheus to have the last values: {seconds:.0f} s at most", file=sys.stderr, flush=True)
    with stopper.deferred():
        listener.await_final_scrape(enough=lambda: stopper.number is not None)


@dataclass(frozen=True)
class _RunContext:
    """Who watches a run, what it watches, where it tells how it is, and whether it takes an earlier one up."""

    listener: MetricsEndpoint
    spot: SpotMonitor | None
    state: StateWriter
    resume: bool


def _run(
    job: JobConfig, folder: RunFolder, inputs: PlanInputs, display: TrainDisplay, around: _RunContext
) -> dict[str, Any]:
    """Train in ``folder``, which this process holds; however that ends, its last metrics stay."""
    from crossfade.signals import SpotInterruption, StopSignal
    from trainer.data.manifest import data_fingerprint
    from trainer.monitoring.final import merge_final_metrics
    from trainer.runs.ownership import claim

    inputs.selection.write(folder.path, job, data_fingerprint(inputs.folder))
    claim(folder.checkpoints(job), folder.run_id(), job.name, take_over=around.resume)
    folder.clear_metrics()
    try:
        with display, around.state:
            try:
                report = _train(job, folder, display, around)
            except BaseException as error:
                around.state.end(
                    "stopped" if isinstance(error, StopSignal | SpotInterruption) else "failed", str(error)
                )
                raise
            around.state.end("done")
            return report
    finally:
        merge_final_metrics(folder, job, around.listener.metrics)


def _check_runtime(job: JobConfig) -> None:
    """Refuse a job that cannot run here, before an earlier run is touched."""
    if job.cluster.servers or job.train.engine == "mxnet":
        from kvstore.mxnet.imports import require_mxnet

        require_mxnet()
    if job.all_reduces_dense:
        from trainer.model.allreduce import require_horovod

        require_horovod()
    if job.cluster.servers:
        from deploy.cluster.supervision import check_hosts
        from deploy.topology import scheduler_address

        check_hosts(job.cluster)
        scheduler_address(job.cluster)


def _train(job: JobConfig, folder: RunFolder, display: TrainDisplay, around: _RunContext) -> dict[str, Any]:
    from trainer.embeddings.staged import StagedEmbeddings

    train = _train_on_servers if job.cluster.servers else _train_in_process
    report = train(job, folder, display, around)
    if not job.cluster.shared_run_dir and job.train.save_embeddings == "best":
        StagedEmbeddings(folder.checkpoints(job)).fetch(folder.embeddings)
    return report


def _train_in_process(job: JobConfig, folder: RunFolder, display: TrainDisplay, around: _RunContext) -> dict[str, Any]:
    from crossfade.signals import SpotInterruption, stopper
    from deploy.cluster.metrics import target
    from trainer.runs.events import Event, PhaseEvent
    from trainer.training.checkpointing import StopResult
    from trainer.training.run import run_in_process

    listener, spot = around.listener, around.spot
    address, host = listener.address, socket.gethostname()
    listener.targets = lambda: [target(job.name, "in-process", host, address)] if address else []

    def look() -> dict[str, Any]:
        own = {"state": "running", "host": host, "metrics": address, "load": listener.metrics.snapshot()}
        return {"state": "running", "generation": 1, "processes": {"in-process": own}}

    around.state.watch(look)

    def show(event: Event) -> None:
        if isinstance(event, PhaseEvent) and event.name == "training":
            _print_address(listener, folder)  # not before, since wrong input is said in one line and no other
        display.show(event)

    with stopper.deferred(job.cluster.grace_period_seconds):
        report = run_in_process(
            job,
            folder,
            show,
            resume=around.resume,
            stop_requested=lambda: stopper.number is not None or (spot is not None and spot.notice() is not None),
            checkpoints_requested=spot.recommendations if spot else lambda: 0,
            say=_logger.info,
            metrics=listener.metrics,
        )
    if not isinstance(report, StopResult):
        return report
    stopper.check(f"{report.explain()}; go on with --resume")
    assert spot is not None, "stopped, but nobody asked for it"
    raise SpotInterruption(f"{report.explain()}: {spot.notice()}; go on with --resume")


def _print_address(listener: MetricsEndpoint, folder: RunFolder) -> None:
    """Say where the run can be watched."""
    if listener.address is not None:
        print(f"metrics: http://{listener.address}/metrics", file=sys.stderr)
    print(f"page: crossfade dashboard {folder.path}", file=sys.stderr)


def _train_on_servers(job: JobConfig, folder: RunFolder, display: TrainDisplay, around: _RunContext) -> dict[str, Any]:
    from crossfade.signals import SpotInterruption, stopper
    from deploy.cluster import supervision

    roles = f"1 scheduler, {job.cluster.servers} servers, {job.cluster.workers} workers"
    print(f"starting {roles} (logs: {folder.logs})", file=sys.stderr)
    _print_address(around.listener, folder)
    how = ""

    def asked_to_stop() -> bool:
        return stopper.number is not None

    with stopper.deferred():
        try:
            return supervision.run_job(
                job,
                folder,
                display.show,
                around.listener,
                around.state,
                resume=around.resume,
                stop_requested=asked_to_stop,
                spot=around.spot,
            )
        except supervision.JobInterrupted as interrupted:
            raise SpotInterruption(f"{interrupted}; go on with --resume") from None
        except supervision.JobStopped as stopped:
            how = f"{stopped}; go on with --resume"
    stopper.check(how)
    raise AssertionError("stopped, but nobody asked for it")
