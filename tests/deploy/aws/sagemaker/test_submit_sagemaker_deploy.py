"""``crossfade submit sagemaker --deploy`` and ``--transform``: requests that they send, and input that they reject."""

import json
from pathlib import Path
from typing import Any

import pytest
from aws_server import ACCOUNT, REGION, AwsServer
from documented_policies import policy
from running_command import messages, succeeded
from submitting_sagemaker import ROLE, command, described, submit

CPU_IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/crossfade:cpu"
pytestmark = pytest.mark.slow


ENDPOINT = {"EndpointArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/plays"}


@pytest.fixture
def trained(aws: AwsServer, job: Path) -> AwsServer:
    """Submit a job, which moto completes at once. Of an endpoint's requests, it lacks UpdateEndpoint."""
    succeeded(submit(aws, job))
    aws.answer("UpdateEndpoint", ENDPOINT)
    return aws


def requests_of(aws: AwsServer, *options: object) -> dict[str, Any]:
    printed = succeeded(command(aws, "--deploy", "plays-1", "--name", "plays-1-a", "--dry-run", *options)).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def test_dry_run_prints_the_requests_and_sends_none(trained: AwsServer) -> None:
    requests = requests_of(trained, "--endpoint", "plays", "--endpoint-type", "ml.c5.xlarge", "--endpoint-hosts", 3)
    model = requests["CreateModel"]
    assert model["ExecutionRoleArn"] == ROLE
    assert model["PrimaryContainer"]["Image"] == CPU_IMAGE
    assert model["PrimaryContainer"]["ModelDataUrl"].startswith("s3://music/jobs")
    assert model["PrimaryContainer"]["ModelDataUrl"].endswith("model.tar.gz")
    assert model["PrimaryContainer"]["Environment"] == {"CROSSFADE_SERVE_DATA": "s3://music/plays"}
    [variant] = requests["CreateEndpointConfig"]["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.c5.xlarge", 3)
    on_arm = requests_of(trained, "--endpoint-type", "ml.m6g.large")["CreateModel"]["PrimaryContainer"]["Image"]
    assert on_arm == CPU_IMAGE.replace("cpu", "slim")
    assert requests["CreateEndpoint"] == {"EndpointName": "plays", "EndpointConfigName": "plays-1-a"}
    assert {call.action for call in trained.calls}.isdisjoint({"CreateModel", "CreateEndpointConfig", "CreateEndpoint"})


def test_dataset_of_a_channel_is_where_it_was_copied_from(aws: AwsServer, job: Path) -> None:
    succeeded(submit(aws, job, "--channel", "training=s3://music/elsewhere"))
    container = requests_of(aws)["CreateModel"]["PrimaryContainer"]
    assert container["Environment"] == {"CROSSFADE_SERVE_DATA": "s3://music/elsewhere"}
    named = requests_of(aws, "--data", "s3://music/copy")["CreateModel"]["PrimaryContainer"]
    assert named["Environment"] == {"CROSSFADE_SERVE_DATA": "s3://music/copy"}


def test_endpoint_is_created_then_updated(trained: AwsServer) -> None:
    first = command(trained, "--deploy", "plays-1", "--name", "plays-1-a", "--endpoint", "plays", "--wait")
    assert succeeded(first).stdout == "plays\n"
    assert messages(first.stderr)[-1] == "crossfade: plays: InService"
    second = command(trained, "--deploy", "plays-1", "--name", "plays-1-b", "--endpoint", "plays")
    assert succeeded(second).stdout == "plays\n"
    assert messages(second.stderr)[-1] == "crossfade: the endpoint plays is being updated; --wait waits for it"
    [update] = trained.calls_of("UpdateEndpoint")
    assert update.body == {"EndpointName": "plays", "EndpointConfigName": "plays-1-b"}
    sent = [call.action for call in trained.calls if call.action.startswith(("Create", "Update"))]
    assert sent[-3:] == ["CreateModel", "CreateEndpointConfig", "UpdateEndpoint"]


def test_documented_policy_allows_exactly_the_calls(trained: AwsServer) -> None:
    trained.calls.clear()
    for name in ("a", "b"):
        succeeded(command(trained, "--deploy", "plays-1", "--name", f"plays-1-{name}", "--endpoint", "plays", "--wait"))
    assert trained.actions() == policy("deploy") - {("iam", "PassRole")} | {("sts", "GetCallerIdentity")}


