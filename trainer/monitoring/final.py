"""Keep a run's last metrics when its processes end: a file in the run folder, and a push if the job asks for one.

Each role of a distributed job leaves its own file in ``metrics/``; 'crossfade train' merges them into ``metrics.prom``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from http.client import HTTPException

from prometheus_client import generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import push_to_gateway
from prometheus_client.parser import text_string_to_metric_families

from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.monitoring.names import PREFIX
from crossfade.trainer.monitoring.registry import ProcessMetrics
from crossfade.trainer.runs.run_folder import RunFolder

PUSH_TIMEOUT_SECONDS = 5.0
"""Timeout of a push to a Pushgateway, which delays the end of a process."""

_logger = logging.getLogger(__name__)


def write_final_metrics(folder: RunFolder, job: JobConfig, metrics: ProcessMetrics) -> None:
    """Write the last values of a role to ``folder`` and push them. Failures are logged, not raised."""
    name = "-".join(value for label in ("role", "rank") if (value := metrics.labels.get(label)) is not None)
    try:
        folder.write_role_metrics(name, metrics.text().decode())
    except OSError as error:
        _logger.warning(f"{folder.path}: the final metrics of {name} were not written: {error.strerror}")
    push_final_metrics(job, metrics)


def merge_final_metrics(folder: RunFolder, job: JobConfig, metrics: ProcessMetrics) -> None:
    """Merge the last values of this process and of all roles into one file of ``folder``, and push this process's.

    Failures are logged, not raised.
    """
    text = metrics.text()
    if not text:
        return  # the run failed before its labels were known
    try:
        texts = [text.decode(), *folder.role_metrics()]
        folder.write_metrics(generate_latest(_Merged(texts)).decode())
    except OSError as error:
        _logger.warning(f"{folder.path}: the final metrics were not written: {error.strerror}")
    push_final_metrics(job, metrics)


def push_final_metrics(job: JobConfig, metrics: ProcessMetrics) -> None:
    """Push ``metrics`` to the job's Pushgateway, if it has one, in place of earlier values of the same role."""
    gateway = job.metrics.pushgateway
    if gateway is None:
        return
    try:
        push_to_gateway(gateway, PREFIX, metrics, grouping_key=metrics.labels, timeout=PUSH_TIMEOUT_SECONDS)
    except (OSError, HTTPException) as error:
        _logger.warning(f"metrics.pushgateway: pushing the final values to {gateway} failed: {error}")


class _Merged:
    """Merges texts in Prometheus's format: each family once, with the samples of all texts."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Family]:
        families: dict[str, Family] = {}
        for text in self._texts:
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, family)
                if merged is not family:
                    merged.samples.extend(family.samples)
        yield from families.values()
