"""Run ``crossfade submit ec2`` in this process against moto's AWS, and read what it created there."""

from pathlib import Path

import pytest
from aws_server import AwsServer, push_images

from crossfade.cli.main import main
from crossfade.deploy.aws.ec2 import runs, stack

BUCKET = "music"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/crossfade:cpu"


def empty_account(server: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """Reset the account to a bucket and an image of each variant, and point this process's environment to it."""
    server.reset()
    server.client("s3").create_bucket(Bucket=BUCKET)
    push_images(server, "cpu", "torch", "cu112", "cu90")
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stack, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(runs, "LOG_SECONDS", 0.0)
    return server


def submit(job: Path, *options: object) -> int:
    """Submit ``job`` in this process."""
    where = ("--output", f"s3://{BUCKET}/runs", "--instance-type", "r6i.large")
    return main(list(map(str, ("submit", "ec2", job, *where, *options))))


def detached(job: Path, *options: object) -> int:
    return submit(job, *options, "--detach")


def created(aws: AwsServer) -> dict[str, str]:
    """Return the parameters of the stack that was submitted last."""
    form = aws.calls_of("CreateStack")[-1].body
    keys = [name for name in form if name.endswith(".ParameterKey")]
    return {form[name]: form.get(name.removesuffix("Key") + "Value", "") for name in keys}


def submitted_run(aws: AwsServer) -> str:
    return created(aws)["Run"]


def stored(aws: AwsServer) -> dict[str, str]:
    """Return the objects of the bucket as text, by key."""
    s3 = aws.client("s3")
    entries = s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {e["Key"]: s3.get_object(Bucket=BUCKET, Key=e["Key"])["Body"].read().decode() for e in entries}
