"""``crossfade doctor``: check a host, and a job on it, and print what to fix."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.text import counted
from crossfade.cli.command import add_command
from crossfade.cli.options.job import add_sizes, load_job_arguments
from crossfade.cli.options.parsing import positive_number
from crossfade.terminal import print_json, print_line

if TYPE_CHECKING:
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.runs.folder import RunFolder

_DESCRIPTION = """\
Check this host and, if one is named, a run or a job on it, and print what to fix.

Nothing is started or changed, but for probe objects on S3, which are deleted again.
"""
_EXAMPLES = (
    ("crossfade doctor", "Check this host."),
    ("crossfade doctor jobs/lastfm.yaml --servers 2 --workers 2", "Check whether a job can run on it."),
    ("crossfade doctor runs/lastfm --json", "Check a run that exists, and print JSON."),
)
_NOTES = """\
Each line has a check, what was found, and what to do:

ok             nothing
warning        training works, but slower, or not in all cases; or a process that died has left something
fix            training does not work

A check that does not end within --timeout is to be fixed too. Memory and ports are not compared while a run is in
progress in the run folder.

Exit codes: 0 nothing is to be fixed; 1 something is; 2 invalid input.
"""
_SIZES = ("servers", "workers", "hosts")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "doctor", "check this host and a job on it", _DESCRIPTION, examples=_EXAMPLES, notes=_NOTES
    )
    job = parser.add_argument_group("run or job")
    job.add_argument("job", nargs="?", type=Path, metavar="RUN", help="check this run folder, or this job file, too")
    job.add_argument("--run-dir", type=Path, metavar="DIR", help="use DIR as the folder of the run (runs/NAME)")
    job.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key of the job"
    )
    add_sizes(job, *_SIZES)
    checks = parser.add_argument_group("checks")
    checks.add_argument(
        "--timeout",
        type=positive_number,
        default=60.0,
        metavar="SECONDS",
        help="give a check up after this time (default: 60)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print a list of JSON objects, one for each line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found, line by line as checks end.

    Raises:
        InputError: the run or job does not exist, or is invalid.
    """
    from crossfade.deploy.doctor.examine import examine

    job, folder = _load(arguments)
    findings = []
    for finding in examine(job, folder, arguments.timeout):
        findings.append(finding)
        if not arguments.json:
            print_line(f"{finding.state:<7}  {finding.check:<12}  {finding.message}", flush=True)
    counts = Counter(finding.state for finding in findings)
    if arguments.json:
        print_json([vars(finding) for finding in findings])
    else:
        print_line(f"{counts['fix']} to fix, {counted(counts['warning'], 'warning')}")
    return int(counts["fix"] > 0)


def _load(arguments: argparse.Namespace) -> tuple[JobConfig | None, RunFolder | None]:
    """Return the job that is named and its run folder; None without one."""
    from crossfade.base.errors import InputError
    from crossfade.trainer.runs.folder import JOB_FILE, RunFolder, default_run_dir, similar_run

    named: Path | None = arguments.job
    if named is None:
        if arguments.overrides or arguments.run_dir or any(getattr(arguments, key) is not None for key in _SIZES):
            raise InputError("RUN is missing: name the run folder or job file that the options are for")
        return None, None
    run_dir = arguments.run_dir
    if named.is_dir():
        if not (named / JOB_FILE).exists():
            raise InputError(
                f"{named}: not a run folder: it has no {JOB_FILE}; expected a run folder or a job file"
                f"{similar_run(named)}"
            )
        run_dir = run_dir or named
        arguments.job = named / JOB_FILE
    job = load_job_arguments(arguments, *_SIZES)
    return job, RunFolder(run_dir or default_run_dir(job))
