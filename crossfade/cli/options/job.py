"""Arguments of commands that read a job file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError
from crossfade.cli.options.parsing import parse_whole_number

if TYPE_CHECKING:
    from crossfade.deploy.capacity.inputs import ExpectedSize
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


def suggest_setting(option: str, value: str) -> str:
    """Return how to set the key of a job whose last part is ``option``; empty: there is none."""
    from crossfade.trainer.config.json_schema import explain_fields

    keys = [key for key, *_ in explain_fields()]
    name = option.removeprefix("--").replace("-", "_")
    found = [key for key in keys if name in (key, key.rpartition(".")[2])]
    return f"use {' or '.join(f'--set {key}={value}' for key in found)}" if found and option.startswith("--") else ""


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


def add_expected_size(parser: argparse.ArgumentParser) -> None:
    """Add options for the size of a dataset that does not exist yet."""
    size = parser.add_argument_group(
        "size of a dataset that does not exist yet",
        "All three or none; no dataset is read then. Numbers may be written 1000000, 1_000_000 or 1e6. Features and "
        "evaluations are not planned.",
    )
    size.add_argument("--queries", metavar="N", help="expect N query rows, such as customers")
    size.add_argument("--items", metavar="N", help="expect N item rows, such as tracks")
    size.add_argument("--interactions", metavar="N", help="expect N interactions in train")


def expected_size(arguments: argparse.Namespace) -> ExpectedSize | None:
    """Return the size that the options of ``add_expected_size`` give; None without any.

    Raises:
        InputError: only some of the options are given, or one is not a positive integer.
    """
    from crossfade.deploy.capacity.inputs import ExpectedSize

    texts = {name: getattr(arguments, name) for name in ("queries", "items", "interactions")}
    missing = [f"--{name}" for name, text in texts.items() if text is None]
    if len(missing) == len(texts):
        return None
    if missing:
        raise InputError(f"{missing[0]}: is missing; give --queries, --items and --interactions, or none of them")
    numbers = {name: parse_whole_number(f"--{name}", text) for name, text in texts.items()}
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"--{name} {texts[name]}: expected at least 1")
    return ExpectedSize(**numbers)
