"""What there is of runs in an account and region, found by tag and path, and its removal.

    for run in discover(aws): print(run.name, run.living)
    remove(aws, discover(aws, "lastfm-1a2b3c4d"), say)

It needs nothing that the one who started a run has remembered: this is how a crashed client's leftovers are found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from deploy.aws.ec2.spec import FIRST_TAG, JOB_TAG, OWNER_TAG, PATH, POLICY, PREFIX, RUN_TAG, STORAGE_TAG
from deploy.aws.errors import translate_aws_errors
from kvstore.errors import CloudError, CloudRequestError, CrossfadeError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import FilterTypeDef

    from deploy.aws.clients import Aws

REMOVE_SECONDS = 900.0
"""How long instances may take to end, and what they held to be free."""
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
    spot: bool
    reason: str
    """AWS's code of why it is no longer there, as Server.SpotInstanceTermination."""

    @property
    def living(self) -> bool:
        """Whether it costs something, or may again."""
        return self.state in _LIVING


@dataclass
class Resources:
    """What there is of one run."""

    run: str
    tags: dict[str, str] = field(default_factory=dict)
    instances: list[Ec2Instance] = field(default_factory=list)
    security_groups: list[str] = field(default_factory=list)
    placement_groups: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    profiles: dict[str, list[str]] = field(default_factory=dict)
    """The roles of each."""
    roles: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)

    @property
    def living(self) -> list[Ec2Instance]:
        """Its instances that cost something."""
        return [instance for instance in self.instances if instance.living]

    @property
    def owner(self) -> str:
        """The ARN of who submitted it; empty if nothing says so."""
        return self.tags.get(OWNER_TAG, "")

    @property
    def job(self) -> str:
        """The name of its job."""
        return self.tags.get(JOB_TAG, "")

    @property
    def storage(self) -> str:
        """Its folder on S3."""
        return self.tags.get(STORAGE_TAG, "")

    def names(self) -> list[str]:
        """Everything there is of it but for instances that are gone, as people name it."""
        return [
            *(f"instance {instance.id} ({instance.state})" for instance in self.instances if instance.living),
            *(f"volume {name}" for name in self.volumes),
            *(f"security group {name}" for name in self.security_groups),
            *(f"placement group {name}" for name in self.placement_groups),
            *(f"instance profile {name}" for name in self.profiles),
            *(f"role {name}" for name in self.roles),
            *(f"parameter {name}" for name in self.parameters),
        ]


def instances_of(aws: Aws, run: str) -> list[Ec2Instance]:
    """The instances of ``run``, also those that are gone, as long as EC2 remembers them.

    Raises:
        CloudError, RefusedError: AWS does not say.
    """
    with translate_aws_errors(f"looking for the instances of {run}", aws.region):
        return [_instance(instance, tags) for instance, tags in _instances(aws, run)]


def security_group_of(aws: Aws, run: str) -> str:
    """The security group of ``run``.

    Raises:
        CloudError, RefusedError: AWS does not say, or there is none.
    """
    with translate_aws_errors(f"looking for the security group of {run}", aws.region):
        groups = aws.ec2.describe_security_groups(Filters=[_tagged(run)])["SecurityGroups"]
    if not groups:
        raise CloudRequestError(f"the run {run} has no security group any more: somebody is taking it down", "missing")
    return groups[0]["GroupId"]


def find_resources(aws: Aws, run: str | None = None) -> list[Resources]:
    """What there is of ``run``, or of all runs, in the region.

    Raises:
        CloudError, RefusedError: AWS does not say.
    """
    found: dict[str, Resources] = {}

    def of(name: str, tags: dict[str, str] | None = None) -> Resources:
        resources = found.setdefault(name, Resources(name))
        resources.tags |= tags or {}
        return resources

    with translate_aws_errors("looking for what there is of runs", aws.region):
        _discover_on_ec2(aws, run, of)
        _discover_in_iam(aws, run, of)
        for name in _parameters(aws, run):
            of(name.split("/")[2]).parameters.append(name)
    return [found[name] for name in sorted(found)]


def _discover_on_ec2(aws: Aws, run: str | None, of: Callable[..., Resources]) -> None:
    tagged = _tagged(run)
    for instance, tags in _instances(aws, run):
        of(tags[RUN_TAG], tags).instances.append(_instance(instance, tags))
    for group in aws.ec2.describe_security_groups(Filters=[tagged])["SecurityGroups"]:
        of(_tags(group)[RUN_TAG], _tags(group)).security_groups.append(group["GroupId"])
    for placement in aws.ec2.describe_placement_groups(Filters=[tagged])["PlacementGroups"]:
        if placement.get("State") != "deleted":
            of(_tags(placement)[RUN_TAG], _tags(placement)).placement_groups.append(placement["GroupName"])
    for volume in aws.ec2.describe_volumes(Filters=[tagged])["Volumes"]:
        if volume["State"] == "available":  # the others go with their instances
            of(_tags(volume)[RUN_TAG]).volumes.append(volume["VolumeId"])


def _tagged(run: str | None) -> FilterTypeDef:
    return {"Name": f"tag:{RUN_TAG}", "Values": [run or "*"]}


def _instances(aws: Aws, run: str | None) -> Iterator[tuple[Any, dict[str, str]]]:
    for page in aws.ec2.get_paginator("describe_instances").paginate(Filters=[_tagged(run)]):
        for reservation in page["Reservations"]:
            for instance in reservation["Instances"]:
                yield instance, _tags(instance)


