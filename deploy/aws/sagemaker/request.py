"""Build the request that starts a SageMaker training job from a job config and the options of a submission.

    request = make_request(Submission(job=job, name="plays-1", role=..., image=..., output="s3://music/jobs"))

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from crossfade.base.errors import InputError
from crossfade.deploy.aws.accelerators import DEFAULT_SAGEMAKER_TYPE
from crossfade.deploy.aws.job_checks import check_device
from crossfade.deploy.aws.sagemaker.container import CHECKPOINTS, TRAINING_CHANNEL, progress_pattern, value_pattern
from crossfade.deploy.topology import TOKEN_VARIABLE
from crossfade.trainer.config.schema import JobConfig

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.type_defs import CreateTrainingJobRequestTypeDef

MAX_VALUE_CHARACTERS, MAX_HYPERPARAMETERS, MAX_METRICS = 2500, 100, 40
"""SageMaker's limits."""
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/.*)?")
_HOUR_SECONDS = 3600
_RANKING_METRICS = ("recall", "ndcg")


@dataclass(frozen=True)
class Submission:
    """The options of a submission. ``output`` is an S3 URI below which each job gets a folder with its name."""

    job: JobConfig
    name: str
    role: str
    image: str
    output: str
    instance_type: str = DEFAULT_SAGEMAKER_TYPE
    hosts: int = 1
    max_hours: float = 24.0
    max_wait_hours: float | None = None
    """Limit for capacity and training together on spot instances. None: on demand."""
    volume_gib: int = 50
    volume_key: str | None = None
    output_key: str | None = None
    subnets: list[str] = field(default_factory=list)
    security_groups: list[str] = field(default_factory=list)
    encrypt_traffic: bool = True
    isolate_network: bool | None = None
    """Whether the container has no network. None: if the job needs none."""
    tags: dict[str, str] = field(default_factory=dict)
    channels: dict[str, str] = field(default_factory=dict)
    input_mode: str = "File"

    @property
    def folder(self) -> str:
        """The URI of the job's folder on S3."""
        return f"{self.output.rstrip('/')}/{self.name}"


def check_submission(submission: Submission) -> None:
    """Check the options before any request is sent.

    Raises:
        InputError: an option is invalid; the message names the first one.
    """
    if not _NAME.fullmatch(submission.name):
        raise InputError(
            f"--name {submission.name}: expected up to 63 letters, digits and hyphens, without a hyphen at either end"
        )
    for option, uri in (("--output", submission.output), *(("--channel", uri) for uri in submission.channels.values())):
        if not _S3.fullmatch(uri):
            raise InputError(f"{option} {uri}: expected an S3 URI, as in s3://BUCKET/PREFIX")
    if bool(submission.subnets) != bool(submission.security_groups):
        raise InputError("--subnet and --security-group: a job in a VPC needs both")
    if submission.max_wait_hours is not None and submission.max_wait_hours < submission.max_hours:
        raise InputError(
            f"--max-wait-hours {submission.max_wait_hours:g}: must be at least --max-hours {submission.max_hours:g}, "
            "which it includes"
        )
    _check_data(submission)
    check_device(submission.job, submission.instance_type)


def _check_data(submission: Submission) -> None:
    data = submission.job.data.path
    if TRAINING_CHANNEL not in submission.channels and not data.startswith(("s3://", "/opt/ml/")):
        raise InputError(
            f"data.path: {data} is on this machine, which the job cannot read; prepare the data on S3 "
            "('crossfade prepare --out s3://BUCKET/PREFIX') and add --set data.path=s3://BUCKET/PREFIX"
        )
    for key, source in submission.job.starting_points().items():
        if not source.startswith(("s3://", "/opt/ml/")):
            raise InputError(f"{key}: {source} is on this machine; expected an S3 URI")
    path = submission.job.checkpoint.path
    if path is not None and not path.startswith("s3://"):
        raise InputError(f"checkpoint.path: {path} is on this machine; expected an S3 URI, or none")


