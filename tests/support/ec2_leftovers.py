"""List the resources of an account that cost money or that Crossfade created: none after a run has ended."""

from aws_server import AwsServer

_KINDS = (
    ("instance", "ec2", "describe_instances", "Reservations[].Instances[?State.Name != 'terminated'][].InstanceId"),
    ("volume", "ec2", "describe_volumes", "Volumes[].VolumeId"),
    ("security group", "ec2", "describe_security_groups", "SecurityGroups[?GroupName != 'default'].GroupName"),
    (
        "network interface",
        "ec2",
        "describe_network_interfaces",
        "NetworkInterfaces[?Status == 'available'].NetworkInterfaceId",
    ),
    ("role", "iam", "list_roles", "Roles[].RoleName"),
    ("profile", "iam", "list_instance_profiles", "InstanceProfiles[].InstanceProfileName"),
    ("secret", "secretsmanager", "list_secrets", "SecretList[].Name"),
    ("launch template", "ec2", "describe_launch_templates", "LaunchTemplates[].LaunchTemplateName"),
    ("Auto Scaling group", "autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups[].AutoScalingGroupName"),
    ("stack", "cloudformation", "describe_stacks", "Stacks[].StackName"),
)
"""Each kind with its service, the call that lists its resources, and the path of their names in the answer."""


def leftovers(aws: AwsServer) -> list[str]:
    """Return a description of each resource, except for those that moto has from the start."""
    return [
        f"{kind} {name}"
        for kind, service, call, names in _KINDS
        for name in aws.client(service).get_paginator(call).paginate().search(names)
    ]