def _discover_in_iam(aws: Aws, run: str | None, of: Callable[..., Resources]) -> None:
    path = f"{PATH}{aws.region}/"

    def is_wanted(name: str) -> bool:
        return name == f"{PREFIX}{run}" if run else name.startswith(PREFIX)

    for page in aws.iam.get_paginator("list_instance_profiles").paginate(PathPrefix=path):
        for profile in page["InstanceProfiles"]:
            name = profile["InstanceProfileName"]
            if is_wanted(name):
                roles = [role["RoleName"] for role in profile["Roles"]]
                of(name.removeprefix(PREFIX)).profiles[name] = roles
    for roles_page in aws.iam.get_paginator("list_roles").paginate(PathPrefix=path):
        for role in roles_page["Roles"]:
            name = role["RoleName"]
            if is_wanted(name):
                tags = _tags({"Tags": aws.iam.list_role_tags(RoleName=name)["Tags"]})
                of(name.removeprefix(PREFIX), tags).roles.append(name)


def _parameters(aws: Aws, run: str | None) -> Iterator[str]:
    prefix = f"{PATH}{run}/" if run else PATH
    pages = aws.ssm.get_paginator("describe_parameters").paginate(
        ParameterFilters=[{"Key": "Name", "Option": "BeginsWith", "Values": [prefix]}]
    )
    for page in pages:
        for parameter in page["Parameters"]:
            if parameter["Name"].count("/") == 3:
                yield parameter["Name"]


def _instance(instance: Any, tags: dict[str, str]) -> Ec2Instance:
    return Ec2Instance(
        id=instance["InstanceId"],
        number=int(tags.get(FIRST_TAG, "0")) + instance.get("AmiLaunchIndex", 0),
        state=instance["State"]["Name"],
        type=instance["InstanceType"],
        subnet=instance.get("SubnetId", ""),
        launched=str(instance["LaunchTime"]),
        spot=instance.get("InstanceLifecycle") == "spot",
        reason=instance.get("StateReason", {}).get("Code", ""),
    )


def _tags(described: Any) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in described.get("Tags", [])}


def remove(aws: Aws, resources: Resources, say: Callable[[str], None], poll_seconds: float = _POLL_SECONDS) -> None:
    """End the run's instances, and delete all there is of it but its folder on S3.

    What cannot be removed does not keep the rest from being removed.

    Raises:
        CloudError: not all could be removed; the message says what is left.
    """
    ids = [instance.id for instance in resources.instances if instance.state != "terminated"]
    left: list[str] = []
    deadline = time.monotonic() + REMOVE_SECONDS

    def gone(what: str, delete: Callable[[], object]) -> None:
        try:
            _delete(aws, what, delete, deadline, poll_seconds)
        except CrossfadeError as error:
            left.append(str(error))

    if ids:
        say(f"ending {len(ids)} instance(s)")
        gone("ending instances", partial(aws.ec2.terminate_instances, InstanceIds=ids))
        gone("waiting for the end of instances", partial(_wait_until_terminated, aws, ids, deadline, poll_seconds))
    for volume in resources.volumes:
        gone(f"deleting volume {volume}", partial(aws.ec2.delete_volume, VolumeId=volume))
    for group in resources.security_groups:
        gone(f"deleting security group {group}", partial(aws.ec2.delete_security_group, GroupId=group))
    for group in resources.placement_groups:
        gone(f"deleting placement group {group}", partial(aws.ec2.delete_placement_group, GroupName=group))
    _remove_from_iam(aws, resources, gone)
    for name in resources.parameters:
        gone(f"deleting parameter {name}", partial(aws.ssm.delete_parameter, Name=name))
    if left:
        raise CloudError(
            f"not all of the run {resources.run} could be removed; 'crossfade submit ec2 --cleanup {resources.run}' "
            f"tries again: {'; '.join(left)}",
            "fault",
        )


def _remove_from_iam(aws: Aws, resources: Resources, gone: Callable[[str, Callable[[], object]], None]) -> None:
    iam = aws.iam
    for profile, roles in resources.profiles.items():
        for role in roles:
            leave = partial(iam.remove_role_from_instance_profile, InstanceProfileName=profile, RoleName=role)
            gone(f"taking role {role} from its profile", leave)
        gone(f"deleting instance profile {profile}", partial(iam.delete_instance_profile, InstanceProfileName=profile))
    for role in resources.roles:
        policy = partial(iam.delete_role_policy, RoleName=role, PolicyName=POLICY)
        gone(f"deleting the policy of role {role}", policy)
        gone(f"deleting role {role}", partial(iam.delete_role, RoleName=role))


def _delete(aws: Aws, what: str, delete: Callable[[], object], deadline: float, poll_seconds: float) -> None:
    """Call ``delete`` until it is done, or nothing is there to delete; wait while something else still uses it."""
    while True:
        try:
            with translate_aws_errors(what, aws.region):
                delete()
            return
        except CloudRequestError as error:
            if error.kind == "missing":
                return
            if error.code not in _IN_USE or time.monotonic() > deadline:
                raise
        time.sleep(poll_seconds)


def _wait_until_terminated(aws: Aws, ids: list[str], deadline: float, poll_seconds: float) -> None:
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
        time.sleep(poll_seconds)
