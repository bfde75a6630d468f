"""The catalog of all metrics: name, type, unit, labels and meaning. The site of the documentation has them as a table.

    yield names.STEPS.single(1200)
    yield names.ACTIVE_ROWS.family((("track",), 5e6), (("customer",), 2e6))

All names begin with ``crossfade_`` and are in base units. Every series has the labels ``run`` (the job's name),
``role`` and, where there is one, ``rank``; further labels are listed here. No label or value holds an ID, name or row
of the data.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

PREFIX = "crossfade"
ROLES = ("in-process", "coordinator", "agent", "scheduler", "server", "worker", "refresh")
"""The values of the label ``role``."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One metric: ``description`` is its help text, and ``group`` the processes that expose it (see ``GROUPS``)."""

    name: str
    kind: Kind
    group: str
    unit: str
    description: str
    labels: tuple[str, ...] = ()

    def family(self, *values: tuple[tuple[str, ...], float]) -> CounterMetricFamily | GaugeMetricFamily:
        """Return the metric with ``values``: each the values of its labels, and a number."""
        assert self.kind != "histogram"
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = make(self.name, self.description, labels=self.labels)
        for labels, value in values:
            family.add_metric(list(labels), value)
        return family

    def single(self, value: float | None) -> CounterMetricFamily | GaugeMetricFamily:
        """Return the metric without its own labels; None means that there is no value yet."""
        return self.family() if value is None else self.family(((), value))

    def histogram(self, *values: tuple[tuple[str, ...], Histogram]) -> HistogramMetricFamily:
        """Return the metric with a histogram for each tuple of label values."""
        assert self.kind == "histogram"
        family = HistogramMetricFamily(self.name, self.description, labels=self.labels)
        for labels, distribution in values:
            family.add_metric(list(labels), distribution.buckets(), distribution.sum)
        return family


class Histogram:
    """A histogram of durations in seconds, without the locks of the client library's: adding takes a microsecond."""

    bounds = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

    def __init__(self) -> None:
        """Start empty."""
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, seconds: float) -> None:
        """Add a duration."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return, for each bound and infinity, how many durations do not exceed it."""
        bounds = [*map(str, self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(map(float, self._counts)), strict=True))


GROUPS = {
    "process": "every process",
    "training": "in-process, worker",
    "first": "in-process, worker of rank 0",
    "gpu": "in-process, worker: where a GPU computes gradients",
    "rows": "in-process, server, worker that holds tables",
    "server": "server",
    "job": "coordinator",
    "refresh": "refresh",
}
"""The processes that expose the metrics of a group."""


def _metric(
    group: str, name: str, description: str, *labels: str, unit: str | None = None, kind: Kind | None = None
) -> Metric:
    """Return a metric; its kind and its unit follow from the end of its name, unless they are given."""
    stem = name.removesuffix("_total")
    kind = kind or ("gauge" if stem == name else "counter")
    return Metric(f"{PREFIX}_{name}", kind, group, unit or stem.rpartition("_")[2], description, labels)


BUILD_INFO = _metric("process", "build_info", "Always 1.", "version", "python", unit="1")
MEMORY_LIMIT = _metric(
    "process", "memory_limit_bytes", "Memory of the machine, or the container's limit if that is less."
)
MEMORY_AVAILABLE = _metric(
    "process", "memory_available_bytes", "Part of that memory which processes can still allocate."
)
PROCESS = (
    _metric("process", "process_virtual_memory_bytes", "Virtual memory size in bytes."),
    _metric("process", "process_resident_memory_bytes", "Resident memory size in bytes."),
    _metric("process", "process_start_time_seconds", "Start time of the process since unix epoch in seconds."),
    _metric("process", "process_cpu_seconds_total", "Total user and system CPU time spent in seconds."),
    _metric("process", "process_open_fds", "Number of open file descriptors.", unit="files"),
    _metric("process", "process_max_fds", "Maximum number of open file descriptors.", unit="files"),
)
"""The metrics of ``prometheus_client.ProcessCollector``."""

EXAMPLES = _metric("training", "examples_total", "Examples that this process has trained on.")
STEPS = _metric("training", "steps_total", "Steps that this process has taken.")
STEP = _metric("training", "step", "Newest step of the run.", unit="steps")
PLANNED_STEPS = _metric("training", "planned_steps", "Steps planned for the run; fewer once valid shows no gain.")
EPOCH = _metric("training", "epoch", "Current epoch, from 1.", unit="epochs")
PROGRESS = _metric("training", "progress_ratio", "Fraction of the planned steps taken; 1 once the run is done.")
LOSS = _metric(
    "training", "loss", "Mean loss of the last step over this process's examples; NaN: training diverged.", unit="1"
)
EPOCH_LOSS = _metric("training", "epoch_loss", "Mean loss of the last epoch over all examples.", unit="1")
LEARNING_RATE = _metric("training", "learning_rate", "Learning rate of the last step.", unit="1")
EVAL_METRIC = _metric(
    "training",
    "eval_metric",
    "Result of the last evaluation on a split, such as recall@10 or ndcg@10.",
    "split",
    "metric",
    unit="1",
)
PHASE_DURATION = _metric(
    "training",
    "phase_duration_seconds",
    "Seconds of training by phase; in data it waits for interactions, in sample for negatives and active rows.",
    "phase",
    kind="histogram",
)
ACTIVE_ROWS = _metric("training", "active_rows_total", "Rows that this process's steps have read and updated.", "table")
PUSHED_BYTES = _metric("training", "pushed_bytes_total", "Row IDs and gradients pushed.", "table")
DENSE_EQUIVALENT_BYTES = _metric(
    "training", "dense_equivalent_pushed_bytes_total", "Bytes that dense gradients would have pushed.", "table"
)
LAST_STEP = _metric("training", "last_step_timestamp_seconds", "Unix time of the last step.")
LAST_PROGRESS = _metric(
    "training",
    "last_progress_timestamp_seconds",
    "Unix time when a step, an evaluation, a checkpoint or another phase last began or ended.",
)

