"""The argument that names runs, of commands that show them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossfade.deploy.dashboard.runs import Runs


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
    from crossfade.deploy.dashboard.runs import Runs
    from crossfade.kvstore.errors import InputError

    for path in paths or [Path("runs")]:
        if not path.is_dir():
            expected = "expected a folder that 'crossfade train' wrote, or one that holds such"
            found = "is a file" if path.exists() else "is not there"
            raise InputError(f"{path}: {found}; {expected}{'' if paths else ': name one'}")
    return Runs(paths or [Path("runs")])
