"""Options of ``crossfade plan`` for a scheduler or a service: it writes the files that run a job or a command there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from crossfade.base.errors import OptionError, option_named
from crossfade.base.options import Integer, Options, alternatives, option
from crossfade.trainer.config.options import ClusterSizes, JobOptions

SPARK_EXAMPLE = "prepare --events s3://music/plays/*.parquet --engine spark --out s3://music/prepared"
_SPARK = ("spark", "upload", "role", "executors")
ONLY: dict[str, tuple[str, ...]] = {
    "slurm": ("array", "partition", "time", "run_dir"),
    "kubernetes": ("array", "image", "namespace", "service_account", "secret", "claim", "storage"),
    "aws-batch": ("array", "image"),
    "emr-serverless": (*_SPARK, "application"),
    "glue": _SPARK,
    "sagemaker-processing": (*_SPARK, "image"),
    "databricks": _SPARK,
}
"""The options that belong to some schedulers or services."""
_NEEDED = {
    "aws-batch": ("array",),
    "emr-serverless": ("spark", "upload", "role", "application"),
    "glue": ("spark", "upload", "role"),
    "sagemaker-processing": ("spark", "upload", "role", "image"),
    "databricks": ("spark", "upload", "role"),
}


def _matching(pattern: str, expected: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}")
        return value

    return check


_VERBS = ("recommend", "evaluate", "index", "export")
_EXAMPLE = "recommend runs/plays --all --shard auto/16 --out recs"
_SHARD = re.compile(r" --shard[ =]auto/(\d{1,5})(?= |$)")
_MOST_SHARDS = 10_000
"""The largest array of AWS Batch."""


@dataclass(frozen=True)
class ShardedCommand:
    """The words of a command that does a shard, of one that merges all, and how many shards there are."""

    shard: tuple[str, ...]
    merge: tuple[str, ...]
    shards: int

    @staticmethod
    def parse(text: str) -> ShardedCommand:
        """Parse a command with ``--shard auto/N``.

        Raises:
            ValueError: it is none.
        """
        words = shlex.join(shlex.split(text))
        found = _SHARD.search(words)
        if found is None or words.split()[0] not in _VERBS or not 2 <= int(found[1]) <= _MOST_SHARDS:
            raise ValueError(f"expected {', '.join(_VERBS)} with 2 to {_MOST_SHARDS:,} shards, such as '{_EXAMPLE}'")
        merge = words.replace(found[0], " --merge", 1)
        return ShardedCommand(tuple(shlex.split(words)), tuple(shlex.split(merge)), int(found[1]))


def _sharded(value: Any) -> Any:
    return ShardedCommand.parse(value) if isinstance(value, str) else value


def _prepared(value: Any) -> Any:
    if isinstance(value, str) and shlex.split(value)[:1] != ["prepare"]:
        raise ValueError(f"expected a command such as '{SPARK_EXAMPLE}'")
    return value


_Time = Annotated[
    str,
    BeforeValidator(_matching(r"(\d+-)?\d+(:\d+){0,2}", "a time limit of Slurm such as 4:00:00 or 1-12:00:00")),
]
_Label = Annotated[
    str,
    BeforeValidator(_matching(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "lower-case letters, digits and hyphens")),
]
_Quantity = Annotated[
    str,
    BeforeValidator(_matching(r"[1-9]\d*(Mi|Gi|Ti)", "a size such as 500Mi, 20Gi or 1Ti")),
]

_ADDRESS = "s3://BUCKET/PREFIX, of letters, digits, and ._-="
_Address = Annotated[str, BeforeValidator(_matching(r"s3://[\w.-]+(/[\w./=-]*)?", _ADDRESS))]

_schedulers = partial(option, group="schedulers")
_slurm = partial(option, group="Slurm")
_spark = partial(option, group="Spark")
_kubernetes = partial(option, group="Kubernetes")


class SchedulerFiles(Options):
    """Which files are written for a scheduler, and what the job runs with there."""

    group_notes: ClassVar[Mapping[str, str]] = {
        "Spark": "For EMR Serverless, Glue, SageMaker Processing, and Databricks, which prepare a dataset on Spark.\n"
        "Each executor has 4, 8, or 16 CPUs, as the option for the CPUs of a host says."
    }

    to: (
        Literal["slurm", "kubernetes", "aws-batch", "emr-serverless", "glue", "sagemaker-processing", "databricks"]
        | None
    ) = _schedulers(None, "write files that run the job there, sized by the plan, instead of the plan")
    array: Annotated[ShardedCommand, BeforeValidator(_sharded)] | None = _schedulers(
        None,
        "write files that do this command in shards instead, as an array of tasks, such as 'recommend runs/plays --all "
        "--shard auto/16 --out recs', and then merge them",
        value="COMMAND",
    )
    cores: Integer | None = _schedulers(
        None, "request N CPUs for each host that trains (default: by its roles), or for each task", value="N", ge=1
    )
    memory: _Quantity = _schedulers("8Gi", "request so much for each task of an array", value="SIZE")
    out: Path | None = _schedulers(None, "write the files to FOLDER (required with a scheduler)", value="FOLDER")
    data: str | None = _schedulers(
        None, "read the dataset from this path or s3:// address there (default: data.path)", value="PATH"
    )
    partition: str | None = _slurm(
        None, "submit to this partition (default: the default one of the cluster)", value="NAME"
    )
    time: _Time = _slurm("1-00:00:00", "set the time limit, [DAYS-]HOURS:MINUTES:SECONDS", value="LIMIT")
    run_dir: Path | None = _slurm(
        None, "use DIR, which all nodes share, as run folder (default: runs/NAME)", value="DIR"
    )
    image: str | None = _kubernetes(
        None,
        "run this container image (default: crossfade:VARIANT, by engine and device; for SageMaker Processing, AWS's "
        "image of Spark 3.5 with Python 3.12 is required)",
        value="IMAGE",
    )
    namespace: _Label | None = _kubernetes(
        None, "create everything in this namespace (default: the context's)", value="NAME"
    )
    service_account: _Label | None = _kubernetes(
        None, "run as this service account (default: create one for the job)", value="NAME"
    )
    secret: _Label | None = _kubernetes(
        None, "set the keys of this secret, such as AWS_REGION, as variables", value="NAME"
    )
    claim: _Label | None = _kubernetes(None, "mount this volume claim at /runs (default: create one)", value="NAME")
    storage: _Quantity = _kubernetes("20Gi", "request so much for the claim that is created", value="SIZE")
    spark: Annotated[str, BeforeValidator(_prepared)] | None = _spark(
        None, f"write files that prepare a dataset on Spark, as in '{SPARK_EXAMPLE}' (required)", value="COMMAND"
    )
    upload: _Address | None = _spark(
        None, "have the service read the files at this s3:// address, to which you upload them (required)", value="URI"
    )
    role: str | None = _spark(
        None, "run as the IAM role with this ARN; on Databricks, that of an instance profile (required)", value="ARN"
    )
    executors: Integer = _spark(4, "run N executors, each on a separate worker", value="N", ge=1)
    application: str | None = _spark(
        None, "run in this application of EMR Serverless, of a release 7 (required there)", value="ID"
    )


class PlanOptions(SchedulerFiles, JobOptions, ClusterSizes):
    """What is planned, and for which scheduler files are written instead of the plan."""

    @model_validator(mode="after")
    def _check_scheduler(self) -> Self:
        given = [name for name in self.model_fields_set if getattr(self, name) not in (None, False)]
        some = sorted({name for names in ONLY.values() for name in names})
        if self.to is None:
            for name in ("out", "data", "cores", "memory", *some):
                if name in given:
                    fitting = [each for each in ONLY if name in ONLY[each]] or ["slurm", "kubernetes"]
                    fix = f"add {alternatives([option_named('to', each) for each in fitting])}"
                    raise OptionError(name, problem="is for the files of a scheduler", fix=fix)
            return self
        if self.out is None:
            problem = f"name the folder of the files, as in {option_named('out', self.to)}"
            raise OptionError("to", found=self.to, problem=problem)
        for name in _NEEDED.get(self.to, ()):
            if getattr(self, name) is None:
                raise OptionError("to", found=self.to, problem=f"needs {option_named(name)}")
        others = [name for name in some if name not in ONLY[self.to]]
        if self.to == "kubernetes":
            others.append("hosts")
        if self.array is not None or self.spark is not None:
            others += ("data", "run_dir", "storage", "hosts")
        for name in (*others, "json_", *(["memory"] if self.array is None else [])):
            if name in given:
                problem = f"has no meaning with {option_named('to', self.to)}"
                raise OptionError(name, problem=problem, fix="leave one of them out")
        return self
