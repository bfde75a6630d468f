"""``crossfade ec2-host``: run the container of one EC2 instance of a run."""

from __future__ import annotations

from crossfade.cli.command import as_command
from crossfade.deploy.aws.ec2.options import Ec2HostOptions

_DESCRIPTION = """\
Run one host of a job on EC2, in the container that 'crossfade submit ec2' starts on each instance.
"""
_EXAMPLES = (
    (
        "crossfade ec2-host --storage s3://music/runs/plays-1a2b3c4d --token-secret crossfade/plays-1a2b3c4d \\\n"
        "      --role head --address 10.0.0.5 --ends 2026-03-01T12:00:00Z --run-dir /runs/run",
        "Train as the head, which coordinates the others.",
    ),
    (
        "crossfade ec2-host --storage s3://music/runs/plays-1a2b3c4d --token-secret crossfade/plays-1a2b3c4d \\\n"
        "      --role worker --address 10.0.0.6 --ends 2026-03-01T12:00:00Z --run-dir /runs/run",
        "Run the agent of a worker.",
    ),
)
_NOTES = """\
The user data of the instances runs this command; it is not needed by hand.

Exit codes: 0 the run has ended, however; 75 the head is being reclaimed; others: the host failed.
"""


@as_command("ec2-host", _DESCRIPTION, _EXAMPLES, _NOTES)
def run(options: Ec2HostOptions) -> int:
    """Run the host until the run ends or the head's instance is interrupted."""
    from crossfade.deploy.aws.ec2.run_host import run_host

    return run_host(options)