def make_request(submission: Submission) -> CreateTrainingJobRequestTypeDef:
    """Return the request of CreateTrainingJob.

    Raises:
        InputError: an option of the submission is invalid.
    """
    check_submission(submission)
    job, spot = submission.job, submission.max_wait_hours is not None
    limit: dict[str, int] = {"MaxRuntimeInSeconds": round(submission.max_hours * _HOUR_SECONDS)}
    if submission.max_wait_hours is not None:
        limit["MaxWaitTimeInSeconds"] = round(submission.max_wait_hours * _HOUR_SECONDS)
    request: dict[str, Any] = {
        "TrainingJobName": submission.name,
        "RoleArn": submission.role,
        "AlgorithmSpecification": {
            "TrainingImage": submission.image,
            "TrainingInputMode": submission.input_mode,
            "MetricDefinitions": metric_definitions(job),
        },
        "HyperParameters": hyperparameters(_with_checkpoints(submission)),
        "OutputDataConfig": {"S3OutputPath": submission.output.rstrip("/"), **_key(submission.output_key, "KmsKeyId")},
        "ResourceConfig": {
            "InstanceType": submission.instance_type,
            "InstanceCount": submission.hosts,
            "VolumeSizeInGB": submission.volume_gib,
            **_key(submission.volume_key, "VolumeKmsKeyId"),
        },
        "StoppingCondition": limit,
        "EnableManagedSpotTraining": spot,
        "EnableInterContainerTrafficEncryption": submission.encrypt_traffic,
        "EnableNetworkIsolation": _is_isolated(submission),
        "Tags": [{"Key": key, "Value": value} for key, value in {"crossfade": job.name, **submission.tags}.items()],
    }
    if submission.channels:
        request["InputDataConfig"] = [_channel(name, uri) for name, uri in submission.channels.items()]
    if submission.subnets:
        request["VpcConfig"] = {"SecurityGroupIds": submission.security_groups, "Subnets": submission.subnets}
    if submission.hosts > 1:
        request["Environment"] = {TOKEN_VARIABLE: secrets.token_hex(32)}
    elif job.checkpoint.path is None:
        request["CheckpointConfig"] = {"S3Uri": f"{submission.folder}/checkpoints", "LocalPath": CHECKPOINTS}
    return request  # type: ignore[return-value]  # checked at run time by botocore's model


def network_uses(submission: Submission) -> list[str]:
    """Return what the job needs a network for, by its options and keys."""
    job = submission.job
    uses = {
        "--hosts": submission.hosts > 1,  # they write checkpoints to S3
        "data.path": TRAINING_CHANNEL not in submission.channels and job.data.path.startswith("s3://"),
        "checkpoint.path": job.checkpoint.path is not None,
        **{key: source.startswith("s3://") for key, source in job.starting_points().items()},
        "metrics.pushgateway": job.metrics.pushgateway is not None,
        "tracking.mlflow": job.tracking.mlflow is not None,
    }
    return [name for name, is_used in uses.items() if is_used]


def _is_isolated(submission: Submission) -> bool:
    uses = network_uses(submission)
    if submission.isolate_network and uses:
        raise InputError(
            f"--isolate-network: the job needs a network for {', '.join(uses)}; expected one host and its data in "
            f"--channel {TRAINING_CHANNEL}=s3://BUCKET/PREFIX"
        )
    return not uses if submission.isolate_network is None else submission.isolate_network


def _with_checkpoints(submission: Submission) -> JobConfig:
    """Return the job; with several hosts, its checkpoints go to S3, where all hosts can write them."""
    job = submission.job
    if submission.hosts == 1 or job.checkpoint.path is not None:
        return job
    checkpoint = job.checkpoint.model_copy(update={"path": f"{submission.folder}/checkpoints"})
    return job.model_copy(update={"checkpoint": checkpoint})


def _key(key: str | None, name: str) -> dict[str, str]:
    return {name: key} if key else {}


def _channel(name: str, uri: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def hyperparameters(job: JobConfig) -> dict[str, str]:
    """Return the keys of ``job`` that are not at their defaults, with values as for 'crossfade train --set'.

    Raises:
        InputError: there are too many, or one is too long for SageMaker.
    """
    found = {key: _scalar(value) for key, value in job.non_default_values().items()}
    longest = max(found, key=lambda key: len(found[key]))
    if len(found[longest]) > MAX_VALUE_CHARACTERS or len(found) > MAX_HYPERPARAMETERS:
        raise InputError(
            f"{longest}: has {len(found[longest])} characters, and the job sets {len(found)} keys; SageMaker allows "
            f"{MAX_VALUE_CHARACTERS} characters and {MAX_HYPERPARAMETERS} keys"
        )
    return found


def _scalar(value: Any) -> str:
    return yaml.safe_dump(
        value, default_flow_style=True, width=10 * MAX_VALUE_CHARACTERS, allow_unicode=True
    ).splitlines()[0]


def metric_definitions(job: JobConfig) -> list[dict[str, str]]:
    """Return the metrics that CloudWatch reads from the log: loss, progress, and ranking metrics on the valid split."""
    names = list(
        dict.fromkeys(
            [job.evaluate.best_metric, *(f"{metric}@{k}" for k in job.evaluate.k for metric in _RANKING_METRICS)]
        )
    )
    found = [{"Name": "train:loss", "Regex": value_pattern("loss")}, {"Name": "progress", "Regex": progress_pattern()}]
    found += [{"Name": f"valid:{name}", "Regex": value_pattern(name)} for name in names]
    return found[:MAX_METRICS]
