"""The secret of the template for EC2, a resource that moto's CloudFormation does not have.

moto finds the class of a resource among the subclasses of ``CloudFormationModel``: importing this module adds one.
"""

import secrets
from typing import Any

from moto.core.common_models import CloudFormationModel
from moto.secretsmanager.models import secretsmanager_backends


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
