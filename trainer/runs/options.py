"""Options of the verbs that use what a run has trained: where it is, and which shard of the work to do."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from crossfade.base.options import Options, option


def _location(value: Any) -> Any:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("expected a path")
    return str(value)


Location = Annotated[str, BeforeValidator(_location)]
"""A path or URI."""


class ModelSource(Options):
    """Where a trained model and its dataset are."""

    group_notes: ClassVar[Mapping[str, str]] = {
        "model": "FROM is a run folder, a folder of checkpoints or one checkpoint, each of which may be on S3. The\n"
        "embeddings of a run are used if it has written any, otherwise its newest complete checkpoint."
    }

    source: Location = option(
        ..., "read this run folder, folder of checkpoints, or checkpoint", group="model", value="FROM", positional=True
    )
    data: Location | None = option(
        None, "read IDs and interactions here (default: data.path of the job)", group="model", value="DATA"
    )

    @property
    def data_changes(self) -> dict[str, Any]:
        """What to replace in the section ``data`` of the model's job."""
        return {} if self.data is None else {"path": self.data}


ARRAY_VARIABLES = {"SLURM_ARRAY_TASK_ID": 1, "JOB_COMPLETION_INDEX": 0, "AWS_BATCH_JOB_ARRAY_INDEX": 0}
"""Where schedulers put the number of a task in its array, and what the first is: of Slurm, which lets users choose, of
Kubernetes, and of AWS Batch."""
_SHARD = re.compile(r"(auto|\d{1,5})/(\d{1,5})")


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of a verb's work; ``number`` counts from 1."""

    number: int
    count: int

    def part(self, length: int) -> slice:
        """Return which of ``length`` rows are its own: consecutive ones, as many as the others have, or one more."""
        return slice(length * (self.number - 1) // self.count, length * self.number // self.count)

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"{self.number}/{self.count}"


def _shard(value: Any) -> Any:
    if value is None or isinstance(value, Shard):
        return value
    parts = _SHARD.fullmatch(value) if isinstance(value, str) else None
    count = int(parts[2]) if parts else 0
    if parts is None or not count:
        raise ValueError("expected I/N, such as 1/16, or auto/N")
    number, source = _array_number() if parts[1] == "auto" else (int(parts[1]), "")
    if not 1 <= number <= count:
        raise ValueError(f"{source}expected a number from 1 to {count}")
    return Shard(number, count)


def _array_number() -> tuple[int, str]:
    """Return the number of this task in its array, from 1, and where it was found."""
    for variable, first in ARRAY_VARIABLES.items():
        if (text := os.environ.get(variable, "")).isdecimal():
            return int(text) - first + 1, f"is number {int(text) - first + 1} by {variable}={text}; "
    raise ValueError(f"is for a task of an array, but none of {', '.join(ARRAY_VARIABLES)} is set; expected I/N")


class ShardOptions(Options):
    """Which shard of the work to do."""

    group_notes: ClassVar[Mapping[str, str]] = {
        "shards": "N processes, on any machines, do a shard each into the same OUT, a folder that all of them reach,\n"
        "local or s3://BUCKET/PREFIX. A shard that is complete is not repeated. Once all are, the same command with a\n"
        "merge instead of a shard completes OUT. With auto/N, I is SLURM_ARRAY_TASK_ID, of an array 1-N, or one more\n"
        "than JOB_COMPLETION_INDEX of Kubernetes or AWS_BATCH_JOB_ARRAY_INDEX."
    }
    at_most_one = (("shard", "merge"),)

    shard: Annotated[Shard, BeforeValidator(_shard)] | None = option(
        None, "do the I-th of N shards, from 1, or that of this task of an array", group="shards", value="I/N|auto/N"
    )
    merge: bool = option(False, "verify the shards in OUT, and complete it", group="shards")

    @property
    def is_divided(self) -> bool:
        """Whether the work is divided into shards."""
        return self.shard is not None or self.merge
