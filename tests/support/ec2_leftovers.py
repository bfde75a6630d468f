"""List the resources of an account that cost money or that Crossfade created: none after a run has ended."""

from aws_server import AwsServer


def leftovers(aws: AwsServer) -> list[str]:
    """Return a description of each resource, except for those that moto has from the start."""
    ec2, iam, ssm = aws.client("ec2"), aws.client("iam"), aws.client("ssm")
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
    remaining += [f"placement group {name}" for name in aws.placement_groups]
    remaining += [f"role {role['RoleName']}" for role in iam.list_roles()["Roles"]]
    remaining += [
        f"profile {resource['InstanceProfileName']}" for resource in iam.list_instance_profiles()["InstanceProfiles"]
    ]
    own_parameters = [{"Key": "Name", "Option": "BeginsWith", "Values": ["/crossfade"]}]
    remaining += [
        f"parameter {resource['Name']}"
        for resource in ssm.describe_parameters(ParameterFilters=own_parameters)["Parameters"]
    ]
    requests = ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    remaining += [
        f"spot request {resource['SpotInstanceRequestId']}"
        for resource in requests
        if resource["State"] in {"open", "active"}
    ]
    return remaining
