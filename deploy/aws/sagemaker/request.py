"""Build the request that starts a SageMaker training job from a job and options.

    request = make_request(make_submission(aws, options))

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from crossfade.base.errors import InputError, Option, OptionError, command
from crossfade.deploy.aws.accelerators import check_device, variant_of
from crossfade.deploy.aws.sagemaker.container import CHECKPOINTS, TRAINING_CHANNEL
from crossfade.deploy.aws.sagemaker.options import SubmitSageMakerOptions
from crossfade.deploy.topology import TOKEN_VARIABLE, sizes_on_hosts
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.type_defs import CreateTrainingJobRequestTypeDef

    from crossfade.deploy.aws.clients import Aws

_MAX_VALUE_CHARACTERS, _MAX_HYPERPARAMETERS, _MAX_METRICS = 2500, 100, 40
"""SageMaker's limits."""
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/.*)?")
_HOUR_SECONDS = 3600
_RANKING_METRICS = ("recall", "ndcg")
_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?|nan|inf)"


@dataclass(frozen=True)
class Submission:
    """A job as it is submitted: what the options ask for, and what they leave open.

    Attributes:
        options: the options.
        job: the job that they name.
        name: the name of the training job.
        role: the ARN of its role.
        image: its image.
    """

    options: SubmitSageMakerOptions
    job: JobConfig
    name: str
    role: str
    image: str

    @property
    def output(self) -> str:
        """The URI on S3 below which each job gets a folder with its name."""
        return (self.options.output or "").rstrip("/")

    @property
    def checkpoints(self) -> str:
        """The URI on S3 of the job's checkpoints, unless the job names another."""
        return f"{self.output}/{self.name}/checkpoints"

    @property
    def hosts(self) -> int:
        """The number of hosts."""
        return self.options.hosts or self.job.cluster.hosts


def make_submission(aws: Aws, options: SubmitSageMakerOptions) -> Submission:
    """Return the job that ``options`` submit, with what is left open chosen.

    Raises:
        InputError: the job is invalid, or an option is missing.
        CloudError, CloudRequestError: AWS did not identify the account.
    """
    for name in ("role", "output"):
        if getattr(options, name) is None:
            raise OptionError(name, problem="is missing", fix=f"see {command('submit sagemaker', help=True)}")
    job, role, image = options.load_job(), options.role or "", options.image
    if image is None:
        variant = variant_of(options.instance_type, job.train.engine)
        image = f"{aws.account()}.dkr.ecr.{aws.region}.{aws.domain}/crossfade:{variant}"
    timed = f"{job.name.replace('_', '-').strip('-')[:47].rstrip('-')}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return Submission(
        options=options,
        job=job,
        name=options.name or timed,
        role=role if role.startswith("arn:") else f"arn:{aws.partition}:iam::{aws.account()}:role/{role}",
        image=image,
    )


def check_submission(submission: Submission) -> None:
    """Check the options before any request is sent.

    Raises:
        InputError: an option is invalid; the message names the first one.
    """
    options = submission.options
    if not _NAME.fullmatch(submission.name):
        expected = "up to 63 letters, digits and hyphens, without a hyphen at either end"
        raise OptionError("name", found=submission.name, expected=expected)
    if not _S3.fullmatch(submission.output):
        raise OptionError("output", found=submission.output, expected="an S3 URI, as in s3://BUCKET/PREFIX")
    if bool(options.subnet) != bool(options.security_group):
        raise OptionError("subnet", problem=("a job in a VPC needs both it and ", Option("security_group")))
    _check_paths(submission)
    check_device(submission.job, options.instance_type)


def _check_paths(submission: Submission) -> None:
    """Check that the job names no files of this machine.

    Raises:
        InputError: it does.
    """
    job = submission.job
    paths = {"data.path": job.data.path, "checkpoint.path": job.checkpoint.path, **job.starting_points()}
    for key, path in paths.items():
        # What is written there is lost with the host.
        readable = ("s3://",) if key == "checkpoint.path" else ("s3://", "/opt/ml/")
        if path is not None and not path.startswith(readable):
            raise InputError(
                f"{key}: {path} is on this machine, which the job cannot read; copy it to S3, as with "
                f"{command('prepare', out='s3://BUCKET/PREFIX')}, and add ",
                Option("set", f"{key}=s3://BUCKET/PREFIX"),
            )


