"""``crossfade submit sagemaker``: its requests, options that it rejects, and documented requests."""

import json
from pathlib import Path
from typing import Any

import pytest
from aws_server import AwsServer
from running_command import succeeded
from submitting_sagemaker import IMAGE, ROLE, submit

from crossfade.deploy.aws.sagemaker.options import SubmitSageMakerOptions
from crossfade.deploy.aws.sagemaker.request import Submission, make_request
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig

pytestmark = pytest.mark.slow


def test_default_request_is_sent_and_its_name_printed(aws: AwsServer, job: Path) -> None:
    result = succeeded(submit(aws, job))
    assert result.stdout == "plays-1\n"
    [call] = aws.calls_of("CreateTrainingJob")
    request = call.body
    assert request["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert request["RoleArn"] == ROLE
    assert request["ResourceConfig"] == {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 24 * 3600}
    assert request["CheckpointConfig"] == {
        "S3Uri": "s3://music/jobs/plays-1/checkpoints",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert request["HyperParameters"]["data.path"] == "s3://music/plays"
    assert "Environment" not in request
    assert request["EnableInterContainerTrafficEncryption"] is True
    assert request["EnableNetworkIsolation"] is False  # it reads S3
    hint = "crossfade: submitted; to follow it (--stop stops it): crossfade submit sagemaker --follow plays-1\n"
    assert result.stderr == hint


def test_every_option_reaches_the_request(aws: AwsServer, job: Path) -> None:
    options = (
        *("--instance-type", "ml.m5.xlarge", "--hosts", 2, "--spot", "--max-hours", 2, "--volume-gb", 200),
        *("--volume-key", "key-1", "--output-key", "key-2", "--set", "train.epochs=7"),
        *("--subnet", "subnet-1", "--subnet", "subnet-2", "--security-group", "sg-1"),
        "--copy-data",
    )
    succeeded(submit(aws, job, *options))
    [call] = aws.calls_of("CreateTrainingJob")
    request = call.body
    assert request["ResourceConfig"] == {
        "InstanceType": "ml.m5.xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 200,
        "VolumeKmsKeyId": "key-1",
    }
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 14400}
    assert request["EnableManagedSpotTraining"] is True
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://music/jobs", "KmsKeyId": "key-2"}
    assert request["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]}
    [channel] = request["InputDataConfig"]
    assert channel["ChannelName"] == "training"
    assert channel["DataSource"]["S3DataSource"] == {
        "S3DataType": "S3Prefix",
        "S3Uri": "s3://music/plays",
        "S3DataDistributionType": "FullyReplicated",
    }
    # Several hosts share a checkpoint folder and a token.
    assert request["HyperParameters"]["checkpoint.path"] == "s3://music/jobs/plays-1/checkpoints"
    assert request["HyperParameters"]["train.epochs"] == "7"
    assert "CheckpointConfig" not in request
    assert len(request["Environment"]["CROSSFADE_TOKEN"]) == 64


def submission(job: JobConfig, **options: Any) -> Submission:
    values = SubmitSageMakerOptions.of(job="job.yaml", output="s3://music/jobs", **options)
    return Submission(values, job, "plays-1", ROLE, IMAGE)


@pytest.mark.parametrize(
    ("override", "options", "is_isolated"),
    [
        ("train.epochs=2", {}, True),
        ("checkpoint.path=s3://music/checkpoints", {}, False),
        ("checkpoint.warm_start_from=s3://music/runs/checkpoints", {}, False),
        ("tracking.mlflow=http://mlflow:5000", {}, False),
        ("train.epochs=2", {"hosts": 2}, False),
        ("train.epochs=2", {"copy_data": False}, False),
    ],
)
def test_job_that_needs_no_network_is_isolated_from_it(
    job: Path, override: str, options: dict[str, Any], is_isolated: bool
) -> None:
    submitted = submission(load_job(job, [override]), **{"copy_data": True, **options})
    assert make_request(submitted)["EnableNetworkIsolation"] is is_isolated


@pytest.mark.parametrize(
    ("options", "image"),
    [
        (("--instance-type", "ml.g5.xlarge"), "crossfade:torch"),
        (("--instance-type", "ml.g5.xlarge", "--set", "train.engine=mxnet"), "crossfade:cu112"),
        (("--instance-type", "ml.p5.48xlarge", "--set", "train.engine=mxnet", "--image", "registry/mine:1"), "mine:1"),
    ],
)
def test_dry_run_prints_the_request_with_the_image_of_the_engine(
    aws: AwsServer, job: Path, options: tuple[object, ...], image: str
) -> None:
    request = json.loads(succeeded(submit(aws, job, "--hosts", 2, "--dry-run", *options)).stdout)
    assert request["AlgorithmSpecification"]["TrainingImage"].rpartition("/")[2] == image
    assert request["TrainingJobName"] == "plays-1"
    assert request["Environment"] == {"CROSSFADE_TOKEN": "generated for each job"}
    assert {action for _, action in aws.actions()} == {"GetCallerIdentity"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--instance-type", "ml.p2.xlarge", "--set", "train.engine=torch"), "no image has that engine for"),
        (("--set", "data.path=data/plays"), "data.path: data/plays is on this machine, which the job cannot read"),
        (("--set", "checkpoint.path=/opt/ml/x"), "checkpoint.path: /opt/ml/x is on this machine"),
        (("--output", "music/jobs"), "--output music/jobs: expected an S3 URI"),
        (("--name", "plays_1"), "--name plays_1: expected up to 63 letters, digits and hyphens"),
        (("--subnet", "subnet-1"), "--subnet: a job in a VPC needs both it and --security-group"),
        (("--instance-type", "ml.m5.large", "--set", "train.device=gpu"), "ml.m5.large has no GPU"),
        (("--image", IMAGE.replace("us-east-1", "eu-west-1")), "is in eu-west-1, but the job is to run in us-east-1"),
        (("--image", IMAGE.replace("torch", "none")), "push it ('docker push'"),
        (("--set", f"data.path=s3://music/{'x' * 2600}"), "data.path: has 26"),
        (("--set", "data.partitions=16", "--hosts", 64), "the job on SageMaker: 64 workers need at least as many part"),
    ],
)
def test_invalid_options_are_rejected_before_anything_starts(
    aws: AwsServer, job: Path, options: tuple[object, ...], expected: str
) -> None:
    result = submit(aws, job, "--role", ROLE, *options)
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr.splitlines()[-1]
    assert aws.calls_of("CreateTrainingJob") == []
