"""The requests by which a run gets what it consists of, as AWS takes them. Nothing is sent here.

Everything carries the run's tags from its first moment, so that it is found again whatever happens to who made it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploy.aws.ec2.spec import FIRST_TAG, POLICY, RunSpec, split_uri
from deploy.aws.ec2.user_data import is_ecr, user_data

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import (
        AuthorizeSecurityGroupIngressRequestTypeDef as IngressRequest,
    )
    from mypy_boto3_ec2.type_defs import (
        CreatePlacementGroupRequestTypeDef as PlacementGroupRequest,
    )
    from mypy_boto3_ec2.type_defs import (
        CreateSecurityGroupRequestTypeDef as SecurityGroupRequest,
    )
    from mypy_boto3_ec2.type_defs import (
        RunInstancesRequestTypeDef as RunInstancesRequest,
    )
    from mypy_boto3_ec2.type_defs import (
        TagSpecificationTypeDef,
        TagTypeDef,
    )
    from mypy_boto3_iam.type_defs import (
        CreateInstanceProfileRequestTypeDef as ProfileRequest,
    )
    from mypy_boto3_iam.type_defs import (
        CreateRoleRequestTypeDef as RoleRequest,
    )
    from mypy_boto3_iam.type_defs import (
        PutRolePolicyRequestTypeDef as RolePolicyRequest,
    )
    from mypy_boto3_ssm.type_defs import PutParameterRequestTypeDef as ParameterRequest

HOP_LIMIT = 2
"""Of answers of the metadata service: one more than the host's own processes need, for those in containers."""
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def placement_group(plan: RunSpec) -> PlacementGroupRequest:
    """Of CreatePlacementGroup: hosts close together."""
    return {"GroupName": plan.name, "Strategy": "cluster", "TagSpecifications": _tagged(plan, "placement-group")}


def security_group(plan: RunSpec, vpc: str) -> SecurityGroupRequest:
    """Of CreateSecurityGroup, in the network ``vpc``: nobody gets in yet."""
    return {
        "GroupName": plan.name,
        "Description": f"Hosts of the Crossfade run {plan.run}, which reach each other",
        "VpcId": vpc,
        "TagSpecifications": _tagged(plan, "security-group"),
    }


def ingress(group: str) -> IngressRequest:
    """Of AuthorizeSecurityGroupIngress: the members of ``group`` reach each other, and nobody else reaches them."""
    return {"GroupId": group, "IpPermissions": [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]}


def role(plan: RunSpec) -> RoleRequest:
    """Of CreateRole."""
    return {
        "RoleName": plan.name,
        "Path": plan.path,
        "AssumeRolePolicyDocument": json.dumps(_TRUST),
        "Description": f"Hosts of the Crossfade run {plan.run}",
        "Tags": [{"Key": key, "Value": value} for key, value in plan.tags.items()],
    }


def role_policy(plan: RunSpec) -> RolePolicyRequest:
    """Of PutRolePolicy: what the hosts may do."""
    return {"RoleName": plan.name, "PolicyName": POLICY, "PolicyDocument": json.dumps(host_policy(plan))}


def host_policy(plan: RunSpec) -> dict[str, object]:
    """What the hosts of a run may do: its folder, its data, its token and its image, and nothing else."""
    bucket, prefix = split_uri(plan.storage, "the run's folder")
    sources = [plan.data]
    if plan.job["checkpoint"]["warm_start_from"]:
        sources.append(plan.job["checkpoint"]["warm_start_from"])
    statements = [
        _allow(
            ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            f"arn:{plan.partition}:s3:::{bucket}/{prefix}/*",
        ),
        _allow(
            ["s3:ListBucket"],
            f"arn:{plan.partition}:s3:::{bucket}",
            {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}},
        ),
        _allow(
            ["ssm:GetParameter"],
            f"arn:{plan.partition}:ssm:{plan.region}:{plan.account}:parameter{plan.token_parameter}",
        ),
    ]
    for uri in sources:
        at, folder = split_uri(uri, "the job's data")
        below = f"{folder}/*" if folder else "*"
        statements.append(_allow(["s3:GetObject"], f"arn:{plan.partition}:s3:::{at}/{below}"))
        condition = {"StringLike": {"s3:prefix": [folder, below]}} if folder else None
        statements.append(_allow(["s3:ListBucket"], f"arn:{plan.partition}:s3:::{at}", condition))
    registry, _, repository = plan.image.partition("/")
    if is_ecr(registry):
        account, region = registry.split(".")[0], registry.split(".")[3]
        name = repository.partition("@")[0].partition(":")[0]
        statements += [
            _allow(["ecr:GetAuthorizationToken"], "*"),
            _allow(
                ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                f"arn:{plan.partition}:ecr:{region}:{account}:repository/{name}",
            ),
        ]
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(
    actions: list[str], resource: str, condition: dict[str, dict[str, list[str]]] | None = None
) -> dict[str, object]:
    statement: dict[str, object] = {"Effect": "Allow", "Action": actions, "Resource": resource}
    return statement if condition is None else {**statement, "Condition": condition}


def profile(plan: RunSpec) -> ProfileRequest:
    """Of CreateInstanceProfile."""
    tags = [{"Key": key, "Value": value} for key, value in plan.tags.items()]
    return {"InstanceProfileName": plan.name, "Path": plan.path, "Tags": tags}  # type: ignore[typeddict-item]


def token_parameter(plan: RunSpec, token: str) -> ParameterRequest:
    """Of PutParameter: the token by which the hosts know each other, encrypted."""
    return {
        "Name": plan.token_parameter,
        "Value": token,
        "Type": "SecureString",
        "Description": f"By which the hosts of the Crossfade run {plan.run} know each other",
        "Tags": [{"Key": key, "Value": value} for key, value in plan.tags.items()],
    }


def run_instances(
    plan: RunSpec, numbers: Sequence[int], *, image: str, root_device: str, group: str, subnet: str | None, token: str
) -> RunInstancesRequest:
    """Of RunInstances: the hosts ``numbers``, which follow each other, all or none; ``token`` makes it once only."""
    kinds = ["instance", "volume", "network-interface", *(["spot-instances-request"] if plan.spot else [])]
    tags = _tagged(plan, *kinds, more={FIRST_TAG: str(numbers[0])})
    profile_name = plan.instance_profile or plan.name
    request: RunInstancesRequest = {
        "ClientToken": token,
        "MinCount": len(numbers),
        "MaxCount": len(numbers),
        "ImageId": image,
        "InstanceType": plan.instance_type,  # type: ignore[typeddict-item] # any that EC2 knows
        "IamInstanceProfile": {"Arn": profile_name} if profile_name.startswith("arn:") else {"Name": profile_name},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": HOP_LIMIT},
        "BlockDeviceMappings": [
            {
                "DeviceName": root_device,
                "Ebs": {
                    "VolumeSize": plan.volume_gib,
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "SecurityGroupIds": [group],
        "TagSpecifications": tags,
        "UserData": user_data(plan, numbers[0]),
    }
    if subnet is not None:
        request["SubnetId"] = subnet
    if plan.needs_placement:
        request["Placement"] = {"GroupName": plan.name}
    if plan.spot:
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}  # type: ignore[typeddict-item]
    return request


def _tagged(plan: RunSpec, *kinds: str, more: dict[str, str] | None = None) -> list[TagSpecificationTypeDef]:
    tags: list[TagTypeDef] = [{"Key": key, "Value": value} for key, value in (plan.tags | (more or {})).items()]
    return [{"ResourceType": kind, "Tags": tags} for kind in kinds]  # type: ignore[typeddict-item] # those of EC2
