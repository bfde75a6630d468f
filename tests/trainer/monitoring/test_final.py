"""Final metrics: metrics.prom in the run folder, and the Pushgateway."""

from pathlib import Path

import pytest
from metric_groups import TABLES, make_job, step
from push_gateway import running_gateway
from scraping import assert_valid_metrics, samples, value

from crossfade.trainer.monitoring.final import merge_final_metrics, write_final_metrics
from crossfade.trainer.monitoring.registry import ProcessMetrics
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.training.worker_metrics import TrainingMetrics

pytestmark = pytest.mark.slow


def test_last_values_of_all_roles_are_merged_and_pushed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with running_gateway() as gateway:
        job = make_job(metrics={"pushgateway": gateway.url})
        for rank in (0, 1):
            metrics = ProcessMetrics("plays", "worker")
            measured = TrainingMetrics(job, TABLES, rank)
            measured.observe(step(local_examples=10 + rank))
            metrics.register("training", measured)
            metrics.set_identity(rank)
            write_final_metrics(folder, job, metrics)
        command = ProcessMetrics("plays", "coordinator")
        command.set_identity()
        merge_final_metrics(folder, job, command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics", "metrics.prom"]
    text = (tmp_path / "metrics.prom").read_text()
    assert value(text, "crossfade_examples_total", rank="1") == 11
    assert value(text, "crossfade_examples_total") == 21
    assert {labels["role"] for labels, _ in samples(text)["crossfade_build_info"]} == {"worker", "coordinator"}
    assert_valid_metrics(text)
    assert set(gateway.put) == {
        "/metrics/job/crossfade/rank/0/role/worker/run/plays",
        "/metrics/job/crossfade/rank/1/role/worker/run/plays",
        "/metrics/job/crossfade/role/coordinator/run/plays",
    }
    pushed = gateway.put["/metrics/job/crossfade/rank/1/role/worker/run/plays"]
    assert value(pushed, "crossfade_examples_total", rank="1") == 11
    folder.clear_metrics()
    assert list(tmp_path.iterdir()) == []


def test_unreachable_gateway_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running_gateway() as gateway:
        job = make_job(metrics={"pushgateway": gateway.url})
    metrics = ProcessMetrics("plays", "in-process")
    metrics.set_identity(0)
    merge_final_metrics(RunFolder(tmp_path), job, metrics)
    [line] = caplog.messages
    assert line.startswith(f"metrics.pushgateway: pushing the final values to {gateway.url} failed: ")
    assert (tmp_path / "metrics.prom").exists()
