"""``crossfade submit sagemaker`` following and stopping a job, and the permissions that it needs."""

import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aws_server import AwsServer, Call, write_log
from documented_policies import policy
from running_command import started, succeeded
from submitting_sagemaker import FAST, command, described, follow, submit
from waiting import wait_until

from crossfade.deploy.aws.sagemaker.jobs import LOG_GROUP

pytestmark = pytest.mark.slow

FIRST, SECOND = "plays-1/algo-1-1700000000", "plays-1/algo-2-1700000000"


def test_interrupted_spot_job_is_followed_with_its_log_to_its_end(aws: AwsServer, job: Path) -> None:
    history = ("Starting", "Training", "Interrupted", "Starting", "Training", "Uploading", "Completed")
    model = {"S3ModelArtifacts": "s3://music/jobs/plays-1/output/model.tar.gz"}
    responses = iter(
        [
            described("InProgress", "Starting", *history[:1]),
            described("InProgress", "Training", *history[:2]),
            described("InProgress", "Training", *history[:5]),
            described("Completed", "Completed", *history, ModelArtifacts=model),
        ]
    )

    def describe(_call: Call) -> Mapping[str, Any]:
        number = len(aws.calls_of("DescribeTrainingJob"))
        if number == 2:
            write_log(aws, LOG_GROUP, FIRST, "crossfade: epoch=1 step=3 batch_loss=0.5 \x1b]0;title\x07")
            write_log(aws, LOG_GROUP, SECOND, "joined the coordinator")
        if number == 3:
            write_log(aws, LOG_GROUP, FIRST, "crossfade: epoch=2 step=6 loss=0.25 ndcg@10=0.3")
        return next(responses)

    aws.respond("DescribeTrainingJob", describe)
    result = succeeded(submit(aws, job, "--wait"))
    assert result.stdout.splitlines() == [
        "plays-1",
        "algo-1: crossfade: epoch=1 step=3 batch_loss=0.5 \\x1b]0;title\\x07",
        "algo-2: joined the coordinator",
        "algo-1: crossfade: epoch=2 step=6 loss=0.25 ndcg@10=0.3",
        "plays-1: completed; model: s3://music/jobs/plays-1/output/model.tar.gz",
    ]
    assert re.findall(r"crossfade: plays-1: (\w+): about \\x1b\n", result.stderr) == list(history)


@pytest.mark.parametrize(
    ("secondary", "reason", "exit_code", "expected"),
    [
        (
            "Failed",
            "AlgorithmError: s3://music/plays: has no manifest.json, exit code: 2",
            2,
            "the training job plays-1 failed: AlgorithmError: s3://music/plays: has no manifest.json, exit code: 2",
        ),
        ("Failed", "AlgorithmError: loss is not finite, exit code: 1", 1, "loss is not finite"),
        ("Failed", "CapacityError: Unable to provision compute capacity.", 1, "choose another --instance-type"),
        ("Failed", "ClientError: Cannot pull image: not found", 2, "Cannot pull image"),
        ("MaxRuntimeExceeded", "", 1, "it reached --max-hours"),
        ("MaxWaitTimeExceeded", "", 1, "leave out --spot"),
    ],
)
def test_failed_job_ends_the_command_with_its_reason_and_exit_code(
    aws: AwsServer, secondary: str, reason: str, exit_code: int, expected: str
) -> None:
    status = "Failed" if secondary == "Failed" else "Stopped"
    aws.answer("DescribeTrainingJob", described(status, secondary, "Starting", secondary, FailureReason=reason))
    result = follow(aws)
    assert result.returncode == exit_code
    assert expected in result.stderr.splitlines()[-1]


def test_stopped_job_exits_143_and_unknown_job_exits_2(aws: AwsServer) -> None:
    unknown = follow(aws)
    assert unknown.returncode == 2
    assert "'aws sagemaker list-training-jobs' lists them, and --region names another region" in unknown.stderr
    aws.answer("DescribeTrainingJob", described("Stopped", "Stopped", "Starting", "Stopping", "Stopped"))
    stopped = follow(aws)
    assert (stopped.returncode, stopped.stdout) == (143, "plays-1: stopped\n")


def test_stop_option_stops_the_job(aws: AwsServer) -> None:
    aws.answer("StopTrainingJob", {})
    result = succeeded(command(aws, "--stop", "plays-1"))
    assert [call.body for call in aws.calls_of("StopTrainingJob")] == [{"TrainingJobName": "plays-1"}]
    assert "stops after a checkpoint" in result.stderr


def test_ctrl_c_only_stops_following(aws: AwsServer, tmp_path: Path) -> None:
    aws.answer("DescribeTrainingJob", described("InProgress", "Training", "Training"))
    with started(
        "submit", "sagemaker", "--follow", "plays-1", *FAST, cwd=tmp_path, variables=aws.variables
    ) as watching:
        wait_until(lambda: len(aws.calls_of("DescribeTrainingJob")) > 1, "a look at the job")
        watching.process.send_signal(signal.SIGINT)
        result = watching.finish()
    assert result.returncode == 130
    assert "stopped by SIGINT following; the training job plays-1 continues (--follow plays-1" in result.stderr
    assert aws.calls_of("StopTrainingJob") == []


def test_documented_policies_allow_exactly_the_calls_of_the_commands(aws: AwsServer, job: Path) -> None:
    needs_none = {("sts", "GetCallerIdentity")}
    checked_by_aws = {("iam", "PassRole"), ("sagemaker", "AddTags")}  # with CreateTrainingJob, when it has these
    write_log(aws, LOG_GROUP, FIRST, "crossfade: epoch=1")
    aws.answer("StopTrainingJob", {})
    succeeded(submit(aws, job, "--wait"))  # moto's jobs are done at once
    succeeded(command(aws, "--stop", "plays-1"))
    assert aws.actions() - needs_none == policy("sagemaker") - checked_by_aws
    [call] = aws.calls_of("CreateTrainingJob")
    assert {"RoleArn", "Tags"} <= call.body.keys()
