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

from crossfade.base.errors import InputError, Option, OptionError, Text, command, join
from crossfade.deploy.aws.accelerators import check_device, is_arm, variant_of
from crossfade.deploy.aws.sagemaker.container import CHECKPOINTS, PROGRESS_PATTERN, TRAINING_CHANNEL, value_pattern
from crossfade.deploy.aws.sagemaker.options import SubmitSageMakerOptions
from crossfade.deploy.topology import TOKEN_VARIABLE, sizes_on_hosts
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.type_defs import CreateTrainingJobRequestTypeDef

    from crossfade.deploy.aws.clients import Aws
    from crossfade.trainer.config.sections import EngineName

MAX_VALUE_CHARACTERS, MAX_HYPERPARAMETERS, MAX_METRICS = 2500, 100, 40
"""SageMaker's limits."""
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/.*)?")
_HOUR_SECONDS = 3600
_RANKING_METRICS = ("recall", "ndcg")


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
    def folder(self) -> str:
        """The URI of the job's folder on S3."""
        return f"{self.output}/{self.name}"

    @property
    def hosts(self) -> int:
        """The number of hosts."""
        return self.options.hosts or self.job.cluster.hosts

    @property
    def max_wait_hours(self) -> float | None:
        """The limit for capacity and training together on spot instances; None: on demand."""
        options = self.options
        return (options.max_wait_hours or 2 * options.max_hours) if options.spot else None

    @property
    def channels(self) -> dict[str, str]:
        """The prefixes on S3 that are copied to each host, by name."""
        return dict(self.options.channel)


def make_submission(aws: Aws, options: SubmitSageMakerOptions) -> Submission:
    """Return the job that ``options`` submit, with what is left open chosen.

    Raises:
        InputError: the job is invalid, or an option is missing.
        CloudError, CloudRequestError: AWS did not identify the account.
    """
    for name in ("role", "output"):
        if getattr(options, name) is None:
            raise OptionError(name, problem="is missing", fix=f"see {command('submit sagemaker', help=True)}")
    job, role = options.load_job(), options.role or ""
    return Submission(
        options=options,
        job=job,
        name=options.name or _timed_name(job.name.replace("_", "-")),
        role=role if role.startswith("arn:") else f"arn:{aws.partition}:iam::{aws.account()}:role/{role}",
        image=options.image or _default_image(aws, options.instance_type, job.train.engine),
    )


def _timed_name(name: str) -> str:
    """Return a name on SageMaker that begins like ``name`` and ends with the time."""
    return f"{name.strip('-')[:47].rstrip('-')}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _default_image(aws: Aws, instance_type: str, engine: EngineName) -> str:
    """Return the image in ECR that runs on ``instance_type`` and has ``engine``.

    Raises:
        InputError: there is none.
    """
    variant = variant_of(instance_type, engine)
    return f"{aws.account()}.dkr.ecr.{aws.region}.{aws.domain}/crossfade:{variant}"


def _check_s3(option: str, uri: str) -> None:
    """Check that ``uri``, the value of ``option``, is a place on S3.

    Raises:
        OptionError: it is not.
    """
    if not _S3.fullmatch(uri):
        raise OptionError(option, found=uri, expected="an S3 URI, as in s3://BUCKET/PREFIX")


def check_submission(submission: Submission) -> None:
    """Check the options before any request is sent.

    Raises:
        InputError: an option is invalid; the message names the first one.
    """
    options = submission.options
    if not _NAME.fullmatch(submission.name):
        expected = "up to 63 letters, digits and hyphens, without a hyphen at either end"
        raise OptionError("name", found=submission.name, expected=expected)
    for option, uri in (("output", submission.output), *(("channel", uri) for uri in submission.channels.values())):
        _check_s3(option, uri)
    if bool(options.subnet) != bool(options.security_group):
        raise OptionError("subnet", problem=("a job in a VPC needs both it and ", Option("security_group")))
    if options.max_wait_hours is not None:
        found = f"{options.max_wait_hours:g}"
        if not options.spot:
            raise OptionError("max_wait_hours", found=found, problem=("has no meaning without ", Option("spot")))
        if options.max_wait_hours < options.max_hours:
            least = Option("max_hours", f"{options.max_hours:g}")
            raise OptionError(
                "max_wait_hours", found=found, problem=("must be at least ", least, ", which it includes")
            )
    _check_data(submission)
    check_device(submission.job, options.instance_type)
    if is_arm(options.instance_type):
        raise InputError(
            f"instance type '{options.instance_type}': SageMaker trains on no type with an Arm processor (Graviton); "
            f"choose another, such as ml.m5.2xlarge, or use EC2 ({command('submit ec2')})"
        )


