"""The names of metrics, and who shows them when and where: without training."""

import json
import re
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from metric_groups import FIRST, GPU, GROUPS, JOB, PROCESS, TABLES, TRAINING, make_job, step
from scraping import ask, families, no_complaints, samples, scrape, value
from waiting import wait_until

from deploy.cluster.messages import NumberedEvent
from deploy.cluster.metrics import JobMetrics, MachineMetrics, process_metrics
from kvstore.errors import DivergedError, InputError
from trainer.config.run_sections import ClusterConfig
from trainer.monitoring import names
from trainer.monitoring.http import FAREWELL_SECONDS, serve_metrics
from trainer.monitoring.registry import ProcessMetrics
from trainer.runs.events import CheckpointFailed, CheckpointSaved, MetricsAddress
from trainer.training.metrics import TrainingMetrics

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "docker" / "prometheus"
LABELS = {
    *("version", "python", "split", "metric", "phase", "table", "result", "array", "state", "process"),
}
UNIT_ENDINGS = {"seconds": "_seconds", "bytes": "_bytes", "ratio": "_ratio"}


def text_of(collector: Any) -> str:
    """What a process would show that has nothing but ``collector``."""
    metrics = ProcessMetrics("plays", "worker")
    metrics.register("process", collector)
    metrics.set_identity(0)
    return metrics.text().decode()


# ---- names


def test_these_are_all_metrics_and_the_processes_that_have_them() -> None:
    assert set(GROUPS) == set(names.GROUPS)
    for group, expected in GROUPS.items():
        assert {metric.name for metric in names.ALL if metric.group == group} == expected
    assert len(names.ALL) == sum(map(len, GROUPS.values()))


@pytest.mark.parametrize("metric", names.ALL, ids=lambda metric: metric.name)
def test_a_name_has_the_prefix_and_ends_with_its_unit_and_kind(metric: names.Metric) -> None:
    assert re.fullmatch(r"crossfade(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    stem = metric.name.removesuffix("_total")
    for unit, ending in UNIT_ENDINGS.items():
        assert stem.endswith(ending) == (metric.unit == unit)
    assert set(metric.labels) <= LABELS
    assert metric.description.endswith(".")


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.unit} | "
        f"{names.GROUPS[metric.group]} | {metric.description} |".replace("|  |", "| |")
        for metric in names.ALL
    ]
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("| `crossfade_")] == rows


# ---- one process


def test_nothing_is_shown_before_its_labels_are_complete_and_then_every_series_has_them() -> None:
    metrics = process_metrics("plays", "server")
    assert metrics.text() == b""
    metrics.set_identity(3)
    text = metrics.text().decode()
    assert families(text) == PROCESS
    for series in samples(text).values():
        for labels, _ in series:
            assert labels.items() >= {"run": "plays", "role": "server", "rank": "3"}.items()
    no_complaints(text)


def test_a_step_counts_its_rows_and_the_bytes_that_they_and_dense_gradients_are() -> None:
    measured = TrainingMetrics(make_job(), TABLES, rank=1)
    measured.observe(step())
    measured.observe(step(step=2, rows={"customer": 1, "track": 0}))
    text = text_of(measured)
    assert families(text) == TRAINING
    assert value(text, "crossfade_examples_total") == 8
    assert value(text, "crossfade_active_rows_total", table="customer") == 5
    assert value(text, "crossfade_pushed_bytes_total", table="customer") == 5 * (8 + 4 * 8)
    assert value(text, "crossfade_pulled_bytes_total", table="track") == 7 * (8 + 4 * 8)
    assert value(text, "crossfade_dense_equivalent_pushed_bytes_total", table="customer") == 2 * 100 * 8 * 4
    assert value(text, "crossfade_progress_ratio") == 0.2


def test_rank_0_tells_of_checkpoints_and_of_those_that_failed() -> None:
    measured = TrainingMetrics(make_job(), TABLES, rank=0)
    measured.observe(CheckpointSaved(step=5, checkpoint="c", seconds=2.0, pause_seconds=0.5, bytes=100))
    measured.observe(CheckpointFailed(step=9, message="full"))
    text = text_of(measured)
    assert families(text) == TRAINING | FIRST
    assert value(text, "crossfade_checkpoints_total", result="saved") == 1
    assert value(text, "crossfade_checkpoints_total", result="failed") == 1
    assert value(text, "crossfade_checkpoint_written_bytes_total") == 100
    assert value(text, "crossfade_checkpoint_interval_seconds") == 300


def test_a_gpu_has_its_memory_shown() -> None:
    measured = TrainingMetrics(make_job(), TABLES, rank=1)
    measured.watch_gpu(lambda: (3, 16))
    text = text_of(measured)
    assert families(text) == TRAINING | GPU
    assert (value(text, "crossfade_gpu_memory_used_bytes"), value(text, "crossfade_gpu_memory_limit_bytes")) == (3, 16)


def test_a_training_that_diverges_has_a_loss_that_is_no_number() -> None:
    from kvstore.local import LocalStore
    from trainer.training.session import measure_training

    metrics = ProcessMetrics("plays", "in-process")
    model: Any = type("Tables", (), {"tables": TABLES})
    with pytest.raises(DivergedError), measure_training(make_job(), model, LocalStore(), metrics):
        raise DivergedError("too far")
    assert str(value(metrics.text().decode(), "crossfade_loss")) == "nan"


def test_a_coordinator_tells_which_roles_are_missing_and_how_the_job_fares() -> None:
    from scripted_agents import Cluster

    cluster = Cluster()
    cluster.start()
    cluster.heartbeat_all()  # what they have begun
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


