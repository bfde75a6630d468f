"""``crossfade submit sagemaker``: what it asks of AWS, and what it makes of the answers."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from aws_server import ACCOUNT, REGION, AwsServer, Call, running_aws
from cluster_data import write_job
from documented_policies import policy
from running_command import crossfade, started, succeeded
from waiting import wait_until

from crossfade.main import main
from deploy.aws.sagemaker.container import Hosts, Paths, read_job
from deploy.aws.sagemaker.jobs import LOG_GROUP
from deploy.aws.sagemaker.request import Submission, make_request
from kvstore.errors import InputError
from trainer.config.loading import load_job

pytestmark = pytest.mark.slow

ROLE = f"arn:aws:iam::{ACCOUNT}:role/CrossfadeTraining"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/crossfade:cu90"
QUOTA = (
    "The account-level service limit 'ml.p2.xlarge for training job usage' is 0 Instances, with current utilization of "
    "0 Instances and a request delta of 1 Instances."
)
FAST = ("--poll-seconds", "0.05")


@pytest.fixture(scope="module")
def server() -> Iterator[AwsServer]:
    with running_aws() as running:
        yield running


@pytest.fixture
def aws(server: AwsServer) -> AwsServer:
    """AWS with the image of the default instance type."""
    server.reset()
    ecr = server.client("ecr")
    ecr.create_repository(repositoryName="crossfade")
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": []}
    manifest["config"] = {"digest": "sha256:" + "0" * 64, "size": 1, "mediaType": "application/json"}
    for tag in ("cu90", "cpu"):
        ecr.put_image(repositoryName="crossfade", imageManifest=json.dumps({**manifest, "tag": tag}), imageTag=tag)
    return server


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "plays.yaml", "s3://music/plays", name="plays")


def command(aws: AwsServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``crossfade submit sagemaker`` in this process, which saves the start of another."""
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
    """Submit ``job`` with what is needed, and ``options``."""
    needed = ("--role", "CrossfadeTraining", "--output", "s3://music/jobs", "--name", "plays-1")
    return command(aws, job, *needed, *options)


def watch(aws: AwsServer) -> subprocess.CompletedProcess[str]:
    return command(aws, "--follow", "plays-1")


def described(status: str, secondary: str, *transitions: str, **more: Any) -> dict[str, Any]:
    """An answer of DescribeTrainingJob."""
    passed = [{"Status": each, "StartTime": 1.0, "StatusMessage": f"about {each}"} for each in transitions]
    return {
        "TrainingJobName": "plays-1",
        "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/plays-1",
        "TrainingJobStatus": status,
        "SecondaryStatus": secondary,
        "SecondaryStatusTransitions": passed,
        **more,
    }


def write_log(aws: AwsServer, host: str, *lines: str) -> None:
    """Have SageMaker's log of a host end with ``lines``."""
    logs = aws.client("logs")
    if not logs.describe_log_groups(logGroupNamePrefix=LOG_GROUP)["logGroups"]:
        logs.create_log_group(logGroupName=LOG_GROUP)
    stream = f"plays-1/{host}-1700000000"
    if not logs.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=stream)["logStreams"]:
        logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
    events = [{"timestamp": int(time.time() * 1000) + number, "message": line} for number, line in enumerate(lines)]
    logs.put_log_events(logGroupName=LOG_GROUP, logStreamName=stream, logEvents=events)


# ---- what is asked


