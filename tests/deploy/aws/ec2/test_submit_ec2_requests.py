"""Requests of ``crossfade submit ec2``: the cluster, its image and its user data."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from aws_server import AwsServer
from submitting_ec2 import BUCKET, IMAGE, detached, stored, submit, submitted_run, tags_of

from crossfade.cli.main import main
from crossfade.deploy.aws.ec2.run_spec import RunSpec, new_run_name
from crossfade.deploy.aws.ec2.user_data import MAX_BYTES, user_data

pytestmark = pytest.mark.slow

ROLES = {"slim": (0, 2)}
"""Servers and workers of the jobs that are submitted to several hosts, by variant."""


def test_cluster_options_reach_the_requests(aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detached(job, "--hosts", 2, "--spot", "--max-hours", 3, "--volume-gb", 200) == 0
    stderr = capsys.readouterr().err
    assert "cost: $0.25 an hour, $0.76 at most (2 x r6i.large, 3 h at most" in stderr
    [call] = aws.calls_of("RunInstances")
    request = call.body
    assert (request["MinCount"], request["MaxCount"]) == ("2", "2")
    assert request["InstanceInitiatedShutdownBehavior"] == "terminate"
    metadata = {name: value for name, value in request.items() if name.startswith("MetadataOptions.")}
    assert metadata == {
        "MetadataOptions.HttpEndpoint": "enabled",
        "MetadataOptions.HttpTokens": "required",
        "MetadataOptions.HttpPutResponseHopLimit": "1",
    }
    disk = {name.rpartition(".")[2]: value for name, value in request.items() if name.startswith("BlockDeviceMapping.")}
    assert disk["Encrypted"] == disk["DeleteOnTermination"] == "true"
    assert (disk["VolumeSize"], disk["VolumeType"]) == ("200", "gp3")
    assert request["InstanceMarketOptions.MarketType"] == "spot"
    assert request["Placement.GroupName"] == f"crossfade-{submitted_run(aws)}"
    kinds = [tags_of(call, number)["kind"] for number in range(1, 5)]
    assert kinds == ["instance", "volume", "network-interface", "spot-instances-request"]
    for number in range(1, 5):
        tags = tags_of(call, number)
        assert tags["crossfade:owner"] == "arn:aws:sts::123456789012:user/moto"
        assert (tags["crossfade:job"], tags["crossfade:first-host"]) == ("planted", "0")
        assert re.fullmatch(r"[0-9a-f]{64}", tags["crossfade:spec"])
    [opened] = [call.body for call in aws.calls_of("AuthorizeSecurityGroupIngress")]
    assert opened["GroupId"] == opened["IpPermissions.1.Groups.1.GroupId"] == request["SecurityGroupId.1"]
    assert not any("CidrIp" in name for name in opened)


def test_token_is_stored_only_in_an_encrypted_parameter(aws: AwsServer, job: Path) -> None:
    assert detached(job, "--hosts", 2) == 0
    [put] = [call.body for call in aws.calls_of("PutParameter")]
    assert put["Type"] == "SecureString"
    assert len(put["Value"]) == 64
    for call in aws.calls:
        assert call.action == "PutParameter" or put["Value"] not in json.dumps(call.body)
    s3 = aws.client("s3")
    for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
        assert put["Value"] not in s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read().decode()


def test_role_of_the_hosts_writes_only_what_hosts_write(aws: AwsServer, job: Path) -> None:
    assert detached(job) == 0
    run = submitted_run(aws)
    [put] = [call.body for call in aws.calls_of("PutRolePolicy")]
    statements = json.loads(put["PolicyDocument"])["Statement"]
    allowed = {(action, name) for each in statements for action in each["Action"] for name in names_of(each)}
    folder = f"arn:aws:s3:::{BUCKET}/runs/{run}"
    assert ("s3:GetObject", f"{folder}/*") in allowed
    written = {name.removeprefix(f"{folder}/") for action, name in allowed if action == "s3:PutObject"}
    assert written == {"coordinator.json", "end.json", "hosts/*", "log/*", "result/*", "checkpoints/*"}
    assert {name for action, name in allowed if action == "s3:DeleteObject"} == {f"{folder}/checkpoints/*"}
    everywhere = {action for action, name in allowed if name == "*"}
    assert everywhere == {"ecr:GetAuthorizationToken"}  # which has no resource
    assert not {action for action, _ in allowed if action.split(":")[0] not in {"s3", "ssm", "ecr"} or "*" in action}


def names_of(statement: dict[str, Any]) -> list[str]:
    resource: str | list[str] = statement["Resource"]
    return [resource] if isinstance(resource, str) else resource


def test_dry_run_prints_every_request_and_sends_none(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(job, "--hosts", 2, "--dry-run", "--set", "model.dim=8", "--set", "model.dense={item: [8]}") == 0
    printed = capsys.readouterr()
    assert "of several workers need Horovod" in printed.err
    assert "cost: $0.25 an hour" in printed.err
    assert aws.calls == []
    names = re.findall(r"^[a-z0-9]+\.([a-z_]+) \{", printed.out, re.MULTILINE)
    assert (names[0], names[-1], len(names)) == ("get_caller_identity", "run_instances", 15)
    assert "#!/bin/bash" in printed.out
    for expected in ('"ImageId": "<the machine image>"', '"<the security group>"', '"<a token>"', '"<unique>"'):
        assert expected in printed.out


@pytest.mark.parametrize(
    ("options", "parameter", "variant"),
    [
        (("--instance-type", "r6i.large"), "amazon-linux-2023/recommended", "cpu"),
        (("--instance-type", "r7g.large", "--hosts", "2"), "amazon-linux-2023/arm64/recommended", "slim"),
        (("--instance-type", "g5.xlarge"), "amazon-linux-2023/gpu/recommended", "torch"),
        (("--instance-type", "p2.xlarge"), "amazon-linux-2023/gpu/recommended", "cu90"),
    ],
)
def test_instance_type_selects_image_and_machine_image(
    aws: AwsServer, job: Path, options: tuple[str, ...], parameter: str, variant: str
) -> None:
    assert detached(job, *options) == 0
    [request] = aws.calls_of("GetParameter")
    assert request.body["Name"].endswith(f"{parameter}/image_id")
    [spec] = [json.loads(text) for name, text in stored(aws).items() if name.endswith("spec.json")]
    assert spec["image"] == IMAGE.replace("cpu", variant)
    assert spec["variant"] == variant
    assert (spec["job"]["cluster"]["servers"], spec["job"]["cluster"]["workers"]) == ROLES.get(variant, (0, 1))


@pytest.mark.parametrize(
    ("options", "servers", "workers"),
    [
        ((), 3, 3),
        (("--set", "cluster.servers=2", "--workers", 1), 2, 1),
        (("--set", "cluster.store=sharded"), 0, 3),
        (("--set", "cluster.store=sharded", "--workers", 6), 0, 6),
        (("--set", "cluster.wire_dtype=bfloat16"), 0, 3),
        (("--servers", 0), 0, 3),
        (("--servers", 2), 2, 3),
    ],
)
def test_role_options_set_servers_and_workers(
    aws: AwsServer, job: Path, options: tuple[object, ...], servers: int, workers: int
) -> None:
    assert detached(job, "--hosts", 3, *options) == 0
    [spec] = [json.loads(text) for name, text in stored(aws).items() if name.endswith("spec.json")]
    assert (spec["job"]["cluster"]["servers"], spec["job"]["cluster"]["workers"]) == (servers, workers)


def test_default_instance_type_is_p2(job: Path, aws: AwsServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "ec2", str(job), "--output", f"s3://{BUCKET}/runs", "--dry-run"]) == 0
    stderr = capsys.readouterr().err
    assert stderr.startswith("crossfade: AWS is retiring p2 (docs/aws.md), so p2.xlarge may not be available")
    assert "does not use" not in stderr


def test_job_that_does_not_fit_its_instances_is_rejected(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting, expected in (
        ("train.device=gpu", "train.device is gpu, but r6i.large has no GPU"),
        ("train.engine=torch", "the image for it, crossfade:cpu, has no PyTorch"),
    ):
        assert detached(job, "--set", setting) == 2
        assert expected in capsys.readouterr().err
    assert detached(job, "--instance-type", "r7g.large", "--servers", 2) == 2
    assert "the job has 2 servers, but r7g.large has an Arm processor" in capsys.readouterr().err
    assert aws.calls_of("RunInstances") == []


def test_image_of_the_user_may_have_any_engine(aws: AwsServer, job: Path) -> None:
    assert detached(job, "--image", "registry.example/mine:1", "--set", "train.engine=torch") == 0
    [spec] = [json.loads(text) for name, text in stored(aws).items() if name.endswith("spec.json")]
    assert (spec["image"], spec["variant"]) == ("registry.example/mine:1", "cpu")


@pytest.mark.parametrize("variant", ["cpu", "slim", "cu90"])
def test_user_data_is_valid_bash_within_the_limit_and_quotes_its_values(tmp_path: Path, variant: Any) -> None:
    values: dict[str, Any] = {
        "run": new_run_name("x"),
        "region": "us-east-1",
        "account": "1",
        "owner": "me",
        "job": {"name": "x"},
        "storage": "s3://music/its/x",
        "data": "s3://music/data",
        "image": "registry.example/$(touch /tmp/x)`id`:tag",
        "variant": variant,
        "instance_type": "r6i.large",
        "hosts": 1,
        "spot": False,
        "max_hours": 1.0,
        "volume_gb": 100,
    }
    script = user_data(RunSpec(**values), 0)
    assert len(script.encode()) <= MAX_BYTES
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert re.findall("^gpus=(.*)", script, re.MULTILINE) == ["'--gpus all'" if variant == "cu90" else "''"]
    [command] = re.findall(r"docker run (.*?)\n\n?    echo", script, re.DOTALL)
    for option in ("--network host", "--user crossfade", "--cap-drop ALL", "--security-opt no-new-privileges"):
        assert option in command
    settings = script.partition("\nimds=")[0]
    shell = subprocess.run(["bash"], input=f'{settings}\necho "$image"', text=True, capture_output=True, check=True)
    assert shell.stdout.strip() == values["image"]
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in script if "AWS_SECRET_ACCESS_KEY" in os.environ else True
