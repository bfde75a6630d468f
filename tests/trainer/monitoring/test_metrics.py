"""The catalog of metrics, and the collectors that expose them. Nothing is trained."""

import re
from typing import Any

import pytest
from metric_groups import FIRST, GPU, GROUPS, JOB, PROCESS, TABLES, TRAINING, make_job, step
from scraping import assert_valid_metrics, families, samples, value

from crossfade.base.errors import DivergedError
from crossfade.deploy.cluster.process_metrics import JobMetrics, process_metrics
from crossfade.trainer.config.sections import ClusterConfig
from crossfade.trainer.monitoring import names
from crossfade.trainer.monitoring.registry import ProcessMetrics
from crossfade.trainer.runs.events import CheckpointFailed, CheckpointSaved
from crossfade.trainer.training.worker_metrics import TrainingMetrics

LABELS = {
    *("version", "python", "split", "metric", "phase", "table", "result", "array", "state", "process", "reason"),
    *("host", "address", "stage"),
}
UNIT_ENDINGS = {"seconds": "_seconds", "bytes": "_bytes", "ratio": "_ratio"}


def text_of(collector: Any) -> str:
    """Return the text of a process whose only collector is ``collector``."""
    metrics = ProcessMetrics("plays", "worker")
    metrics.register("process", collector)
    metrics.set_identity(0)
    return metrics.text().decode()


def test_catalog_lists_exactly_these_metrics_by_group() -> None:
    assert set(GROUPS) == set(names.GROUPS)
    for group, expected in GROUPS.items():
        assert {metric.name for metric in names.ALL if metric.group == group} == expected
    assert len(names.ALL) == sum(map(len, GROUPS.values()))


@pytest.mark.parametrize("metric", names.ALL, ids=lambda metric: metric.name)
def test_metric_name_has_prefix_unit_and_kind(metric: names.Metric) -> None:
    assert re.fullmatch(r"crossfade(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    stem = metric.name.removesuffix("_total")
    for unit, ending in UNIT_ENDINGS.items():
        assert stem.endswith(ending) == (metric.unit == unit)
    assert set(metric.labels) <= LABELS
    assert metric.description.endswith(".")


def test_metrics_are_exposed_once_labels_are_complete() -> None:
    metrics = process_metrics("plays", "server")
    assert metrics.text() == b""
    metrics.set_identity(3)
    text = metrics.text().decode()
    assert families(text) == PROCESS
    for series in samples(text).values():
        for labels, _ in series:
            assert labels.items() >= {"run": "plays", "role": "server", "rank": "3"}.items()
    assert_valid_metrics(text)


def test_step_event_counts_rows_and_bytes() -> None:
    measured = TrainingMetrics(make_job(), TABLES, rank=1)
    measured.observe(step())
    measured.observe(step(step=2, rows={"customer": 1, "track": 0}))
    text = text_of(measured)
    assert families(text) == TRAINING
    assert value(text, "crossfade_examples_total") == 8
    assert value(text, "crossfade_active_rows_total", table="customer") == 5
    assert value(text, "crossfade_pushed_bytes_total", table="customer") == 5 * (8 + 4 * 8)
    assert value(text, "crossfade_dense_equivalent_pushed_bytes_total", table="customer") == 2 * 100 * 8 * 4
    assert value(text, "crossfade_progress_ratio") == 0.2


def test_rank_0_counts_saved_and_failed_checkpoints() -> None:
    measured = TrainingMetrics(make_job(), TABLES, rank=0)
    measured.observe(CheckpointSaved(step=5, checkpoint="c", seconds=2.0, pause_seconds=0.5, bytes=100))
    measured.observe(CheckpointFailed(step=9, message="full"))
    text = text_of(measured)
    assert families(text) == TRAINING | FIRST
    assert value(text, "crossfade_checkpoints_total", result="saved") == 1
    assert value(text, "crossfade_checkpoints_total", result="failed") == 1
    assert value(text, "crossfade_checkpoint_interval_seconds") == 300


def test_gpu_memory_is_exposed() -> None:
    measured = TrainingMetrics(make_job(), TABLES, rank=1)
    measured.watch_gpu(lambda: (3, 16))
    text = text_of(measured)
    assert families(text) == TRAINING | GPU
    assert (value(text, "crossfade_gpu_memory_used_bytes"), value(text, "crossfade_gpu_memory_limit_bytes")) == (3, 16)


def test_diverged_training_has_nan_loss() -> None:
    from crossfade.trainer.training.worker_metrics import measure_training

    metrics = ProcessMetrics("plays", "in-process")
    model: Any = type("Tables", (), {"tables": TABLES})
    with pytest.raises(DivergedError), measure_training(make_job(), model, 0, metrics):
        raise DivergedError("too far")
    assert str(value(metrics.text().decode(), "crossfade_loss")) == "nan"


def test_coordinator_exposes_roles_state_and_restarts() -> None:
    from scripted_agents import Cluster

    cluster = Cluster()
    cluster.start()
    cluster.heartbeat_all()  # they report what they have started
    config = ClusterConfig(servers=2, workers=2)
    text = text_of(JobMetrics(cluster.coordinator, config))
    assert families(text) == JOB
    roles = {labels["process"]: up for labels, up in samples(text)["crossfade_role_up"]}
    assert roles == dict.fromkeys(["scheduler", "server-0", "server-1", "worker-0", "worker-1"], 1)
    assert value(text, "crossfade_job_state", state="running") == 1
    assert value(text, "crossfade_job_state") == 1  # and no other state is
    cluster.fail()
    cluster.start()
    text = text_of(JobMetrics(cluster.coordinator, config))
    assert (value(text, "crossfade_restarts_total"), value(text, "crossfade_generation")) == (1, 2)
