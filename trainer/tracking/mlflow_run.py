"""Record a run on a tracking server of MLflow, with the package ``mlflow-skinny``.

The tag ``crossfade.run`` has the ID of the run, by which a run that resumes is found again. Credentials come from the
environment (``MLFLOW_TRACKING_USERNAME`` and so on) and are not written anywhere.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from crossfade.kvstore import __version__
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.run_folder import JOB_FILE, REPORT_FILE, RunFolder
from crossfade.trainer.tracking.records import Point, report_point

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

RUN_TAG = "crossfade.run"
_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_MAX_METRICS, _MAX_PARAMETERS, _MAX_VALUE_LETTERS = 1000, 100, 6000
"""Limits of the server: metrics and parameters in a request, and the length of a parameter."""
_DEFAULT_ENVIRONMENT = {
    # An attempt ends soon, since another one follows: by default MLflow itself tries for minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # By default MLflow reports its use to its makers.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class TrackingError(Exception):
    """The server did not take a record; ``temporary`` if a later attempt may succeed."""

    def __init__(self, message: str, *, temporary: bool) -> None:
        super().__init__(message)
        self.temporary = temporary


class MlflowRun:
    """The run of ``job`` in ``folder``, recorded on the server that the job names.

    One thread makes all calls; a call that raised TrackingError may be repeated.
    """

    def __init__(self, job: JobConfig, folder: RunFolder) -> None:
        self.name = f"tracking.mlflow: {job.tracking.mlflow}"
        self._job, self._folder = job, folder
        self._client: MlflowClient | None = None
        self._id = ""
        for variable, value in _DEFAULT_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        # Now, since importing takes the interpreter's lock for a second or more, which would delay steps later.
        import mlflow.tracking  # noqa: F401

    def start(self) -> None:
        """Find the run if it was recorded before, else create it; record the job."""
        from mlflow.tracking import MlflowClient

        with tracking_errors():
            self._client = client = MlflowClient(tracking_uri=self._job.tracking.mlflow)
            run = self._find_or_create(client)
            self._id = run.info.run_id
            client.update_run(self._id, status="RUNNING")
            self._log_parameters(client, known=run.data.params)
            client.log_artifact(self._id, str(self._folder.path / JOB_FILE))

    def _find_or_create(self, client: MlflowClient) -> Run:
        from mlflow.exceptions import MlflowException

        name, run_id = self._job.tracking.experiment, self._folder.run_id()
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                experiment = client.get_experiment(client.create_experiment(name))
            except MlflowException:
                experiment = client.get_experiment_by_name(name)  # another run has just created it
                if experiment is None:
                    raise
        found: list[Run] = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'")
        if found:
            return found[0]
        tags = {RUN_TAG: run_id, "crossfade.job": self._job.name, "crossfade.version": __version__}
        return client.create_run(experiment.experiment_id, tags=tags, run_name=f"{self._job.name}-{run_id}")

    def _log_parameters(self, client: MlflowClient, known: Mapping[str, str]) -> None:
        """Record the values of the job. The server rejects changes, so those of the first start stay."""
        from mlflow.entities import Param

        texts = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in self._job.values().items()
        }
        new = [Param(key, text[:_MAX_VALUE_LETTERS]) for key, text in texts.items() if key not in known]
        for start in range(0, len(new), _MAX_PARAMETERS):
            client.log_batch(self._id, params=new[start : start + _MAX_PARAMETERS], synchronous=True)

    def write(self, points: Sequence[Point]) -> None:
        """Record the points. Where a run resumes, MLflow keeps the values of both attempts."""
        from mlflow.entities import Metric

        assert self._client is not None, "not started"
        metrics = [
            Metric(name, value, int(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        with tracking_errors():
            for start in range(0, len(metrics), _MAX_METRICS):
                self._client.log_batch(self._id, metrics=metrics[start : start + _MAX_METRICS], synchronous=True)

    def finish(self, state: str, report: Mapping[str, Any] | None) -> None:
        """Record the report, as metrics and as a file, and the state."""
        assert self._client is not None, "not started"
        if report is not None:
            self.write([report_point(report, time.time())])
        with tracking_errors():
            if report is not None:
                self._client.log_artifact(self._id, str(self._folder.path / REPORT_FILE))
            self._client.set_terminated(self._id, status=_STATUS[state])


@contextmanager
def tracking_errors() -> Iterator[None]:
    """Turn errors of MLflow and of the network into TrackingErrors, temporary ones unless the server rejects."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:  # errors of the package requests, which moves artifacts, are OSErrors
        if isinstance(error, MlflowException):
            status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        else:
            status = getattr(getattr(error, "response", None), "status_code", 0)
        rejected = 400 <= status < 500 and status not in (408, 425, 429)
        raise TrackingError(_describe(error), temporary=not rejected) from error


def _describe(error: Exception) -> str:
    """Return what the network reported, if that is the cause, else the first line of the message."""
    root: BaseException = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    if root is not error and isinstance(root, OSError):
        return f"cannot be reached: {root.strerror or root}"
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]
