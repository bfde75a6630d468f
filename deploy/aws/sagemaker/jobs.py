"""Start, follow and stop SageMaker training jobs.

start(aws, request)
for update in follow(aws, "plays-1"):      # until the job has ended
    print(update.lines)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import ClusterError, CrossfadeError, InputError, Option
from crossfade.base.exit_codes import STOPPED_EXIT_CODE
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, error_from_code, translate_aws_errors
from crossfade.deploy.aws.ecr import check_image
from crossfade.deploy.aws.sagemaker.container import PROGRESS_PATTERN

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.type_defs import CreateTrainingJobRequestTypeDef

    from crossfade.deploy.aws.clients import Aws

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDED = ("Completed", "Failed", "Stopped")
POLL_SECONDS = 10.0
_NOT_FOUND = re.compile(r"not found|[Cc]ould not find")
_EXIT_CODE = re.compile(r"exit ?code:? (\d+)", re.IGNORECASE)
_PROGRESS = re.compile(PROGRESS_PATTERN)


@dataclass
class JobUpdate:
    """An update on a job: its state, new transitions between states, and new lines of its hosts' logs."""

    status: str
    secondary: str
    transitions: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    progress: float | None = None
    """The share that is done, from 0 to 1, as last logged; None before that."""
    description: dict[str, Any] = field(default_factory=dict)


def image_problem(aws: Aws, image: str) -> str | None:
    """Check that ``image`` exists; return why that could not be checked, None if it was.

    Raises:
        CloudRequestError: it does not exist, or is in another region than the job.
        CloudError: AWS does not answer.
    """
    try:
        return None if check_image(aws, image) else f"{image} is not in ECR, so its existence was not checked"
    except CloudRequestError as error:
        if error.kind == "permission":
            return str(error)
        if error.kind == "missing":
            fix = ("; push it as docs/aws.md describes, or set another ", Option("image"))
            raise CloudRequestError(error.args, fix, kind="missing") from error
        raise


def start(aws: Aws, request: CreateTrainingJobRequestTypeDef) -> str:
    """Start the job of ``request`` and return its ARN.

    Raises:
        CloudRequestError, CloudError: AWS does not start it.
    """
    with translate_aws_errors(f"starting the training job {request['TrainingJobName']}", aws.region):
        return aws.sagemaker.create_training_job(**request)["TrainingJobArn"]


def stop(aws: Aws, name: str) -> None:
    """Ask SageMaker to stop the job ``name``: its container writes a checkpoint and ends within two minutes.

    Raises:
        CloudRequestError, CloudError: AWS does not stop it.
    """
    try:
        with translate_aws_errors(f"stopping the training job {name}", aws.region):
            aws.sagemaker.stop_training_job(TrainingJobName=name)
    except CloudRequestError as error:
        raise _if_unknown(aws, name, error) from error


def _describe(aws: Aws, name: str) -> dict[str, Any]:
    """Return SageMaker's description of the job ``name``.

    Raises:
        CloudRequestError: there is no such job.
        CloudError: AWS does not answer.
    """
    try:
        with translate_aws_errors(f"describing the training job {name}", aws.region):
            return dict(aws.sagemaker.describe_training_job(TrainingJobName=name))
    except CloudRequestError as error:
        raise _if_unknown(aws, name, error) from error


def _if_unknown(aws: Aws, name: str, error: CloudRequestError) -> CloudRequestError:
    if error.kind in {"missing", "request"} and _NOT_FOUND.search(str(error)):
        return CloudRequestError(
            f"there is no training job '{name}' in {aws.region} of this account; 'aws sagemaker list-training-jobs' "
            "lists them, and ",
            Option("region"),
            " names another region",
            kind="missing",
            code=error.code,
        )
    return error


def follow(
    aws: Aws, name: str, wait: Callable[[float], None], poll_seconds: float = POLL_SECONDS
) -> Iterator[JobUpdate]:
    """Yield updates on the job ``name`` until it has ended; ``wait`` pauses between requests.

    Raises:
        CloudRequestError: there is no such job, or these credentials may not describe it.
        CloudError: AWS does not answer.
    """
    log, seen_transitions, progress = _Log(aws, name), 0, None
    while True:
        with _job_continues(name):
            description = _describe(aws, name)
            lines = log.read()
        transitions = description.get("SecondaryStatusTransitions", [])
        new = [_transition(each) for each in transitions[seen_transitions:]]
        seen_transitions = max(seen_transitions, len(transitions))
        found = [_share(match[1]) for line in lines for match in _PROGRESS.finditer(line)]
        progress = next((share for share in reversed(found) if share is not None), progress)
        status, secondary = description["TrainingJobStatus"], description.get("SecondaryStatus", "")
        yield JobUpdate(status, secondary, new, lines, progress, description)
        if status in ENDED:
            return
        wait(poll_seconds)


