"""``crossfade prepare --check``: whether a data set is what it should be, and what is wrong with it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kvstore.errors import InputError
from kvstore.io.folder import Folder

if TYPE_CHECKING:
    from trainer.data.manifest import DatasetManifest
    from trainer.data.reporter import ProgressReporter
    from trainer.prepare.validate import ValidationReport


def check_data(arguments: argparse.Namespace, progress: ProgressReporter) -> ValidationReport:
    """Check what ``arguments`` name.

    Raises:
        CrossfadeError: it could not be read.
    """
    from trainer.prepare.validate import validate

    for option, name in (("--query", arguments.query), ("--item", arguments.item)):
        if name is not None and "=" in name:
            raise InputError(f"{option} {name}: columns of prepared data have the entities' names; leave out '='")
    memory_bytes = None if arguments.memory is None else int(arguments.memory * 2**30)
    return validate(Folder(arguments.check), arguments.query, arguments.item, memory_bytes, progress)


def report(checked: ValidationReport, location: str) -> DatasetManifest:
    """Say what was found of the data at ``location``; returns their manifest.

    Raises:
        InputError: there are problems; they stand on stderr.
    """
    from trainer.prepare.summary import format_summary

    problems = checked.problems
    if problems.count:
        for problem in problems.listed:
            print(problem, file=sys.stderr)
        if problems.count > len(problems.listed):
            print(f"… and {problems.count - len(problems.listed):,} more", file=sys.stderr)
        raise InputError(f"{location}: {problems.count:,} problem(s), listed above; mend the data and check again")
    assert checked.manifest is not None
    print(format_summary(checked.manifest, Folder(location)))
    for note in checked.notes:
        print(f"  note: {note}")
    print(f"  {'no problem; wrote its manifest.json' if checked.manifest_written else 'no problem'}")
    return checked.manifest
