"""The catalog of all metrics: name, type, unit, labels and meaning. ``docs/metrics.md`` has them as a table.

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
ROLES = ("in-process", "coordinator", "agent", "scheduler", "server", "worker")
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
    "rows": "in-process, server",
    "server": "server",
    "job": "coordinator",
    "host": "coordinator, agent",
}
"""The processes that expose the metrics of a group."""

BUILD_INFO = Metric("crossfade_build_info", "gauge", "process", "1", "Always 1.", ("version", "python"))
MEMORY_LIMIT = Metric(
    "crossfade_memory_limit_bytes",
    "gauge",
    "process",
    "bytes",
    "Memory of the machine, or the container's limit if that is less.",
)
MEMORY_AVAILABLE = Metric(
    "crossfade_memory_available_bytes",
    "gauge",
    "process",
    "bytes",
    "Part of that memory which processes can still allocate.",
)
PROCESS = tuple(
    Metric(f"{PREFIX}_process_{name}", kind, "process", unit, description)  # type: ignore[arg-type]
    for name, kind, unit, description in (
        ("virtual_memory_bytes", "gauge", "bytes", "Virtual memory size in bytes."),
        ("resident_memory_bytes", "gauge", "bytes", "Resident memory size in bytes."),
        ("start_time_seconds", "gauge", "seconds", "Start time of the process since unix epoch in seconds."),
        ("cpu_seconds_total", "counter", "seconds", "Total user and system CPU time spent in seconds."),
        ("open_fds", "gauge", "files", "Number of open file descriptors."),
        ("max_fds", "gauge", "files", "Maximum number of open file descriptors."),
    )
)
"""The metrics of ``prometheus_client.ProcessCollector``."""

EXAMPLES = Metric(
    "crossfade_examples_total", "counter", "training", "examples", "Examples that this process has trained on."
)
STEPS = Metric("crossfade_steps_total", "counter", "training", "steps", "Steps that this process has taken.")
STEP = Metric("crossfade_step", "gauge", "training", "steps", "Newest step of the run.")
PLANNED_STEPS = Metric(
    "crossfade_planned_steps", "gauge", "training", "steps", "Steps that the run takes unless it stops early."
)
EPOCH = Metric("crossfade_epoch", "gauge", "training", "epochs", "Current epoch, from 1.")
PROGRESS = Metric(
    "crossfade_progress_ratio",
    "gauge",
    "training",
    "ratio",
    "Fraction of the planned steps taken; 1 once the run is done.",
)
LOSS = Metric(
    "crossfade_loss",
    "gauge",
    "training",
    "1",
    "Mean loss of the last step over this process's examples; NaN: training diverged.",
)
EPOCH_LOSS = Metric("crossfade_epoch_loss", "gauge", "training", "1", "Mean loss of the last epoch over all examples.")
LEARNING_RATE = Metric("crossfade_learning_rate", "gauge", "training", "1", "Learning rate of the last step.")
EVAL_METRIC = Metric(
    "crossfade_eval_metric",
    "gauge",
    "training",
    "1",
    "Result of the last evaluation on a split, such as recall@10 or ndcg@10.",
    ("split", "metric"),
)
PHASE_DURATION = Metric(
    "crossfade_phase_duration_seconds",
    "histogram",
    "training",
    "seconds",
    "Seconds of training by phase; in data it waits for interactions, in sample for negatives and active rows.",
    ("phase",),
)
ACTIVE_ROWS = Metric(
    "crossfade_active_rows_total",
    "counter",
    "training",
    "rows",
    "Rows that this process's steps have read and updated.",
    ("table",),
)
PULLED_BYTES = Metric(
    "crossfade_pulled_bytes_total", "counter", "training", "bytes", "Row IDs and values pulled.", ("table",)
)
PUSHED_BYTES = Metric(
    "crossfade_pushed_bytes_total", "counter", "training", "bytes", "Row IDs and gradients pushed.", ("table",)
)
DENSE_EQUIVALENT_BYTES = Metric(
    "crossfade_dense_equivalent_pushed_bytes_total",
    "counter",
    "training",
    "bytes",
    "Bytes that dense gradients would have pushed.",
    ("table",),
)
PREFETCHED_BATCHES = Metric(
    "crossfade_prefetched_batches",
    "gauge",
    "training",
    "batches",
    "Batches that are prefetched and wait for training.",
)
LAST_STEP = Metric(
    "crossfade_last_step_timestamp_seconds", "gauge", "training", "seconds", "Unix time of the last step."
)
LAST_PROGRESS = Metric(
    "crossfade_last_progress_timestamp_seconds",
    "gauge",
    "training",
    "seconds",
    "Unix time when a step, an evaluation, a checkpoint or another phase last began or ended.",
)

CHECKPOINTS = Metric(
    "crossfade_checkpoints_total", "counter", "first", "checkpoints", "Checkpoints by result.", ("result",)
)
CHECKPOINT_WRITE_SECONDS = Metric(
    "crossfade_checkpoint_write_seconds_total", "counter", "first", "seconds", "Seconds spent writing checkpoints."
)
CHECKPOINT_PAUSE = Metric(
    "crossfade_checkpoint_pause_seconds_total",
    "counter",
    "first",
    "seconds",
    "Seconds that training paused for checkpoints.",
)
CHECKPOINT_BYTES = Metric(
    "crossfade_checkpoint_written_bytes_total", "counter", "first", "bytes", "Bytes of checkpoints written."
)
LAST_CHECKPOINT_BYTES = Metric(
    "crossfade_last_checkpoint_bytes", "gauge", "first", "bytes", "Bytes of the last complete checkpoint."
)
LAST_CHECKPOINT = Metric(
    "crossfade_last_checkpoint_timestamp_seconds",
    "gauge",
    "first",
    "seconds",
    "Unix time when the last checkpoint became complete; before the first, when training began. "
    "time() minus this is its age.",
)
CHECKPOINT_INTERVAL = Metric(
    "crossfade_checkpoint_interval_seconds",
    "gauge",
    "first",
    "seconds",
    "checkpoint.interval_seconds of the job; absent without it.",
)

GPU_USED = Metric("crossfade_gpu_memory_used_bytes", "gauge", "gpu", "bytes", "Used memory of the GPUs.")
GPU_LIMIT = Metric("crossfade_gpu_memory_limit_bytes", "gauge", "gpu", "bytes", "Memory of the GPUs.")

UPDATED_ROWS = Metric(
    "crossfade_updated_rows_total",
    "counter",
    "rows",
    "rows",
    "Updates of rows in this process's table shards.",
    ("table",),
)
UPDATE_SECONDS = Metric(
    "crossfade_update_seconds_total",
    "counter",
    "rows",
    "seconds",
    "Seconds spent on these updates, with gradients where rows are updated in place.",
    ("table",),
)
TABLE_SHARD_BYTES = Metric(
    "crossfade_table_shard_bytes",
    "gauge",
    "rows",
    "bytes",
    "Bytes of the table shards of this process: weights, and each array of optimizer state.",
    ("table", "array"),
)

REJECTED_COMMANDS = Metric(
    "crossfade_rejected_commands_total",
    "counter",
    "server",
    "commands",
    "Commands that were ignored, since no worker of the job has sent them; reason: size, mac or replay.",
    ("reason",),
)

RESTARTS = Metric("crossfade_restarts_total", "counter", "job", "restarts", "Restarts of the job.")
GENERATION = Metric(
    "crossfade_generation", "gauge", "job", "generations", "Generation of the job's roles, from 1; 0 before the first."
)
JOB_STATE = Metric(
    "crossfade_job_state", "gauge", "job", "1", "1 for the current state of the job, 0 for the others.", ("state",)
)
ROLE_UP = Metric(
    "crossfade_role_up",
    "gauge",
    "job",
    "1",
    "1 for each role of the job that an agent reports as running or done, 0 for one that is missing.",
    ("process",),
)
ROLE_SLOWDOWN = Metric(
    "crossfade_role_slowdown_ratio",
    "gauge",
    "job",
    "ratio",
    "Seconds that a server or worker took for its own work in the last minute, as a multiple of the median of the "
    "others of its kind for the same work; 1 if the difference is less than a tenth of the time.",
    ("process",),
)
HOST_EXCLUDED = Metric(
    "crossfade_host_excluded",
    "gauge",
    "job",
    "1",
    "1 for a host that gets no more roles, since it was slow or its roles failed repeatedly; 0 for the others.",
    ("host", "address"),
)
RUNNING_ROLES = Metric("crossfade_running_roles", "gauge", "host", "roles", "Roles that run on this agent's host.")

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Metric)) + PROCESS
