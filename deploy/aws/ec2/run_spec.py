"""The specification of a run on EC2: everything that is decided before the first request creates anything."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import InputError, Option, OptionError, Text, command
from crossfade.deploy.aws.accelerators import Variant, check_device, variant_of
from crossfade.deploy.aws.ec2.options import SubmitEc2Options
from crossfade.deploy.topology import UNPLACED, sizes_on_hosts
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

_BUCKET_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9._=+@:-]+)*)/?")
_ARM = re.compile(r"(a1|[a-z]+[0-9]+[a-z]*g[a-z]*(-[a-z0-9]+)?)\..*")
"""Types with Graviton: by AWS's naming, a g after the number of the generation means Arm."""


@dataclass(frozen=True)
class RunSpec:
    """One run: its options, its name, its files, and its end."""

    options: SubmitEc2Options
    run: str
    ends: datetime
    job: dict[str, Any]
    """The job of the head, which adds its address."""
    storage: str
    """The run's folder on S3, as s3://BUCKET/PREFIX/RUN."""
    image: str
    variant: Variant

    @property
    def sources(self) -> list[str]:
        """The URIs that its hosts read."""
        warm_start = self.job["checkpoint"]["warm_start_from"]
        return [self.job["data"]["path"], *([warm_start] if warm_start else [])]


def make_spec(options: SubmitEc2Options, aws: Aws) -> RunSpec:
    """Return the specification of the run; in a dry run, with a placeholder for the account.

    Raises:
        InputError: an option or the job is invalid.
        CloudError, CloudRequestError: AWS did not identify the caller.
    """
    if options.output is None:
        fix = ("name where the run's folder is created, as in ", Option("output", "s3://BUCKET/PREFIX"))
        raise OptionError("output", problem="is missing", fix=fix)
    bucket, prefix = split_uri(options.output, Option("output"))
    job = options.load_job()
    check_device(job, options.instance_type)
    if _ARM.fullmatch(options.instance_type) and not (options.image and options.ami):
        raise InputError(
            f"{options.instance_type} has an Arm processor, on which the images that are chosen by default do not run; "
            "name both with ",
            Option("image"),
            " and ",
            Option("ami"),
        )
    # An image of the user's own may have any engine.
    variant = variant_of(options.instance_type, "auto" if options.image else job.train.engine)
    name = f"{re.sub(r'[^a-z0-9]+', '-', job.name.lower()).strip('-')[:32].strip('-') or 'run'}-{secrets.token_hex(4)}"
    storage = "/".join(filter(None, [f"s3://{bucket}", prefix, name]))
    account = "ACCOUNT" if options.dry_run or options.image else aws.account()
    return RunSpec(
        options=options,
        run=name,
        ends=datetime.now(UTC) + timedelta(hours=options.max_hours),
        job=_cluster_job(job, options, storage),
        storage=storage,
        image=options.image or f"{account}.dkr.ecr.{aws.region}.{aws.domain}/crossfade:{variant}",
        variant=variant,
    )


def split_uri(uri: str, name: Text) -> tuple[str, str]:
    """Return bucket and prefix of ``uri``; the prefix has no leading or trailing slash.

    Raises:
        InputError: it is not an S3 URI; the message begins with ``name``.
    """
    match = _BUCKET_URI.fullmatch(uri)
    if match is None:
        raise InputError(name, f": expected s3://BUCKET/PREFIX, but found '{uri}'")
    return match[1], match[2].strip("/")


def _cluster_job(job: JobConfig, options: SubmitEc2Options, storage: str) -> dict[str, Any]:
    """Return ``job`` as the hosts run it, with checkpoints in ``storage``.

    Where the job leaves servers and workers open, ``sizes_on_hosts`` sets them for several hosts.

    Raises:
        InputError: it reads files of this machine, or cannot run on so many hosts.
    """
    for key, source in {"data.path": job.data.path, **job.starting_points()}.items():
        if not source.startswith("s3://"):
            raise InputError(
                f"{key}: {source} is on this machine, which the instances cannot read; copy it to S3, as with 'aws s3 "
                f"sync' or {command('prepare', out='s3://BUCKET/PREFIX')}, and set {key}"
            )
    values = job.with_absolute_paths().model_dump(mode="json")
    values["cluster"] |= {
        **sizes_on_hosts(job.cluster, options.hosts),
        **UNPLACED,
        "hosts": options.hosts,
        "shared_run_dir": False,
    }
    values["checkpoint"]["path"] = f"{storage}/checkpoints"
    return check_job(values, "the job on EC2").model_dump(mode="json")
