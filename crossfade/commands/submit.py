"""``crossfade submit sagemaker | ec2``: run a job on AWS. Each subcommand is a module of its own."""

from __future__ import annotations

import argparse

from crossfade.commands import submit_ec2, submit_sagemaker
from crossfade.options.job import add_job

_BACKENDS = (submit_sagemaker, submit_ec2)
_EPILOG = """\
The job file is that of 'crossfade train'; its data, and what comes of it, lie on S3. Credentials, region and endpoint
come from where the AWS tools take them (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL ...), and the package boto3 is
needed: pip install 'crossfade[aws]'. What it may cost is said before anything starts. docs/aws.md has the permissions
that each command needs, the quotas, and how an image gets to ECR.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "submit",
        help="run a job on AWS",
        description="Run a job on AWS.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    backends = parser.add_subparsers(title="where", metavar="WHERE", required=True)
    for module in _BACKENDS:
        module.add_parser(backends)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add to ``parser`` the options that all of them have."""
    add_job(parser, optional=True)
    parser.add_argument("--region", metavar="REGION", help="AWS region (default: AWS_REGION, or the profile's)")
    parser.add_argument("--profile", metavar="NAME", help="AWS profile (default: AWS_PROFILE)")
