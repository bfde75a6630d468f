"""The options of an examination: ``crossfade doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.errors import InputError
from crossfade.base.options import option
from crossfade.trainer.config.options import ClusterSizes

if TYPE_CHECKING:
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.runs.run_folder import RunFolder


class DoctorOptions(ClusterSizes):
    """Whose storage to check, besides this host."""

    job: Path | None = option(
        None, "check this run folder, or this job file, too", group="job", value="RUN", positional=True
    )
    run_dir: Path | None = option(None, "use DIR as the folder of the run (runs/NAME)", group="job", value="DIR")

    def load(self) -> tuple[JobConfig | None, RunFolder | None]:
        """Return the job that is named and its run folder; None without one.

        Raises:
            InputError: there is no such run or job, or options are given that need one.
        """
        from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder, default_run_dir, similar_run

        if self.job is None:
            if self.set or self.run_dir or any(getattr(self, key) is not None for key in self.sizes):
                raise InputError("RUN is missing: name the run folder or job file that the options are for")
            return None, None
        if not self.job.is_dir():
            job = self.load_job()
            return job, RunFolder(self.run_dir or default_run_dir(job))
        if not (self.job / JOB_FILE).exists():
            raise InputError(
                f"{self.job}: not a run folder: it has no {JOB_FILE}; expected a run folder or a job file"
                f"{similar_run(self.job)}"
            )
        of_run = self.model_copy(update={"job": self.job / JOB_FILE})
        return of_run.load_job(), RunFolder(self.run_dir or self.job)
