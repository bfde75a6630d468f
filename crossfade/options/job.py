"""Arguments of commands that read a job file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossfade.trainer.config.schema import JobConfig


def add_job(
    parser: argparse._ActionsContainer, *, optional: bool = False, set_help: str = "override a key of the job file"
) -> None:
    """Add the job file, as ``job``, and ``--set``, as ``overrides``."""
    parser.add_argument(
        "job", type=Path, nargs="?" if optional else None, metavar="JOB", help="read this job file (YAML)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help=set_help,
    )


def add_sizes(parser: argparse._ActionsContainer, *keys: str, default: str = "") -> None:
    """Add an option for each of these keys of the ``cluster`` section of a job."""
    for key in keys:
        parser.add_argument(f"--{key}", type=int, metavar="N", help=f"set cluster.{key} of the job{default}")


def load_job_arguments(arguments: argparse.Namespace, *sizes: str) -> JobConfig:
    """Load the job that ``arguments`` name; ``sizes`` are the keys given to ``add_sizes``.

    Raises:
        InputError: the job file is missing or invalid.
    """
    from crossfade.trainer.config.loading import load_job

    values = {key: getattr(arguments, key) for key in sizes}
    typed = {f"cluster.{key}={value}": f"--{key} {value}" for key, value in values.items() if value is not None}
    return load_job(arguments.job, [*arguments.overrides, *typed], typed)