def _share(text: str) -> float | None:
    """Return the number from 0 to 1 in ``text``, which a container wrote; None if it is none."""
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 <= share <= 1 else None


@contextmanager
def _job_continues(name: str) -> Iterator[None]:
    """Add to errors that the job ``name`` itself continues."""
    try:
        yield
    except CloudError as error:
        raise CloudError(
            error.args,
            f" (the training job {name} continues; ",
            Option("follow", name),
            " follows it again)",
            kind=error.kind,
        ) from error


def _transition(each: dict[str, Any]) -> str:
    message = each.get("StatusMessage")
    return f"{each['Status']}: {message}" if message else str(each["Status"])


class _Log:
    """The log lines of a job's hosts, each returned once."""

    def __init__(self, aws: Aws, name: str) -> None:
        self._aws, self._prefix = aws, f"{name}/"
        self._tokens: dict[str, str] = {}
        self._denied = False

    def read(self) -> list[str]:
        """Return the new lines. Without permission, return an error line once, and no lines later."""
        if self._denied:
            return []
        try:
            streams = self._streams()
            return [line for stream in streams for line in self._prefixed(stream, several=len(streams) > 1)]
        except CloudRequestError as error:
            if error.kind != "permission":
                raise
            self._denied = True
            return [f"crossfade: {error}"]

    def _prefixed(self, stream: str, *, several: bool) -> Iterator[str]:
        host = stream.removeprefix(self._prefix).rpartition("-")[0]
        yield from (f"{host}: {line}" if several else line for line in self._new_lines(stream))

    def _streams(self) -> list[str]:
        """Return the names of the job's log streams, one for each host and attempt."""
        try:
            with translate_aws_errors("reading the log", self._aws.region):
                pages = self._aws.logs.get_paginator("describe_log_streams").paginate(
                    logGroupName=LOG_GROUP, logStreamNamePrefix=self._prefix
                )
                return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        except CloudRequestError as error:
            if error.kind == "missing":  # SageMaker creates the group with the account's first job
                return []
            raise

    def _new_lines(self, stream: str) -> Iterator[str]:
        while True:
            token: Any = {"nextToken": self._tokens[stream]} if stream in self._tokens else {}
            with translate_aws_errors("reading the log", self._aws.region):
                response = self._aws.logs.get_log_events(
                    logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **token
                )
            yield from (event["message"] for event in response["events"])
            last, self._tokens[stream] = self._tokens.get(stream), response["nextForwardToken"]
            if not response["events"] or last == response["nextForwardToken"]:
                return


def raise_for_end(description: dict[str, Any], region: str) -> int:
    """Return the exit code of a job that has ended: 0 if it is done, 143 if it was stopped.

    Raises:
        CrossfadeError: it failed; the exit code is the container's.
    """
    status, secondary = description["TrainingJobStatus"], description.get("SecondaryStatus")
    reason = " ".join(str(description.get("FailureReason", "")).split())
    name = description["TrainingJobName"]
    if status == "Completed":
        return 0
    if status == "Stopped" and secondary not in {"MaxRuntimeExceeded", "MaxWaitTimeExceeded"}:
        return STOPPED_EXIT_CODE
    raise _failed(name, str(secondary), reason, region)


def _failed(name: str, secondary: str, reason: str, region: str) -> CrossfadeError:
    if secondary == "MaxRuntimeExceeded":
        return ClusterError(
            f"the training job {name} was stopped after ",
            Option("max_hours"),
            "; submit it again with more, and with ",
            Option("set", "checkpoint.path=URI"),
            " of its checkpoints to resume from them",
        )
    if secondary == "MaxWaitTimeExceeded":
        return CloudError(
            f"the training job {name} was stopped: no spot capacity within ",
            Option("max_wait_hours"),
            "; allow more, or leave out ",
            Option("spot"),
            kind="capacity",
        )
    if reason.startswith("CapacityError"):
        return error_from_code("CapacityError", reason, "CreateTrainingJob", f"the training job {name} failed", region)
    code = _EXIT_CODE.search(reason)
    message = f"the training job {name} failed: {reason or secondary}"
    if code is not None and int(code[1]) == InputError.exit_code:
        return InputError(message)
    return CloudRequestError(message, kind="request") if reason.startswith("ClientError") else ClusterError(message)
