"""``crossfade ec2-host``: run the container of one EC2 instance of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from crossfade.cli.command import add_command

_DESCRIPTION = """\
Run one host of a job on EC2, in the container that 'crossfade submit ec2' starts on each instance.
"""
_EXAMPLES = (
    (
        "crossfade ec2-host --storage s3://music/runs/plays-1a2b3c4d --number 0 \\\n"
        "      --token-parameter /crossfade/plays-1a2b3c4d/token --run-dir /run/plays",
        "Train as the first host, which coordinates the others.",
    ),
    (
        "crossfade ec2-host --storage s3://music/runs/plays-1a2b3c4d --number 1 \\\n"
        "      --token-parameter /crossfade/plays-1a2b3c4d/token --run-dir /run/plays",
        "Run the agent of the second host.",
    ),
)
_NOTES = """\
The user data of the instances runs this command; it is not needed by hand. The exit code is that of the run.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line, but not to its help: 'crossfade submit ec2' has instances run it."""
    parser = add_command(commands, "ec2-host", None, _DESCRIPTION, examples=_EXAMPLES, notes=_NOTES)
    group = parser.add_argument_group("host")
    group.add_argument("--storage", required=True, metavar="URI", help="read and write the run in this folder on S3")
    group.add_argument("--number", required=True, type=int, metavar="N", help="run as this host of the run, from 0")
    group.add_argument(
        "--token-parameter", required=True, metavar="NAME", help="read the hosts' token from this SSM parameter"
    )
    group.add_argument("--run-dir", required=True, type=Path, metavar="DIR", help="use DIR as run folder on this host")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the host until the run ends or the instance is interrupted; return the exit code of its command."""
    from crossfade.deploy.aws.clients import Aws
    from crossfade.deploy.aws.ec2.host import Host, HostRunner, fetch_token
    from crossfade.deploy.aws.ec2.storage import RunStorage
    from crossfade.deploy.aws.metadata import InstanceMetadata

    metadata = InstanceMetadata.of_this_host()
    aws = Aws()
    host = Host.read(metadata, arguments.number)
    token = fetch_token(aws, arguments.token_parameter)
    return HostRunner(RunStorage(aws, arguments.storage), host, token, metadata, arguments.run_dir).run()
