"""Build the AWS requests that create the resources of a run on EC2. Nothing is sent here.

Every resource gets the run's tags when it is created, so that a cleanup finds it even after a
crash of the client that created it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crossfade.deploy.aws.ec2.run_spec import FIRST_TAG, POLICY, RunSpec, split_uri
from crossfade.deploy.aws.ec2.run_storage import HOST_OBJECTS
from crossfade.deploy.aws.ec2.user_data import user_data
from crossfade.deploy.aws.ecr import EcrImage

if TYPE_CHECKING:
    from mypy_boto3_ec2 import type_defs as ec2
    from mypy_boto3_iam import type_defs as iam
    from mypy_boto3_ssm import type_defs as ssm

HOP_LIMIT = 1
"""Hop limit of the metadata service: the container uses the host's network, and no other may reach the credentials."""
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def placement_group(spec: RunSpec) -> ec2.CreatePlacementGroupRequestTypeDef:
    """Build CreatePlacementGroup: a cluster group, for low latency between hosts."""
    return {"GroupName": spec.name, "Strategy": "cluster", "TagSpecifications": _tagged(spec, "placement-group")}


def security_group(spec: RunSpec, vpc: str) -> ec2.CreateSecurityGroupRequestTypeDef:
    """Build CreateSecurityGroup in the network ``vpc``; no ingress is allowed yet."""
    return {
        "GroupName": spec.name,
        "Description": f"Hosts of the Crossfade run {spec.run}, which reach each other",
        "VpcId": vpc,
        "TagSpecifications": _tagged(spec, "security-group"),
    }


def ingress(group: str) -> ec2.AuthorizeSecurityGroupIngressRequestTypeDef:
    """Build AuthorizeSecurityGroupIngress: members of ``group`` reach each other; no other ingress is allowed."""
    return {"GroupId": group, "IpPermissions": [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]}


def role(spec: RunSpec) -> iam.CreateRoleRequestTypeDef:
    """Build CreateRole."""
    return {
        "RoleName": spec.name,
        "Path": spec.path,
        "AssumeRolePolicyDocument": json.dumps(_TRUST),
        "Description": f"Hosts of the Crossfade run {spec.run}",
        "Tags": _tags(spec.tags),
    }


def role_policy(spec: RunSpec) -> iam.PutRolePolicyRequestTypeDef:
    """Build PutRolePolicy, with the policy of ``host_policy``."""
    return {"RoleName": spec.name, "PolicyName": POLICY, "PolicyDocument": json.dumps(host_policy(spec))}


def host_policy(spec: RunSpec) -> dict[str, object]:
    """Return the IAM policy of a run's hosts: access to its folder, data, token and image, and nothing else.

    What the client writes in the folder, hosts may only read.
    """
    bucket, prefix = split_uri(spec.storage, "the run's folder")
    sources = [spec.data]
    if spec.job["checkpoint"]["warm_start_from"]:
        sources.append(spec.job["checkpoint"]["warm_start_from"])
    sources += spec.job["model"]["start"].values()
    folder = f"arn:{spec.partition}:s3:::{bucket}/{prefix}"
    statements = [
        _allow(["s3:GetObject"], f"{folder}/*"),
        _allow(["s3:PutObject", "s3:AbortMultipartUpload"], [f"{folder}/{name}" for name in HOST_OBJECTS]),
        _allow(["s3:DeleteObject"], f"{folder}/checkpoints/*"),
        _allow(
            ["s3:ListBucket"],
            f"arn:{spec.partition}:s3:::{bucket}",
            {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}},
        ),
        _allow(
            ["ssm:GetParameter"],
            f"arn:{spec.partition}:ssm:{spec.region}:{spec.account}:parameter{spec.token_parameter}",
        ),
    ]
    for uri in sources:
        source, path = split_uri(uri, "the job's data")
        objects = f"{path}/*" if path else "*"
        statements.append(_allow(["s3:GetObject"], f"arn:{spec.partition}:s3:::{source}/{objects}"))
        condition = {"StringLike": {"s3:prefix": [path, objects]}} if path else None
        statements.append(_allow(["s3:ListBucket"], f"arn:{spec.partition}:s3:::{source}", condition))
    image = EcrImage.parse(spec.image)
    if image is not None:
        statements += [
            _allow(["ecr:GetAuthorizationToken"], "*"),
            _allow(
                ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                f"arn:{spec.partition}:ecr:{image.region}:{image.account}:repository/{image.repository}",
            ),
        ]
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(
    actions: list[str], resource: str | list[str], condition: dict[str, dict[str, list[str]]] | None = None
) -> dict[str, object]:
    statement: dict[str, object] = {"Effect": "Allow", "Action": actions, "Resource": resource}
    return statement if condition is None else {**statement, "Condition": condition}


def profile(spec: RunSpec) -> iam.CreateInstanceProfileRequestTypeDef:
    """Build CreateInstanceProfile."""
    return {"InstanceProfileName": spec.name, "Path": spec.path, "Tags": _tags(spec.tags)}


def token_parameter(spec: RunSpec, token: str) -> ssm.PutParameterRequestTypeDef:
    """Build PutParameter: the token by which the hosts authenticate to each other, encrypted."""
    return {
        "Name": spec.token_parameter,
        "Value": token,
        "Type": "SecureString",
        "Description": f"Token of the hosts of the Crossfade run {spec.run}",
        "Tags": _tags(spec.tags),
    }


def run_instances(
    spec: RunSpec, numbers: Sequence[int], *, image: str, root_device: str, group: str, subnet: str | None, token: str
) -> ec2.RunInstancesRequestTypeDef:
    """Build RunInstances for the hosts ``numbers``, which are consecutive: EC2 starts all of them or none.

    ``token`` makes the request idempotent: a retry starts no second instance.
    """
    kinds = ["instance", "volume", "network-interface", *(["spot-instances-request"] if spec.spot else [])]
    tags = _tagged(spec, *kinds, more={FIRST_TAG: str(numbers[0])})
    profile_name = spec.instance_profile or spec.name
    request: ec2.RunInstancesRequestTypeDef = {
        "ClientToken": token,
        "MinCount": len(numbers),
        "MaxCount": len(numbers),
        "ImageId": image,
        "InstanceType": spec.instance_type,  # type: ignore[typeddict-item] # any that EC2 knows
        "IamInstanceProfile": {"Arn": profile_name} if profile_name.startswith("arn:") else {"Name": profile_name},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": HOP_LIMIT},
        "BlockDeviceMappings": [
            {
                "DeviceName": root_device,
                "Ebs": {
                    "VolumeSize": spec.volume_gb,
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "SecurityGroupIds": [group],
        "TagSpecifications": tags,
        "UserData": user_data(spec, numbers[0]),
    }
    if subnet is not None:
        request["SubnetId"] = subnet
    if spec.needs_placement:
        request["Placement"] = {"GroupName": spec.name}
    if spec.spot:
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}  # type: ignore[typeddict-item]
    return request


def _tagged(spec: RunSpec, *kinds: str, more: dict[str, str] | None = None) -> list[ec2.TagSpecificationTypeDef]:
    tags = _tags(spec.tags | (more or {}))
    return [{"ResourceType": kind, "Tags": tags} for kind in kinds]  # type: ignore[typeddict-item] # those of EC2


def _tags(values: dict[str, str]) -> list[Any]:
    return [{"Key": key, "Value": value} for key, value in values.items()]
