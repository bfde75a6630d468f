"""Train as a command does: with its options, its display, and the commands that use the result."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base import logs
from crossfade.base.command_line import command_line
from crossfade.base.errors import as_typed
from crossfade.base.exit_codes import STOPPED_EXIT_CODE
from crossfade.base.options import option
from crossfade.terminal import Progress, print_line
from crossfade.trainer.config.options import Roles

if TYPE_CHECKING:
    from crossfade.trainer.runs.run_folder import EarlierRun, RunFolder

_logger = logging.getLogger(__name__)

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
    spot: bool = _run(False, "drain when EC2 announces an interruption of this instance")
    progress: Progress | None = _display(
        None,
        "show progress as a bar, or as a line every ten seconds and at each evaluation, with the metric that selects "
        "the embeddings or with all metrics (default: a bar on a terminal, else lines)",
    )


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
    from crossfade.cli.next_command import use_commands
    from crossfade.deploy.aws.spot import monitor_spot
    from crossfade.deploy.cluster.store_choice import choose_store
    from crossfade.deploy.launch import run_job
    from crossfade.deploy.launch.checks import check_runnable
    from crossfade.display import TrainDisplay, progress_bars
    from crossfade.trainer.runs.run_folder import RunFolder, default_run_dir

    job = choose_store(options.load_job(), _logger.info)
    logs.context.update(role="coordinator" if job.cluster.is_distributed else "in-process")
    folder = RunFolder(options.run_dir or default_run_dir(job))
    if options.standby and (ended := run_job.wait_as_standby(job, folder)):
        _logger.info(f"{folder.path}: the run there is over ({ended}): nothing to resume")
        return _EXIT_CODES[ended]
    resume = options.resume or options.standby
    with progress_bars() as bars:
        inputs = check_runnable(job, folder, bars, resume=resume)
    job = inputs.job
    display = TrainDisplay(job.evaluate.best_metric, options.progress)
    with (
        run_job.serve_own_metrics(job) as listener,
        monitor_spot(_logger.info, enabled=options.spot) as spot,
        run_job.final_scrape(listener),
    ):
        with folder.open_run(job, overwrite=options.overwrite, resume=resume) as moved:
            if moved is not None:
                _logger.info(_describe_moved(folder, moved))
            report = run_job.run_in_folder(inputs, folder, display, listener, resume=resume, spot=spot)
        display.print_report(report, folder.path)
        for line in use_commands(folder.path, inputs.folder, inputs.manifest):
            print_line(f"next: {line}")
    return 0


def _describe_moved(folder: RunFolder, moved: EarlierRun) -> str:
    """Return where the earlier run in ``folder`` is now and, if it was not finished, how to resume it."""
    if moved.finished:
        return f"the earlier run in {folder.path} was moved to {moved.path}"
    from crossfade.trainer.runs.run_folder import JOB_FILE

    again = command_line("train", moved.path / JOB_FILE, run_dir=moved.path, resume=True)
    return f"the earlier run in {folder.path}, which was not finished, was moved to {moved.path}; to resume it: {again}"
