"""Options of ``crossfade submit sagemaker``."""

from __future__ import annotations

from functools import partial
from typing import Self

from pydantic import model_validator

from crossfade.base.errors import Option, OptionError
from crossfade.base.options import Integer, Number, option
from crossfade.deploy.aws.clients import AccountOptions
from crossfade.trainer.config.options import OptionalJob

_job = partial(option, group="job")
_action = partial(option, group="action")
_limits = partial(option, group="limits")
_network = partial(option, group="network and encryption")
_OF_ACTIONS = {"region", "profile", "poll_seconds"}
"""The options that apply to an action without a job file."""


class SubmitSageMakerOptions(AccountOptions, OptionalJob):
    """The job to run on SageMaker, or what to do with a training job that exists."""

    one_of = (("job", "follow", "stop"),)

    role: str | None = _job(None, "run with this IAM role, a name or ARN (required)", value="ROLE")
    output: str | None = _job(None, "write results below s3://BUCKET/PREFIX (required)", value="URI")
    name: str | None = _job(None, "name the training job (default: the job's name and the time)", value="NAME")
    image: str | None = _job(None, "run this image in ECR (default: crossfade:VARIANT)", value="URI")
    instance_type: str = _job(
        "ml.g4dn.xlarge", "run on this instance type (default: ml.g4dn.xlarge, with a T4)", value="TYPE"
    )
    hosts: Integer | None = _job(None, "run on N hosts (default: cluster.hosts)", value="N", ge=1)
    volume_gb: Integer = _job(50, "attach a disk of N GiB", value="N", ge=1)
    copy_data: bool = _job(False, "copy the dataset at data.path to each host first, instead of reading it from S3")
    dry_run: bool = _action(False, "print the request as JSON, and start nothing")
    wait: bool = _action(False, "follow the job to its end")
    follow: str | None = _action(None, "follow a submitted job to its end", value="NAME")
    stop: str | None = _action(None, "stop a job after a checkpoint", value="NAME")
    poll_seconds: Number = _action(10.0, "poll the job at this interval", value="SECONDS", gt=0)
    max_hours: Number = _limits(24.0, "stop training after H hours", value="H", gt=0)
    spot: bool = _limits(
        False, "use spot capacity, which costs less and may be interrupted; wait for it as long as the job may train"
    )
    subnet: tuple[str, ...] = _network((), "run in this subnet; repeatable", value="ID", repeat=True)
    security_group: tuple[str, ...] = _network((), "use this security group; repeatable", value="ID", repeat=True)
    volume_key: str | None = _network(None, "encrypt disks with this KMS key", value="KEY")
    output_key: str | None = _network(None, "encrypt results with this KMS key", value="KEY")

    @model_validator(mode="after")
    def _check_action(self) -> Self:
        """Reject options that the action would ignore.

        Raises:
            OptionError: there is one.
        """
        action = next((name for name in ("follow", "stop") if getattr(self, name) is not None), None)
        for name in type(self).model_fields:
            if action and name in self.model_fields_set - {action, *_OF_ACTIONS}:
                raise OptionError(name, problem=("does not apply to ", Option(action)), fix="leave it out")
        return self
