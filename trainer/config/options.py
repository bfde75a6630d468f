"""Options of the verbs that read a job file: which file, and what replaces keys of it.

DoctorOptions.of(job="jobs/lastfm.yaml", servers=2, set=["train.epochs=5"]).load_job()
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from crossfade.base.errors import Option
from crossfade.base.options import Integer, Options, option

if TYPE_CHECKING:
    from crossfade.trainer.config.schema import JobConfig

_job = partial(option, group="job")


class OptionalJob(Options):
    """A job file, which the verb can do without, and changes to it."""

    sizes: ClassVar[tuple[str, ...]] = ()
    """The options that set the key of their name in the section ``cluster``."""

    job: Path | None = _job(None, "read this job file (YAML)", value="JOB", positional=True)
    set: tuple[str, ...] = _job((), "override a key of the job file", value="KEY=VALUE", repeat=True)

    def load_job(self) -> JobConfig:
        """Return the job in the file that is named, with the changes.

        Raises:
            InputError: the file is missing, or the job is invalid.
        """
        from crossfade.trainer.config.loading import load_job

        assert self.job is not None, "no job is named"
        given = {name: getattr(self, name) for name in self.sizes if getattr(self, name) is not None}
        typed = {f"cluster.{name}={value}": Option(name, value) for name, value in given.items()}
        return load_job(self.job, [*self.set, *typed], typed)


class JobOptions(OptionalJob):
    """A job file, and changes to it."""

    job: Path = _job(..., "read this job file (YAML)", value="JOB", positional=True)


class Roles(OptionalJob):
    """How many servers and workers a job has."""

    sizes: ClassVar[tuple[str, ...]] = ("servers", "workers")

    servers: Integer | None = _job(None, "set cluster.servers of the job", value="N")
    workers: Integer | None = _job(None, "set cluster.workers of the job", value="N")


class ClusterSizes(Roles):
    """How many servers, workers, and hosts a job has."""

    sizes = ("servers", "workers", "hosts")

    hosts: Integer | None = _job(None, "set cluster.hosts of the job", value="N")
