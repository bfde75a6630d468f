"""The CloudFormation stack of a run: what it is created from, and how it is created, found, and deleted.

    stack = create(aws, stack_request(aws, spec, find_place(aws, spec)), stop_waiting=lambda: False)
    for instance in find_instances(aws, stack.run): ...
    delete(aws, stack)

The template is ``cluster.yaml``. Finding and deleting needs no state of the client that created a stack.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import ClusterError, Option, command
from crossfade.deploy.aws.accelerators import ENGINES, Variant
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, error_from_code, translate_aws_errors
from crossfade.deploy.aws.ec2.run_spec import RunSpec, split_uri
from crossfade.deploy.aws.ecr import EcrImage

if TYPE_CHECKING:
    from mypy_boto3_cloudformation.type_defs import CreateStackInputTypeDef, StackTypeDef

    from crossfade.deploy.aws.clients import Aws

PREFIX = "crossfade-"
"""Prefix of the names of stacks."""
RUN_TAG, OWNER_TAG, JOB_TAG, STORAGE_TAG = "crossfade:run", "crossfade:owner", "crossfade:job", "crossfade:storage"
POLL_SECONDS = 3.0
DELETE_SECONDS = 1800.0
"""Time for a stack to be deleted: its instances terminate first."""
K80_DRIVER = "470.256.02"
_TEMPLATE = Path(__file__).with_name("cluster.yaml")
_ECS = "/aws/service/ecs/optimized-ami/amazon-linux-2023"
IMAGE_PARAMETERS: dict[Variant, str] = {
    "cpu": f"{_ECS}/recommended/image_id",
    "slim": f"{_ECS}/arm64/recommended/image_id",
    "torch": f"{_ECS}/gpu/recommended/image_id",
    "cu112": f"{_ECS}/gpu/recommended/image_id",
    "cu90": f"{_ECS}/gpu/recommended/image_id",
}
"""Public parameters with the IDs of the ECS machine images, which have Docker and, for GPUs, NVIDIA's driver."""
_REASON_CODE = re.compile(r"HandlerErrorCode: (\w+)")
_LIVING = ("pending", "running", "stopping", "stopped")


@dataclass(frozen=True)
class Place:
    """What exists in the account before a run: the machine image, its root device, and the network."""

    machine_image: str = "<the machine image>"
    root_device: str = "<its root device>"
    vpc: str = "<the network>"
    subnets: tuple[str, ...] = ("<its subnets>",)


def find_place(aws: Aws, spec: RunSpec) -> Place:
    """Find the machine image and the network.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or something does not exist.
    """
    image = spec.options.ami
    if image is None:
        name = IMAGE_PARAMETERS[spec.variant]
        with translate_aws_errors(f"reading the parameter {name} of the machine image", aws.region):
            image = aws.ssm.get_parameter(Name=name)["Parameter"]["Value"]
    with translate_aws_errors(f"looking for the machine image {image}", aws.region):
        images = aws.ec2.describe_images(ImageIds=[image])["Images"]
    if not images:
        raise CloudRequestError(
            f"the machine image {image} does not exist in {aws.region}; set another with ",
            Option("ami"),
            kind="missing",
        )
    return Place(image, images[0].get("RootDeviceName", "/dev/xvda"), *_network(aws, spec))


def _network(aws: Aws, spec: RunSpec) -> tuple[str, tuple[str, ...]]:
    """Return the network and the subnets of the hosts: one subnet for hosts that are near each other."""
    if spec.options.subnet is not None:
        with translate_aws_errors(f"looking for the subnet {spec.options.subnet}", aws.region):
            [subnet] = aws.ec2.describe_subnets(SubnetIds=[spec.options.subnet])["Subnets"]
        return subnet["VpcId"], (subnet["SubnetId"],)
    kind = spec.options.instance_type
    with translate_aws_errors(f"looking for the default subnets with {kind}", aws.region):
        offers = aws.ec2.describe_instance_type_offerings(
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [kind]}]
        )["InstanceTypeOfferings"]
        zones = {offer["Location"] for offer in offers}
        found = aws.ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
    subnets = [subnet for subnet in found if subnet["AvailabilityZone"] in zones]
    if not subnets:
        missing = "has no default VPC" if not found else f"has no default subnet in a zone that offers {kind}"
        raise CloudRequestError(
            f"the account {missing} in {aws.region}; set a subnet with ", Option("subnet"), kind="missing"
        )
    if spec.options.hosts > 1:
        subnets = [secrets.choice(subnets)]
    return subnets[0]["VpcId"], tuple(subnet["SubnetId"] for subnet in subnets)


