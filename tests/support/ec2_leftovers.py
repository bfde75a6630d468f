"""List the resources of an account that cost money or that Crossfade created: none after a run has ended."""

from aws_server import AwsServer


def leftovers(aws: AwsServer) -> list[str]:
    """Return a description of each resource, except for those that moto has from the start."""
    ec2, iam = aws.client("ec2"), aws.client("iam")
    remaining = [
        f"instance {instance['InstanceId']} ({instance['State']['Name']})"
        for reservation in ec2.describe_instances()["Reservations"]
        for instance in reservation["Instances"]
        if instance["State"]["Name"] != "terminated"
    ]
    remaining += [f"volume {volume['VolumeId']}" for volume in ec2.describe_volumes()["Volumes"]]
    groups = ec2.describe_security_groups()["SecurityGroups"]
    remaining += [f"security group {group['GroupName']}" for group in groups if group["GroupName"] != "default"]
    interfaces = ec2.describe_network_interfaces()["NetworkInterfaces"]
    remaining += [
        f"network interface {resource['NetworkInterfaceId']}"
        for resource in interfaces
        if resource["Status"] == "available"
    ]
    remaining += [f"role {role['RoleName']}" for role in iam.list_roles()["Roles"]]
    remaining += [
        f"profile {resource['InstanceProfileName']}" for resource in iam.list_instance_profiles()["InstanceProfiles"]
    ]
    secrets = aws.client("secretsmanager").list_secrets()["SecretList"]
    remaining += [f"secret {resource['Name']}" for resource in secrets]
    templates = ec2.describe_launch_templates()["LaunchTemplates"]
    remaining += [f"launch template {resource['LaunchTemplateName']}" for resource in templates]
    scaling = aws.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    remaining += [f"Auto Scaling group {resource['AutoScalingGroupName']}" for resource in scaling]
    stacks = aws.client("cloudformation").describe_stacks()["Stacks"]
    remaining += [f"stack {resource['StackName']}" for resource in stacks]
    return remaining
