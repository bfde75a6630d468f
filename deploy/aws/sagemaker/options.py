"""Options of ``crossfade submit sagemaker``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from crossfade.base.options import Integer, Number, option
from crossfade.deploy.aws.options import DEFAULT_ENDPOINT_TYPE, DEFAULT_SAGEMAKER_TYPE, AccountOptions
from crossfade.trainer.config.options import OptionalJob


def _pair(value: Any) -> Any:
    """Return a name and a value from ``NAME=VALUE``, or from a pair."""
    pair = tuple(value.partition("=")[::2]) if isinstance(value, str) and "=" in value else value
    if not isinstance(pair, tuple) or len(pair) != 2 or not pair[0]:
        raise ValueError("expected NAME=VALUE")
    return pair


NamedValue = Annotated[tuple[str, str], BeforeValidator(_pair)]


class SubmitSageMakerOptions(AccountOptions, OptionalJob):
    """The job to run on SageMaker, or what to do with a training job that exists."""

    one_of = (("job", "follow", "stop", "deploy"),)

    role: str | None = option(None, "run with this IAM role, a name or ARN (required)", group="job", value="ROLE")
    output: str | None = option(None, "write results below s3://BUCKET/PREFIX (required)", group="job", value="URI")
    name: str | None = option(
        None, "name the training job (default: the job's name and the time)", group="job", value="NAME"
    )
    image: str | None = option(None, "run this image in ECR (default: crossfade:VARIANT)", group="job", value="URI")
    instance_type: str = option(
        DEFAULT_SAGEMAKER_TYPE,
        f"run on this instance type (default: {DEFAULT_SAGEMAKER_TYPE}, with a K80)",
        group="job",
        value="TYPE",
    )
    hosts: Integer | None = option(None, "run on N hosts (default: cluster.hosts)", group="job", value="N", ge=1)
    volume_gb: Integer = option(50, "attach a disk of N GiB", group="job", value="N", ge=1)
    channel: tuple[NamedValue, ...] = option(
        (), "copy this S3 prefix to each host first; repeatable", group="job", value="NAME=URI", repeat=True
    )
    input_mode: Literal["File", "FastFile"] = option("File", "set the mode of channels", group="job")
    tag: tuple[NamedValue, ...] = option((), "tag the job; repeatable", group="job", value="KEY=VALUE", repeat=True)
    dry_run: bool = option(False, "print the request as JSON, and start nothing", group="action")
    wait: bool = option(False, "follow the job to its end, or wait for the endpoint", group="action")
    follow: str | None = option(None, "follow a submitted job to its end", group="action", value="NAME")
    stop: str | None = option(None, "stop a job after a checkpoint", group="action", value="NAME")
    deploy: str | None = option(None, "serve the model of a completed job at an endpoint", group="action", value="NAME")
    poll_seconds: Number = option(10.0, "poll the job at this interval", group="action", value="SECONDS", gt=0)
    max_hours: Number = option(24.0, "stop training after H hours", group="limits", value="H", gt=0)
    spot: bool = option(False, "use spot capacity, which costs less and may be interrupted", group="limits")
    max_wait_hours: Number | None = option(
        None,
        "stop after H hours of waiting for spot capacity and training (default: twice as long as training)",
        group="limits",
        value="H",
        gt=0,
    )
    subnet: tuple[str, ...] = option(
        (), "run in this subnet; repeatable", group="network and encryption", value="ID", repeat=True
    )
    security_group: tuple[str, ...] = option(
        (), "use this security group; repeatable", group="network and encryption", value="ID", repeat=True
    )
    encrypt_traffic: bool = option(
        True,
        "encrypt traffic between hosts, which may lengthen training (default: on)",
        group="network and encryption",
    )
    isolate_network: bool | None = option(
        None,
        "cut the container off from all networks (default: if the job needs none)",
        group="network and encryption",
    )
    volume_key: str | None = option(
        None, "encrypt disks with this KMS key", group="network and encryption", value="KEY"
    )
    output_key: str | None = option(
        None, "encrypt results with this KMS key", group="network and encryption", value="KEY"
    )
    endpoint: str | None = option(
        None,
        "create this endpoint, or update it (default: the name of the training job)",
        group="endpoint",
        value="NAME",
    )
    endpoint_type: str = option(DEFAULT_ENDPOINT_TYPE, "serve on this instance type", group="endpoint", value="TYPE")
    endpoint_hosts: Integer = option(1, "serve on N hosts", group="endpoint", value="N", ge=1)
    data: str | None = option(
        None,
        "read IDs and interactions on S3 here (default: where the training job read them)",
        group="endpoint",
        value="URI",
    )
