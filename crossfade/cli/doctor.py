"""``crossfade doctor``: check MXNet, the GPU's driver, and storage, and print what to fix."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from crossfade.base.errors import as_typed, worded
from crossfade.base.options import option
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.deploy.doctor.options import DoctorOptions
from crossfade.terminal import print_json, print_line

_DESCRIPTION = """\
Check that MXNet can be imported and the GPU's driver works and, of a run or a job, what is allowed on S3.

Nothing is started or changed, but for a probe object among checkpoints on S3, which is deleted again. Data, memory, and
ports are checked by 'crossfade train' before it starts.
"""
_EXAMPLES = (
    ("crossfade doctor", "Check this host."),
    ("crossfade doctor jobs/lastfm.yaml --servers 2 --workers 2", "Check what a job needs, too."),
    ("crossfade doctor runs/lastfm --json", "Check what a run needs, and print JSON."),
)
_NOTES = """\
Each line has a check, what was found, and what to do:

ok             nothing
warning        training works, but not in all cases, or not on the GPU
fix            training does not work

Exit codes: 0 nothing is to be fixed; 1 something is; 2 invalid input.
"""


class DoctorCommand(DoctorOptions):
    """What to check, and how to print it."""

    json_: bool = option(False, "print a list of JSON objects, one for each line", group="output")


@as_command("doctor", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: DoctorCommand) -> int:
    """Print what was found, line by line as checks end.

    Raises:
        InputError: the run or job does not exist, or is invalid.
    """
    from crossfade.deploy.doctor.examine import examine

    findings = []
    for found in examine(options):
        finding = replace(found, message=worded(found.message, as_typed))
        findings.append(finding)
        if not options.json_:
            print_line(f"{finding.state:<7}  {finding.check:<12}  {finding.message}", flush=True)
    counts = Counter(finding.state for finding in findings)
    if options.json_:
        print_json([vars(finding) for finding in findings])
    else:
        print_line(f"{counts['fix']} to fix, {counted(counts['warning'], 'warning')}")
    return int(counts["fix"] > 0)
