"""Options of ``crossfade submit ec2``, and the run that they specify."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from crossfade.cli.options.aws import add_account_options
from crossfade.cli.options.job import add_job, add_sizes, load_job_arguments

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws
    from crossfade.deploy.aws.ec2.spec import RunSpec

_DEFAULT_HOURS, _DEFAULT_VOLUME_GIB = 24.0, 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options to ``parser``."""
    _add_action_options(parser)
    _add_job_options(parser)
    _add_instance_options(parser)
    add_account_options(parser)


def _add_action_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("action")
    action = group.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="print every request, and send none")
    action.add_argument("--detach", action="store_true", help="launch the run, and do not follow it")
    action.add_argument("--follow", metavar="RUN", help="follow a detached run, and delete its cluster at the end")
    action.add_argument("--list", action="store_true", help="list the runs that have instances or leftovers")
    action.add_argument(
        "--cleanup",
        nargs="?",
        const="",
        metavar="RUN",
        help="end RUN and delete everything but its folder on S3; without RUN: delete the leftovers of your own runs "
        "without instances",
    )
    group.add_argument(
        "--poll-seconds", type=float, default=5.0, metavar="SECONDS", help="poll the run at this interval (default: 5)"
    )


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("job")
    add_job(group, optional=True)
    add_sizes(group, "servers", "workers", default=" (default: the number of hosts)")
    group.add_argument("--output", metavar="URI", help="create the run's folder below s3://BUCKET/PREFIX (required)")
    group.add_argument("--image", metavar="URI", help="run this container image (default: crossfade:VARIANT in ECR)")


def _add_instance_options(parser: argparse.ArgumentParser) -> None:
    from crossfade.deploy.aws.accelerators import DEFAULT_EC2_TYPE

    group = parser.add_argument_group("instances")
    group.add_argument(
        "--instance-type", default=DEFAULT_EC2_TYPE, metavar="TYPE", help="launch this type (default: %(default)s)"
    )
    group.add_argument("--hosts", type=int, default=1, metavar="N", help="launch N instances (default: 1)")
    group.add_argument("--spot", action="store_true", help="use spot instances, which cost less and may be interrupted")
    group.add_argument(
        "--max-hours",
        type=float,
        default=_DEFAULT_HOURS,
        metavar="H",
        help="terminate each instance after H hours in any case (default: %(default)g)",
    )
    group.add_argument("--subnet", metavar="ID", help="launch in this subnet (default: one of the default network)")
    group.add_argument("--ami", metavar="ID", help="boot this machine image with Docker (default: the newest of ECS)")
    group.add_argument(
        "--instance-profile",
        metavar="NAME",
        help="use this instance profile, a name or ARN (default: create one, and delete it)",
    )
    group.add_argument(
        "--volume-gb",
        type=int,
        default=_DEFAULT_VOLUME_GIB,
        metavar="N",
        help="attach an encrypted disk of N GiB (default: %(default)s)",
    )


def make_spec(arguments: argparse.Namespace, region: str, aws: Aws | None) -> RunSpec:
    """Build the specification of the run; without ``aws``, with placeholders for the account.

    Raises:
        InputError: an option or the job is invalid.
        CloudError, CloudRequestError: AWS did not identify the caller.
    """
    from crossfade.base.errors import InputError
    from crossfade.deploy.aws.accelerators import variant_of
    from crossfade.deploy.aws.ec2.spec import RunSpec, cluster_job, new_run_name, split_uri
    from crossfade.deploy.aws.job_checks import check_device

    if arguments.output is None:
        raise InputError(
            "--output is missing: name where the run's folder is created, as in --output s3://BUCKET/PREFIX"
        )
    bucket, prefix = split_uri(arguments.output, "--output")
    _check_ranges(arguments)
    job = load_job_arguments(arguments, "servers", "workers")
    check_device(job, arguments.instance_type)
    # An image of the user's own may have any engine.
    variant = variant_of(arguments.instance_type, "auto" if arguments.image else job.train.engine)
    name = new_run_name(job.name)
    storage = "/".join(filter(None, [f"s3://{bucket}", prefix, name]))
    values = cluster_job(job, arguments.hosts, storage)
    account, owner = identify_caller(aws) if aws else ("ACCOUNT", "OWNER")
    domain = aws.domain if aws else "amazonaws.com"
    return RunSpec(
        run=name,
        region=region,
        partition=aws.partition if aws else "aws",
        domain=domain,
        account=account,
        owner=owner,
        job=values,
        storage=storage,
        data=values["data"]["path"],
        image=arguments.image or f"{account}.dkr.ecr.{region}.{domain}/crossfade:{variant}",
        variant=variant,
        instance_type=arguments.instance_type,
        hosts=arguments.hosts,
        spot=arguments.spot,
        max_hours=arguments.max_hours,
        volume_gib=arguments.volume_gb,
        ami=arguments.ami,
        subnet=arguments.subnet,
        poll_seconds=arguments.poll_seconds,
        instance_profile=arguments.instance_profile,
    )


def _check_ranges(arguments: argparse.Namespace) -> None:
    from crossfade.base.errors import InputError
    from crossfade.deploy.aws.ec2.spec import MAX_HOURS

    for option, value, minimum, maximum in (
        ("--hosts", arguments.hosts, 1, 1000),
        ("--max-hours", arguments.max_hours, 0.05, MAX_HOURS),
        ("--volume-gb", arguments.volume_gb, 30, 16384),
        ("--poll-seconds", arguments.poll_seconds, 0.1, 600),
    ):
        if not minimum <= value <= maximum:
            raise InputError(f"{option}: expected {minimum:g} to {maximum:g}, but found {value:g}")


def identify_caller(aws: Aws) -> tuple[str, str]:
    """Return the account and the ARN of the caller; of an assumed role without the session's name, which changes.

    Raises:
        CloudError, CloudRequestError: AWS did not identify the caller.
    """
    from crossfade.deploy.aws.errors import translate_aws_errors

    account = aws.account()
    with translate_aws_errors("asking whose the credentials are", aws.region):
        arn = aws.sts.get_caller_identity()["Arn"]
    return account, "/".join(arn.split("/")[:2]) if ":assumed-role/" in arn else arn
