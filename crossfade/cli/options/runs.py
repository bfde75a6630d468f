"""The argument that names runs, of commands that show them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossfade.deploy.dashboard.run_reader import Runs


def add_runs_argument(parser: argparse._ActionsContainer) -> None:
    """Add the argument."""
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="show this run folder, or the run folders in this folder, at most two levels deep (default: runs)",
    )


def open_runs(paths: Sequence[Path]) -> Runs:
    """Open the runs in ``paths``, by default those in the folder ``runs``.

    Raises:
        InputError: a path is not a folder.
    """
    from crossfade.base.errors import InputError
    from crossfade.deploy.dashboard.run_reader import Runs
    from crossfade.trainer.runs.folder import similar_run

    for path in paths or [Path("runs")]:
        if not path.is_dir():
            expected = "expected a folder that 'crossfade train' wrote, or one that holds such"
            if path.exists():
                raise InputError(f"{path}: is a file; {expected}")
            near = similar_run(path)
            raise InputError(f"{path}: is not there{near or f'; {expected}'}{'' if near or paths else ': name one'}")
    return Runs(paths or [Path("runs")])
