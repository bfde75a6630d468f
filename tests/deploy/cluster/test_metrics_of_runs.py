"""Metrics of real runs: scraped from every process while they train, and left in files at the end."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from metric_groups import FIRST, HOST, JOB, PROCESS, ROWS, SERVER, TRAINING
from paced_training import metrics_address, paced
from push_gateway import running_gateway
from running_command import started, succeeded
from scraping import ask, assert_valid_metrics, families, samples, scrape, targets, value

from crossfade.kvstore.store import VALUE_BYTES

TOKEN = "the-token-of-these-tests"
ON_TWO_HOSTS = {
    "scheduler": ("127.0.0.1", PROCESS),
    "server-0": ("127.0.0.1", PROCESS | ROWS | SERVER),
    "server-1": ("127.0.0.2", PROCESS | ROWS | SERVER),
    "worker-0": ("127.0.0.1", PROCESS | TRAINING),
    "worker-1": ("127.0.0.2", PROCESS | TRAINING),
    "coordinator": ("127.0.0.1", PROCESS | JOB | HOST),
    "agent": ("127.0.0.2", PROCESS | HOST),
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    train = {"epochs": 4, "eval_every_epochs": 1}
    return write_job(
        tmp_path / "job.yaml", write_planted(tmp_path / "data"), train=train, checkpoint={"interval_steps": 5}
    )


def json_lines(text: str) -> list[dict[str, object]]:
    """Return the JSON objects among the lines of ``text``; native libraries may add other lines."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def report(run_dir: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return values


def assert_agrees(text: str, run_dir: Path) -> None:
    """Assert that the last values of a run without restarts are those of its report."""
    final_report = report(run_dir)
    for name, key in (
        ("crossfade_examples_total", "examples"),
        ("crossfade_active_rows_total", "rows_pushed"),
        ("crossfade_pulled_bytes_total", "bytes_pulled"),
        ("crossfade_pushed_bytes_total", "bytes_pushed"),
        ("crossfade_dense_equivalent_pushed_bytes_total", "dense_equivalent_bytes_pushed"),
    ):
        assert value(text, name) == final_report[key], name
    assert value(text, "crossfade_step", rank="0") == final_report["steps"]
    assert value(text, "crossfade_steps_total", rank="0") == final_report["steps"]
    assert value(text, "crossfade_progress_ratio", rank="0") == 1
    assert value(text, "crossfade_epoch", rank="0") == final_report["epochs"]
    assert value(text, "crossfade_checkpoint_written_bytes_total") == final_report["checkpoints"]["bytes"]
    assert value(text, "crossfade_checkpoints_total", result="saved") == final_report["checkpoints"]["written"]
    ndcg = value(text, "crossfade_eval_metric", split="test", metric="ndcg@10", rank="0")
    assert ndcg == final_report["metrics"]["test"]["ndcg@10"]
    assert value(text, "crossfade_phase_duration_seconds_count", phase="gradients", rank="0") == final_report["steps"]
    gradients = value(text, "crossfade_phase_duration_seconds_sum", phase="gradients", rank="0")
    assert gradients == pytest.approx(final_report["seconds_by_phase"]["gradients"])
    # Each key of each server was updated in each step, with the rows of both workers.
    assert 0 < value(text, "crossfade_updated_rows_total") <= final_report["rows_pushed"]
    assert value(text, "crossfade_table_shard_bytes", array="weights") >= final_report["parameters"] * VALUE_BYTES


