"""Requests of ``crossfade submit sagemaker``, and options that it rejects."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from aws_server import AwsServer
from running_command import succeeded
from submitting_sagemaker import IMAGE, ROLE, submit

from crossfade.base.errors import InputError
from crossfade.deploy.aws.sagemaker.container import Hosts, Paths, read_job
from crossfade.deploy.aws.sagemaker.options import SubmitSageMakerOptions
from crossfade.deploy.aws.sagemaker.request import Submission, make_request
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig

pytestmark = pytest.mark.slow


def test_default_request_and_cost_are_shown_before_the_job_starts(aws: AwsServer, job: Path) -> None:
    result = succeeded(submit(aws, job))
    assert result.stdout == "plays-1\n"
    [call] = aws.calls_of("CreateTrainingJob")
    request = call.body
    assert request["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert request["RoleArn"] == ROLE
    assert request["ResourceConfig"] == {"InstanceType": "ml.p2.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50}
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 24 * 3600}
    assert request["CheckpointConfig"] == {
        "S3Uri": "s3://music/jobs/plays-1/checkpoints",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert request["HyperParameters"]["data.path"] == "s3://music/plays"
    assert "Environment" not in request
    assert request["EnableInterContainerTrafficEncryption"] is True
    assert request["EnableNetworkIsolation"] is False  # it reads S3
    cost, hint = result.stderr.splitlines()[1:]
    assert cost.startswith("crossfade: cost: unknown: AWS's price list has none for us-east-1; 1 x ml.p2.xlarge, 24 h")
    assert hint == "crossfade: submitted; to follow it (--stop stops it): crossfade submit sagemaker --follow plays-1"
    order = [call.action for call in aws.calls]
    assert order.index("GetProducts") < order.index("CreateTrainingJob")


def test_every_option_reaches_the_request(aws: AwsServer, job: Path) -> None:
    options = (
        *("--instance-type", "ml.m5.xlarge", "--hosts", 2, "--spot", "--max-hours", 2, "--max-wait-hours", 5),
        *("--volume-gb", 200, "--volume-key", "key-1", "--output-key", "key-2", "--no-encrypt-traffic"),
        *("--subnet", "subnet-1", "--subnet", "subnet-2", "--security-group", "sg-1", "--tag", "team=music"),
        *("--channel", "training=s3://music/plays", "--input-mode", "FastFile", "--set", "train.epochs=7"),
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
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 18000}
    assert request["EnableManagedSpotTraining"] is True
    assert request["EnableInterContainerTrafficEncryption"] is False
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://music/jobs", "KmsKeyId": "key-2"}
    assert request["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]}
    assert request["Tags"] == [{"Key": "crossfade", "Value": "plays"}, {"Key": "team", "Value": "music"}]
    assert request["AlgorithmSpecification"]["TrainingInputMode"] == "FastFile"
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


def test_job_that_needs_no_network_is_isolated_from_it(job: Path) -> None:
    channel = ("training=s3://music/plays",)

    def is_isolated(*overrides: str, **more: Any) -> bool:
        submitted = submission(load_job(job, list(overrides)), **{"channel": channel, **more})
        isolated: bool = make_request(submitted)["EnableNetworkIsolation"]
        return isolated

    assert is_isolated()
    assert not is_isolated(isolate_network=False)
    for key, value in (
        ("checkpoint.path", "s3://music/checkpoints"),
        ("checkpoint.warm_start_from", "s3://music/checkpoints"),
        ("model.start.track", "s3://music/vectors.parquet"),
        ("metrics.pushgateway", "http://pushgateway:9091"),
        ("tracking.mlflow", "http://mlflow:5000"),
    ):
        assert not is_isolated(f"{key}={value}"), key
        with pytest.raises(InputError, match=f"isolate_network: the job needs a network for {re.escape(key)};"):
            is_isolated(f"{key}={value}", isolate_network=True)
    for name, more in (("hosts", {"hosts": 2}), ("data.path", {"channel": ()})):
        assert not is_isolated(**more)
        with pytest.raises(InputError, match=f"the job needs a network for {re.escape(name)};"):
            is_isolated(isolate_network=True, **more)


def test_dry_run_prints_the_request_and_sends_none(aws: AwsServer, job: Path) -> None:
    result = succeeded(submit(aws, job, "--role", ROLE, "--image", IMAGE, "--hosts", 2, "--dry-run"))
    assert aws.calls == []
    request = json.loads(result.stdout)
    assert request["TrainingJobName"] == "plays-1"
    assert request["Environment"] == {"CROSSFADE_TOKEN": "generated for each job"}
    assert "crossfade: cost: unknown: AWS's price list was not read; 2 x ml.p2.xlarge, 24 h at most" in result.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--set", "train.engine=torch"), "PyTorch has no code for the GPU of ml.p2.xlarge, K80"),
        (("--set", "data.path=data/plays"), "data.path: data/plays is on this machine, which the job cannot read"),
        (("--set", "checkpoint.path=here"), "checkpoint.path: here is on this machine"),
        (("--output", "music/jobs"), "--output music/jobs: expected an S3 URI"),
        (("--name", "plays_1"), "--name plays_1: expected up to 63 letters, digits and hyphens"),
        (("--subnet", "subnet-1"), "--subnet: a job in a VPC needs both it and --security-group"),
        (("--spot", "--max-hours", 9, "--max-wait-hours", 3), "--max-wait-hours 3: must be at least --max-hours 9"),
        (("--max-wait-hours", 30), "--max-wait-hours 30: has no meaning without --spot"),
        (("--instance-type", "ml.m5.large", "--set", "train.device=gpu"), "ml.m5.large has no GPU"),
        (("--instance-type", "ml.m6g.large"), "SageMaker trains on no type with an Arm processor (Graviton); choose"),
        (("--tag", "=x"), "--tag =x: expected NAME=VALUE"),
    ],
)
def test_invalid_options_are_rejected_before_anything_starts(
    aws: AwsServer, job: Path, options: tuple[object, ...], expected: str
) -> None:
    result = submit(aws, job, "--role", ROLE, *options)
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr.splitlines()[-1]
    assert aws.calls_of("CreateTrainingJob") == []


def test_notes_come_before_the_cost(aws: AwsServer, job: Path) -> None:
    retiring, idle, cost, *_ = submit(aws, job, "--set", "train.device=cpu").stderr.splitlines()
    assert retiring.startswith("crossfade: AWS is retiring p2")
    assert idle.startswith("crossfade: ml.p2.xlarge has a GPU (K80) that the job does not use")
    assert cost.startswith("crossfade: cost: ")
    assert "does not use" not in submit(aws, job).stderr


def test_engine_of_the_job_selects_the_image(aws: AwsServer, job: Path) -> None:
    options = ("--instance-type", "ml.g5.xlarge", "--dry-run")

    def image(*more: object) -> str:
        request = json.loads(succeeded(submit(aws, job, *options, *more)).stdout)
        return str(request["AlgorithmSpecification"]["TrainingImage"]).rpartition("/")[2]

    assert image() == "crossfade:torch"
    assert image("--set", "train.engine=mxnet") == "crossfade:cu112"
    own = ("--image", "registry/mine:1", "--instance-type", "ml.p5.48xlarge", "--set", "train.engine=mxnet")
    assert image(*own) == "mine:1"


def test_hyperparameters_reproduce_the_submitted_job(job: Path, tmp_path: Path) -> None:
    overrides = ["optimizer.weight_decay=1.0e-6", "train.patience=null", "data.since=2024-05-01", "name=a_b-c"]
    submitted = load_job(job, [*overrides, "cluster.shared_run_dir=false", "cluster.grace_period_seconds=90"])
    config = tmp_path / "ml" / "input" / "config"
    config.mkdir(parents=True)
    parameters = {**make_request(submission(submitted))["HyperParameters"], "sagemaker_region": "us-east-1"}
    (config / "hyperparameters.json").write_text(json.dumps(parameters))
    assert read_job(Paths(tmp_path / "ml"), Hosts("algo-1", ("algo-1",))) == submitted


def test_request_has_the_roles_of_its_hosts(job: Path) -> None:
    for overrides, servers, workers in (
        ([], "3", "3"),
        (["cluster.servers=0"], "0", "3"),
        (["cluster.servers=6", "cluster.workers=1"], "6", "1"),
    ):
        parameters = make_request(submission(load_job(job, overrides), hosts=3))["HyperParameters"]
        assert (parameters["cluster.servers"], parameters["cluster.workers"]) == (servers, workers)
    with pytest.raises(InputError, match=r"the job on SageMaker: 64 workers need at least as many partitions"):
        make_request(submission(load_job(job, ["data.partitions=16"]), hosts=64))


def test_job_with_overlong_value_is_rejected(job: Path) -> None:
    long = load_job(job, [f"data.path=s3://music/{'x' * 2600}"])
    with pytest.raises(InputError, match=r"data\.path: has 26\d\d characters"):
        make_request(submission(long))
