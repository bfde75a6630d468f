"""Run ``crossfade submit sagemaker`` in this process against moto's AWS, with scripted responses."""

import io
import json
import os
import signal
import subprocess
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from aws_server import ACCOUNT, REGION, AwsServer

from crossfade.cli.main import main
from crossfade.deploy.aws.sagemaker.jobs import LOG_GROUP

ROLE = f"arn:aws:iam::{ACCOUNT}:role/CrossfadeTraining"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/crossfade:cu90"
QUOTA = (
    "The account-level service limit 'ml.p2.xlarge for training job usage' is 0 Instances, with current utilization of "
    "0 Instances and a request delta of 1 Instances."
)
FAST = ("--poll-seconds", "0.05")


def account_with_images(server: AwsServer) -> AwsServer:
    """Reset the account to one with the images that the tests use."""
    server.reset()
    ecr = server.client("ecr")
    ecr.create_repository(repositoryName="crossfade")
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": []}
    manifest["config"] = {"digest": "sha256:" + "0" * 64, "size": 1, "mediaType": "application/json"}
    for tag in ("cu90", "cpu"):
        ecr.put_image(repositoryName="crossfade", imageManifest=json.dumps({**manifest, "tag": tag}), imageTag=tag)
    return server


def command(aws: AwsServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``crossfade submit sagemaker`` in this process, which is faster than starting another."""
    words = ["submit", "sagemaker", *FAST, *map(str, arguments)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        mock.patch.dict(os.environ, aws.variables),
        redirect_stdout(io.StringIO()) as stdout,
        redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            code = main(words)
        except SystemExit as end:  # argparse's
            code = int(str(end.code))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


def submit(aws: AwsServer, job: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """Submit ``job`` with the required options and ``options``."""
    required = ("--role", "CrossfadeTraining", "--output", "s3://music/jobs", "--name", "plays-1")
    return command(aws, job, *required, *options)


def follow(aws: AwsServer) -> subprocess.CompletedProcess[str]:
    return command(aws, "--follow", "plays-1")


def described(status: str, secondary: str, *transitions: str, **more: Any) -> dict[str, Any]:
    """Return a response of DescribeTrainingJob."""
    history = [{"Status": each, "StartTime": 1.0, "StatusMessage": f"about {each}"} for each in transitions]
    return {
        "TrainingJobName": "plays-1",
        "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/plays-1",
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary,
        "SecondaryStatusTransitions": history,
        **more,
    }


def write_log(aws: AwsServer, host: str, *lines: str) -> None:
    """Append ``lines`` to SageMaker's log of a host."""
    logs = aws.client("logs")
    if not logs.describe_log_groups(logGroupNamePrefix=LOG_GROUP)["logGroups"]:
        logs.create_log_group(logGroupName=LOG_GROUP)
    stream = f"plays-1/{host}-1700000000"
    if not logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=stream)["logStreams"]:
        logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
    events = [{"timestamp": int(time.time() * 1000) + number, "message": line} for number, line in enumerate(lines)]
    logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=events)
