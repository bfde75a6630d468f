"""Start the cluster of a run on EC2.

context = resolve_context(aws, spec)        # reads only
launch(aws, spec, context, log)             # creates; after an error, resources.remove deletes what was created
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import option_named
from crossfade.deploy.aws.accelerators import Variant
from crossfade.deploy.aws.aws_errors import CloudRequestError, translate_aws_errors
from crossfade.deploy.aws.ec2 import requests
from crossfade.deploy.aws.ec2.run_spec import RunSpec
from crossfade.deploy.aws.ec2.run_storage import SPEC_FILE, RunStorage
from crossfade.deploy.aws.ecr import check_image

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

_ECS = "/aws/service/ecs/optimized-ami/amazon-linux-2023"
IMAGE_PARAMETERS: dict[Variant, str] = {
    "cpu": f"{_ECS}/recommended/image_id",
    "slim": f"{_ECS}/arm64/recommended/image_id",
    "torch": f"{_ECS}/gpu/recommended/image_id",
    "cu112": f"{_ECS}/gpu/recommended/image_id",
    "cu90": f"{_ECS}/gpu/recommended/image_id",
}
"""Public parameters with the IDs of the ECS machine images, which have Docker and, for GPUs, NVIDIA's driver."""
PROFILE_SECONDS = 120.0
"""Maximum time until EC2 accepts an instance profile that IAM has just created."""
_POLL_SECONDS = 3.0


@dataclass(frozen=True)
class AwsContext:
    """Existing resources that a run uses: the machine image, its root device, and the network."""

    image: str
    root_device: str
    vpc: str


def resolve_context(aws: Aws, spec: RunSpec) -> AwsContext:
    """Look up the existing resources that ``spec`` relies on, and check that its image exists.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or something does not exist.
    """
    if spec.ami is not None:
        image = spec.ami
    else:
        name = IMAGE_PARAMETERS[spec.variant]
        with translate_aws_errors(f"reading the parameter {name} of the machine image", aws.region):
            image = aws.ssm.get_parameter(Name=name)["Parameter"]["Value"]
    with translate_aws_errors(f"looking for the machine image {image}", aws.region):
        images = aws.ec2.describe_images(ImageIds=[image])["Images"]
    if not images:
        raise CloudRequestError(
            f"the machine image {image} does not exist in {aws.region}; set another with {option_named('ami')}",
            "missing",
        )
    check_image(aws, spec.image)  # before instances start, which cost money even if they cannot pull it
    return AwsContext(image, images[0].get("RootDeviceName", "/dev/xvda"), _vpc(aws, spec))


def _vpc(aws: Aws, spec: RunSpec) -> str:
    if spec.subnet is not None:
        with translate_aws_errors(f"looking for the subnet {spec.subnet}", aws.region):
            return aws.ec2.describe_subnets(SubnetIds=[spec.subnet])["Subnets"][0]["VpcId"]
    with translate_aws_errors("looking for the default VPC", aws.region):
        networks = aws.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not networks:
        raise CloudRequestError(
            f"the account has no default VPC in {aws.region}; set a subnet with {option_named('subnet')}", "missing"
        )
    return networks[0]["VpcId"]


def launch(aws: Aws, spec: RunSpec, context: AwsContext, log: Callable[[str], None]) -> None:
    """Create the resources of a run, its instances last.

    Raises:
        CloudError, CloudRequestError: AWS rejects a request; the resources that were created before remain.
    """
    RunStorage(aws, spec.storage).write(SPEC_FILE, spec)
    with translate_aws_errors("storing the token of the hosts", aws.region):
        aws.ssm.put_parameter(**requests.token_parameter(spec, secrets.token_hex(32)))
    if spec.instance_profile is None:
        log("creating a role for the instances")
        with translate_aws_errors("creating a role for the instances", aws.region):
            aws.iam.create_role(**requests.role(spec))
            aws.iam.put_role_policy(**requests.role_policy(spec))
            aws.iam.create_instance_profile(**requests.profile(spec))
            aws.iam.add_role_to_instance_profile(InstanceProfileName=spec.name, RoleName=spec.name)
    with translate_aws_errors("creating a security group", aws.region):
        group = aws.ec2.create_security_group(**requests.security_group(spec, context.vpc))["GroupId"]
        aws.ec2.authorize_security_group_ingress(**requests.ingress(group))
    if spec.needs_placement:
        with translate_aws_errors("creating a placement group", aws.region):
            aws.ec2.create_placement_group(**requests.placement_group(spec))
    log(f"starting {spec.hosts} x {spec.instance_type}{' as spot instances' if spec.spot else ''}")
    start_instances(aws, spec, context, group, range(spec.hosts), spec.subnet)


def start_instances(
    aws: Aws, spec: RunSpec, context: AwsContext, group: str, numbers: Sequence[int], subnet: str | None
) -> None:
    """Start the hosts ``numbers``, all or none.

    Raises:
        CloudError, CloudRequestError: AWS does not start them.
    """
    request = requests.run_instances(
        spec,
        numbers,
        image=context.image,
        root_device=context.root_device,
        group=group,
        subnet=subnet,
        token=f"{spec.run}-{secrets.token_hex(4)}",
    )
    deadline = time.monotonic() + PROFILE_SECONDS
    while True:
        try:
            with translate_aws_errors(f"starting {len(numbers)} x {spec.instance_type}", aws.region):
                aws.ec2.run_instances(**request)
            return
        except CloudRequestError as error:
            # EC2 accepts a new instance profile of IAM only after some seconds.
            is_new = spec.instance_profile is None and "iaminstanceprofile" in str(error).lower().replace(" ", "")
            if error.code != "InvalidParameterValue" or not is_new or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


_PLACEHOLDERS: dict[str, dict[str, Any]] = {
    "get_parameter": {"Parameter": {"Value": "<the machine image>"}},
    "describe_images": {"Images": [{"RootDeviceName": "<its root device>"}]},
    "describe_subnets": {"Subnets": [{"VpcId": "<the network>"}]},
    "describe_vpcs": {"Vpcs": [{"VpcId": "<the network>"}]},
    "create_security_group": {"GroupId": "<the security group>"},
}
"""What operations answer in a dry run, as far as later requests depend on it."""
_RANDOM = {"ssm.put_parameter": {"Value": "<a token>"}, "ec2.run_instances": {"ClientToken": "<unique>"}}


class _Attributes:
    """An object whose attributes are what ``make`` returns for their names."""

    def __init__(self, make: Callable[[str], Any], **values: str) -> None:
        self._make = make
        self.__dict__ |= values

    def __getattr__(self, name: str) -> Any:
        return self._make(name)


def dry_run(spec: RunSpec) -> list[tuple[str, dict[str, Any]]]:
    """Return every request that ``resolve_context`` and ``launch`` would send: service.operation and its parameters.

    Values that AWS would return stand in <angle brackets>, and so do random ones.
    """
    sent: list[tuple[str, dict[str, Any]]] = [("sts.get_caller_identity", {})]

    def send(operation: str, **request: Any) -> dict[str, Any]:
        # The body of an object is JSON, in bytes.
        shown = json.loads(json.dumps(request | _RANDOM.get(operation, {}), default=json.loads))
        sent.append((operation, shown))
        return _PLACEHOLDERS.get(operation.partition(".")[2], {})

    def client(service: str) -> _Attributes:
        return _Attributes(lambda operation: partial(send, f"{service}.{operation}"))

    aws: Any = _Attributes(client, region=spec.region)
    launch(aws, spec, resolve_context(aws, spec), lambda _: None)
    return sent
