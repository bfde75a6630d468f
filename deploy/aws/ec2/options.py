"""Options of ``crossfade submit ec2``, and of the command that its instances run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from crossfade.base.options import Integer, Number, Options, option
from crossfade.deploy.aws.clients import AccountOptions
from crossfade.trainer.config.options import Roles

MAX_HOURS = 30 * 24

_instances = partial(option, group="instances")
_action = partial(option, group="action")
_job = partial(option, group="job")
_host = partial(option, group="host")


class SubmitEc2Options(AccountOptions, Roles):
    """The job to run on EC2 and its instances, or what to do with runs that exist."""

    one_of = (("job", "follow", "list", "cleanup"),)
    at_most_one = (("dry_run", "detach", "follow", "list", "cleanup"),)

    instance_type: str = _instances("g4dn.xlarge", "launch this type", value="TYPE")
    hosts: Integer = _instances(1, "launch N instances", value="N", ge=1, le=1000)
    spot: bool = _instances(False, "use spot instances, which cost less and may be interrupted")
    max_hours: Number = _instances(
        24.0, "terminate all instances after H hours in any case", value="H", ge=0.25, le=MAX_HOURS
    )
    subnet: str | None = _instances(None, "launch in this subnet (default: of the default network)", value="ID")
    ami: str | None = _instances(None, "boot this machine image with Docker (default: the newest of ECS)", value="ID")
    instance_profile: str | None = _instances(
        None, "use this instance profile, a name or ARN (default: create one, and delete it)", value="NAME"
    )
    volume_gb: Integer = _instances(100, "attach an encrypted disk of N GiB", value="N", ge=30, le=16384)
    poll_seconds: Number = _action(5.0, "poll the run at this interval", value="SECONDS", ge=0.1, le=600)
    output: str | None = _job(None, "create the run's folder below s3://BUCKET/PREFIX (required)", value="URI")
    image: str | None = _job(None, "run this container image (default: crossfade:VARIANT in ECR)", value="URI")
    dry_run: bool = _action(False, "print the requests that create something, and send none")
    detach: bool = _action(False, "launch the run, and do not follow it")
    follow: str | None = _action(None, "follow a detached run, and delete its cluster at the end", value="RUN")
    list: bool = _action(False, "list the runs that have a cluster")
    cleanup: str | None = _action(None, "end RUN, and delete everything but its folder on S3 and its log", value="RUN")


class Ec2HostOptions(Options):
    """The run on EC2 whose host this is."""

    storage: str = _host(..., "read and write the run in this folder on S3", value="URI")
    token_secret: str = _host(..., "read the hosts' token from this secret of AWS Secrets Manager", value="NAME")
    role: Literal["head", "worker"] = _host(..., "run the coordinator (head), or join it")
    address: str = _host(..., "announce this address to the other hosts", value="A")
    ends: str = _host(..., "stop the run after a checkpoint before this time, as in 2026-03-01T12:00:00Z", value="TIME")
    poll_seconds: Number = _host(5.0, "read the run's folder at this interval", value="SECONDS")
    run_dir: Path = _host(..., "use DIR as run folder on this host", value="DIR")
