"""``crossfade submit ec2``: the stack it creates from the template, its errors, lists, and clean-up."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from aws_server import AwsServer
from ec2_leftovers import leftovers
from running_command import started
from submitting_ec2 import BUCKET, IMAGE, created, detached, stored, submitted_run
from waiting import wait_until

from crossfade.cli.main import main
from crossfade.deploy.aws.ec2 import stack
from crossfade.deploy.aws.ec2.stack import LOG_GROUP

pytestmark = pytest.mark.slow

TEMPLATE = Path(stack.__file__).with_name("cluster.yaml")


def test_template_passes_the_linter() -> None:
    linter = Path(sys.executable).with_name("cfn-lint")
    command = [linter, "--regions", "us-east-1", "eu-west-1", "--template", TEMPLATE]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


# ---- the stack


def launch_data(aws: AwsServer) -> dict[str, Any]:
    ec2 = aws.client("ec2")
    [version] = ec2.describe_launch_template_versions(Versions=["$Latest"])["LaunchTemplateVersions"]
    data: dict[str, Any] = version["LaunchTemplateData"]
    return data


def test_options_reach_the_cluster(aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detached(job, "--hosts", 3, "--spot", "--max-hours", 3, "--volume-gb", 200) == 0
    assert "creating the cluster: 3 x r6i.large as spot instances, for 3 hours at most" in capsys.readouterr().err
    run, data = submitted_run(aws), launch_data(aws)
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "InstanceMetadataTags": "enabled",
    }
    [disk] = data["BlockDeviceMappings"]
    assert disk["Ebs"] == {"VolumeSize": 200, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    assert data["InstanceMarketOptions"]["MarketType"] == "spot"
    scaling = aws.client("autoscaling")
    groups = {
        group["AutoScalingGroupName"]: group for group in scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
    }
    sizes = {name: (each["MinSize"], each["DesiredCapacity"], each["MaxSize"]) for name, each in groups.items()}
    assert sizes == {f"crossfade-{run}-head": (0, 1, 1), f"crossfade-{run}-workers": (0, 2, 2)}
    assert len({group["VPCZoneIdentifier"] for group in groups.values()} | {created(aws)["Subnets"]}) == 1
    # moto has scheduled actions, but does not perform them.
    actions = scaling.describe_scheduled_actions()["ScheduledUpdateGroupActions"]
    assert {action["AutoScalingGroupName"] for action in actions} == set(groups)
    for action in actions:
        assert f"{action['StartTime']:%Y-%m-%dT%H:%M:%SZ}" == created(aws)["Ends"]
        assert (action["MinSize"], action["MaxSize"], action["DesiredCapacity"]) == (0, 0, 0)
    groups_of_hosts = aws.client("ec2").describe_security_groups(GroupIds=data["SecurityGroupIds"])["SecurityGroups"]
    [opened] = groups_of_hosts[0]["IpPermissions"]
    assert [pair["GroupId"] for pair in opened["UserIdGroupPairs"]] == data["SecurityGroupIds"]
    assert opened["IpRanges"] == []


def test_token_is_only_in_the_secret(aws: AwsServer, job: Path) -> None:
    assert detached(job, "--hosts", 2) == 0
    token = aws.client("secretsmanager").get_secret_value(SecretId=f"crossfade/{submitted_run(aws)}")["SecretString"]
    assert len(token) == 64
    everything = [json.dumps(call.body) for call in aws.calls] + list(stored(aws).values()) + [str(launch_data(aws))]
    assert not any(token in text for text in everything)


def test_role_of_the_hosts_writes_only_what_hosts_write(aws: AwsServer, job: Path) -> None:
    assert detached(job, "--set", "checkpoint.warm_start_from=s3://other") == 0
    run, iam = submitted_run(aws), aws.client("iam")
    [role] = iam.list_roles()["Roles"]
    assert role["Path"] == "/crossfade/us-east-1/"
    policies = iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
    [name] = policies
    document = iam.get_role_policy(RoleName=role["RoleName"], PolicyName=name)["PolicyDocument"]
    statements = yaml.safe_load(str(document))["Statement"]  # moto has the text of a Python dictionary
    names = [[each["Resource"]] if isinstance(each["Resource"], str) else each["Resource"] for each in statements]
    pairs = zip(statements, names, strict=True)
    allowed = {(action, name) for each, some in pairs for action in each["Action"] for name in some}
    folder = f"arn:aws:s3:::{BUCKET}/runs/{run}"
    assert {name for action, name in allowed if action == "s3:GetObject"} == {
        f"{folder}/*",
        *(f"arn:aws:s3:::{BUCKET}/{name}" for name in ("data", "data/*")),
        "arn:aws:s3:::other/*",
    }
    written = {name.removeprefix(f"{folder}/") for action, name in allowed if action == "s3:PutObject"}
    assert written == {"coordinator.json", "end.json", "result/*", "checkpoints/*"}
    assert {name for action, name in allowed if action == "s3:DeleteObject"} == {f"{folder}/checkpoints/*"}
    assert {action for action, name in allowed if name == "*"} == {"ecr:GetAuthorizationToken"}
    logs = {(action, name.partition(":log-group:")[2]) for action, name in allowed if action.startswith("logs:")}
    assert logs == {
        ("logs:CreateLogGroup", f"{LOG_GROUP}:*"),
        ("logs:PutRetentionPolicy", f"{LOG_GROUP}:*"),
        ("logs:CreateLogStream", f"{LOG_GROUP}:*"),
        ("logs:PutLogEvents", f"{LOG_GROUP}:log-stream:{run}/*"),
    }
    rest = [(action, name) for action, name in allowed if not action.startswith(("logs:", "s3:"))]
    assert {(action, name.rpartition(":")[2].partition("/")[2]) for action, name in rest} == {
        ("secretsmanager:GetSecretValue", next(name for _, name in allowed if ":secret:" in name).partition("/")[2]),
        *(
            ("autoscaling:TerminateInstanceInAutoScalingGroup", f"crossfade-{run}-{kind}")
            for kind in ("head", "workers")
        ),
        ("ecr:GetAuthorizationToken", ""),
        ("ecr:BatchGetImage", "crossfade"),
        ("ecr:GetDownloadUrlForLayer", "crossfade"),
    }


@pytest.mark.parametrize(
    ("options", "parameter", "variant", "gpus", "roles"),
    [
        (("r6i.large", "--hosts", "3", "--servers", "2"), "amazon-linux-2023/recommended", "cpu", "", (2, 3)),
        (("g5.xlarge",), "amazon-linux-2023/gpu/recommended", "torch", "all", (0, 1)),
        (("p2.xlarge",), "amazon-linux-2023/gpu/recommended", "cu90", "all", (0, 1)),
    ],
)
def test_instance_type_selects_image_machine_image_and_roles(
    aws: AwsServer, job: Path, options: tuple[str, ...], parameter: str, variant: str, gpus: str, roles: object
) -> None:
    # moto's region has no p2 any longer, which --subnet does not ask.
    [subnet, *_] = aws.client("ec2").describe_subnets()["Subnets"]
    assert detached(job, "--subnet", subnet["SubnetId"], "--instance-type", *options) == 0
    [request] = aws.calls_of("GetParameter")
    assert request.body["Name"].endswith(f"{parameter}/image_id")
    cluster = created(aws)
    assert (cluster["Image"], cluster["Gpus"], cluster["Subnets"]) == (
        IMAGE.replace("cpu", variant),
        gpus,
        subnet["SubnetId"],
    )
    assert cluster["Driver"] == ("470.256.02" if variant == "cu90" else "")
    [text] = [text for name, text in stored(aws).items() if name.endswith("job.yaml")]
    sizes = yaml.safe_load(text)["cluster"]
    assert (sizes["servers"], sizes["workers"]) == roles


def test_dry_run_prints_the_requests_and_sends_none(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["submit", "ec2", str(job), "--output", f"s3://{BUCKET}/runs", "--dry-run", "--hosts", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert aws.calls == []
    names = re.findall(r"^([a-z0-9]+\.[a-z_]+) \{", printed.out, re.MULTILINE)
    assert names == ["s3.put_object", "cloudformation.create_stack"]
    assert TEMPLATE.read_text() in printed.out
    assert "<the machine image>" in printed.out


def test_template_rejects_a_value_that_would_end_its_quotes_in_the_script() -> None:
    parameters = yaml.load(TEMPLATE.read_text(), yaml.BaseLoader)["Parameters"]
    for name in ("Image", "Registry", "Folder"):
        pattern = parameters[name]["AllowedPattern"]
        assert re.fullmatch(pattern, "registry.example/$(id)`id`:tag")
        assert not re.fullmatch(pattern, "x' y")
    assert not re.fullmatch(parameters["Run"]["AllowedPattern"], "$(id)")


# ---- errors


def fail_stack(aws: AwsServer, status: str, event: str, reason: str) -> None:
    """Have AWS report a stack with this status, and why one of its resources has failed."""
    stack = (
        f"<StackName>x</StackName><CreationTime>2026-03-01T12:00:00Z</CreationTime><StackStatus>{status}</StackStatus>"
    )
    events = "".join(
        f"<member><LogicalResourceId>{name}</LogicalResourceId><ResourceStatus>{event}</ResourceStatus>"
        f"<ResourceStatusReason>{why}</ResourceStatusReason></member>"
        for name, why in (("Role", "Resource creation cancelled"), ("Token", reason))
    )
    aws.answer_xml("DescribeStacks", f"<Stacks><member>{stack}</member></Stacks>")
    aws.answer_xml("DescribeStackEvents", f"<StackEvents>{events}</StackEvents>")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "--output: is missing"),
        (("--output", "music"), "--output: expected s3://BUCKET/PREFIX, but found 'music'"),
        (("--output", "s3://music/runs", "--set", "data.path=here"), "data.path: "),
        (
            ("--output", "s3://music/runs", "--set", "checkpoint.warm_start_from=here"),
            "checkpoint.warm_start_from: here is on this machine, which the instances cannot read; copy it to S3",
        ),
        (("--output", "s3://music/runs", "--subnet", "subnet-0123456789abcdef0"), "subnet-01234567"),
        (("--output", "s3://music/runs", "--instance-type", "r7g.xlarge", "--ami", "ami-1"), "name both with --image"),
        (("--output", "s3://music/runs", "--instance-type", "p2.xlarge"), "no default subnet in a zone that offers"),
        (
            ("--output", "s3://music/runs", "--instance-type", "r6i.large", "--set", "train.device=gpu"),
            "train.device is gpu, but r6i.large has no GPU",
        ),
    ],
)
def test_invalid_input_is_rejected_before_anything_is_created(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], line: str
) -> None:
    assert main(["submit", "ec2", str(job), *options, "--detach"]) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert leftovers(aws) == []
    assert stored(aws) == {}


def test_request_that_aws_rejects_leaves_no_resources(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.fail("CreateStack", "AccessDenied", "no", times=0)
    assert detached(job, "--hosts", 2, "--spot") == 2
    assert "creating the stack: no (AccessDenied, region us-east-1); allow it" in capsys.readouterr().err
    assert leftovers(aws) == []


def test_failed_stack_is_reported_with_its_first_reason(
    aws: AwsServer, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_stack(aws, "DELETE_COMPLETE", "CREATE_FAILED", "not authorized to perform: iam:CreateRole")
    assert detached(job) == 1
    line = "the cluster cannot be created: Token: not authorized to perform: iam:CreateRole"
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert leftovers(aws) == []


def test_signal_while_the_cluster_is_created_deletes_it(aws: AwsServer, job: Path, tmp_path: Path) -> None:
    options = ("--output", f"s3://{BUCKET}/runs", "--instance-type", "r6i.large")
    fail_stack(aws, "CREATE_IN_PROGRESS", "CREATE_IN_PROGRESS", "")
    with started("submit", "ec2", job, *options, cwd=tmp_path, variables=aws.variables) as command:
        signals = iter([signal.SIGTERM])
        aws.before("DescribeStacks", lambda _: [command.process.send_signal(each) for each in signals])
        result = command.finish()
    assert result.returncode == 143, result.stderr
    assert leftovers(aws) == []


# ---- list and clean-up


def test_cleanup_deletes_what_a_killed_client_left(
    aws: AwsServer, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # SIGKILL arrives while the request is under way: AWS executes it, and nobody receives the response.
    options = ("--output", f"s3://{BUCKET}/runs", "--instance-type", "r6i.large", "--hosts", 2, "--spot")
    aws.client("cloudformation").create_stack(StackName="theirs", TemplateBody='{"Resources": {}}')
    with started("submit", "ec2", job, *options, cwd=tmp_path, variables=aws.variables) as command:
        aws.before("CreateStack", lambda _: command.process.kill())
        assert command.finish().returncode == -9
    stacks = aws.client("cloudformation").describe_stacks
    wait_until(
        lambda: [stack["StackStatus"] for stack in stacks()["Stacks"]] == ["CREATE_COMPLETE"] * 2,
        "the end of the request, with both hosts",
    )
    run = submitted_run(aws)
    assert main(["submit", "ec2", "--list"]) == 0
    [line] = capsys.readouterr().out.splitlines()[1:]
    assert line.split()[:4] == [run, "2", "x", "r6i.large"]
    assert line.endswith(f" s3://{BUCKET}/runs/{run}")
    assert main(["submit", "ec2", "--cleanup", run]) == 0
    assert leftovers(aws) == ["stack theirs"]


def test_unknown_run_is_rejected(aws: AwsServer, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--cleanup", "--follow"):
        assert main(["submit", "ec2", option, "planted-00000000"]) == 2
        assert "run planted-00000000 not found" in capsys.readouterr().err
    assert main(["submit", "ec2"]) == 2
