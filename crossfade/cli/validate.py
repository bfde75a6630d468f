"""``crossfade validate``: check a prepared dataset."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.cli.next_command import train_command
from crossfade.terminal import print_line, print_lines
from crossfade.trainer.prepare.options import ValidateOptions

if TYPE_CHECKING:
    from crossfade.trainer.prepare.validate import ValidationReport

_EXAMPLES = (
    ("crossfade validate data/plays", "Read a dataset once, and list every problem with its file, row group and row."),
    ("crossfade validate s3://music/plays", "Check a dataset on S3, such as one that Spark or Athena wrote."),
)
_NOTES = """\
Exit codes: 0 no problem; 2 problems, listed on stderr.
"""


@as_command(
    "validate",
    "Check a dataset against its manifest and format.",
    _EXAMPLES,
    _NOTES,
)
def run(options: ValidateOptions) -> int:
    """Check a dataset, and print a summary or its problems.

    Raises:
        InputError: the dataset has problems; they are listed on stderr.
        CrossfadeError: the dataset could not be read.
    """
    from crossfade.display import progress_bars
    from crossfade.trainer.prepare.validate import validate

    with progress_bars() as bars:
        report = validate(options, bars)
    _print_report(report, options.data)
    print_line(f"next: {train_command(options.data)}")
    return 0


def _print_report(report: ValidationReport, location: str) -> None:
    from crossfade.trainer.prepare.summary import format_summary

    problems = report.problems
    if problems.count:
        for problem in problems.listed:
            print_line(problem, file=sys.stderr)
        if problems.count > len(problems.listed):
            print_line(f"… and {problems.count - len(problems.listed):,} more", file=sys.stderr)
        raise InputError(
            f"{location}: {counted(problems.count, 'problem')}, listed above; fix the data and validate it again"
        )
    assert report.manifest is not None
    print_lines(format_summary(report.manifest, Folder(location)).splitlines())
    print_line("  no problem")
