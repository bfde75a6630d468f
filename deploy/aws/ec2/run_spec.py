"""The specification of a run on EC2: everything that is decided before the first request creates anything.

It is stored in the run's folder on S3 (``spec.json``), so that any client can follow or end the run later. Its digest
is a tag of the run's resources, by which a client detects that the file was changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from typing import TYPE_CHECKING, Any

from crossfade.base.errors import InputError, OptionError, command, option_named
from crossfade.deploy.aws.accelerators import Variant, check_device, sizes_on_instances, variant_of
from crossfade.deploy.aws.ec2.options import Ec2Instances, SubmitEc2Options
from crossfade.deploy.topology import UNPLACED
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.schema import JobConfig

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

RUN_TAG, OWNER_TAG, JOB_TAG, STORAGE_TAG = "crossfade:run", "crossfade:owner", "crossfade:job", "crossfade:storage"
SPEC_TAG = "crossfade:spec"
"""Tag of all resources: the digest of the run's specification."""
FIRST_TAG = "crossfade:first-host"
"""Tag of an instance: the number of the first host that was started with it."""
PATH = "/crossfade/"
"""IAM and SSM path of roles, profiles and parameters; those of IAM, which is global, have the region below it."""
PREFIX, POLICY = "crossfade-", "run"
"""Prefix of the resources' names, and the name of the role's policy."""
_RUN = re.compile(r"[a-z0-9][a-z0-9-]{0,46}")
_BUCKET_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9._=+@:-]+)*)/?")


class RunSpec(Ec2Instances):
    """One run: its name, its hosts, its files, and its time limit.

    Hosts and clients read each other's state on S3 every ``poll_seconds``. Without ``ami``, hosts boot the newest image
    that AWS recommends; without ``subnet``, in any of the default VPC. Without ``instance_profile``, one is created
    with the permissions that the run needs.
    """

    run: str
    region: str
    partition: str = "aws"
    """The partition of AWS that the region belongs to: aws, aws-cn or aws-us-gov."""
    domain: str = "amazonaws.com"
    """The domain of the partition's services."""
    account: str
    owner: str
    """The ARN of the user who submitted it."""
    job: dict[str, Any]
    """The job of the first host, which adds its address."""
    storage: str
    """The run's folder on S3, as s3://BUCKET/PREFIX/RUN."""
    data: str
    """The dataset's URI: data.path of the job."""
    image: str
    variant: Variant

    @property
    def name(self) -> str:
        """The name of its resources."""
        return f"{PREFIX}{self.run}"

    @property
    def path(self) -> str:
        """The IAM path of its role and profile."""
        return f"{PATH}{self.region}/"

    @property
    def token_parameter(self) -> str:
        """The name of the SSM parameter with the token by which its hosts authenticate to each other."""
        return f"{PATH}{self.run}/token"

    @property
    def minutes(self) -> int:
        """Minutes after which an instance terminates itself."""
        return max(1, round(self.max_hours * 60))

    @property
    def tags(self) -> dict[str, str]:
        """The tags of all its resources."""
        return {
            RUN_TAG: self.run,
            OWNER_TAG: self.owner,
            JOB_TAG: self.job["name"],
            STORAGE_TAG: self.storage,
            SPEC_TAG: self.digest,
            "Name": self.name,
        }

    @property
    def digest(self) -> str:
        """The SHA-256 of its values."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @property
    def needs_placement(self) -> bool:
        """Whether to use a placement group: several hosts, of a type that supports it (t types do not)."""
        return self.hosts > 1 and not self.instance_type.startswith("t")


def make_spec(options: SubmitEc2Options, region: str, aws: Aws | None) -> RunSpec:
    """Return the specification of the run; without ``aws``, with placeholders for the account.

    Raises:
        InputError: an option or the job is invalid.
        CloudError, CloudRequestError: AWS did not identify the caller.
    """
    if options.output is None:
        fix = f"name where the run's folder is created, as in {option_named('output', 's3://BUCKET/PREFIX')}"
        raise OptionError("output", problem="is missing", fix=fix)
    bucket, prefix = split_uri(options.output, option_named("output"))
    job = options.load_job()
    check_device(job, options.instance_type)
    # An image of the user's own may have any engine.
    variant = variant_of(options.instance_type, "auto" if options.image else job.train.engine)
    name = new_run_name(job.name)
    storage = "/".join(filter(None, [f"s3://{bucket}", prefix, name]))
    values = cluster_job(job, options.instance_type, options.hosts, storage)
    account, owner = aws.caller() if aws else ("ACCOUNT", "OWNER")
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
        image=options.image or f"{account}.dkr.ecr.{region}.{domain}/crossfade:{variant}",
        variant=variant,
        **{name: getattr(options, name) for name in Ec2Instances.model_fields},
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


def split_uri(uri: str, option: str) -> tuple[str, str]:
    """Return bucket and prefix of ``uri``; the prefix has no leading or trailing slash.

    Raises:
        InputError: it is not an S3 URI; the message names ``option``.
    """
    match = _BUCKET_URI.fullmatch(uri)
    if match is None:
        raise InputError(f"{option}: expected s3://BUCKET/PREFIX, but found '{uri}'")
    return match[1], match[2].strip("/")


def cluster_job(job: JobConfig, instance_type: str, hosts: int, storage: str) -> dict[str, Any]:
    """Return ``job`` as the hosts run it, with checkpoints in ``storage``.

    Where the job leaves servers and workers open, several hosts get those of
    ``sizes_on_instances``.

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