CHECKPOINTS = _metric("first", "checkpoints_total", "Checkpoints by result.", "result")
CHECKPOINT_PAUSE = _metric("first", "checkpoint_pause_seconds_total", "Seconds that training paused for checkpoints.")
LAST_CHECKPOINT_BYTES = _metric("first", "last_checkpoint_bytes", "Bytes of the last complete checkpoint.")
LAST_CHECKPOINT = _metric(
    "first",
    "last_checkpoint_timestamp_seconds",
    "Unix time when the last checkpoint became complete; before the first, when training began. "
    "time() minus this is its age.",
)
CHECKPOINT_INTERVAL = _metric(
    "first", "checkpoint_interval_seconds", "checkpoint.interval_seconds of the job; absent without it."
)

GPU_USED = _metric("gpu", "gpu_memory_used_bytes", "Used memory of the GPUs.")
GPU_LIMIT = _metric("gpu", "gpu_memory_limit_bytes", "Memory of the GPUs.")

UPDATED_ROWS = _metric("rows", "updated_rows_total", "Updates of rows in this process's table shards.", "table")
UPDATE_SECONDS = _metric(
    "rows",
    "update_seconds_total",
    "Seconds spent on these updates, with gradients where rows are updated in place.",
    "table",
)
TABLE_SHARD_BYTES = _metric(
    "rows",
    "table_shard_bytes",
    "Bytes of the table shards of this process: weights, and each array of optimizer state.",
    "table",
    "array",
)

REJECTED_COMMANDS = _metric(
    "server",
    "rejected_commands_total",
    "Commands that were ignored, since no worker of the job has sent them; reason: size, mac or replay.",
    "reason",
)

RESTARTS = _metric("job", "restarts_total", "Restarts of the job.")
GENERATION = _metric(
    "job", "generation", "Generation of the job's roles, from 1; 0 before the first.", unit="generations"
)
JOB_STATE = _metric("job", "job_state", "1 for the current state of the job, 0 for the others.", "state", unit="1")
ROLE_UP = _metric(
    "job",
    "role_up",
    "1 for each role of the job that an agent reports as running or done, 0 for one that is missing.",
    "process",
    unit="1",
)

REFRESH_ATTEMPTS = _metric(
    "refresh", "refresh_attempts_total", "Attempts to refresh the model by result: succeeded or failed.", "result"
)
REFRESH_FAILURES = _metric("refresh", "refresh_consecutive_failures", "Attempts that failed since one succeeded.")
REFRESH_LAST_SUCCESS = _metric(
    "refresh",
    "refresh_last_success_timestamp_seconds",
    "Unix time when the last attempt that succeeded ended, also if there was nothing new.",
)
REFRESH_WAITING = _metric(
    "refresh",
    "refresh_waiting_files",
    "Event files whose events are not in the version that is served, as counted by the last attempt.",
    unit="files",
)
REFRESH_SET_ASIDE = _metric(
    "refresh",
    "refresh_set_aside_files",
    "Event files that are left out since they cannot be read, as counted by the last attempt.",
    unit="files",
)
REFRESH_VERSIONS = _metric(
    "refresh",
    "refresh_versions_total",
    "Versions by result: published, also if withdrawn since, or rejected.",
    "result",
)
REFRESH_VERSION = _metric(
    "refresh", "refresh_version", "Number of the version that is served; absent before the first.", unit="versions"
)
REFRESH_NEWEST_EVENT = _metric(
    "refresh",
    "refresh_newest_event_timestamp_seconds",
    "Time of the newest event in the version that is served; absent unless timestamps are in seconds.",
)
REFRESH_LAST_RESULT = _metric(
    "refresh",
    "refresh_last_result",
    "1 for the result of the last version, published, rejected or withdrawn; 0 for the others.",
    "result",
    unit="1",
)
REFRESH_BEFORE = _metric(
    "refresh",
    "refresh_metric_before",
    "Metric of the model that the last version continued, on held-out new events, before it trained on new events.",
    "metric",
    unit="1",
)
REFRESH_AFTER = _metric(
    "refresh",
    "refresh_metric_after",
    "The same of the last version, after it trained on new events.",
    "metric",
    unit="1",
)
REFRESH_SECONDS = _metric(
    "refresh", "refresh_last_version_seconds", "Seconds that the last version took by stage: prepare or train.", "stage"
)

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Metric)) + PROCESS
