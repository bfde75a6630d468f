"""Find the AWS resources of runs by tag and path, and delete them.

    for resources in find_resources(aws):
        print(resources.run, resources.live_instances)
        remove(aws, resources, print)

It needs no state of the client that started a run, so it also finds what a crashed client left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import CrossfadeError, command
from crossfade.base.text import counted
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError, translate_aws_errors
from crossfade.deploy.aws.ec2.run_spec import (
    FIRST_TAG,
    OWNER_TAG,
    PATH,
    POLICY,
    PREFIX,
    RUN_TAG,
    SPEC_TAG,
    STORAGE_TAG,
)

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import FilterTypeDef

    from crossfade.deploy.aws.clients import Aws

REMOVE_SECONDS = 900.0
"""Time for instances to terminate and to release their resources."""
_POLL_SECONDS = 3.0
_LIVING = ("pending", "running", "stopping", "stopped")
_IN_USE = {"DependencyViolation", "InvalidGroup.InUse", "InvalidPlacementGroup.InUse", "DeleteConflict", "VolumeInUse"}


@dataclass(frozen=True)
class Ec2Instance:
    """One instance of a run, which is its host number ``number``."""

    id: str
    number: int
    state: str
    type: str
    subnet: str
    launched: str
    reason: str
    """AWS's code of the reason why it stopped, as in Server.SpotInstanceTermination."""

    @property
    def is_live(self) -> bool:
        """Whether it costs money, or may again."""
        return self.state in _LIVING


@dataclass
class Resources:
    """The AWS resources of one run."""

    run: str
    tags: dict[str, str] = field(default_factory=dict)
    instances: list[Ec2Instance] = field(default_factory=list)
    others: list[tuple[str, Sequence[Callable[[], object]]]] = field(default_factory=list)
    """Each of the others with the requests that delete it, in the order of deletion."""

    @property
    def live_instances(self) -> list[Ec2Instance]:
        """The instances that cost money."""
        return [instance for instance in self.instances if instance.is_live]

    @property
    def owner(self) -> str:
        """The ARN of the user who submitted the run; empty if unknown."""
        return self.tags.get(OWNER_TAG, "")

    @property
    def storage(self) -> str:
        """The URI of its folder on S3; empty if unknown."""
        return self.tags.get(STORAGE_TAG, "")

    @property
    def spec_digest(self) -> str:
        """The digest of its specification; empty if unknown."""
        return self.tags.get(SPEC_TAG, "")


def find_instances(aws: Aws, run: str) -> list[Ec2Instance]:
    """Return the instances of ``run``. EC2 lists terminated ones for about an hour.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or rejects the request.
    """
    with translate_aws_errors(f"looking for the instances of {run}", aws.region):
        return [_instance(instance, tags) for instance, tags in _instances(aws, run)]


def find_security_group(aws: Aws, run: str) -> str:
    """Return the ID of the security group of ``run``.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or there is none.
    """
    with translate_aws_errors(f"looking for the security group of {run}", aws.region):
        groups = aws.ec2.describe_security_groups(Filters=[_tagged(run)])["SecurityGroups"]
    if not groups:
        raise CloudRequestError(f"the run {run} has no security group: it is being cleaned up", "missing")
    return groups[0]["GroupId"]


def find_resources(aws: Aws, run: str | None = None) -> list[Resources]:
    """Return the resources of ``run``, or of all runs, in the region.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or rejects the request.
    """
    found: dict[str, Resources] = {}

    def of(name: str, tags: dict[str, str]) -> Resources:
        resources = found.setdefault(name, Resources(name))
        resources.tags |= tags
        return resources

    with translate_aws_errors("looking for the resources of runs", aws.region):
        for instance, tags in _instances(aws, run):
            of(tags[RUN_TAG], tags).instances.append(_instance(instance, tags))
        for name, tags, description, *deletions in chain(
            _find_in_ec2(aws, run), _find_in_iam(aws, run), _parameters(aws, run)
        ):
            of(name or tags[RUN_TAG], tags).others.append((description, deletions))
    return [found[name] for name in sorted(found)]


def _find_in_ec2(aws: Aws, run: str | None) -> Iterator[Any]:
    """Yield no name, the tags, a description, and the deletion of each resource but instances."""
    ec2, tagged = aws.ec2, _tagged(run)
    for volume in ec2.describe_volumes(Filters=[tagged])["Volumes"]:
        if volume["State"] == "available":  # attached volumes are deleted with their instances
            name = volume["VolumeId"]
            yield None, _tags(volume), f"volume {name}", partial(ec2.delete_volume, VolumeId=name)
    for group in ec2.describe_security_groups(Filters=[tagged])["SecurityGroups"]:
        name = group["GroupId"]
        yield None, _tags(group), f"security group {name}", partial(ec2.delete_security_group, GroupId=name)
    for placement in ec2.describe_placement_groups(Filters=[tagged])["PlacementGroups"]:
        if placement.get("State") != "deleted":
            name = placement["GroupName"]
            delete = partial(ec2.delete_placement_group, GroupName=name)
            yield None, _tags(placement), f"placement group {name}", delete


def _tagged(run: str | None) -> FilterTypeDef:
    return {"Name": f"tag:{RUN_TAG}", "Values": [run or "*"]}