@pytest.mark.slow
def test_run_in_process_serves_metrics_and_leaves_final_values(job: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with running_gateway() as gateway:
        push = ("--set", f"metrics.pushgateway={gateway.url}")
        with paced("train", job, *push, run_dir=run_dir) as training:
            address = metrics_address(training)
            assert address.startswith("127.0.0.1:")
            training.wait_for("checkpoint_saved")
            first = scrape(address)
            assert families(first) == PROCESS | TRAINING | FIRST | ROWS
            assert_valid_metrics(first)
            for series in samples(first).values():
                assert all(labels.items() >= {"run": "planted", "role": "in-process"}.items() for labels, _ in series)
            steps = value(first, "crossfade_steps_total")
            training.wait(lambda: value(scrape(address), "crossfade_steps_total") > steps, "another step")
            assert targets(address) == {"in-process": address}
            training.wait(lambda: json.loads(ask(address, "/healthz")[1])["state"] == "training", "that it trains")
            assert ask(address, "/healthz")[0] == 200
            succeeded(training.finish())
    text = (run_dir / "metrics.prom").read_text()
    assert_agrees(text, run_dir)
    assert_valid_metrics(text)
    [pushed] = gateway.put.values()
    assert value(pushed, "crossfade_steps_total") == report(run_dir)["steps"]


@pytest.mark.slow
def test_run_without_a_metrics_port_leaves_final_values(job: Path, tmp_path: Path) -> None:
    settings = ("--set", "metrics.port=null", "--set", "train.epochs=1")
    result = succeeded(crossfade_here("train", job, "--run-dir", "run", *settings, cwd=tmp_path))
    assert "metrics: " not in result.stderr
    assert value((tmp_path / "run" / "metrics.prom").read_text(), "crossfade_steps_total") > 0


@pytest.mark.cluster
def test_every_process_on_two_hosts_can_be_discovered_and_scraped_and_logs_json_if_requested(
    job: Path, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    run_dir, token = tmp_path / "run", {"CROSSFADE_TOKEN": TOKEN}
    as_json = ("--log-format", "json")
    on_two = ("--set", f"cluster.coordinator_address={listen}", "--set", "cluster.hosts=2", *as_json)
    join = ("agent", "--join", listen, "--run-dir", run_dir, "--advertise-address", "127.0.0.2", *as_json)
    with running_gateway() as gateway:
        push = ("--set", f"metrics.pushgateway={gateway.url}")
        with (
            paced(
                "train", job, "--servers", 2, "--workers", 2, *on_two, *push, run_dir=run_dir, variables=token
            ) as training,
            started(*join, cwd=tmp_path, variables=token) as agent,
        ):
            address = metrics_address(training)
            training.wait_for("checkpoint_saved")
            discovered = targets(address)
            assert {name: where.partition(":")[0] for name, where in discovered.items()} == {
                name: host for name, (host, _) in ON_TWO_HOSTS.items()
            }
            texts = {name: scrape(where) for name, where in discovered.items()}
            for name, text in texts.items():
                expected = ON_TWO_HOSTS[name][1]
                first = name.startswith("worker") and 'rank="0"' in text
                assert families(text) == (expected | FIRST if first else expected), name
                assert_valid_metrics(text)
                assert ask(discovered[name], "/healthz")[0] == 200
                assert value(text, "crossfade_build_info", run="planted", role=name.partition("-")[0]) == 1
            assert value(texts["coordinator"], "crossfade_role_up") == 5
            assert value(texts["agent"], "crossfade_running_roles") == 2
            assert value(texts["server-1"], "crossfade_updated_rows_total", table="track") > 0
            shown = succeeded(training.finish()).stderr
            succeeded(agent.finish())
    assert {line["role"] for line in map(json.loads, shown.splitlines())} == {"coordinator"}
    epochs = []
    for role in ("server-0", "worker-0", "worker-1"):
        lines = json_lines((run_dir / "logs" / f"{role}.log").read_text())
        assert {(line["role"], line["generation"], line["level"]) for line in lines} == {(role, 1, "INFO")}
        assert (lines[0]["message"], lines[-1]["message"]) == ("phase name=starting", "ended")
        epochs += [line for line in lines if str(line["message"]).startswith("epoch ")]
    assert epochs[-1]["step"] == report(run_dir)["steps"]  # the first worker's, which may be either
    text = (run_dir / "metrics.prom").read_text()
    assert_agrees(text, run_dir)
    assert_valid_metrics(text)
    assert value(text, "crossfade_restarts_total") == 0
    assert value(text, "crossfade_job_state", state="done") == 1
    ranked = [f"rank/{rank}/role/{role}" for rank in (0, 1) for role in ("server", "worker")]
    pushed = {path.removeprefix("/metrics/job/crossfade/").removesuffix("/run/planted") for path in gateway.put}
    assert pushed == {"role/coordinator", "role/scheduler", *ranked}