def stack_request(aws: Aws, spec: RunSpec, place: Place) -> CreateStackInputTypeDef:
    """Build CreateStack. A stack that cannot be created is deleted by AWS itself."""
    tags = {RUN_TAG: spec.run, OWNER_TAG: spec.owner, JOB_TAG: spec.job["name"], STORAGE_TAG: spec.storage}
    return {
        "StackName": f"{PREFIX}{spec.run}",
        "TemplateBody": _TEMPLATE.read_text(encoding="utf-8"),
        "Parameters": [
            {"ParameterKey": key, "ParameterValue": value}
            for key, value in {**_cluster(spec, place), **_files(aws, spec)}.items()
        ],
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        "Capabilities": ["CAPABILITY_IAM"],
        "OnFailure": "DELETE",
    }


def _cluster(spec: RunSpec, place: Place) -> dict[str, str]:
    """Return the parameters of the hosts."""
    options = spec.options
    # Types t do not support placement groups.
    is_placed = options.hosts > 1 and not options.instance_type.startswith("t")
    return {
        "Run": spec.run,
        "Ends": f"{spec.ends:%Y-%m-%dT%H:%M:%SZ}",
        "Workers": str(options.hosts - 1),
        "InstanceType": options.instance_type,
        "Spot": str(options.spot).lower(),
        "Placement": str(is_placed).lower(),
        "VolumeGb": str(options.volume_gb),
        "MachineImage": place.machine_image,
        "RootDevice": place.root_device,
        "Vpc": place.vpc,
        "Subnets": ",".join(place.subnets),
        "InstanceProfile": (options.instance_profile or "").rpartition("/")[2],  # the name, also of an ARN
        "Gpus": "" if ENGINES[spec.variant] == "cpu" else "all",
        "Driver": K80_DRIVER if spec.variant == "cu90" and options.ami is None else "",
        "PollSeconds": f"{options.poll_seconds:g}",
    }


def _files(aws: Aws, spec: RunSpec) -> dict[str, str]:
    """Return the parameters of the image, the run's folder, and the data that the hosts may read."""
    bucket, folder = split_uri(spec.storage, "the run's folder")
    image = EcrImage.parse(spec.image)
    repository = f"{image.region}:{image.account}:repository/{image.repository}" if image else ""
    sources = [split_uri(uri, "the job's data") for uri in spec.sources]
    prefixes = [each for _, path in sources for each in _within(path)]
    s3 = f"arn:{aws.partition}:s3:::"
    return {
        "Image": spec.image,
        "Registry": image.registry if image else "",
        "Repository": f"arn:{aws.partition}:ecr:{repository}" if image else "",
        "Bucket": bucket,
        "Folder": folder,
        "DataObjects": ",".join(f"{s3}{name}/{each}" for name, path in sources for each in _within(path)),
        "DataBuckets": ",".join(dict.fromkeys(f"{s3}{name}" for name, _ in sources)),
        "DataPrefixes": ",".join(prefixes),
    }


def _within(path: str) -> list[str]:
    """Return patterns of the keys that ``path``, a file or a folder of a bucket, has."""
    return [path, f"{path}/*"] if path else ["*"]


@dataclass(frozen=True)
class Stack:
    """The stack of a run as AWS describes it, which the run's hosts cannot change."""

    id: str
    run: str
    status: str
    hosts: int
    ends: datetime
    created: datetime
    owner: str
    """The ARN of the user who submitted the run."""
    storage: str
    """The URI of the run's folder on S3."""


def find_stacks(aws: Aws, run: str | None = None) -> list[Stack]:
    """Return the stack of ``run``, or of all runs, in the region.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or rejects the request.
    """
    which: Any = {} if run is None else {"StackName": f"{PREFIX}{run}"}
    try:
        with translate_aws_errors("looking for the stacks of runs", aws.region):
            pages = aws.cloudformation.get_paginator("describe_stacks").paginate(**which)
            stacks = [_stack(described) for page in pages for described in page["Stacks"]]
    except CloudRequestError as error:
        if error.code == "ValidationError" and "does not exist" in str(error):
            return []
        raise
    return sorted((stack for stack in stacks if stack is not None), key=lambda stack: stack.run)