def _instances(aws: Aws, run: str | None) -> Iterator[tuple[Any, dict[str, str]]]:
    for page in aws.ec2.get_paginator("describe_instances").paginate(Filters=[_tagged(run)]):
        for reservation in page["Reservations"]:
            for instance in reservation["Instances"]:
                yield instance, _tags(instance)


def _find_in_iam(aws: Aws, run: str | None) -> Iterator[Any]:
    """Yield the name of the run, tags, a description, and deletions of each profile and role."""
    iam, path = aws.iam, f"{PATH}{aws.region}/"

    def is_match(name: str) -> bool:
        return name == f"{PREFIX}{run}" if run else name.startswith(PREFIX)

    for page in iam.get_paginator("list_instance_profiles").paginate(PathPrefix=path):
        for profile in page["InstanceProfiles"]:
            name = profile["InstanceProfileName"]
            if is_match(name):
                of_profile = {"InstanceProfileName": name}
                detach = [
                    partial(iam.remove_role_from_instance_profile, RoleName=role["RoleName"], **of_profile)
                    for role in profile["Roles"]
                ]
                delete = partial(iam.delete_instance_profile, **of_profile)
                yield name.removeprefix(PREFIX), {}, f"instance profile {name}", *detach, delete
    for roles_page in iam.get_paginator("list_roles").paginate(PathPrefix=path):
        for role in roles_page["Roles"]:
            name = role["RoleName"]
            if is_match(name):
                tags = _tags({"Tags": iam.list_role_tags(RoleName=name)["Tags"]})
                policy = partial(iam.delete_role_policy, RoleName=name, PolicyName=POLICY)
                yield name.removeprefix(PREFIX), tags, f"role {name}", policy, partial(iam.delete_role, RoleName=name)


def _parameters(aws: Aws, run: str | None) -> Iterator[Any]:
    prefix = f"{PATH}{run}/" if run else PATH
    pages = aws.ssm.get_paginator("describe_parameters").paginate(
        ParameterFilters=[{"Key": "Name", "Option": "BeginsWith", "Values": [prefix]}]
    )
    for page in pages:
        for name in (parameter["Name"] for parameter in page["Parameters"]):
            if name.count("/") == 3:
                yield name.split("/")[2], {}, f"parameter {name}", partial(aws.ssm.delete_parameter, Name=name)


def _instance(instance: Any, tags: dict[str, str]) -> Ec2Instance:
    return Ec2Instance(
        id=instance["InstanceId"],
        number=int(tags.get(FIRST_TAG, "0")) + instance.get("AmiLaunchIndex", 0),
        state=instance["State"]["Name"],
        type=instance["InstanceType"],
        subnet=instance.get("SubnetId", ""),
        launched=str(instance["LaunchTime"]),
        reason=instance.get("StateReason", {}).get("Code", ""),
    )


def _tags(described: Any) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in described.get("Tags", [])}


def remove(aws: Aws, resources: Resources, log: Callable[[str], None]) -> None:
    """Terminate the run's instances and delete its resources, except for its folder on S3.

    A resource that cannot be deleted does not keep the others from being deleted.

    Raises:
        CloudError: some resources are left; the message lists them.
    """
    ids = [instance.id for instance in resources.instances if instance.state != "terminated"]
    left: list[str] = []
    deadline = time.monotonic() + REMOVE_SECONDS

    def attempt(action: str, delete: Callable[[], object]) -> None:
        try:
            _delete(aws, action, delete, deadline)
        except CrossfadeError as error:
            left.append(str(error))

    if ids:
        log(f"terminating {counted(len(ids), 'instance')}")
        attempt("terminating instances", partial(aws.ec2.terminate_instances, InstanceIds=ids))
        wait = partial(_wait_until_terminated, aws, ids, deadline)
        attempt("waiting for the instances to terminate", wait)
    for description, deletions in resources.others:
        for delete in deletions:
            attempt(f"deleting {description}", delete)
    if left:
        raise CloudError(
            f"cannot delete all resources of the run {resources.run}; retry with "
            f"{command('submit ec2', cleanup=resources.run)}: {'; '.join(left)}",
            "fault",
        )


def _wait_until_terminated(aws: Aws, ids: list[str], deadline: float) -> None:
    """Wait for instances. Boto3's waiter fails if one is still pending or stopping, as right after its termination."""
    while True:
        pages = aws.ec2.get_paginator("describe_instances").paginate(InstanceIds=ids)
        states = {
            instance["InstanceId"]: instance["State"]["Name"]
            for page in pages
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        }
        left = [f"{name} ({state})" for name, state in states.items() if state != "terminated"]
        if not left:
            return
        if time.monotonic() > deadline:
            raise CloudError(f"still there after {REMOVE_SECONDS:.0f} s: {', '.join(left)}", "fault")
        time.sleep(_POLL_SECONDS)


def _delete(aws: Aws, action: str, delete: Callable[[], object], deadline: float) -> None:
    """Call ``delete`` until it succeeds or there is nothing to delete; wait while the resource is in use."""
    while True:
        try:
            with translate_aws_errors(action, aws.region):
                delete()
            return
        except CloudRequestError as error:
            if error.kind == "missing":
                return
            if error.code not in _IN_USE or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)
