"""``crossfade submit sagemaker`` following and stopping a job, and the permissions that it needs."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from aws_server import AwsServer, Call
from documented_policies import policy
from running_command import started, succeeded
from submitting_sagemaker import FAST, command, described, follow, submit, write_log
from waiting import wait_until

pytestmark = pytest.mark.slow


def test_job_is_followed_with_its_log_to_its_end(aws: AwsServer, job: Path) -> None:
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
    responses = iter([*states, done])

    def describe(_call: Call) -> Mapping[str, Any]:
        number = len(aws.calls_of("DescribeTrainingJob"))
        if number == 2:
            write_log(aws, "algo-1", "crossfade: epoch=1 step=3 progress=0.2500 batch_loss=0.5")
            write_log(aws, "algo-2", "joined the coordinator")
        if number == 3:
            write_log(aws, "algo-1", "crossfade: epoch=2 step=6 progress=0.5000 loss=0.25 ndcg@10=0.3")
        return next(responses)

    aws.respond("DescribeTrainingJob", describe)
    result = succeeded(submit(aws, job, "--wait"))
    assert result.stdout.splitlines() == [
        "plays-1",
        "algo-1: crossfade: epoch=1 step=3 progress=0.2500 batch_loss=0.5",
        "algo-2: joined the coordinator",
        "algo-1: crossfade: epoch=2 step=6 progress=0.5000 loss=0.25 ndcg@10=0.3",
        "plays-1: completed; model: s3://music/jobs/plays-1/output/model.tar.gz",
    ]
    states_logged = re.findall(r"crossfade: plays-1: (\w+): about", result.stderr)
    assert states_logged == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert "crossfade: plays-1: 120 s of training, 60 s billed" in result.stderr
    for share in (" 25%", " 50%", "100%"):
        assert f"plays-1: {share}|" in result.stderr


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
        (
            "Failed",
            "CapacityError: Unable to provision requested ML compute capacity.",
            1,
            "choose another instance type",
        ),
        ("Failed", "ClientError: Cannot pull image: not found", 2, "Cannot pull image"),
        ("MaxRuntimeExceeded", "", 1, "was stopped after --max-hours"),
        ("MaxWaitTimeExceeded", "", 1, "no spot capacity within --max-wait-hours"),
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


def test_interrupted_spot_job_is_followed_until_it_has_resumed_and_completed(aws: AwsServer) -> None:
    states = ("Starting", "Training", "Interrupted", "Starting", "Training", "Uploading", "Completed")
    aws.answer(
        "DescribeTrainingJob",
        described("InProgress", "Training", *states[:2]),
        described("InProgress", "Interrupted", *states[:3]),
        described("InProgress", "Training", *states[:5]),
        described("Completed", "Completed", *states),
    )
    result = succeeded(follow(aws))
    assert re.findall(r"crossfade: plays-1: (\w+): about", result.stderr) == list(states)


def test_log_of_containers_cannot_control_the_terminal_or_the_progress_bar(aws: AwsServer) -> None:
    lines = ("step \x1b]0;title\x07 progress=1.2.3", "progress=nan", "progress=7", "progress=0.2500", "progress=inf")
    write_log(aws, "algo-1", *lines)
    state = described("Completed", "Completed", "Starting")
    state["SecondaryStatusTransitions"][0]["StatusMessage"] = "about\r\x1b[2J"
    aws.answer("DescribeTrainingJob", described("InProgress", "Training"), state)
    result = succeeded(follow(aws))
    assert result.stdout.splitlines()[0] == "step \\x1b]0;title\\x07 progress=1.2.3"
    assert "Starting: about\\r\\x1b[2J" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr.replace("\x1b[A", "")  # by which the bar moves
    assert "plays-1:  25%|" in result.stderr


def test_stopped_job_exits_143_and_unknown_job_exits_2(aws: AwsServer) -> None:
    unknown = follow(aws)
    assert unknown.returncode == 2
    assert "there is no training job 'plays-1' in us-east-1 of this account" in unknown.stderr
    aws.answer("DescribeTrainingJob", described("Stopped", "Stopped", "Starting", "Stopping", "Stopped"))
    stopped = follow(aws)
    assert (stopped.returncode, stopped.stdout) == (143, "plays-1: stopped\n")


def test_states_are_followed_without_permission_to_read_the_log(aws: AwsServer) -> None:
    aws.fail(
        "DescribeLogStreams", "AccessDeniedException", "is not authorized to perform: logs:DescribeLogStreams", times=0
    )
    aws.answer(
        "DescribeTrainingJob",
        described("InProgress", "Training", "Training"),
        described("Completed", "Completed", "Training", "Completed"),
    )
    result = succeeded(follow(aws))
    assert result.stdout.count("lack the permission logs:DescribeLogStreams") == 1
    assert len(aws.calls_of("DescribeLogStreams")) == 1


def test_unreachable_aws_ends_following_and_notes_that_the_job_continues(aws: AwsServer) -> None:
    aws.answer("DescribeTrainingJob", described("InProgress", "Training", "Training"))
    aws.fail("DescribeLogStreams", "ServiceUnavailableException", "busy", times=0, status=503)
    with mock.patch.dict(os.environ, {"AWS_MAX_ATTEMPTS": "1"}):
        result = follow(aws)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("(the training job plays-1 continues; --follow plays-1 follows it again)")


def test_stop_option_stops_the_job(aws: AwsServer) -> None:
    aws.answer("StopTrainingJob", {})
    result = succeeded(command(aws, "--stop", "plays-1"))
    assert [call.body for call in aws.calls_of("StopTrainingJob")] == [{"TrainingJobName": "plays-1"}]
    assert "stops after a checkpoint" in result.stderr
    aws.reset()
    aws.fail("StopTrainingJob", "ValidationException", "Requested resource not found.")
    assert command(aws, "--stop", "plays-1").returncode == 2


def test_ctrl_c_without_a_terminal_only_stops_following(aws: AwsServer, tmp_path: Path) -> None:
    aws.answer("DescribeTrainingJob", described("InProgress", "Training", "Training"))
    with started(
        "submit", "sagemaker", "--follow", "plays-1", *FAST, cwd=tmp_path, variables=aws.variables
    ) as watching:
        wait_until(lambda: len(aws.calls_of("DescribeTrainingJob")) > 1, "a look at the job")
        watching.process.send_signal(signal.SIGINT)
        result = watching.finish()
    assert result.returncode == 130
    assert "stopped by SIGINT following; the training job plays-1 continues" in result.stderr
    assert aws.calls_of("StopTrainingJob") == []


@pytest.mark.parametrize(("answer", "exit_code"), [("s", 143), ("w", 130)])
def test_ctrl_c_asks_whether_to_stop_the_job(aws: AwsServer, tmp_path: Path, answer: str, exit_code: int) -> None:
    def describe(_call: Call) -> Mapping[str, Any]:
        if aws.calls_of("StopTrainingJob"):
            return described("Stopped", "Stopped", "Training", "Stopping", "Stopped")
        return described("InProgress", "Training", "Training")

    aws.answer("StopTrainingJob", {})
    aws.respond("DescribeTrainingJob", describe)
    controller, terminal = pty.openpty()
    words = [Path(sys.executable).with_name("crossfade"), "submit", "sagemaker", "--follow", "plays-1", *FAST]
    with subprocess.Popen(
        words, cwd=tmp_path, env=os.environ | aws.variables, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal
    ) as process:
        os.close(terminal)
        wait_until(lambda: len(aws.calls_of("DescribeTrainingJob")) > 1, "a look at the job")
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        output = b""

        def has_question() -> bool:
            nonlocal output
            output += process.stdout.read() or b""  # type: ignore[union-attr]
            return b"or only stop following it?" in output

        wait_until(has_question, "the question")
        os.write(controller, f"{answer}\n".encode())
        assert process.wait(30) == exit_code
    os.close(controller)
    assert len(aws.calls_of("StopTrainingJob")) == (1 if answer == "s" else 0)


def test_documented_policies_allow_exactly_the_calls_of_the_commands(aws: AwsServer, job: Path) -> None:
    needs_none = {("sts", "GetCallerIdentity")}
    checked_by_aws = {("iam", "PassRole"), ("sagemaker", "AddTags")}  # with CreateTrainingJob, when it has these
    write_log(aws, "algo-1", "crossfade: epoch=1")
    succeeded(submit(aws, job, "--wait"))  # moto's jobs are done at once
    assert aws.actions() - needs_none == policy("submit") - checked_by_aws
    [call] = aws.calls_of("CreateTrainingJob")
    assert {"RoleArn", "Tags"} <= call.body.keys()

    aws.calls.clear()
    succeeded(follow(aws))
    assert aws.actions() == policy("follow")

    aws.calls.clear()
    aws.answer("StopTrainingJob", {})
    succeeded(command(aws, "--stop", "plays-1"))
    assert aws.actions() == policy("stop")
