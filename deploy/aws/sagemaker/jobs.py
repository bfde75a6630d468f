"""SageMaker training jobs that run: starting one, following its state and its log, and stopping it.

for news in follow(aws, "plays-1"):      # over and over: what is new since the last time, until it has ended
    print(news.lines)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy.aws.errors import error_from_code, translate_aws_errors
from deploy.aws.sagemaker.container import progress_pattern
from kvstore.errors import CloudError, CloudRequestError, ClusterError, CrossfadeError, InputError

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.type_defs import CreateTrainingJobRequestTypeDef

    from deploy.aws.clients import Aws

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDED = ("Completed", "Failed", "Stopped")
STOPPED_EXIT_CODE = 143
POLL_SECONDS = 10.0
_NOT_FOUND = re.compile(r"not found|[Cc]ould not find")
_EXIT_CODE = re.compile(r"exit ?code:? (\d+)", re.IGNORECASE)
_PROGRESS = re.compile(progress_pattern())
_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^:@]+)(?:@(sha256:[0-9a-f]+)|:(.+))?")


@dataclass
class JobUpdate:
    """What is new of a job: its state, transitions between states, and lines of its hosts' logs."""

    status: str
    secondary: str
    transitions: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    progress: float | None = None
    """How much is done, from 0 to 1, as the log last said; None as long as it has not."""
    description: dict[str, Any] = field(default_factory=dict)


def image_problem(aws: Aws, image: str) -> str | None:
    """Why it is not known whether ``image`` exists, if that is so.

    Raises:
        RefusedError: it does not exist, or is in another region than the job would be.
    """
    found = _ECR.fullmatch(image)
    if found is None:
        return f"{image} is not in ECR, so whether it exists was not looked up"
    account, region, repository, digest, tag = found.groups()
    if region != aws.region:
        raise CloudRequestError(
            f"--image {image}: is in the region {region}, and SageMaker takes images of its own, {aws.region}, alone; "
            "push it there, or name the other --region",
            "region",
        )
    wanted: Any = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    try:
        with translate_aws_errors(f"looking for the image {image}", aws.region):
            aws.ecr.describe_images(registryId=account, repositoryName=repository, imageIds=[wanted])
    except CloudRequestError as error:
        if error.kind == "permission":
            return str(error)
        if error.kind == "missing":
            raise CloudRequestError(
                f"{error}; push it there as docs/aws.md says, or name another --image", "missing"
            ) from error
        raise
    return None


def start(aws: Aws, request: CreateTrainingJobRequestTypeDef) -> str:
    """Start the job that ``request`` asks for; gives its ARN.

    Raises:
        RefusedError, CloudError: AWS does not.
    """
    with translate_aws_errors(f"starting the training job {request['TrainingJobName']}", aws.region):
        return aws.sagemaker.create_training_job(**request)["TrainingJobArn"]


def stop(aws: Aws, name: str) -> None:
    """Ask SageMaker to stop the job ``name``: its container writes a checkpoint and ends within two minutes.

    Raises:
        RefusedError, CloudError: AWS does not.
    """
    try:
        with translate_aws_errors(f"stopping the training job {name}", aws.region):
            aws.sagemaker.stop_training_job(TrainingJobName=name)
    except CloudRequestError as error:
        raise _unknown(aws, name, error) from error


def describe_job(aws: Aws, name: str) -> dict[str, Any]:
    """What SageMaker says of the job ``name``.

    Raises:
        InputError: there is no such job.
    """
    try:
        with translate_aws_errors(f"asking for the training job {name}", aws.region):
            return dict(aws.sagemaker.describe_training_job(TrainingJobName=name))
    except CloudRequestError as error:
        raise _unknown(aws, name, error) from error


def _unknown(aws: Aws, name: str, error: CloudRequestError) -> CloudRequestError:
    if error.kind in {"missing", "request"} and _NOT_FOUND.search(str(error)):
        return CloudRequestError(
            f"there is no training job '{name}' in {aws.region} of this account; 'aws sagemaker list-training-jobs' "
            "lists them, and --region names another region",
            "missing",
            error.code,
        )
    return error