def test_a_job_is_submitted_with_its_defaults_and_its_cost_is_said_before(aws: AwsServer, job: Path) -> None:
    result = succeeded(submit(aws, job))
    assert result.stdout == "plays-1\n"
    [call] = aws.made("CreateTrainingJob")
    request = call.body
    assert request["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert request["RoleArn"] == ROLE
    assert request["ResourceConfig"] == {"InstanceType": "ml.p2.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 24 * 3600}
    assert request["CheckpointConfig"] == {
        "S3Uri": "s3://music/jobs/plays-1/checkpoints",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert request["HyperParameters"] == {
        "name": "plays",
        "data.path": "s3://music/plays",
        "model.dim": "8",
        "model.temperature": "0.1",
        "negatives.kind": "shared",
        "negatives.count": "64",
        "optimizer.kind": "adagrad",
        "optimizer.learning_rate": "0.1",
        "optimizer.weight_decay": "0.0",
        "optimizer.schedule": "constant",
        "train.batch_size": "256",
        "train.epochs": "2",
        "train.query_frequency_power": "0.0",
        "train.item_frequency_power": "0.0",
        "evaluate.k": "[5, 10]",
    }
    assert "Environment" not in request
    cost, said = result.stderr.splitlines()[1:]
    assert cost.startswith(
        "crossfade: cost: $1.12 an hour, $27.00 at most (1 x ml.p2.xlarge, 24 h at most; price: that of"
    )
    assert said == "crossfade: submitted; crossfade submit sagemaker --follow plays-1 follows it, --stop stops it"
    order = [call.action for call in aws.calls]
    assert order.index("GetProducts") < order.index("CreateTrainingJob")


def test_every_option_comes_to_its_place_in_the_request(aws: AwsServer, job: Path) -> None:
    options = (
        *("--instance-type", "ml.m5.xlarge", "--hosts", 2, "--spot", "--max-hours", 2, "--max-wait-hours", 5),
        *("--volume-gb", 200, "--volume-key", "key-1", "--output-key", "key-2", "--encrypt-traffic"),
        *("--subnet", "subnet-1", "--subnet", "subnet-2", "--security-group", "sg-1", "--tag", "team=music"),
        *("--channel", "shards=s3://music/plays", "--input-mode", "FastFile", "--set", "train.epochs=7"),
    )
    succeeded(submit(aws, job, *options))
    [call] = aws.made("CreateTrainingJob")
    request = call.body
    assert request["ResourceConfig"] == {
        "InstanceType": "ml.m5.xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 200,
        "VolumeKmsKeyId": "key-1",
    }
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 18000}
    assert request["EnableManagedSpotTraining"] is True
    assert request["EnableInterContainerTrafficEncryption"] is True
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://music/jobs", "KmsKeyId": "key-2"}
    assert request["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]}
    assert request["Tags"] == [{"Key": "crossfade", "Value": "plays"}, {"Key": "team", "Value": "music"}]
    assert request["AlgorithmSpecification"]["TrainingInputMode"] == "FastFile"
    [channel] = request["InputDataConfig"]
    assert channel["ChannelName"] == "shards"
    assert channel["DataSource"]["S3DataSource"] == {
        "S3DataType": "S3Prefix",
        "S3Uri": "s3://music/plays",
        "S3DataDistributionType": "FullyReplicated",
    }
    # Several hosts keep their checkpoints together, and let each other in.
    assert request["HyperParameters"]["checkpoint.path"] == "s3://music/jobs/plays-1/checkpoints"
    assert request["HyperParameters"]["train.epochs"] == "7"
    assert "CheckpointConfig" not in request
    assert len(request["Environment"]["CROSSFADE_TOKEN"]) == 64


def test_a_dry_run_prints_the_request_and_asks_aws_nothing(aws: AwsServer, job: Path) -> None:
    result = succeeded(submit(aws, job, "--role", ROLE, "--image", IMAGE, "--hosts", 2, "--dry-run"))
    assert aws.calls == []
    request = json.loads(result.stdout)
    assert request["TrainingJobName"] == "plays-1"
    assert request["Environment"] == {"CROSSFADE_TOKEN": "generated for each job"}
    assert "crossfade: cost: $2.25 an hour, $54.00 at most (2 x ml.p2.xlarge, 24 h at most" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--instance-type", "ml.p5.48xlarge"), "MXNet cannot use its GPU, H100"),
        (("--instance-type", "ml.c7g.large"), "has an Arm processor"),
        (("--set", "data.path=data/plays"), "data.path: data/plays is on this machine, where the job does not run"),
        (("--set", "checkpoint.path=here"), "checkpoint.path: here is on this machine"),
        (("--output", "music/jobs"), "--output music/jobs: expected an S3 URI"),
        (("--name", "plays_1"), "--name plays_1: expected up to 63 letters, digits and hyphens"),
        (("--subnet", "subnet-1"), "--subnet and --security-group: a job in a VPC needs both"),
        (("--spot", "--max-hours", 9, "--max-wait-hours", 3), "--max-wait-hours 3: is less than --max-hours 9"),
        (("--instance-type", "ml.m5.large", "--set", "train.engine=mxnet", "--set", "train.device=gpu"), "has none"),
        (("--tag", "=x"), "expected NAME=VALUE, but found '=x'"),
        (("--region", "Virginia"), "'Virginia' is not the name of an AWS region"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(
    aws: AwsServer, job: Path, options: tuple[object, ...], said: str
) -> None:
    result = submit(aws, job, "--role", ROLE, *options)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr.splitlines()[-1]
    assert aws.made("CreateTrainingJob") == []


def test_a_gpu_that_the_job_leaves_idle_is_said(aws: AwsServer, job: Path) -> None:
    line = "crossfade: ml.p2.xlarge has a K80, which the job does not use"
    assert submit(aws, job).stderr.startswith(line)
    on_gpu = ("--set", "train.engine=mxnet", "--set", "train.device=gpu")
    assert "does not use" not in submit(aws, job, *on_gpu).stderr


def test_it_is_said_that_dense_layers_of_several_hosts_need_another_image(aws: AwsServer, job: Path) -> None:
    dense = ("--set", "model.dim=8", "--set", "model.dense={item: [8]}")
    line = (
        "crossfade: dense layers (model.dense) of several workers need Horovod, which an image of the variant cpu has"
    )
    assert line in submit(aws, job, *dense, "--hosts", 2).stderr
    assert "Horovod" not in submit(aws, job, *dense).stderr


def test_the_container_makes_of_the_hyperparameters_the_job_that_was_submitted(job: Path, tmp_path: Path) -> None:
    overrides = ["optimizer.weight_decay=1.0e-6", "train.patience=null", "data.since=2024-05-01", "name=a_b-c"]
    submitted = load_job(job, [*overrides, "cluster.shared_run_dir=false", "cluster.grace_period_seconds=90"])
    submission = Submission(job=submitted, name="plays-1", role=ROLE, image=IMAGE, output="s3://music/jobs")
    config = tmp_path / "ml" / "input" / "config"
    config.mkdir(parents=True)
    parameters = {**make_request(submission)["HyperParameters"], "sagemaker_region": "us-east-1"}
    (config / "hyperparameters.json").write_text(json.dumps(parameters))
    assert read_job(Paths(tmp_path / "ml"), Hosts("algo-1", ("algo-1",))) == submitted


def test_a_job_of_more_text_than_sagemaker_takes_is_refused(job: Path) -> None:
    long = load_job(job, [f"data.path=s3://music/{'x' * 2600}"])
    with pytest.raises(InputError, match=r"data\.path: has 26\d\d characters"):
        make_request(Submission(job=long, name="plays-1", role=ROLE, image=IMAGE, output="s3://music/jobs"))


# ---- what AWS says to it


@pytest.mark.parametrize(
    ("action", "code", "message", "exit_code", "said"),
    [
        ("CreateTrainingJob", "ResourceLimitExceeded", QUOTA, 2, "the quota 'ml.p2.xlarge for training job usage'"),
        (
            "CreateTrainingJob",
            "AccessDeniedException",
            f"User: arn:aws:iam::{ACCOUNT}:user/ann is not authorized to perform: iam:PassRole on resource: {ROLE} "
            "because no identity-based policy allows the iam:PassRole action",
            2,
            f"these credentials may not do iam:PassRole on {ROLE}, because no identity-based policy allows",
        ),
        ("CreateTrainingJob", "ValidationException", f"Could not assume role {ROLE}.", 2, "Could not assume role"),
        ("CreateTrainingJob", "CapacityError", "Unable to provision capacity.", 1, "no such instance free in"),
        ("CreateTrainingJob", "UnrecognizedClientException", "The security token is invalid.", 2, "is enabled in the"),
        (
            "DescribeImages",
            "ImageNotFoundException",
            "no image cu90 in crossfade",
            2,
            "push it there as docs/aws.md says",
        ),
        ("GetCallerIdentity", "ExpiredToken", "The security token is expired", 2, "the AWS credentials have expired"),
    ],
)
def test_what_aws_refuses_is_one_line_with_the_way_out(
    aws: AwsServer, job: Path, action: str, code: str, message: str, exit_code: int, said: str
) -> None:
    aws.fail(action, code, message)
    result = submit(aws, job)
    assert result.returncode == exit_code, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("crossfade: error: ")
    assert said in last
    assert "Traceback" not in result.stderr


def test_an_image_that_is_not_there_or_elsewhere_is_found_before_the_job_starts(aws: AwsServer, job: Path) -> None:
    result = submit(aws, job, "--instance-type", "ml.g5.xlarge")
    assert result.returncode == 2
    assert "looking for the image" in result.stderr
    assert "crossfade:cu112" in result.stderr
    other = submit(aws, job, "--image", IMAGE.replace(REGION, "eu-west-1"))
    assert other.returncode == 2
    assert "is in the region eu-west-1, and SageMaker takes images of its own, us-east-1, alone" in other.stderr
    assert aws.made("CreateTrainingJob") == []


def test_throttled_requests_are_made_again_until_they_are_answered(aws: AwsServer, job: Path) -> None:
    aws.fail("CreateTrainingJob", "ThrottlingException", "Rate exceeded", times=2)
    succeeded(submit(aws, job))
    assert len(aws.made("CreateTrainingJob")) == 3


def test_without_the_right_to_look_at_images_or_prices_a_job_is_submitted_all_the_same(
    aws: AwsServer, job: Path
) -> None:
    denied = "User: x is not authorized to perform: {} on resource: y because no policy allows it"
    aws.fail("DescribeImages", "AccessDeniedException", denied.format("ecr:DescribeImages"))
    aws.fail("GetProducts", "AccessDeniedException", denied.format("pricing:GetProducts"))
    result = succeeded(submit(aws, job))
    assert "may not do ecr:DescribeImages" in result.stderr
    assert "AWS's price list could not be asked: AccessDeniedException" in result.stderr


# ---- following


def test_a_job_is_followed_with_its_log_to_its_end(aws: AwsServer, job: Path) -> None:
    states = [
        described("InProgress", "Starting", "Starting"),
        described("InProgress", "Training", "Starting", "Downloading", "Training"),
        described("InProgress", "Training", "Starting", "Downloading", "Training"),
    ]
    done = described(
        *("Completed", "Completed", "Starting", "Downloading", "Training", "Uploading", "Completed"),
        TrainingTimeInSeconds=120,
        BillableTimeInSeconds=60,
        ModelArtifacts={"S3ModelArtifacts": "s3://music/jobs/plays-1/output/model.tar.gz"},
    )
    looks = iter([*states, done])

    def look(_call: Call) -> Mapping[str, Any]:
        number = len(aws.made("DescribeTrainingJob"))
        if number == 2:
            write_log(aws, "algo-1", "crossfade: epoch=1 step=3 progress=0.2500 batch_loss=0.5")
            write_log(aws, "algo-2", "joined the coordinator")
        if number == 3:
            write_log(aws, "algo-1", "crossfade: epoch=2 step=6 progress=0.5000 loss=0.25 ndcg@10=0.3")
        return next(looks)

    aws.respond("DescribeTrainingJob", look)
    needed = ("--role", "CrossfadeTraining", "--output", "s3://music/jobs", "--name", "plays-1")
    whole = ("submit", "sagemaker", job, *needed, *FAST, "--wait")
    result = succeeded(crossfade(*whole, cwd=job.parent, variables=aws.variables))
    assert result.stdout.splitlines() == [
        "plays-1",
        "algo-1: crossfade: epoch=1 step=3 progress=0.2500 batch_loss=0.5",
        "algo-2: joined the coordinator",
        "algo-1: crossfade: epoch=2 step=6 progress=0.5000 loss=0.25 ndcg@10=0.3",
        "plays-1: completed; model: s3://music/jobs/plays-1/output/model.tar.gz",
    ]
    states_said = re.findall(r"crossfade: plays-1: (\w+): about", result.stderr)
    assert states_said == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert "crossfade: plays-1: 120 s of training, 60 s billed" in result.stderr
    for share in (" 25%", " 50%", "100%"):
        assert f"plays-1: {share}|" in result.stderr


@pytest.mark.parametrize(
    ("secondary", "reason", "exit_code", "said"),
    [
        (
            "Failed",
            "AlgorithmError: s3://music/plays: has no manifest.json, exit code: 2",
            2,
            "the training job plays-1 failed: AlgorithmError: s3://music/plays: has no manifest.json, exit code: 2",
        ),
        ("Failed", "AlgorithmError: loss is not finite, exit code: 1", 1, "loss is not finite"),
        (
            "Failed",
            "CapacityError: Unable to provision requested ML compute capacity.",
            1,
            "name another instance type",
        ),
        ("Failed", "ClientError: Cannot pull image: not found", 2, "Cannot pull image"),
        ("MaxRuntimeExceeded", "", 1, "for as long as --max-hours allows"),
        ("MaxWaitTimeExceeded", "", 1, "spot capacity did not come within --max-wait-hours"),
    ],
)
def test_a_job_that_fails_ends_the_command_with_its_reason_and_its_exit_code(
    aws: AwsServer, secondary: str, reason: str, exit_code: int, said: str
) -> None:
    status = "Failed" if secondary == "Failed" else "Stopped"
    aws.answer("DescribeTrainingJob", described(status, secondary, "Starting", secondary, FailureReason=reason))
    result = watch(aws)
    assert result.returncode == exit_code
    assert said in result.stderr.splitlines()[-1]


def test_an_interrupted_spot_job_is_followed_until_it_has_been_taken_up_and_is_done(aws: AwsServer) -> None:
    life = ("Starting", "Training", "Interrupted", "Starting", "Training", "Uploading", "Completed")
    aws.answer(
        "DescribeTrainingJob",
        described("InProgress", "Training", *life[:2]),
        described("InProgress", "Interrupted", *life[:3]),
        described("InProgress", "Training", *life[:5]),
        described("Completed", "Completed", *life),
    )
    result = succeeded(watch(aws))
    assert re.findall(r"crossfade: plays-1: (\w+): about", result.stderr) == list(life)


def test_a_job_that_was_stopped_ends_with_143_and_one_that_is_not_there_with_2(aws: AwsServer) -> None:
    unknown = watch(aws)
    assert unknown.returncode == 2
    assert "there is no training job 'plays-1' in us-east-1 of this account" in unknown.stderr
    aws.answer("DescribeTrainingJob", described("Stopped", "Stopped", "Starting", "Stopping", "Stopped"))
    stopped = watch(aws)
    assert (stopped.returncode, stopped.stdout) == (143, "plays-1: stopped\n")


def test_who_may_not_read_the_log_follows_the_states(aws: AwsServer) -> None:
    aws.fail(
        "DescribeLogStreams", "AccessDeniedException", "is not authorized to perform: logs:DescribeLogStreams", times=0
    )
    aws.answer(
        "DescribeTrainingJob",
        described("InProgress", "Training", "Training"),
        described("Completed", "Completed", "Training", "Completed"),
    )
    result = succeeded(watch(aws))
    assert result.stdout.count("may not do logs:DescribeLogStreams") == 1
    assert len(aws.made("DescribeLogStreams")) == 1


def test_a_watch_that_aws_no_longer_answers_says_that_the_job_goes_on(aws: AwsServer) -> None:
    aws.answer("DescribeTrainingJob", described("InProgress", "Training", "Training"))
    aws.fail("DescribeLogStreams", "ServiceUnavailableException", "busy", times=0, status=503)
    with mock.patch.dict(os.environ, {"AWS_MAX_ATTEMPTS": "1"}):
        result = watch(aws)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("(the training job plays-1 itself goes on; --follow plays-1)")


def test_stop_asks_sagemaker_to_stop_the_job(aws: AwsServer) -> None:
    aws.answer("StopTrainingJob", {})
    result = succeeded(command(aws, "--stop", "plays-1"))
    assert [call.body for call in aws.made("StopTrainingJob")] == [{"TrainingJobName": "plays-1"}]
    assert "stops after a checkpoint" in result.stderr
    aws.reset()
    aws.fail("StopTrainingJob", "ValidationException", "Requested resource not found.")
    assert command(aws, "--stop", "plays-1").returncode == 2


def test_ctrl_c_where_nobody_can_be_asked_only_stops_watching(aws: AwsServer, tmp_path: Path) -> None:
    aws.answer("DescribeTrainingJob", described("InProgress", "Training", "Training"))
    with started(
        "submit", "sagemaker", "--follow", "plays-1", *FAST, cwd=tmp_path, variables=aws.variables
    ) as watching:
        wait_until(lambda: len(aws.made("DescribeTrainingJob")) > 1, 30, "a look at the job")
        watching.process.send_signal(signal.SIGINT)
        result = watching.finish()
    assert result.returncode == 130
    assert "stopped by SIGINT following; the training job plays-1 continues" in result.stderr
    assert aws.made("StopTrainingJob") == []


@pytest.mark.parametrize(("answer", "exit_code"), [("s", 143), ("w", 130)])
def test_ctrl_c_asks_whether_to_stop_the_job(aws: AwsServer, tmp_path: Path, answer: str, exit_code: int) -> None:
    def look(_call: Call) -> Mapping[str, Any]:
        if aws.made("StopTrainingJob"):
            return described("Stopped", "Stopped", "Training", "Stopping", "Stopped")
        return described("InProgress", "Training", "Training")

    aws.answer("StopTrainingJob", {})
    aws.respond("DescribeTrainingJob", look)
    ours, theirs = pty.openpty()
    words = [Path(sys.executable).with_name("crossfade"), "submit", "sagemaker", "--follow", "plays-1", *FAST]
    with subprocess.Popen(
        words, cwd=tmp_path, env=os.environ | aws.variables, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        wait_until(lambda: len(aws.made("DescribeTrainingJob")) > 1, 30, "a look at the job")
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        asked = b""

        def is_asked() -> bool:
            nonlocal asked
            asked += process.stdout.read() or b""  # type: ignore[union-attr]
            return b"or only stop following it?" in asked

        wait_until(is_asked, 30, "the question")
        os.write(ours, f"{answer}\n".encode())
        assert process.wait(30) == exit_code
    os.close(ours)
    assert len(aws.made("StopTrainingJob")) == (1 if answer == "s" else 0)


# ---- what it takes


def test_the_documented_policies_allow_what_the_commands_call_and_nothing_else(aws: AwsServer, job: Path) -> None:
    needs_none = {("sts", "GetCallerIdentity")}
    checked_by_aws = {("iam", "PassRole"), ("sagemaker", "AddTags")}  # with CreateTrainingJob, when it has these
    write_log(aws, "algo-1", "crossfade: epoch=1")
    succeeded(submit(aws, job, "--wait"))  # moto's jobs are done at once
    assert aws.actions() - needs_none == policy("submit") - checked_by_aws
    [call] = aws.made("CreateTrainingJob")
    assert {"RoleArn", "Tags"} <= call.body.keys()

    aws.calls.clear()
    succeeded(watch(aws))
    assert aws.actions() == policy("watch")

    aws.calls.clear()
    aws.answer("StopTrainingJob", {})
    succeeded(command(aws, "--stop", "plays-1"))
    assert aws.actions() == policy("stop")
