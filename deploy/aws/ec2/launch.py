"""Starts the cluster of a run: what is looked up first, and what is made then, in an order that can be taken back.

surroundings = look_up(aws, plan)        # changes nothing
launch(aws, plan, surroundings, say)     # whatever goes wrong, resources.remove takes it back
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.aws.accelerators import Variant
from deploy.aws.ec2 import requests
from deploy.aws.ec2.spec import RunSpec
from deploy.aws.ec2.storage import PLAN, RunStorage
from deploy.aws.ec2.user_data import is_ecr
from deploy.aws.errors import translate_aws_errors
from kvstore.errors import CloudRequestError, InputError

if TYPE_CHECKING:
    from deploy.aws.clients import Aws

_ECS = "/aws/service/ecs/optimized-ami/amazon-linux-2023"
IMAGE_PARAMETERS: dict[Variant, str] = {
    "cpu": f"{_ECS}/recommended/image_id",
    "cu112": f"{_ECS}/gpu/recommended/image_id",
    "cu90": f"{_ECS}/gpu/recommended/image_id",
}
"""Public parameters that name machine images with Docker, and with what GPUs need: those of ECS."""
PROFILE_SECONDS = 120.0
"""How long it may take until EC2 knows an instance profile that IAM has just made."""
_POLL_SECONDS = 3.0


@dataclass(frozen=True)
class AwsContext:
    """What there is already: the machine image and its root device, and the network."""

    image: str
    root_device: str
    vpc: str


def resolve_context(aws: Aws, plan: RunSpec) -> AwsContext:
    """Find what the plan relies on.

    Raises:
        CloudError, RefusedError: AWS does not say, or something is not there.
    """
    if plan.ami is not None:
        image = plan.ami
    else:
        name = IMAGE_PARAMETERS[plan.variant]
        with translate_aws_errors(f"asking for the machine image that {name} names", aws.region):
            image = aws.ssm.get_parameter(Name=name)["Parameter"]["Value"]
    with translate_aws_errors(f"looking for the machine image {image}", aws.region):
        images = aws.ec2.describe_images(ImageIds=[image])["Images"]
    if not images:
        raise CloudRequestError(
            f"the machine image {image} is not there in {aws.region}; name another with --ami", "missing"
        )
    _check_container_image(aws, plan)
    return AwsContext(image, images[0].get("RootDeviceName", "/dev/xvda"), _vpc(aws, plan))


def _check_container_image(aws: Aws, plan: RunSpec) -> None:
    """See that an image of ECR is there: an instance that finds none costs money until somebody sees it."""
    registry, _, rest = plan.image.partition("/")
    if not is_ecr(registry):
        return
    account, region = registry.split(".")[0], registry.split(".")[3]
    if region != aws.region:
        raise InputError(
            f"--image: {plan.image} is in {region}, but the run is to be in {aws.region}; push it there (docs/aws.md), "
            "or name another --region"
        )
    repository, _, digest = rest.partition("@")
    repository, _, tag = repository.partition(":")
    which: Any = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    with translate_aws_errors(f"looking for the image {plan.image}", aws.region):
        aws.ecr.describe_images(registryId=account, repositoryName=repository, imageIds=[which])


def _vpc(aws: Aws, plan: RunSpec) -> str:
    if plan.subnet is not None:
        with translate_aws_errors(f"looking for the subnet {plan.subnet}", aws.region):
            return aws.ec2.describe_subnets(SubnetIds=[plan.subnet])["Subnets"][0]["VpcId"]
    with translate_aws_errors("looking for the default network", aws.region):
        networks = aws.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not networks:
        raise CloudRequestError(
            f"the account has no default network in {aws.region}; name one of its subnets with --subnet", "missing"
        )
    return networks[0]["VpcId"]


def launch(aws: Aws, plan: RunSpec, around: AwsContext, say: Callable[[str], None]) -> None:
    """Make all that the run consists of, its instances last.

    Raises:
        CloudError, RefusedError: AWS did not do it; what was made until then is there.
    """
    objects = RunStorage(aws, plan.storage)
    objects.write(PLAN, plan.model_dump(mode="json"))
    with translate_aws_errors("making the token of the hosts", aws.region):
        aws.ssm.put_parameter(**requests.token_parameter(plan, secrets.token_hex(32)))
    if plan.instance_profile is None:
        say("making a role for the instances")
        with translate_aws_errors("making a role for the instances", aws.region):
            aws.iam.create_role(**requests.role(plan))
            aws.iam.put_role_policy(**requests.role_policy(plan))
            aws.iam.create_instance_profile(**requests.profile(plan))
            aws.iam.add_role_to_instance_profile(InstanceProfileName=plan.name, RoleName=plan.name)
    with translate_aws_errors("making a security group", aws.region):
        group = aws.ec2.create_security_group(**requests.security_group(plan, around.vpc))["GroupId"]
        aws.ec2.authorize_security_group_ingress(**requests.ingress(group))
    if plan.needs_placement:
        with translate_aws_errors("making a placement group", aws.region):
            aws.ec2.create_placement_group(**requests.placement_group(plan))
    say(f"starting {plan.hosts} x {plan.instance_type}{' as spot instances' if plan.spot else ''}")
    start_instances(aws, plan, around, group, range(plan.hosts), plan.subnet)


def start_instances(
    aws: Aws, plan: RunSpec, around: AwsContext, group: str, numbers: Sequence[int], subnet: str | None
) -> None:
    """Start the hosts ``numbers``, all or none.

    Raises:
        CloudError, RefusedError: AWS did not do it.
    """
    request = requests.run_instances(
        plan,
        numbers,
        image=around.image,
        root_device=around.root_device,
        group=group,
        subnet=subnet,
        token=f"{plan.run}-{secrets.token_hex(4)}",
    )
    deadline = time.monotonic() + PROFILE_SECONDS
    while True:
        try:
            with translate_aws_errors(f"starting {len(numbers)} x {plan.instance_type}", aws.region):
                aws.ec2.run_instances(**request)
            return
        except CloudRequestError as error:
            # What IAM has made EC2 learns within seconds.
            is_new = plan.instance_profile is None and "iaminstanceprofile" in str(error).lower().replace(" ", "")
            if error.code != "InvalidParameterValue" or not is_new or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def dry_run(plan: RunSpec) -> list[tuple[str, dict[str, Any]]]:
    """Every request that ``look_up`` and ``launch`` would send, as service.operation and its parameters.

    What AWS would answer stands in <angle brackets>, and so does the token, which is a secret.
    """
    image, group, vpc = plan.ami or "<the machine image>", "<the security group>", "<the network>"
    made: list[tuple[str, Any]] = [("sts.get_caller_identity", {})]
    if plan.ami is None:
        made.append(("ssm.get_parameter", {"Name": IMAGE_PARAMETERS[plan.variant]}))
    made.append(("ec2.describe_images", {"ImageIds": [image]}))
    if is_ecr(plan.image.partition("/")[0]):
        made.append(("ecr.describe_images", {"image": plan.image}))
    made += [
        ("ec2.describe_subnets", {"SubnetIds": [plan.subnet]})
        if plan.subnet
        else ("ec2.describe_vpcs", {"Filters": [{"Name": "is-default", "Values": ["true"]}]}),
        ("s3.put_object", {"Key": f"{plan.storage}/{PLAN}", "Body": plan.model_dump(mode="json")}),
        ("ssm.put_parameter", requests.token_parameter(plan, "<a token>")),
    ]
    if plan.instance_profile is None:
        made += [
            ("iam.create_role", requests.role(plan)),
            ("iam.put_role_policy", requests.role_policy(plan)),
            ("iam.create_instance_profile", requests.profile(plan)),
            ("iam.add_role_to_instance_profile", {"InstanceProfileName": plan.name, "RoleName": plan.name}),
        ]
    made += [
        ("ec2.create_security_group", requests.security_group(plan, vpc)),
        ("ec2.authorize_security_group_ingress", requests.ingress(group)),
    ]
    if plan.needs_placement:
        made.append(("ec2.create_placement_group", requests.placement_group(plan)))
    started = requests.run_instances(
        plan,
        range(plan.hosts),
        image=image,
        root_device="<its root device>",
        group=group,
        subnet=plan.subnet,
        token="<once only>",  # noqa: S106 - no secret
    )
    made.append(("ec2.run_instances", started))
    return [(name, json.loads(json.dumps(request))) for name, request in made]
