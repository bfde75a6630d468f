"""``crossfade train``: run a job, in this process or as a distributed one, on this host or several."""

from __future__ import annotations

from typing import Literal

from crossfade.base.logs import FORMAT_VARIABLE, LogOptions, configure_console
from crossfade.base.options import option
from crossfade.cli.command import as_command
from crossfade.cli.training import TrainOptions, train
from crossfade.terminal import align, print_line

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
The run folder gets job.yaml (the resolved job), report.json, embeddings/ (those with the best metric on the valid
split), checkpoints/, and what 'crossfade status' and 'crossfade dashboard' read. An earlier run in the folder is moved
to NAME.1, NAME.2 ..., unless --resume continues it from its newest complete checkpoint. The job may then differ only in
cluster.*, checkpoint.*, metrics.*, tracking.*, optimizer.learning_rate and the length of training.

SIGINT (Ctrl-C) and SIGTERM: the workers write a checkpoint and the command ends with 130 or 143, after
cluster.grace_period_seconds at the latest. A second signal ends it at once. With --spot, when EC2 announces an
interruption, the run writes a checkpoint and ends with exit code 75.

A distributed job restarts from the newest complete checkpoint when a process dies or stalls. On several hosts, set the
coordinator's address and start an agent on each other host (see 'crossfade agent --help').
"""


class TrainCommand(LogOptions, TrainOptions):
    """What to train and how to log it, or what to print instead."""

    explain: bool = option(False, "print every key of a job file, and exit", group="job")
    log_format: Literal["text", "json"] | None = option(
        None,
        f"write log lines as text or as JSON objects (default: {FORMAT_VARIABLE}, else a progress display, and text "
        "in logs/)",
        group="logging",
    )


@as_command(
    "train",
    "Train embeddings as a job file specifies, in this process, on several workers, or on servers and workers.",
    _EXAMPLES,
    _NOTES,
)
def run(options: TrainCommand) -> int:
    """Train, and print the result."""
    return _explain() if options.explain else train_and_log(options)


def train_and_log(options: TrainCommand) -> int:
    """Train, and log and print as ``options`` say."""
    if options.log_format is None:
        configure_console(options.log_level or "info")
    else:
        options.configure("train")
        if options.progress != "metrics":  # a bar would not be in the format of a log
            options = options.model_copy(update={"progress": "lines"})
    return train(options) if options.job is not None and options.sagemaker is None else _train_in_container(options)


def _explain() -> int:
    from crossfade.trainer.config.json_schema import explain_fields

    for line in align([("KEY", "TYPE", "DEFAULT", "MEANING"), *explain_fields()], left=4):
        print_line(line)
    return 0


def _train_in_container(options: TrainOptions) -> int:
    """Run the job that SageMaker started this container for."""
    from crossfade.base.errors import InputError, command
    from crossfade.cli import sagemaker_entry
    from crossfade.deploy.aws.sagemaker.container import Paths

    paths = Paths(options.sagemaker) if options.sagemaker else Paths()
    if options.job is not None or not paths.has_job():
        found = "one and --sagemaker" if options.job is not None else f"none, nor {paths.config}, as SageMaker makes"
        raise InputError(f"expected a job file, as in {command('train', 'jobs/lastfm.yaml')}, but found {found}")
    return sagemaker_entry.run(paths)
