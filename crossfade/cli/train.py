"""``crossfade train``: run a job, in this process or as a distributed one, on this host or several."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade import logs
from crossfade.cli.command import CommandParser, add_command
from crossfade.cli.options.job import add_job, add_sizes, load_job_arguments, suggest_setting
from crossfade.cli.options.parsing import port
from crossfade.terminal import print_line

if TYPE_CHECKING:
    from crossfade.display import Progress
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.runs.folder import EarlierRun, RunFolder

_logger = logging.getLogger(__name__)

_EXAMPLES = (
    ("crossfade train jobs/lastfm.yaml", "Train in this process; the run folder is runs/lastfm."),
    (
        "crossfade train jobs/lastfm.yaml --servers 2 --workers 2 --resume",
        "Train on MXNet's dist_sync store, and resume an earlier run of the job.",
    ),
    ("crossfade train jobs/lastfm.yaml --set train.epochs=5 --set model.dim=128", "Override keys of the job file."),
    ("crossfade train --explain", "Print every key of a job file with its type, default and meaning."),
)
_NOTES = """\
The run folder gets job.yaml (the resolved job), events.jsonl, metrics.prom, report.json, embeddings/ (those with the
best metric on the valid split), checkpoints/, state.json and processes.jsonl (for 'crossfade status' and 'crossfade
dashboard') and, for a distributed job, logs/ and metrics/ (one file per role). An earlier run in the folder is moved
to NAME.1, NAME.2 ..., unless --resume continues it from its newest complete checkpoint. The job may then differ only in
cluster.*, checkpoint.*, metrics.*, tracking.*, optimizer.learning_rate and the length of training. If the earlier run
was not finished, the command that resumes it in its new folder is printed.

A distributed job restarts from the newest complete checkpoint when a process dies, or when none makes progress for
cluster.stall_timeout_seconds: at once, then after 1, 2, 4 ... 60 seconds, until cluster.max_restarts in a row brought
no new checkpoint. Invalid input and diverging training end it at once. report.json counts restarts.

SIGINT (Ctrl-C) and SIGTERM: the workers write a checkpoint and the command ends with 130 or 143, after
cluster.grace_period_seconds at the latest. A second signal ends it at once.

Spot instances: with --spot, when EC2 announces an interruption, the run writes a checkpoint and ends with exit code 75;
--resume continues it, here or elsewhere, if checkpoint.path outlives the host. At a rebalance recommendation the run
writes a checkpoint and continues.

Monitoring: 'crossfade dashboard' serves a page, as does --dashboard during training; 'crossfade status' prints the same
in the terminal; see docs/dashboard.md. The address of /metrics is printed for Prometheus, and /targets next to it lists
all processes. metrics.port fixes the port; see docs/metrics.md.

Several hosts: set the coordinator's address and start an agent on each other host (see 'crossfade agent --help'):
  export CROSSFADE_TOKEN=$(openssl rand -hex 32)        the same on all hosts
  crossfade train jobs/lastfm.yaml --servers 2 --workers 4 --run-dir /shared/lastfm \\
      --set cluster.hosts=2 --set cluster.host=10.0.0.1 --set cluster.coordinator_address=10.0.0.1:7070
"""
_EXIT_CODES = {"done": 0, "failed": 1, "stopped": 143}
"""Exit codes of a standby by the end of the run that it waited for."""


class _Explain(argparse.Action):
    """Implements ``--explain``: prints the keys of a job file and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the keys as a table."""
        from crossfade.trainer.config.json_schema import explain_fields

        rows = [("KEY", "TYPE", "DEFAULT", "MEANING"), *explain_fields()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            print_line("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[3]}")
        parser.exit()


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "train",
        "train embeddings as a job file specifies",
        "Train embeddings as a job file specifies, in this process or on servers and workers.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    parser.suggest = suggest_setting
    job = parser.add_argument_group("job")
    add_job(job, optional=True)
    add_sizes(job, "servers", "workers")
    job.add_argument("--explain", action=_Explain, nargs=0, help="print every key of a job file, and exit")
    job.add_argument(
        "--sagemaker",
        type=Path,
        metavar="DIR",
        help="train the SageMaker job in DIR; without JOB, the one in /opt/ml",
    )
    _add_run_options(parser)
    _add_display_options(parser)
    logs.add_log_options(parser, "a progress display, and text in logs/")
    parser.set_defaults(run=run)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--run-dir", type=Path, metavar="DIR", help="use DIR as the folder of the run (runs/NAME)")
    earlier = group.add_mutually_exclusive_group()
    earlier.add_argument(
        "--overwrite", action="store_true", help="delete an earlier run in DIR instead of moving it aside"
    )
    earlier.add_argument("--resume", action="store_true", help="resume the run in DIR, or start one if there is none")
    earlier.add_argument(
        "--standby",
        action="store_true",
        help="wait while another process runs in DIR; resume the run if that process is killed, else exit as it did",
    )
    group.add_argument(
        "--allow-restart-from-scratch",
        action="store_true",
        help="start over at step 0 if a run that resumes has saved checkpoints, but none can be used, instead of "
        "ending with an error; checkpoints that cannot be used are kept",
    )
    group.add_argument("--spot", action="store_true", help="drain when EC2 announces an interruption of this instance")


def _add_display_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("display")
    group.add_argument(
        "--progress",
        choices=("bar", "lines", "metrics"),
        help="show progress as a bar, or as a line every ten seconds and at each evaluation, with the metric that "
        "selects the embeddings or with all metrics (default: a bar on a terminal, else lines)",
    )
    group.add_argument(
        "--dashboard",
        type=port,
        nargs="?",
        const=0,
        metavar="PORT",
        help="serve the dashboard of the run on loopback during training, and print its address (default: a free port)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the result."""
    from crossfade.trainer.runs.run_lock import RunInProgressError

    _configure_logs(arguments)
    if arguments.job is None or arguments.sagemaker is not None:
        return _run_in_container(arguments)
    while True:
        try:
            return _run_job(arguments)
        except RunInProgressError as error:
            if not arguments.standby:
                raise
            _logger.info(f"{error}; standing by again")


def _run_job(arguments: argparse.Namespace) -> int:
    """Run the job, with --standby once it is this process's turn.

    Raises:
        RunInProgressError: another process runs it, such as another standby that has taken it over first.
    """
    from crossfade.deploy.cluster.state_writer import StateWriter
    from crossfade.display import TrainDisplay, progress_bars
    from crossfade.next_command import use_commands
    from crossfade.run_job import (
        RunContext,
        check_runnable,
        final_scrape,
        note_without_valid,
        run_in_folder,
        serve_dashboard,
        serve_own_metrics,
    )
    from crossfade.spot import spot_monitor
    from crossfade.trainer.runs.folder import RunFolder, default_run_dir

    job = load_job_arguments(arguments, "servers", "workers")
    logs.context.update(role="coordinator" if job.cluster.servers else "in-process")
    folder = RunFolder(arguments.run_dir or default_run_dir(job))
    if arguments.standby:
        if ended := _wait_as_standby(job, folder):
            _logger.info(f"{folder.path}: the run there is over ({ended}): nothing to resume")
            return _EXIT_CODES[ended]
        arguments.resume = True
    allow_restart = _allows_restart(arguments)
    with progress_bars() as bars:
        options = {"resume": arguments.resume, "allow_restart": allow_restart, "dashboard": arguments.dashboard}
        inputs = check_runnable(job, folder, bars, **options)
    job = inputs.job
    display = TrainDisplay(job.evaluate.best_metric, _progress(arguments))
    with serve_own_metrics(job) as listener, spot_monitor(arguments.spot) as spot, final_scrape(listener):
        with folder.open_run(job, overwrite=arguments.overwrite, resume=arguments.resume) as moved:
            if moved is not None:
                _describe_moved(folder, moved)
            note = note_without_valid(job, inputs)
            context = RunContext(listener, spot, StateWriter(folder), arguments.resume, note, allow_restart)
            with serve_dashboard(folder, arguments.dashboard):
                report = run_in_folder(job, folder, inputs, display, context)
        interactions: dict[str, int] = {name: split.rows for name, split in inputs.manifest.splits.items()}
        display.print_report(report, folder.path, interactions)
        for command in use_commands(folder.path, inputs.folder, inputs.manifest):
            print_line(f"next: {command}")
    return 0


def _allows_restart(arguments: argparse.Namespace) -> bool:
    """Return whether a run that resumes may start over; reject the option for a run that does not resume."""
    from crossfade.base.errors import InputError

    if arguments.allow_restart_from_scratch and not arguments.resume:
        raise InputError("--allow-restart-from-scratch: a run that does not resume starts at step 0; add --resume")
    allowed: bool = arguments.allow_restart_from_scratch
    return allowed


def _progress(arguments: argparse.Namespace) -> Progress | None:
    """Return how to show progress: a bar would not be in the format of a log."""
    chosen: Progress | None = arguments.progress
    return "lines" if arguments.log_format is not None and chosen != "metrics" else chosen


def _configure_logs(arguments: argparse.Namespace) -> None:
    if arguments.log_format is not None:
        logs.configure("train", arguments.log_format, arguments.log_level)
    else:
        logs.configure_console(arguments.log_level)


def _describe_moved(folder: RunFolder, moved: EarlierRun) -> None:
    """Log where the earlier run in ``folder`` is now and, if it was not finished, how to resume it."""
    what = "" if moved.finished else ", which was not finished,"
    _logger.info(f"the earlier run in {folder.path}{what} was moved to {moved.path}")
    if not moved.finished:
        from crossfade.next_command import command_line
        from crossfade.trainer.runs.folder import JOB_FILE

        command = command_line("train", moved.path / JOB_FILE, "--run-dir", moved.path, "--resume")
        _logger.info(f"to resume it: {command}")


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


def _run_in_container(arguments: argparse.Namespace) -> int:
    """Run the job that SageMaker started this container for."""
    from crossfade import sagemaker_entry as sagemaker
    from crossfade.base.errors import InputError
    from crossfade.cli import agent
    from crossfade.deploy.aws.sagemaker.container import Paths

    paths = Paths(arguments.sagemaker) if arguments.sagemaker else Paths()
    if arguments.job is not None or not paths.has_job():
        found = "one and --sagemaker" if arguments.job is not None else f"none, nor {paths.config}, as SageMaker makes"
        raise InputError(f"expected a job file, as in 'crossfade train jobs/lastfm.yaml', but found {found}")
    # Hosts of the training job run one of these two commands.
    parser: argparse.ArgumentParser = CommandParser(prog="crossfade")
    commands = parser.add_subparsers(required=True)
    add_parser(commands)
    agent.add_parser(commands)
    return sagemaker.run(paths.base, parser.parse_args)
