"""The specification of a run on EC2: everything that is decided before the first request creates anything."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import InputError, Option, OptionError, Text, command
from crossfade.deploy.aws.accelerators import Variant, check_device, sizes_on_instances, variant_of
from crossfade.deploy.aws.ec2.options import SubmitEc2Options
from crossfade.deploy.topology import UNPLACED
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

_RUN = re.compile(r"[a-z0-9][a-z0-9-]{0,46}")
_BUCKET_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9._=+@:-]+)*)/?")


@dataclass(frozen=True)
class RunSpec:
    """One run: its options, its name, its files, and its end."""

    options: SubmitEc2Options
    run: str
    owner: str
    """The ARN of the user who submits it."""
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
        return [self.job["data"]["path"], *([warm_start] if warm_start else []), *self.job["model"]["start"].values()]


def make_spec(options: SubmitEc2Options, aws: Aws) -> RunSpec:
    """Return the specification of the run; in a dry run, with placeholders for the account.

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
    # An image of the user's own may have any engine.
    variant = variant_of(options.instance_type, "auto" if options.image else job.train.engine)
    name = new_run_name(job.name)
    storage = "/".join(filter(None, [f"s3://{bucket}", prefix, name]))
    values = cluster_job(job, options.instance_type, options.hosts, storage)
    account, owner = ("ACCOUNT", "OWNER") if options.dry_run else aws.caller()
    return RunSpec(
        options=options,
        run=name,
        owner=owner,
        ends=datetime.now(UTC) + timedelta(hours=options.max_hours),
        job=values,
        storage=storage,
        image=options.image or f"{account}.dkr.ecr.{aws.region}.{aws.domain}/crossfade:{variant}",
        variant=variant,
    )


def new_run_name(job: str) -> str:
    """Return a unique name for a run of ``job``."""
    readable = re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")[:32].strip("-")
    return f"{readable or 'run'}-{secrets.token_hex(4)}"


def check_run_name(text: str) -> str:
    """Return ``text`` if it can be the name of a run.

    Raises:
        InputError: it cannot.
    """
    if not _RUN.fullmatch(text):
        raise InputError(
            f"'{text}' is not the name of a run; expected a name such as lastfm-1a2b3c4d, as "
            f"{command('submit ec2', list=True)} prints them"
        )
    return text


def split_uri(uri: str, option: Text) -> tuple[str, str]:
    """Return bucket and prefix of ``uri``; the prefix has no leading or trailing slash.

    Raises:
        InputError: it is not an S3 URI; the message names ``option``.
    """
    match = _BUCKET_URI.fullmatch(uri)
    if match is None:
        raise InputError(option, f": expected s3://BUCKET/PREFIX, but found '{uri}'")
    return match[1], match[2].strip("/")


def cluster_job(job: JobConfig, instance_type: str, hosts: int, storage: str) -> dict[str, Any]:
    """Return ``job`` as the hosts run it, with checkpoints in ``storage``.

    Where the job leaves servers and workers open, ``sizes_on_instances`` sets them for several hosts.

    Raises:
        InputError: it reads files of this machine, or needs servers that the instances cannot run.
    """
    if not job.data.path.startswith("s3://"):
        raise InputError(
            f"data.path: {job.data.path} is a folder of this machine, which the instances cannot read; copy it to S3, "
            f"as with 'aws s3 sync' or {command('prepare', out='s3://BUCKET/PREFIX')}, and set data.path"
        )
    for key, source in job.starting_points().items():
        if not source.startswith("s3://"):
            raise InputError(f"{key}: {source} is on this machine, which the instances cannot read; copy it to S3")
    values = job.with_absolute_paths().model_dump(mode="json")
    cluster = values["cluster"]
    cluster |= {**sizes_on_instances(job.cluster, instance_type, hosts), **UNPLACED}
    cluster |= {"hosts": hosts, "shared_run_dir": False}
    values["checkpoint"]["path"] = f"{storage}/checkpoints"
    return check_job(values, "the job on EC2").model_dump(mode="json")