def make_request(submission: Submission) -> CreateTrainingJobRequestTypeDef:
    """Return the request of CreateTrainingJob.

    Raises:
        InputError: an option of the submission is invalid.
    """
    check_submission(submission)
    job, options = submission.job, submission.options
    seconds = round(options.max_hours * _HOUR_SECONDS)
    request: dict[str, Any] = {
        "TrainingJobName": submission.name,
        "RoleArn": submission.role,
        "AlgorithmSpecification": {
            "TrainingImage": submission.image,
            "TrainingInputMode": "File",
            "MetricDefinitions": _metric_definitions(job),
        },
        "HyperParameters": _parameters(submission),
        "OutputDataConfig": {"S3OutputPath": submission.output, **_key("KmsKeyId", options.output_key)},
        "ResourceConfig": {
            "InstanceType": options.instance_type,
            "InstanceCount": submission.hosts,
            "VolumeSizeInGB": options.volume_gb,
            **_key("VolumeKmsKeyId", options.volume_key),
        },
        "StoppingCondition": {
            "MaxRuntimeInSeconds": seconds,
            **({"MaxWaitTimeInSeconds": 2 * seconds} if options.spot else {}),
        },
        "EnableManagedSpotTraining": options.spot,
        "EnableInterContainerTrafficEncryption": True,
        "EnableNetworkIsolation": not _needs_network(submission),
        "Tags": [{"Key": "crossfade", "Value": job.name}],
    }
    if options.copy_data:
        source = {"S3DataType": "S3Prefix", "S3Uri": job.data.path, "S3DataDistributionType": "FullyReplicated"}
        channel = {"ChannelName": TRAINING_CHANNEL, "DataSource": {"S3DataSource": source}}
        request["InputDataConfig"] = [channel]
    if options.subnet:
        request["VpcConfig"] = {"SecurityGroupIds": [*options.security_group], "Subnets": [*options.subnet]}
    if submission.hosts > 1:
        request["Environment"] = {TOKEN_VARIABLE: secrets.token_hex(32)}
    elif job.checkpoint.path is None:
        request["CheckpointConfig"] = {"S3Uri": submission.checkpoints, "LocalPath": CHECKPOINTS}
    return request  # type: ignore[return-value]  # botocore checks it by its model before it is sent


def _needs_network(submission: Submission) -> bool:
    """Return whether the job reaches anything but the folders that SageMaker itself copies."""
    job = submission.job
    paths = [job.checkpoint.path, *job.starting_points().values()]
    if not submission.options.copy_data:
        paths.append(job.data.path)
    reads_s3 = any(path is not None and path.startswith("s3://") for path in paths)
    is_tracked = job.tracking.mlflow is not None
    return submission.hosts > 1 or reads_s3 or is_tracked  # several hosts write their checkpoints to S3


def _parameters(submission: Submission) -> dict[str, str]:
    """Return the hyperparameters of the job; with several hosts, servers and workers are among them in any case.

    Several hosts write their checkpoints to S3 themselves.

    Raises:
        InputError: the job cannot run on so many hosts.
    """
    job, hosts = submission.job, submission.hosts
    if hosts == 1:
        return _hyperparameters(job)
    values = job.model_dump(mode="json")
    values["checkpoint"]["path"] = job.checkpoint.path or submission.checkpoints
    values["cluster"] |= sizes_on_hosts(job.cluster, hosts)
    check_job(values, "the job on SageMaker")
    checkpoint = job.checkpoint.model_copy(update={"path": values["checkpoint"]["path"]})
    sizes = {f"cluster.{key}": str(values["cluster"][key]) for key in ("servers", "workers")}
    return _hyperparameters(job.model_copy(update={"checkpoint": checkpoint})) | sizes


def _hyperparameters(job: JobConfig) -> dict[str, str]:
    """Return the keys of ``job`` that are not at their defaults, with values as for overrides of a job.

    Raises:
        InputError: there are too many, or one is too long for SageMaker.
    """
    found = {
        key: yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).splitlines()[0]
        for key, value in job.non_default_values().items()
    }
    longest = max(found, key=lambda key: len(found[key]))
    if len(found[longest]) > _MAX_VALUE_CHARACTERS or len(found) > _MAX_HYPERPARAMETERS:
        raise InputError(
            f"{longest}: has {len(found[longest])} characters, and the job sets {len(found)} keys; SageMaker allows "
            f"{_MAX_VALUE_CHARACTERS} characters and {_MAX_HYPERPARAMETERS} keys"
        )
    return found


def _key(name: str, key: str | None) -> dict[str, str]:
    return {name: key} if key else {}


def _metric_definitions(job: JobConfig) -> list[dict[str, str]]:
    """Return the metrics that CloudWatch reads from the log: loss, progress, and ranking metrics on the valid split."""
    ranked = [job.evaluate.best_metric, *(f"{metric}@{k}" for k in job.evaluate.k for metric in _RANKING_METRICS)]
    names = {"train:loss": "loss", "progress": "progress", **{f"valid:{name}": name for name in ranked}}
    found = [{"Name": key, "Regex": rf"(?:^|\s){re.escape(name)}={_NUMBER}"} for key, name in names.items()]
    return found[:_MAX_METRICS]