def _stack(described: Mapping[str, Any]) -> Stack | None:
    """Return a stack; None if it is not the stack of a run."""
    tags = {tag["Key"]: tag["Value"] for tag in described.get("Tags", [])}
    values = {each["ParameterKey"]: each["ParameterValue"] for each in described.get("Parameters", [])}
    if not {RUN_TAG, OWNER_TAG, STORAGE_TAG} <= tags.keys() or not {"Workers", "Ends"} <= values.keys():
        return None
    return Stack(
        id=described["StackId"],
        run=tags[RUN_TAG],
        status=described["StackStatus"],
        hosts=int(values["Workers"]) + 1,
        ends=datetime.fromisoformat(values["Ends"]),
        created=described["CreationTime"],
        owner=tags[OWNER_TAG],
        storage=tags[STORAGE_TAG],
    )


def create(aws: Aws, request: CreateStackInputTypeDef, stop_waiting: Callable[[], bool]) -> Stack:
    """Create a stack, and return it when it is complete, or earlier if ``stop_waiting`` says so.

    Raises:
        ClusterError: another client has deleted it.
        CloudError, CloudRequestError: it cannot be created; AWS deletes what was created of it.
    """
    with translate_aws_errors("creating the stack", aws.region):
        name = aws.cloudformation.create_stack(**request)["StackId"]
    while (described := _describe(aws, name))["StackStatus"] == "CREATE_IN_PROGRESS" and not stop_waiting():
        time.sleep(POLL_SECONDS)
    if described["StackStatus"] not in {"CREATE_IN_PROGRESS", "CREATE_COMPLETE"}:
        failures = _failures(aws, name, "CREATE_FAILED")
        if not failures:
            raise ClusterError("the cluster was deleted while it was being created")
        reason = failures[-1]  # the first one; the others follow from it
        code = _REASON_CODE.search(reason)
        raise error_from_code(code[1] if code else "CREATE_FAILED", reason, "it", "creating the stack", aws.region)
    stack = _stack(described)
    assert stack is not None
    return stack


def delete(aws: Aws, stack: Stack) -> None:
    """Delete a stack, which terminates its instances first, and wait for its end.

    Raises:
        CloudError, CloudRequestError: AWS cannot delete it; the message says what is left.
    """
    with translate_aws_errors("deleting the stack", aws.region):
        aws.cloudformation.delete_stack(StackName=stack.id)
    deadline = time.monotonic() + DELETE_SECONDS
    while (status := _describe(aws, stack.id)["StackStatus"]) != "DELETE_COMPLETE":
        if status == "DELETE_FAILED" or time.monotonic() > deadline:
            left = "; ".join(_failures(aws, stack.id, "DELETE_FAILED")) or f"not done after {DELETE_SECONDS:.0f} s"
            how = command("submit ec2", cleanup=stack.run)
            raise CloudError(
                f"cannot delete all resources of the run {stack.run}; retry with {how}: {left}", kind="fault"
            )
        time.sleep(POLL_SECONDS)


def _describe(aws: Aws, stack_id: str) -> StackTypeDef:
    with translate_aws_errors("reading the state of the stack", aws.region):
        return aws.cloudformation.describe_stacks(StackName=stack_id)["Stacks"][0]


def _failures(aws: Aws, stack_id: str, status: str) -> list[str]:
    """Return the reasons why resources of a stack have this status, the newest first."""
    with translate_aws_errors("reading the events of the stack", aws.region):
        events = aws.cloudformation.describe_stack_events(StackName=stack_id)["StackEvents"]
    return [
        f"{event.get('LogicalResourceId', '')}: {event.get('ResourceStatusReason', 'no reason given')}"
        for event in events
        if event.get("ResourceStatus") == status
    ]


@dataclass(frozen=True)
class Ec2Instance:
    """One instance of a run."""

    id: str
    run: str
    state: str
    type: str
    reason: str
    """AWS's code of the reason why it stopped, as in Server.SpotInstanceTermination."""

    @property
    def is_live(self) -> bool:
        """Whether it costs money, or may again."""
        return self.state in _LIVING


def find_instances(aws: Aws, run: str = "*") -> list[Ec2Instance]:
    """Return the instances of ``run``, or of all runs. EC2 lists terminated ones for about an hour.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or rejects the request.
    """
    with translate_aws_errors("looking for the instances of runs", aws.region):
        pages = aws.ec2.get_paginator("describe_instances").paginate(
            Filters=[{"Name": f"tag:{RUN_TAG}", "Values": [run]}]
        )
        return [
            Ec2Instance(
                id=instance["InstanceId"],
                run=next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == RUN_TAG),
                state=instance["State"]["Name"],
                type=instance["InstanceType"],
                reason=instance.get("StateReason", {}).get("Code", ""),
            )
            for page in pages
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        ]
