"""What a run on EC2 consists of: everything that is decided before the first request changes anything.

A plan lies in the run's folder on S3 (``plan.json``), so that whoever comes later can follow the run or end it.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict

from deploy.aws.accelerators import Variant
from kvstore.errors import InputError
from trainer.config.loading import check_job
from trainer.config.schema import JobConfig

RUN_TAG, OWNER_TAG, JOB_TAG, STORAGE_TAG = "crossfade:run", "crossfade:owner", "crossfade:job", "crossfade:storage"
FIRST_TAG = "crossfade:first-host"
"""Of an instance: the number of the first host among those that were started with it."""
PATH = "/crossfade/"
"""Below it lie the roles, profiles and parameters that are made here, each region's in a part of its own."""
PREFIX, POLICY = "crossfade-", "run"
"""Of the names of what is made here, and the name of the role's policy."""
MAX_HOURS = 30 * 24
_RUN = re.compile(r"[a-z0-9][a-z0-9-]{0,46}")
_BUCKET_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9._=+@:-]+)*)/?")


class RunSpec(BaseModel):
    """One run: its name, its hosts, where its files are, and for how long it may cost something."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    region: str
    partition: str = "aws"
    """The part of AWS that the region belongs to: aws, aws-cn, aws-us-gov ..."""
    domain: str = "amazonaws.com"
    """Of that part's services."""
    account: str
    owner: str
    """The ARN of who submitted it."""
    job: dict[str, Any]
    """As the first host runs it, but for its address."""
    storage: str
    """The run's folder on S3, as s3://BUCKET/PREFIX/RUN."""
    data: str
    """What else it reads: data.path of the job."""
    image: str
    variant: Variant
    instance_type: str
    hosts: int
    spot: bool
    max_hours: float
    volume_gib: int
    ami: str | None = None
    """None: the newest of those that AWS recommends."""
    subnet: str | None = None
    """None: one of the default network."""
    poll_seconds: float = 5.0
    """How often hosts, and whoever follows, look at each other's news on S3."""
    instance_profile: str | None = None
    """An existing one; None: one is made, with no more rights than the run needs."""

    @property
    def name(self) -> str:
        """What its resources are called."""
        return f"{PREFIX}{self.run}"

    @property
    def path(self) -> str:
        """Where in IAM its role and profile are."""
        return f"{PATH}{self.region}/"

    @property
    def token_parameter(self) -> str:
        """The parameter that holds the token by which its hosts know each other."""
        return f"{PATH}{self.run}/token"

    @property
    def minutes(self) -> int:
        """After so many an instance ends itself."""
        return max(1, round(self.max_hours * 60))

    @property
    def tags(self) -> dict[str, str]:
        """By which everything that belongs to it is found again."""
        return {
            RUN_TAG: self.run,
            OWNER_TAG: self.owner,
            JOB_TAG: self.job["name"],
            STORAGE_TAG: self.storage,
            "Name": self.name,
        }

    @property
    def needs_placement(self) -> bool:
        """Whether hosts are put close together: where there are several, of a type that can be."""
        return self.hosts > 1 and not self.instance_type.startswith("t")


def new_run_name(job: str) -> str:
    """A name for a run of ``job`` that no other has."""
    readable = re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")[:32].strip("-")
    return f"{readable or 'run'}-{secrets.token_hex(4)}"


def check_run_name(text: str) -> str:
    """``text``, which must be the name of a run.

    Raises:
        InputError: it cannot be one.
    """
    if not _RUN.fullmatch(text):
        raise InputError(
            f"'{text}' is not the name of a run; 'crossfade submit ec2 --list' has those that there are, as "
            "lastfm-1a2b3c4d"
        )
    return text


def split_uri(uri: str, option: str) -> tuple[str, str]:
    """The bucket and the prefix of ``uri``, which ``option`` gave; the prefix has no slash around it.

    Raises:
        InputError: it is no such URI.
    """
    match = _BUCKET_URI.fullmatch(uri)
    if match is None:
        raise InputError(f"{option}: expected s3://BUCKET/PREFIX, but found '{uri}'")
    return match[1], match[2].strip("/")


def cluster_job(job: JobConfig, hosts: int, storage: str) -> dict[str, Any]:
    """``job`` as the hosts run it: on servers if there are several hosts, with its checkpoints in ``storage``.

    Raises:
        InputError: it cannot run there.
    """
    if not job.data.path.startswith("s3://"):
        raise InputError(
            f"data.path: {job.data.path} is a folder of this machine, which the instances cannot see; put it on "
            "S3, as with 'aws s3 cp --recursive' or 'crossfade prepare --out s3://BUCKET/PREFIX', and set data.path"
        )
    if job.checkpoint.warm_start_from is not None and not job.checkpoint.warm_start_from.startswith("s3://"):
        raise InputError(
            f"checkpoint.warm_start_from: {job.checkpoint.warm_start_from} is on this machine, which the instances cannot see; "
            "put it on S3"
        )
    values = job.with_absolute_paths().model_dump(mode="json")
    cluster = values["cluster"]
    if hosts > 1 and not cluster["servers"]:
        cluster["servers"] = cluster["workers"] = hosts
    cluster |= {
        "hosts": hosts,
        "shared_run_dir": False,
        "coordinator_address": None,
        "host": "127.0.0.1",
        "scheduler_port": 0,
    }
    values["checkpoint"]["path"] = f"{storage}/checkpoints"
    return check_job(values, "the job on EC2").model_dump(mode="json")