def test_a_coordinator_knows_where_the_roles_of_this_generation_and_the_other_agents_listen() -> None:
    from scripted_agents import Cluster

    cluster = Cluster(hosts=2)
    other = cluster.join("10.0.0.2")
    cluster.start()
    told = MetricsAddress(address="10.0.0.2:77")
    other.heartbeat(
        events=[NumberedEvent(number=1, generation=1, role="worker-1", event=told)], metrics_address="10.0.0.2:70"
    )
    found = [(process, address) for process, _, address in cluster.coordinator.scrape_targets()]
    assert found == [("agent", "10.0.0.2:70"), ("worker-1", "10.0.0.2:77")]
    cluster.fail()
    cluster.start()
    assert [process for process, _, _ in cluster.coordinator.scrape_targets() if process != "agent"] == []


def test_a_machine_has_a_limit_and_something_left() -> None:
    text = text_of(MachineMetrics())
    left = value(text, "crossfade_memory_available_bytes")
    assert 0 < left < value(text, "crossfade_memory_limit_bytes")


# ---- the listener


def test_a_listener_answers_on_loopback_and_says_how_the_process_is() -> None:
    metrics = ProcessMetrics("plays", "worker", stall_timeout_seconds=1000.0)
    metrics.set_identity(1)
    metrics.state = lambda: "training"
    with serve_metrics(metrics, 0, None, "127.0.0.1") as listener:
        assert listener.address is not None
        assert listener.address.startswith("127.0.0.1:")
        assert "crossfade_build_info" in families(scrape(listener.address))
        status, told = ask(listener.address, "/healthz")
        assert (status, json.loads(told)["state"], json.loads(told)["rank"]) == (200, "training", "1")
        assert ask(listener.address, "/nothing")[0] == 404
        assert ask(listener.address, "/targets")[0] == 404
    with pytest.raises(OSError, match="refused"):
        ask(listener.address, "/healthz")


def test_a_process_without_a_sign_of_progress_is_unhealthy_until_there_is_one() -> None:
    metrics = ProcessMetrics("plays", "worker", stall_timeout_seconds=-1.0)
    with serve_metrics(metrics, 0, None, "127.0.0.1") as listener:
        assert ask(str(listener.address), "/healthz")[0] == 503
        metrics._stall_timeout_seconds = 1000.0
        metrics.mark_alive()
        assert ask(str(listener.address), "/healthz")[0] == 200


def test_a_collector_that_fails_is_an_answer_and_not_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def collect(self) -> Any:
            raise ValueError("broken here")

    metrics = ProcessMetrics("plays", "worker")
    metrics.register("broken", Broken())
    metrics.set_identity(0)
    with serve_metrics(metrics, 0, None, "127.0.0.1") as listener:
        assert ask(str(listener.address), "/metrics")[0] == 500
        assert ask(str(listener.address), "/healthz")[0] == 200
    assert "broken here" in capsys.readouterr().err


def test_a_port_that_is_taken_is_wrong_input_and_null_is_no_port() -> None:
    metrics = ProcessMetrics("plays", "worker")
    with serve_metrics(metrics, 0, None, "127.0.0.1") as first:
        port = int(str(first.address).rpartition(":")[2])
        with (
            pytest.raises(InputError, match=f"metrics.port: cannot listen on 127.0.0.1:{port}.*0 for a free one"),
            serve_metrics(metrics, port, None, "127.0.0.1"),
        ):
            pass
    with serve_metrics(metrics, None, None, "127.0.0.1") as none:
        assert none.address is None


def as_prometheus(address: str, path: str = "/metrics") -> None:
    request = urllib.request.Request(f"http://{address}{path}", headers={"X-Prometheus-Scrape-Timeout-Seconds": "10"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


def test_an_end_waits_until_prometheus_has_the_last_values_if_it_was_there_before() -> None:
    metrics = ProcessMetrics("plays", "worker")
    with serve_metrics(metrics, 0, None, "127.0.0.1") as listener:
        address = str(listener.address)
        for _ in range(3):
            scrape(address)
        as_prometheus(address)
        as_prometheus(address, "/healthz")
        assert listener.farewell_seconds() == 0  # who asks is a person, or came once
        listener._scrapes.extend([time.monotonic() - 100, time.monotonic()])  # comes every 100 seconds
        assert FAREWELL_SECONDS - 1 < listener.farewell_seconds() <= FAREWELL_SECONDS
        over = threading.Event()
        thread = threading.Thread(target=lambda: (listener.await_final_scrape(lambda: False), over.set()))
        thread.start()
        scrape(address)
        assert not over.wait(0.2)
        as_prometheus(address)
        assert over.wait(5)
        thread.join()
        listener._scrapes.extend([time.monotonic() - 100, time.monotonic()])
        listener.await_final_scrape(lambda: True)


def test_an_end_does_not_wait_for_a_prometheus_that_stays_away() -> None:
    with serve_metrics(ProcessMetrics("plays", "worker"), 0, None, "127.0.0.1") as listener:
        for _ in range(2):
            as_prometheus(str(listener.address))
        wait_until(lambda: listener.farewell_seconds() == 0, 5, "that it is overdue")
        listener.await_final_scrape(lambda: False)


def test_whoever_listens_everywhere_is_reached_where_the_role_is() -> None:
    with serve_metrics(ProcessMetrics("plays", "worker"), 0, "0.0.0.0", "127.0.0.2") as listener:
        assert str(listener.address).startswith("127.0.0.2:")
        assert ask(str(listener.address), "/healthz")[0] == 200


@pytest.mark.parametrize("url", ["gateway:9091", "ftp://gateway", "http://user:secret@gateway"])
def test_a_pushgateway_is_an_http_url_without_a_password(url: str) -> None:
    with pytest.raises(InputError, match=r"metrics\.pushgateway"):
        make_job(metrics={"pushgateway": url})
