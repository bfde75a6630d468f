"""What stays of a run's metrics when its processes have gone: a file in the run folder, and a push if so wanted.

Each role of a distributed job leaves its own file in ``metrics/``; 'crossfade train' makes one of all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from http.client import HTTPException

from prometheus_client import generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import push_to_gateway
from prometheus_client.parser import text_string_to_metric_families

from trainer.config.schema import JobConfig
from trainer.monitoring.names import PREFIX
from trainer.monitoring.registry import ProcessMetrics
from trainer.runs.folder import RunFolder

_logger = logging.getLogger(__name__)

PUSH_SECONDS = 5.0
"""How long a Pushgateway may make the end of a process wait."""


def write_final_metrics(folder: RunFolder, job: JobConfig, metrics: ProcessMetrics) -> None:
    """Leave the final values of a role in ``folder`` and at the job's Pushgateway. Failures are said, not raised."""
    name = "-".join(value for label in ("role", "rank") if (value := metrics.labels.get(label)) is not None)
    try:
        folder.write_role_metrics(name, metrics.text().decode())
    except OSError as error:
        _logger.warning(f"{folder.path}: the final metrics of {name} were not written: {error.strerror}")
    push_final_metrics(job, metrics)


def merge_final_metrics(folder: RunFolder, job: JobConfig, metrics: ProcessMetrics) -> None:
    """Leave in ``folder`` one file of the final values of this process and of all that have left theirs; and push."""
    own = metrics.text()
    if not own:
        return  # it failed before it had anything to tell
    try:
        texts = [own.decode(), *folder.role_metrics()]
        folder.write_metrics(generate_latest(_Merged(texts)).decode())
    except OSError as error:
        _logger.warning(f"{folder.path}: the final metrics were not written: {error.strerror}")
    push_final_metrics(job, metrics)


def push_final_metrics(job: JobConfig, metrics: ProcessMetrics) -> None:
    """Give the job's Pushgateway, if there is one, the values of ``metrics``, in place of earlier ones of that role."""
    gateway = job.metrics.pushgateway
    if gateway is None:
        return
    try:
        push_to_gateway(gateway, PREFIX, metrics, grouping_key=metrics.labels, timeout=PUSH_SECONDS)
    except (OSError, HTTPException) as error:
        _logger.warning(f"metrics.pushgateway: {gateway} did not take the final values: {error}")


class _Merged:
    """Several texts of metrics as one: a family that stands in many is one with all their samples."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Family]:
        """All families."""
        families: dict[str, Family] = {}
        for text in self._texts:
            for family in text_string_to_metric_families(text):
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples.extend(family.samples)
        yield from families.values()
