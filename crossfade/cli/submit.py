"""``crossfade submit sagemaker | ec2``: run a job on AWS; each subcommand has its own module."""

from __future__ import annotations

import argparse

from crossfade.cli import submit_ec2, submit_sagemaker
from crossfade.cli.command import add_command

_EXAMPLES = (
    (
        "crossfade submit sagemaker jobs/plays.yaml --role CrossfadeTraining --output s3://music/jobs --wait",
        "Run a job as a SageMaker training job, and follow it.",
    ),
    (
        "crossfade submit ec2 jobs/plays.yaml --output s3://music/runs --dry-run",
        "Print the requests to EC2, send none.",
    ),
)
_NOTES = """\
The job file is that of 'crossfade train'; its dataset and results are on S3. Credentials, region and endpoint come from
the configuration of the AWS tools (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL ...). The package boto3 is required:
pip install 'crossfade[aws]'. The maximum cost is printed before anything starts. docs/aws.md lists permissions and
quotas, and explains how to push an image to ECR.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(commands, "submit", "run a job on AWS", "Run a job on AWS.", examples=_EXAMPLES, notes=_NOTES)
    services = parser.add_subparsers(title="services", metavar="SERVICE", required=True)
    for module in (submit_sagemaker, submit_ec2):
        module.add_parser(services)