def _check_data(submission: Submission) -> None:
    data = submission.job.data.path
    if TRAINING_CHANNEL not in submission.channels and not data.startswith(("s3://", "/opt/ml/")):
        raise InputError(
            f"data.path: {data} is on this machine, which the job cannot read; prepare the data on S3 "
            f"({command('prepare', out='s3://BUCKET/PREFIX')}) and add ",
            Option("set", "data.path=s3://BUCKET/PREFIX"),
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
    job, options = submission.job, submission.options
    limit: dict[str, int] = {"MaxRuntimeInSeconds": round(options.max_hours * _HOUR_SECONDS)}
    if submission.max_wait_hours is not None:
        limit["MaxWaitTimeInSeconds"] = round(submission.max_wait_hours * _HOUR_SECONDS)
    request: dict[str, Any] = {
        "TrainingJobName": submission.name,
        "RoleArn": submission.role,
        "AlgorithmSpecification": {
            "TrainingImage": submission.image,
            "TrainingInputMode": options.input_mode,
            "MetricDefinitions": metric_definitions(job),
        },
        "HyperParameters": _parameters(submission),
        "OutputDataConfig": {"S3OutputPath": submission.output, **_key(options.output_key, "KmsKeyId")},
        "ResourceConfig": {
            "InstanceType": options.instance_type,
            "InstanceCount": submission.hosts,
            "VolumeSizeInGB": options.volume_gb,
            **_key(options.volume_key, "VolumeKmsKeyId"),
        },
        "StoppingCondition": limit,
        "EnableManagedSpotTraining": options.spot,
        "EnableInterContainerTrafficEncryption": options.encrypt_traffic,
        "EnableNetworkIsolation": _is_isolated(submission),
        "Tags": [{"Key": key, "Value": value} for key, value in {"crossfade": job.name, **dict(options.tag)}.items()],
    }
    if submission.channels:
        request["InputDataConfig"] = [_channel(name, uri) for name, uri in submission.channels.items()]
    if options.subnet:
        request["VpcConfig"] = {"SecurityGroupIds": [*options.security_group], "Subnets": [*options.subnet]}
    if submission.hosts > 1:
        request["Environment"] = {TOKEN_VARIABLE: secrets.token_hex(32)}
    elif job.checkpoint.path is None:
        request["CheckpointConfig"] = {"S3Uri": f"{submission.folder}/checkpoints", "LocalPath": CHECKPOINTS}
    return request  # type: ignore[return-value]  # checked at run time by botocore's model


def network_uses(submission: Submission) -> list[Text]:
    """Return what the job needs a network for, by its options and keys."""
    job = submission.job
    uses: dict[str | Option, bool] = {
        Option("hosts"): submission.hosts > 1,  # they write checkpoints to S3
        "data.path": TRAINING_CHANNEL not in submission.channels and job.data.path.startswith("s3://"),
        "checkpoint.path": job.checkpoint.path is not None,
        **{key: source.startswith("s3://") for key, source in job.starting_points().items()},
        "metrics.pushgateway": job.metrics.pushgateway is not None,
        "tracking.mlflow": job.tracking.mlflow is not None,
    }
    return [name for name, is_used in uses.items() if is_used]


def _is_isolated(submission: Submission) -> bool:
    uses = network_uses(submission)
    isolated = submission.options.isolate_network
    if isolated and uses:
        raise OptionError(
            "isolate_network",
            problem=("the job needs a network for ", join(uses, ", ")),
            expected=("one host and its data in ", Option("channel", f"{TRAINING_CHANNEL}=s3://BUCKET/PREFIX")),
        )
    return not uses if isolated is None else isolated


def _parameters(submission: Submission) -> dict[str, str]:
    """Return the hyperparameters of the job; with several hosts, servers and workers are among them in any case.

    Raises:
        InputError: the job cannot run on so many hosts.
    """
    job, hosts = _with_checkpoints(submission), submission.hosts
    if hosts == 1:
        return hyperparameters(job)
    values = job.model_dump(mode="json")
    values["cluster"] |= sizes_on_hosts(job.cluster, hosts)
    job = check_job(values, "the job on SageMaker")
    sizes = {f"cluster.{key}": str(values["cluster"][key]) for key in ("servers", "workers")}
    return hyperparameters(job) | sizes


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
    """Return the keys of ``job`` that are not at their defaults, with values as for overrides of a job.

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
    found = [{"Name": "train:loss", "Regex": value_pattern("loss")}, {"Name": "progress", "Regex": PROGRESS_PATTERN}]
    found += [{"Name": f"valid:{name}", "Regex": value_pattern(name)} for name in names]
    return found[:MAX_METRICS]