def test_endpoint_that_fails_is_reported_with_the_reason(trained: AwsServer) -> None:
    succeeded(command(trained, "--deploy", "plays-1", "--name", "plays-1-a", "--endpoint", "plays"))
    trained.answer(
        "DescribeEndpoint",
        {
            **ENDPOINT,
            "EndpointName": "plays",
            "EndpointStatus": "Failed",
            "FailureReason": "the container did not pass the ping health check",
            "CreationTime": 1.0,
            "LastModifiedTime": 1.0,
        },
    )
    result = command(trained, "--deploy", "plays-1", "--name", "plays-1-b", "--endpoint", "plays", "--wait")
    rejected("the endpoint plays is Failed: the container did not pass the ping health check", result, exit_code=1)


def rejected(message: str, result: Any, exit_code: int = 2) -> None:
    assert result.returncode == exit_code, result.stderr
    assert message in messages(result.stderr)[-1]


def test_jobs_that_cannot_be_deployed_are_rejected(trained: AwsServer) -> None:
    for message, arguments in (
        ("--endpoint a_b: expected up to 63 letters", ("--deploy", "plays-1", "--endpoint", "a_b")),
        ("there is no training job 'other'", ("--deploy", "other")),
        ("--output: does not apply to --deploy", ("--deploy", "plays-1", "--output", "s3://music/recs")),
        ("--endpoint: does not apply to --transform", ("--transform", "plays-1", "--endpoint", "plays")),
        ("--hosts: does not apply to --transform", ("--transform", "plays-1", "--hosts", 4)),
        ("--dry-run: does not apply to --stop; leave it out", ("--stop", "plays-1", "--dry-run")),
        ("--input: does not apply to JOB; leave it out", ("job.yaml", "--input", "s3://music/customers")),
        ("--deploy: was given, and so was --follow; expected one of", ("--deploy", "plays-1", "--follow", "plays-1")),
    ):
        rejected(message, command(trained, *arguments))
    trained.answer("DescribeTrainingJob", described("InProgress", "Training"))
    message = "--deploy plays-1: has no model: it is inprogress; expected a completed training job"
    rejected(message, command(trained, "--deploy", "plays-1"))
    local = described("Completed", "Completed", ModelArtifacts={"S3ModelArtifacts": "s3://music/model.tar.gz"})
    trained.answer("DescribeTrainingJob", {**local, "RoleArn": ROLE, "HyperParameters": {"data.path": "/opt/ml/data"}})
    message = "--deploy plays-1: its dataset is not on S3 ('/opt/ml/data'); name a copy there with --data"
    rejected(message, command(trained, "--deploy", "plays-1"))


def test_transform_is_started_and_followed(trained: AwsServer) -> None:
    places = ("--input", "s3://music/customers", "--output", "s3://music/recs")
    arguments = ("--transform", "plays-1", "--name", "plays-1-t", *places, "--endpoint-hosts", 2)
    requests = json.loads(succeeded(command(trained, *arguments, "--dry-run")).stdout)
    assert requests["CreateModel"]["PrimaryContainer"]["Environment"] == {"CROSSFADE_SERVE_DATA": "s3://music/plays"}
    job = requests["CreateTransformJob"]
    assert (job["BatchStrategy"], job["TransformInput"]["SplitType"], job["TransformOutput"]["AssembleWith"]) == (
        "MultiRecord",
        "Line",
        "Line",
    )
    assert job["TransformInput"]["ContentType"] == job["TransformOutput"]["Accept"] == "application/jsonlines"
    assert job["TransformResources"] == {"InstanceType": "ml.m5.large", "InstanceCount": 2}
    trained.calls.clear()
    described = {"TransformJobStatus": "Completed", "TransformJobName": "plays-1-t", "CreationTime": 1.0}
    trained.answer("DescribeTransformJob", {**described, "TransformJobStatus": "InProgress"}, described)
    followed = succeeded(command(trained, *arguments, "--wait", "--poll-seconds", 0.01))
    assert followed.stdout == "plays-1-t\n"
    assert messages(followed.stderr)[-2:] == ["crossfade: plays-1-t: InProgress", "crossfade: plays-1-t: Completed"]
    [sent] = trained.calls_of("CreateTransformJob")
    assert sent.body == job
    assert trained.actions() == policy("transform") - {("iam", "PassRole")} | {("sts", "GetCallerIdentity")}
    trained.answer("DescribeTransformJob", {**described, "TransformJobStatus": "Failed", "FailureReason": "no ping"})
    failed = command(trained, *arguments[:-1], 3, "--name", "plays-1-u", "--wait")
    rejected("the transform job plays-1-u is Failed: no ping", failed, exit_code=1)
    trained.answer("DescribeTransformJob", {**described, "TransformJobStatus": "Stopped"})
    stopped = command(trained, *arguments[:-1], 3, "--name", "plays-1-v", "--wait")
    assert stopped.returncode == 143, stopped.stderr
    rejected("--input: expected an S3 URI", command(trained, "--transform", "plays-1", "--output", "s3://music/recs"))
