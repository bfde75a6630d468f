"""Run ``crossfade submit sagemaker`` in this process against moto's AWS, with scripted responses."""

import os
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

from aws_server import ACCOUNT, REGION, AwsServer, push_images
from command_here import crossfade_here

ROLE = f"arn:aws:iam::{ACCOUNT}:role/CrossfadeTraining"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/crossfade:torch"
FAST = ("--poll-seconds", "0.05")


def account_with_images(server: AwsServer) -> AwsServer:
    """Reset the account to one with the images that the tests use."""
    server.reset()
    push_images(server, "torch", "cpu")
    return server


def command(aws: AwsServer, *arguments: object) -> CompletedProcess[str]:
    """Run ``crossfade submit sagemaker`` in this process, which is faster than starting another."""
    with mock.patch.dict(os.environ, aws.variables):
        return crossfade_here("submit", "sagemaker", *FAST, *arguments)


def submit(aws: AwsServer, job: Path, *options: object) -> CompletedProcess[str]:
    """Submit ``job`` with the required options and ``options``."""
    required = ("--role", "CrossfadeTraining", "--output", "s3://music/jobs", "--name", "plays-1")
    return command(aws, job, *required, *options)


def follow(aws: AwsServer) -> CompletedProcess[str]:
    return command(aws, "--follow", "plays-1")


def described(status: str, secondary: str, *transitions: str, **more: Any) -> dict[str, Any]:
    """Return a response of DescribeTrainingJob."""
    history = [{"Status": each, "StartTime": 1.0, "StatusMessage": "about \x1b"} for each in transitions]
    return {
        "TrainingJobName": "plays-1",
        "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/plays-1",
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary,
        "SecondaryStatusTransitions": history,
        **more,
    }
