"""Options of ``crossfade submit ec2``, and of the command that its instances run."""

from __future__ import annotations

from pathlib import Path

from crossfade.base.options import Integer, Number, Options, option
from crossfade.deploy.aws.options import DEFAULT_EC2_TYPE, AccountOptions
from crossfade.trainer.config.options import Roles

MAX_HOURS = 30 * 24


class Ec2Instances(Options):
    """The instances of a run, and how often its state is read."""

    instance_type: str = option(DEFAULT_EC2_TYPE, "launch this type", group="instances", value="TYPE")
    hosts: Integer = option(1, "launch N instances", group="instances", value="N", ge=1, le=1000)
    spot: bool = option(False, "use spot instances, which cost less and may be interrupted", group="instances")
    max_hours: Number = option(
        24.0,
        "terminate each instance after H hours in any case",
        group="instances",
        value="H",
        ge=0.05,
        le=MAX_HOURS,
    )
    subnet: str | None = option(
        None, "launch in this subnet (default: one of the default network)", group="instances", value="ID"
    )
    ami: str | None = option(
        None, "boot this machine image with Docker (default: the newest of ECS)", group="instances", value="ID"
    )
    instance_profile: str | None = option(
        None,
        "use this instance profile, a name or ARN (default: create one, and delete it)",
        group="instances",
        value="NAME",
    )
    volume_gb: Integer = option(100, "attach an encrypted disk of N GiB", group="instances", value="N", ge=30, le=16384)
    poll_seconds: Number = option(5.0, "poll the run at this interval", group="action", value="SECONDS", ge=0.1, le=600)


class SubmitEc2Options(Ec2Instances, AccountOptions, Roles):
    """The job to run on EC2 and its instances, or what to do with runs that exist."""

    one_of = (("job", "follow", "list", "cleanup"),)
    at_most_one = (("dry_run", "detach", "follow", "list", "cleanup"),)

    output: str | None = option(
        None, "create the run's folder below s3://BUCKET/PREFIX (required)", group="job", value="URI"
    )
    image: str | None = option(
        None, "run this container image (default: crossfade:VARIANT in ECR)", group="job", value="URI"
    )
    dry_run: bool = option(False, "print every request, and send none", group="action")
    detach: bool = option(False, "launch the run, and do not follow it", group="action")
    follow: str | None = option(
        None, "follow a detached run, and delete its cluster at the end", group="action", value="RUN"
    )
    list: bool = option(False, "list the runs that have instances or leftovers", group="action")
    cleanup: str | None = option(
        None,
        "end RUN and delete everything but its folder on S3; without RUN: delete the leftovers of your own runs "
        "without instances",
        group="action",
        value="RUN",
        without_value="",
    )


class Ec2HostOptions(Options):
    """The run on EC2 whose host this is."""

    storage: str = option(..., "read and write the run in this folder on S3", group="host", value="URI")
    number: Integer = option(..., "run as this host of the run, from 0", group="host", value="N", ge=0)
    token_parameter: str = option(..., "read the hosts' token from this SSM parameter", group="host", value="NAME")
    run_dir: Path = option(..., "use DIR as run folder on this host", group="host", value="DIR")
