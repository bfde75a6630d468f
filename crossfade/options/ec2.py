"""What the words of ``crossfade submit ec2`` make of a job: the plan of its run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from crossfade.options.job import load_job_arguments

if TYPE_CHECKING:
    from deploy.aws.clients import Aws
    from deploy.aws.ec2.spec import RunSpec


def make_plan(arguments: argparse.Namespace, region: str, aws: Aws | None) -> RunSpec:
    """What the command line asks for; without ``aws``, for an account that is not known.

    Raises:
        InputError: it asks for something that cannot be.
        CloudError, RefusedError: AWS does not say whose the credentials are.
    """
    from deploy.aws.accelerators import variant_of
    from deploy.aws.ec2.spec import MAX_HOURS, RunSpec, cluster_job, new_run_name, split_uri
    from kvstore.errors import InputError

    if arguments.output is None:
        raise InputError(
            "--output is missing: where on S3 the run's folder is to be made, as --output s3://BUCKET/PREFIX"
        )
    bucket, prefix = split_uri(arguments.output, "--output")
    for option, value, least, most in (
        ("--hosts", arguments.hosts, 1, 1000),
        ("--max-hours", arguments.max_hours, 0.05, MAX_HOURS),
        ("--volume-gb", arguments.volume_gb, 30, 16384),
        ("--poll-seconds", arguments.poll_seconds, 0.1, 600),
    ):
        if not least <= value <= most:
            raise InputError(f"{option}: expected {least:g} to {most:g}, but found {value:g}")
    job = load_job_arguments(arguments, "servers", "workers")
    variant = variant_of(arguments.instance_type)
    name = new_run_name(job.name)
    storage = "/".join(filter(None, [f"s3://{bucket}", prefix, name]))
    values = cluster_job(job, arguments.hosts, storage)
    account, owner = whose(aws) if aws else ("ACCOUNT", "OWNER")
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


def whose(aws: Aws) -> tuple[str, str]:
    """The account, and the ARN of who uses it: of a role without the session's name, which changes.

    Raises:
        CloudError, RefusedError: AWS does not say.
    """
    from deploy.aws.errors import translate_aws_errors

    account = aws.account()
    with translate_aws_errors("asking whose the credentials are", aws.region):
        arn = aws.sts.get_caller_identity()["Arn"]
    return account, "/".join(arn.split("/")[:2]) if ":assumed-role/" in arn else arn
