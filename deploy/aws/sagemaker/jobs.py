"""Follow and stop SageMaker training jobs.

exit_code = follow(aws, "plays-1", poll_seconds=10, show=print)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import ClusterError, CrossfadeError, InputError, Option
from crossfade.base.exit_codes import STOPPED_EXIT_CODE
from crossfade.base.signals import stopper
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, translate_aws_errors
from crossfade.deploy.aws.run_logs import LogReader

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_ENDED = ("Completed", "Failed", "Stopped")
_NOT_FOUND = re.compile(r".*(not found|[Cc]ould not find)", re.DOTALL)
_EXIT_CODE = re.compile(r"exit ?code:? (\d+)", re.IGNORECASE)
_logger = logging.getLogger(__name__)


def stop(aws: Aws, name: str) -> None:
    """Ask SageMaker to stop the job ``name``: its container writes a checkpoint and ends within two minutes.

    Raises:
        CloudRequestError, CloudError: there is no such job, or AWS does not stop it.
    """
    _call(aws, "stopping", name, aws.sagemaker.stop_training_job)


def _call(aws: Aws, doing: str, name: str, operation: Callable[..., Any]) -> Any:
    """Return what ``operation`` returns about the training job ``name``.

    Raises:
        CloudRequestError: there is no such job.
        CloudError: AWS does not answer.
    """
    try:
        with translate_aws_errors(f"{doing} the training job {name}", aws.region):
            return operation(TrainingJobName=name)
    except CloudRequestError as error:
        if error.kind == "request" and _NOT_FOUND.match(str(error)):
            fix = ("; 'aws sagemaker list-training-jobs' lists them, and ", Option("region"), " names another region")
            raise CloudRequestError(*error.args, fix, kind="missing", code=error.code) from error
        raise


def follow(aws: Aws, name: str, poll_seconds: float, show: Callable[[str], None]) -> int:
    """Follow the job ``name`` to its end, and return its exit code: 0 if it is done, 143 if it was stopped.

    ``show`` receives the log lines of its hosts.

    Raises:
        StopSignal: a signal has ended the following.
        CrossfadeError: the job failed; the exit code is the container's.
        CloudRequestError: there is no such job, or these credentials may not describe it.
        CloudError: AWS does not answer.
    """
    log, seen, status = LogReader(aws, LOG_GROUP, f"{name}/"), 0, ""
    with stopper.deferred():
        while status not in _ENDED and stopper.number is None:
            if status:
                stopper.wait(poll_seconds)
            try:
                description = _call(aws, "describing", name, aws.sagemaker.describe_training_job)
                lines = log.read()
            except CloudError as error:
                how = (f" (the training job {name} continues; ", Option("follow", name), " follows it again)")
                raise CloudError(*error.args, how, kind=error.kind, code=error.code) from error
            for line in lines:
                show(f"{line}\n")
            transitions = description.get("SecondaryStatusTransitions", [])
            for each in transitions[seen:]:
                _logger.info(f"{name}: {each['Status']}: {each.get('StatusMessage', '')}")
            seen, status = max(seen, len(transitions)), description["TrainingJobStatus"]
    if status not in _ENDED:
        ways = (Option("follow", name), " follows it, ", Option("stop", name), " stops it)")
        stopper.check(f"following; the training job {name} continues (", ways)
    if status != "Failed":
        model = description.get("ModelArtifacts", {}).get("S3ModelArtifacts")
        show(f"{name}: {status.lower()}{f'; model: {model}' if model and status == 'Completed' else ''}\n")
    return _exit_code(name, status, description)


def _exit_code(name: str, status: str, description: dict[str, Any]) -> int:
    """Return the exit code of a job that has ended.

    Raises:
        CrossfadeError: it failed.
    """
    secondary, reason = description.get("SecondaryStatus", ""), " ".join(description.get("FailureReason", "").split())
    if status == "Completed":
        return 0
    if status == "Stopped" and secondary not in {"MaxRuntimeExceeded", "MaxWaitTimeExceeded"}:
        return STOPPED_EXIT_CODE
    raise _failure(f"the training job {name} failed: {reason or secondary}", reason, secondary)


def _failure(message: str, reason: str, secondary: str) -> CrossfadeError:
    code = _EXIT_CODE.search(reason)
    if secondary == "MaxRuntimeExceeded":
        return ClusterError(f"{message}: it reached ", Option("max_hours"), "; its checkpoints are kept")
    if secondary == "MaxWaitTimeExceeded" or reason.startswith("CapacityError"):
        fix = ("; try again later, choose another ", Option("instance_type"), ", or leave out ", Option("spot"))
        return CloudError(message, fix, kind="capacity", code="CapacityError")
    if reason.startswith("ClientError") or (code is not None and int(code[1]) == InputError.exit_code):
        return InputError(message)
    return ClusterError(message)
