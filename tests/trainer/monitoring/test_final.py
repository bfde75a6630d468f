"""Final metrics: metrics.prom in the run folder, and the Pushgateway."""

from pathlib import Path

import pytest
from metric_groups import TABLES, make_job, step
from push_gateway import running_gateway
from scraping import no_complaints, samples, value

from trainer.monitoring.final import merge_final_metrics, write_final_metrics
from trainer.monitoring.registry import ProcessMetrics
from trainer.runs.folder import RunFolder
from trainer.training.metrics import TrainingMetrics


def test_each_role_leaves_its_last_values_and_one_file_has_all_of_them(tmp_path: Path) -> None:
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
    no_complaints(text)
    assert set(gateway.put) == {
        "/metrics/job/crossfade/rank/0/role/worker/run/plays",
        "/metrics/job/crossfade/rank/1/role/worker/run/plays",
        "/metrics/job/crossfade/role/coordinator/run/plays",
    }
    pushed = gateway.put["/metrics/job/crossfade/rank/1/role/worker/run/plays"]
    assert value(pushed, "crossfade_examples_total", rank="1") == 11
    folder.clear_metrics()
    assert list(tmp_path.iterdir()) == []


def test_a_gateway_that_is_away_is_said_and_fails_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_gateway() as gateway:
        job = make_job(metrics={"pushgateway": gateway.url})
    metrics = ProcessMetrics("plays", "in-process")
    metrics.set_identity(0)
    merge_final_metrics(RunFolder(tmp_path), job, metrics)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"crossfade: metrics.pushgateway: {gateway.url} did not take the final values: ")
    assert (tmp_path / "metrics.prom").exists()
