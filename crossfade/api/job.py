"""A job, as in a job file, to be trained by a Python program.

job = Job.from_yaml("jobs/lastfm.yaml", {"train.epochs": 5})
model = job.train(servers=2, workers=2)
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from crossfade.trainer.config.loading import load_job, make_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.run_folder import RunFolder, default_run_dir

if TYPE_CHECKING:
    from crossfade.api.model import Model


class Job:
    """A complete, checked job: dataset, model, loss, optimizer, evaluation, and processes.

    Attributes:
        config: the values of every key; ``crossfade train --explain`` lists the keys.
    """

    def __init__(self, values: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
        """Check ``values``, nested as in a job file; ``settings`` such as ``{"train.epochs": 5}`` replace some.

        Raises:
            InputError: a key is unknown, or a value is invalid.
        """
        self.config = make_job(_to_json(dict(values)), "the job", _overrides(settings))

    @classmethod
    def from_yaml(cls, path: str | Path, settings: Mapping[str, Any] | None = None) -> Self:
        """Read a job file; ``settings`` such as ``{"train.epochs": 5}`` replace values of the file.

        Raises:
            InputError: the file cannot be read, a key is unknown, or a value is invalid.
        """
        return cls._of(load_job(Path(path), _overrides(settings)))

    @classmethod
    def _of(cls, config: JobConfig) -> Self:
        job = cls.__new__(cls)
        job.config = config
        return job

    def __repr__(self) -> str:
        """Return the name of the job and its dataset."""
        return f"Job({self.config.name!r}, data={self.config.data.path!r})"

    def to_yaml(self) -> str:
        """Return the job as the text of a job file, with all keys."""
        return self.config.to_yaml()

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """Return a job with some values replaced, such as ``{"train.epochs": 5}``.

        Raises:
            InputError: a key is unknown, or a value is invalid.
        """
        return self._of(make_job(self.to_yaml(), "the job", _overrides(settings)))

    def train(
        self,
        *,
        servers: int | None = None,
        workers: int | None = None,
        run_dir: str | Path | None = None,
        overwrite: bool = False,
        resume: bool = False,
        progress: bool | None = None,
    ) -> "Model":
        """Train, and return the model.

        With one worker and no servers, the job trains in this process, else in processes that it starts: the servers
        of MXNet's key-value store hold the tables, or without servers the workers do. Ctrl-C writes a checkpoint and
        returns the model of it; ``resume`` continues from there.

        Args:
            servers: processes that hold the tables, 0: the workers; None: as in the job.
            workers: processes that compute gradients; None: as in the job.
            run_dir: the folder of the run; None: runs/NAME.
            overwrite: whether to delete an earlier run in the folder instead of moving it aside.
            resume: whether to resume the run in the folder.
            progress: whether to show progress bars; None: in terminals and notebooks.

        Raises:
            CrossfadeError: the job cannot run here, or failed.
        """
        from crossfade.api.model import Model
        from crossfade.api.training import train

        sizes = {"cluster.servers": servers, "cluster.workers": workers}
        job = self.with_settings({key: value for key, value in sizes.items() if value is not None}).config
        folder = RunFolder(Path(run_dir) if run_dir is not None else default_run_dir(job))
        train(job, folder, overwrite=overwrite, resume=resume, progress=progress)
        return Model(folder.path)


def _overrides(settings: Mapping[str, Any] | None) -> list[str]:
    """Return ``settings`` as KEY=VALUE, with values as JSON, which is YAML too."""
    return [f"{key}={_to_json(value)}" for key, value in (settings or {}).items()]


def _to_json(value: object) -> str:
    """Return ``value`` as JSON; arrays of NumPy become lists, paths text.

    Raises:
        TypeError: it cannot be written as JSON.
    """
    return json.dumps(value, default=lambda each: each.tolist() if hasattr(each, "tolist") else os.fspath(each))
