"""``crossfade submit sagemaker | ec2``: run a job on AWS; each subcommand has its own module."""

from __future__ import annotations

from crossfade.cli import submit_ec2, submit_sagemaker
from crossfade.cli.command import Command

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


run = Command(
    "submit",
    "run a job on AWS",
    "Run a job on AWS.",
    _EXAMPLES,
    _NOTES,
    actions=(submit_sagemaker.run, submit_ec2.run),
    kind="service",
)
