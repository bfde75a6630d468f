"""``crossfade ec2-host``: what the container on an EC2 instance of a run runs."""

from __future__ import annotations

import argparse
from pathlib import Path

_DESCRIPTION = """\
Be one host of a run on EC2. The instances that 'crossfade submit ec2' starts run this in a container; there is no need
to run it by hand.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "ec2-host", help="one host of a run on EC2 (started by 'submit ec2')", description=_DESCRIPTION
    )
    parser.add_argument("--storage", required=True, metavar="URI", help="folder of the run on S3")
    parser.add_argument("--number", required=True, type=int, metavar="N", help="which of its hosts this is, from 0")
    parser.add_argument(
        "--token-parameter", required=True, metavar="NAME", help="parameter that holds the hosts' token"
    )
    parser.add_argument("--run-dir", required=True, type=Path, metavar="DIR", help="folder of the run on this host")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Be that host until the run ends, or the host is taken; the exit code is its command's."""
    from deploy.aws.clients import Aws
    from deploy.aws.ec2.host import Host, HostRunner, fetch_token
    from deploy.aws.ec2.storage import RunStorage
    from deploy.aws.metadata import InstanceMetadata

    metadata = InstanceMetadata.of_this_host()
    aws = Aws()
    host = Host.of(metadata, arguments.number)
    token = fetch_token(aws, arguments.token_parameter)
    return HostRunner(RunStorage(aws, arguments.storage), host, token, metadata, arguments.run_dir).run()
