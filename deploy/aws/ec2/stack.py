"""The CloudFormation stack of a run: what it is created from, and how it is created, found, and deleted.

    stack = create(aws, stack_request(aws, spec, find_place(aws, spec)))
    find_instances(aws, stack.run)
    delete(aws, stack)

The template is ``cluster.yaml``. Finding and deleting needs no state of the client that created a stack.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import ClusterError, Option, command
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, translate_aws_errors
from crossfade.deploy.aws.ec2.run_spec import RunSpec, split_uri
from crossfade.deploy.aws.ecr import EcrImage

if TYPE_CHECKING:
    from mypy_boto3_cloudformation.type_defs import CreateStackInputTypeDef
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

    from crossfade.deploy.aws.clients import Aws

PREFIX = "crossfade-"
"""Prefix of the names of stacks."""
RUN_TAG, JOB_TAG, STORAGE_TAG = "crossfade:run", "crossfade:job", "crossfade:storage"
LOG_GROUP = "/crossfade/runs"
"""Where Docker sends the output of hosts, as the template says."""
POLL_SECONDS, MAX_POLLS = 3.0, 600
"""A stack is created or deleted within half an hour: instances terminate first."""
K80_DRIVER = "470.256.02"
_TEMPLATE = Path(__file__).with_name("cluster.yaml")
_ECS = "/aws/service/ecs/optimized-ami/amazon-linux-2023"
IMAGE_PARAMETERS = {"": f"{_ECS}/recommended/image_id", "all": f"{_ECS}/gpu/recommended/image_id"}
"""By GPUs, public parameters with the IDs of ECS's machine images, which have Docker and, for GPUs, NVIDIA's driver."""


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
        name = IMAGE_PARAMETERS[_gpus(spec)]
        with translate_aws_errors(f"reading the parameter {name} of the machine image", aws.region):
            image = aws.ssm.get_parameter(Name=name)["Parameter"]["Value"]
    with translate_aws_errors(f"looking for the machine image {image}", aws.region):
        [found] = aws.ec2.describe_images(ImageIds=[image])["Images"]
    return Place(image, found.get("RootDeviceName", "/dev/xvda"), *_network(aws, spec))


def _gpus(spec: RunSpec) -> str:
    """Return the GPUs of a host that its container uses, as the template calls them."""
    return "" if spec.variant == "cpu" else "all"


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
    tags = {RUN_TAG: spec.run, JOB_TAG: spec.job["name"], STORAGE_TAG: spec.storage}
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
    return {
        "Run": spec.run,
        "Ends": f"{spec.ends:%Y-%m-%dT%H:%M:%SZ}",
        "Workers": str(options.hosts - 1),
        "InstanceType": options.instance_type,
        "Spot": str(options.spot).lower(),
        "VolumeGb": str(options.volume_gb),
        "MachineImage": place.machine_image,
        "RootDevice": place.root_device,
        "Vpc": place.vpc,
        "Subnets": ",".join(place.subnets),
        "InstanceProfile": (options.instance_profile or "").rpartition("/")[2],  # the name, also of an ARN
        "Gpus": _gpus(spec),
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
    storage: str
    """The URI of the run's folder on S3."""


def find_stacks(aws: Aws, name: str | None = None) -> list[Stack]:
    """Return the stack with this name or ID, or the stacks of all runs, in the region.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or rejects the request.
    """
    which: Any = {} if name is None else {"StackName": name}
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
    if not {RUN_TAG, STORAGE_TAG} <= tags.keys() or not {"Workers", "Ends"} <= values.keys():
        return None
    return Stack(
        id=described["StackId"],
        run=tags[RUN_TAG],
        status=described["StackStatus"],
        hosts=int(values["Workers"]) + 1,
        ends=datetime.fromisoformat(values["Ends"]),
        created=described["CreationTime"],
        storage=tags[STORAGE_TAG],
    )


def create(aws: Aws, request: CreateStackInputTypeDef) -> Stack:
    """Create a stack, and return it when it is complete.

    Raises:
        ClusterError: it cannot be created; AWS deletes what was created of it.
        CloudError, CloudRequestError: AWS does not answer, or rejects the request.
    """
    with translate_aws_errors("creating the stack", aws.region):
        stack_id = aws.cloudformation.create_stack(**request)["StackId"]
    try:
        with translate_aws_errors("creating the stack", aws.region):
            waiter = aws.cloudformation.get_waiter("stack_create_complete")
            waiter.wait(StackName=stack_id, WaiterConfig={"Delay": POLL_SECONDS, "MaxAttempts": MAX_POLLS})  # type: ignore[typeddict-item]
    except CloudError as error:
        if reasons := _failures(aws, stack_id, "CREATE_FAILED"):  # the first is the last, and the others follow from it
            raise ClusterError(f"the cluster cannot be created: {reasons[-1]}") from error
        raise
    [stack] = find_stacks(aws, stack_id)
    return stack


def delete(aws: Aws, stack: Stack) -> None:
    """Delete a stack, which terminates its instances first, and wait for its end.

    Raises:
        CloudError, CloudRequestError: AWS cannot delete it; the message says what is left.
    """
    try:
        with translate_aws_errors(f"deleting the run {stack.run}", aws.region):
            aws.cloudformation.delete_stack(StackName=stack.id)
            waiter = aws.cloudformation.get_waiter("stack_delete_complete")
            waiter.wait(StackName=stack.id, WaiterConfig={"Delay": POLL_SECONDS, "MaxAttempts": MAX_POLLS})  # type: ignore[typeddict-item]
    except CloudError as error:
        left = "; ".join(_failures(aws, stack.id, "DELETE_FAILED"))
        how = command("submit ec2", cleanup=stack.run)
        fix = f"{f': {left}' if left else ''}; retry with {how}"
        raise CloudError(*error.args, fix, kind="fault") from error


def _failures(aws: Aws, stack_id: str, status: str) -> list[str]:
    """Return the reasons why resources of a stack have this status, the newest first."""
    with translate_aws_errors("reading the events of the stack", aws.region):
        events = aws.cloudformation.describe_stack_events(StackName=stack_id)["StackEvents"]
    return [
        f"{event.get('LogicalResourceId', '')}: {event.get('ResourceStatusReason', 'no reason given')}"
        for event in events
        if event.get("ResourceStatus") == status
    ]


def find_instances(aws: Aws, run: str) -> list[InstanceTypeDef]:
    """Return the instances of ``run``. EC2 lists terminated ones for about an hour.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or rejects the request.
    """
    with translate_aws_errors(f"looking for the instances of the run {run}", aws.region):
        pages = aws.ec2.get_paginator("describe_instances").paginate(
            Filters=[{"Name": f"tag:{RUN_TAG}", "Values": [run]}]
        )
        return [
            instance for page in pages for reservation in page["Reservations"] for instance in reservation["Instances"]
        ]
