"""What is known about exported vectors: their step or epoch, and the metrics in the run's report that are theirs.

origin = checkpoint_origin("runs/lastfm", step=1073)
origin.metrics["test"]["ndcg@10"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.run_folder import REPORT_FILE, RunReport, parse_run_file

Metrics = Mapping[str, Mapping[str, float]]
"""Metrics of each split."""


@dataclass(frozen=True)
class VectorOrigin:
    """Where vectors come from.

    Attributes:
        step: the step of the checkpoint; None for embeddings that a run selected by an epoch.
        epoch: the epoch of these.
        metrics: those of exactly these vectors; empty if there are none.
    """

    step: int | None = None
    epoch: int | None = None
    metrics: Metrics = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the step or epoch as text."""
        if self.step is not None:
            return f"checkpoint of step {self.step:,}"
        return "embeddings of the run" if self.epoch is None else f"embeddings of epoch {self.epoch}, the best on valid"


def checkpoint_origin(location: str, step: int) -> VectorOrigin:
    """Describe the vectors of the checkpoint of ``step`` at ``location``.

    A report describes the embeddings of the best epoch, so its metrics are those of the checkpoint only if that was the
    last.

    Raises:
        InputError: the report cannot be read.
    """
    report = _read_report(location)
    is_best = report is not None and report.steps == step and report.best_epoch == report.epochs
    return VectorOrigin(step=step, metrics=report.metrics if report is not None and is_best else {})


def embeddings_origin(location: str, job: JobConfig) -> VectorOrigin:
    """Describe the embeddings in the run folder at ``location``, whose job is ``job``.

    Raises:
        InputError: the report cannot be read.
    """
    report = _read_report(location)
    # Of a job that writes no embeddings, an export wrote them, and the report may be of another step.
    if report is None or job.train.save_embeddings == "none":
        return VectorOrigin()
    if report.best_epoch is None:
        return VectorOrigin(step=report.steps, metrics=report.metrics)
    return VectorOrigin(epoch=report.best_epoch, metrics=report.metrics)


def _read_report(location: str) -> RunReport | None:
    """Read the report of the run folder at ``location``; None if it is no run folder, or the run has not finished."""
    folder = Folder(location)
    with translate_storage_errors(f"{folder.uri}/{REPORT_FILE}", action="read"):
        if not folder.exists(REPORT_FILE):
            return None
        content = folder.read(REPORT_FILE)
    return parse_run_file(content, f"{folder.uri}/{REPORT_FILE}", RunReport)
