"""The request that starts a SageMaker training job, made of a job file and what a user says of hosts, time and places.

    request = make_request(Submission(job=job, name="plays-1", role=..., image=..., output="s3://music/jobs"))

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from deploy.aws.accelerators import DEFAULT_SAGEMAKER_TYPE, accelerator_of
from deploy.aws.sagemaker.container import CHECKPOINTS, TRAINING_CHANNEL, progress_pattern, value_pattern
from deploy.topology import TOKEN_VARIABLE
from kvstore.errors import InputError
from trainer.config.schema import JobConfig

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.type_defs import CreateTrainingJobRequestTypeDef

MAX_VALUE, MAX_HYPERPARAMETERS, MAX_METRICS = 2500, 100, 40
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/.*)?")
_HOUR = 3600
_JUDGED = ("recall", "ndcg")


@dataclass(frozen=True)
class Submission:
    """What is submitted. Hours, GiB; ``output`` is an S3 URI under which each job gets a folder of its name."""

    job: JobConfig
    name: str
    role: str
    image: str
    output: str
    instance_type: str = DEFAULT_SAGEMAKER_TYPE
    hosts: int = 1
    max_hours: float = 24.0
    max_wait_hours: float | None = None
    """Of spot instances: for capacity and training together. None: on demand."""
    volume_gib: int = 50
    volume_key: str | None = None
    output_key: str | None = None
    subnets: list[str] = field(default_factory=list)
    security_groups: list[str] = field(default_factory=list)
    encrypt_traffic: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    channels: dict[str, str] = field(default_factory=dict)
    input_mode: str = "File"

    @property
    def folder(self) -> str:
        """Where on S3 what is of this job lies."""
        return f"{self.output.rstrip('/')}/{self.name}"


def check_submission(submission: Submission) -> None:
    """Refuse what cannot run, before AWS is asked.

    Raises:
        InputError: with the first thing that is wrong.
    """
    if not _NAME.fullmatch(submission.name):
        raise InputError(
            f"--name {submission.name}: expected up to 63 letters, digits and hyphens, beginning and ending with none "
            "of the latter"
        )
    for what, uri in (("--output", submission.output), *(("--channel", uri) for uri in submission.channels.values())):
        if not _S3.fullmatch(uri):
            raise InputError(f"{what} {uri}: expected an S3 URI, as in s3://BUCKET/PREFIX")
    if bool(submission.subnets) != bool(submission.security_groups):
        raise InputError("--subnet and --security-group: a job in a VPC needs both")
    if submission.max_wait_hours is not None and submission.max_wait_hours < submission.max_hours:
        raise InputError(
            f"--max-wait-hours {submission.max_wait_hours:g}: is less than --max-hours {submission.max_hours:g}, which "
            "it includes"
        )
    _check_data(submission)
    _check_engine(submission)


def _check_data(submission: Submission) -> None:
    shards = submission.job.data.path
    if TRAINING_CHANNEL not in submission.channels and not shards.startswith(("s3://", "/opt/ml/")):
        raise InputError(
            f"data.path: {shards} is on this machine, where the job does not run; prepare the data on S3 "
            f"('crossfade prepare --out s3://BUCKET/PREFIX') and name that, as with --set data.path=s3://BUCKET/PREFIX"
        )
    start_from = submission.job.checkpoint.warm_start_from
    if start_from is not None and not start_from.startswith(("s3://", "/opt/ml/")):
        raise InputError(f"checkpoint.warm_start_from: {start_from} is on this machine; name one on S3")
    to = submission.job.checkpoint.path
    if to is not None and not to.startswith("s3://"):
        raise InputError(f"checkpoint.path: {to} is on this machine; name a place on S3, or leave it out")


def _check_engine(submission: Submission) -> None:
    gpu = accelerator_of(submission.instance_type).gpu
    if submission.job.train.device == "gpu" and gpu is None:
        raise InputError(
            f"train.device is gpu, but {submission.instance_type} has none; name another --instance-type, such as "
            "ml.g5.xlarge, or --set train.device=cpu"
        )


def idle_gpu(submission: Submission) -> str | None:
    """A line for who pays for a GPU that the job does not use."""
    gpu = accelerator_of(submission.instance_type).gpu
    if gpu is None or submission.job.train.device == "gpu":
        return None
    return (
        f"{submission.instance_type} has a {gpu.name}, which the job does not use: train.device is cpu; an instance "
        "without a GPU, such as ml.m5.xlarge, costs less (--set train.engine=mxnet --set train.device=gpu uses it)"
    )


def make_request(submission: Submission) -> CreateTrainingJobRequestTypeDef:
    """The request.

    Raises:
        InputError: something of the submission is wrong.
    """
    check_submission(submission)
    job, spot = submission.job, submission.max_wait_hours is not None
    limit: dict[str, int] = {"MaxRuntimeInSeconds": round(submission.max_hours * _HOUR)}
    if submission.max_wait_hours is not None:
        limit["MaxWaitTimeInSeconds"] = round(submission.max_wait_hours * _HOUR)
    request: dict[str, Any] = {
        "TrainingJobName": submission.name,
        "RoleArn": submission.role,
        "AlgorithmSpecification": {
            "TrainingImage": submission.image,
            "TrainingInputMode": submission.input_mode,
            "MetricDefinitions": metric_definitions(job),
        },
        "HyperParameters": hyperparameters(_placed(submission)),
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
    return request  # type: ignore[return-value]  # botocore checks it, by the service's own model


def _placed(submission: Submission) -> JobConfig:
    """The job with its checkpoints where several hosts share them."""
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
    """The keys of ``job`` that are not at their defaults, as 'crossfade train --set' takes them.

    Raises:
        InputError: they are more, or longer, than SageMaker takes.
    """
    found = {key: _scalar(value) for key, value in job.non_default_values().items()}
    longest = max(found, key=lambda key: len(found[key]))
    if len(found[longest]) > MAX_VALUE or len(found) > MAX_HYPERPARAMETERS:
        raise InputError(
            f"{longest}: has {len(found[longest])} characters, and there are {len(found)} keys; SageMaker takes "
            f"{MAX_VALUE} characters and {MAX_HYPERPARAMETERS} keys"
        )
    return found


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10 * MAX_VALUE, allow_unicode=True).splitlines()[0]


def metric_definitions(job: JobConfig) -> list[dict[str, str]]:
    """What CloudWatch reads out of the container's log: the loss, how far it is, and the quality on the valid split."""
    names = list(
        dict.fromkeys([job.evaluate.best_metric, *(f"{metric}@{k}" for k in job.evaluate.k for metric in _JUDGED)])
    )
    found = [{"Name": "train:loss", "Regex": value_pattern("loss")}, {"Name": "progress", "Regex": progress_pattern()}]
    found += [{"Name": f"valid:{name}", "Regex": value_pattern(name)} for name in names]
    return found[:MAX_METRICS]
