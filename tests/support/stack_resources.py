"""Resources of the template for EC2 that moto's CloudFormation does not have: a secret and a placement group.

moto finds the class of a resource among the subclasses of ``CloudFormationModel``: importing this module adds these.
"""

import secrets
from typing import Any

from moto.core.common_models import CloudFormationModel
from moto.secretsmanager.models import secretsmanager_backends

placement_groups: set[str] = set()
"""The names of the groups of all stacks."""


class Secret(CloudFormationModel):
    """A secret with a generated value."""

    __module__ = "moto.secretsmanager"  # by which moto files its resources

    def __init__(self, arn: str) -> None:
        self.physical_resource_id = arn

    @staticmethod
    def cloudformation_name_type() -> str:
        return "Name"

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::SecretsManager::Secret"

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **_: Any
    ) -> "Secret":
        backend = secretsmanager_backends[account_id][region_name]
        length = cloudformation_json["Properties"]["GenerateSecretString"]["PasswordLength"]
        backend.create_secret(resource_name, secrets.token_hex(length // 2), None, None, [], None, None, [], False)
        return cls(backend.describe_secret(resource_name).arn)

    def delete(self, account_id: str, region_name: str) -> None:
        secretsmanager_backends[account_id][region_name].delete_secret(self.physical_resource_id, None, True)


class PlacementGroup(CloudFormationModel):
    """A placement group, which is only a name."""

    __module__ = "moto.ec2"

    def __init__(self, name: str) -> None:
        self.physical_resource_id = name
        placement_groups.add(name)

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::EC2::PlacementGroup"

    @classmethod
    def create_from_cloudformation_json(cls, resource_name: str, *_: Any, **__: Any) -> "PlacementGroup":
        return cls(resource_name)

    def delete(self, *_: str) -> None:
        placement_groups.discard(self.physical_resource_id)
