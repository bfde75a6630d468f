"""Alerts on runs that end badly, in a real Prometheus that scrapes them by the shipped configuration and rules."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_data import write_job, write_planted
from paced_training import Training, metrics_address, paced
from prometheus_server import Prometheus, running_prometheus
from waiting import wait_until

CONFIG = Path(__file__).resolve().parents[2] / "docker" / "prometheus" / "prometheus.yml"
DIVERGING = ("--set", "optimizer.learning_rate=1e30")
HELD_SECONDS = 60.0
"""Time that the first step, which diverges, is held back at most: it is released earlier."""


def config_for(*addresses: str) -> dict[str, Any]:
    """Return the shipped configuration with short intervals, for the runs at ``addresses``."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG.with_name(name)) for name in config["rule_files"]]
    crossfade = config["scrape_configs"][0]
    urls = [f"http://{address}/targets" for address in addresses]
    crossfade["http_sd_configs"] = [{"url": url, "refresh_interval": "1s"} for url in urls]
    config["scrape_configs"] = [crossfade]
    return config


@pytest.fixture
def trainings(tmp_path: Path) -> Iterator[dict[str, Training]]:
    """Start a run in process and one on servers, whose first step is held back and diverges."""
    data = write_planted(tmp_path / "data")
    with ExitStack() as stack:
        started = {}
        for name, roles in (("alone", ()), ("on-servers", ("--servers", 1, "--workers", 1))):
            job = write_job(tmp_path / f"{name}.yaml", data, name=name)
            run = paced("train", job, *roles, *DIVERGING, run_dir=tmp_path / name, step_seconds=HELD_SECONDS)
            started[name] = stack.enter_context(run)
        yield started


@pytest.mark.slow
@pytest.mark.cluster
def test_diverged_and_failed_runs_raise_their_alerts(tmp_path: Path, trainings: dict[str, Training]) -> None:
    config = config_for(*map(metrics_address, trainings.values()))
    with running_prometheus(tmp_path / "prometheus", config) as prometheus:
        for name, process in (("alone", "in-process"), ("on-servers", "coordinator")):
            scrapes = f'sum_over_time(up{{run="{name}", process="{process}"}}[5m]) > 2'
            trainings[name].wait(lambda asked=scrapes: ask(prometheus, asked), f"scrapes of {name}")
        for name, training in trainings.items():
            result = training.finish()
            assert (result.returncode, "training has diverged" in result.stderr) == (1, True), (name, result.stderr)
        for name, alert in (("alone", "CrossfadeLossNotFinite"), ("on-servers", "CrossfadeRunFailed")):
            firing = f'ALERTS{{run="{name}", alertname="{alert}", alertstate="firing"}}'
            wait_until(lambda asked=firing: ask(prometheus, asked), firing)


def ask(prometheus: Prometheus, expression: str) -> list[Any]:
    """Return the series of an expression."""
    found: list[Any] = prometheus.ask("query", query=expression)["result"]
    return found
