"""How commands are told of a job: its file, and what of it is overridden."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config.schema import JobConfig


def add_job(
    parser: argparse.ArgumentParser, *, optional: bool = False, set_help: str = "override a key of the job file"
) -> None:
    """Add the job file and ``--set``."""
    parser.add_argument("job", type=Path, nargs="?" if optional else None, metavar="JOB", help="job file, YAML")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help=set_help,
    )


def add_sizes(parser: argparse.ArgumentParser, *keys: str, default: str = "") -> None:
    """Add an option for each of these keys of the job's cluster."""
    for key in keys:
        parser.add_argument(f"--{key}", type=int, metavar="N", help=f"the same as --set cluster.{key}=N{default}")


def job_of(arguments: argparse.Namespace, *sizes: str) -> JobConfig:
    """The job that ``arguments`` name; ``sizes`` are the keys that ``add_sizes`` had.

    Raises:
        InputError: there is no such job, or it makes no sense.
    """
    from trainer.config.loading import load_job

    values = {key: getattr(arguments, key) for key in sizes}
    given = [f"cluster.{key}={value}" for key, value in values.items() if value is not None]
    return load_job(arguments.job, [*arguments.overrides, *given])