def follow(
    aws: Aws, name: str, wait: Callable[[float], None], poll_seconds: float = POLL_SECONDS
) -> Iterator[JobUpdate]:
    """What is new of the job ``name``, again and again until it has ended; ``wait`` pauses in between.

    Raises:
        InputError: there is no such job, or it may not be looked at.
        CloudError: AWS cannot be reached any more.
    """
    log, told, progress = _Log(aws, name), 0, None
    while True:
        with _going_on(name):
            description = describe_job(aws, name)
            lines = log.read()
        transitions = description.get("SecondaryStatusTransitions", [])
        new = [_transition(each) for each in transitions[told:]]
        told = max(told, len(transitions))
        found = [match[1] for line in lines for match in _PROGRESS.finditer(line)]
        progress = float(found[-1]) if found else progress
        status, secondary = description["TrainingJobStatus"], description.get("SecondaryStatus", "")
        yield JobUpdate(status, secondary, new, lines, progress, description)
        if status in ENDED:
            return
        wait(poll_seconds)


@contextmanager
def _going_on(name: str) -> Iterator[None]:
    """Have an error of looking at the job ``name`` say that this is no error of the job."""
    try:
        yield
    except CloudError as error:
        raise CloudError(f"{error} (the training job {name} itself goes on; --follow {name})", error.kind) from error


def _transition(each: dict[str, Any]) -> str:
    message = each.get("StatusMessage")
    return f"{each['Status']}: {message}" if message else str(each["Status"])


class _Log:
    """The lines that the hosts of a job have written, each once."""

    def __init__(self, aws: Aws, name: str) -> None:
        self._aws, self._prefix = aws, f"{name}/"
        self._tokens: dict[str, str] = {}
        self._denied = False

    def read(self) -> list[str]:
        """Those that are new; none as long as there is no log. Who may not read it is told so, once."""
        if self._denied:
            return []
        try:
            streams = self._streams()
            return [line for stream in streams for line in self._told(stream, several=len(streams) > 1)]
        except CloudRequestError as error:
            if error.kind != "permission":
                raise
            self._denied = True
            return [f"crossfade: {error}"]

    def _told(self, stream: str, *, several: bool) -> Iterator[str]:
        host = stream.removeprefix(self._prefix).rpartition("-")[0]
        yield from (f"{host}: {line}" if several else line for line in self._new(stream))

    def _streams(self) -> list[str]:
        """The streams of the job, one a host and attempt."""
        try:
            with translate_aws_errors("reading the log", self._aws.region):
                pages = self._aws.logs.get_paginator("describe_log_streams").paginate(
                    logGroupName=LOG_GROUP, logStreamNamePrefix=self._prefix
                )
                return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        except CloudRequestError as error:
            if error.kind == "missing":  # the group comes with the first job of the account
                return []
            raise

    def _new(self, stream: str) -> Iterator[str]:
        while True:
            token: Any = {"nextToken": self._tokens[stream]} if stream in self._tokens else {}
            with translate_aws_errors("reading the log", self._aws.region):
                answer = self._aws.logs.get_log_events(
                    logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **token
                )
            yield from (event["message"] for event in answer["events"])
            last, self._tokens[stream] = self._tokens.get(stream), answer["nextForwardToken"]
            if not answer["events"] or last == answer["nextForwardToken"]:
                return


def raise_for_end(description: dict[str, Any], region: str) -> int:
    """The exit code of a job that has ended: 0 if it is done, 143 if it was stopped.

    Raises:
        CrossfadeError: it failed; the exit code is the container's own.
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
            f"the training job {name} was stopped, since it ran for as long as --max-hours allows; submit it again "
            "with more, and --set checkpoint.path=URI of its checkpoints to go on from them"
        )
    if secondary == "MaxWaitTimeExceeded":
        return CloudError(
            f"the training job {name} was stopped, since spot capacity did not come within --max-wait-hours", "capacity"
        )
    if reason.startswith("CapacityError"):
        return error_from_code("CapacityError", reason, "CreateTrainingJob", f"the training job {name} failed", region)
    code = _EXIT_CODE.search(reason)
    message = f"the training job {name} failed: {reason or secondary}"
    if code is not None and int(code[1]) == InputError.exit_code:
        return InputError(message)
    return CloudRequestError(message, "request") if reason.startswith("ClientError") else ClusterError(message)
