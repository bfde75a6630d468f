"""The metrics endpoint of a process: its paths, its health, and the wait for a final scrape."""

import json
import math
import threading
import time
import urllib.request
from typing import Any

import pytest
from scraping import ask, families, scrape
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.trainer.monitoring.http import MAX_FINAL_WAIT_SECONDS, serve_metrics
from crossfade.trainer.monitoring.registry import ProcessMetrics


def test_endpoint_serves_metrics_and_health_on_loopback() -> None:
    metrics = ProcessMetrics("plays", "worker", stall_timeout_seconds=1000.0)
    metrics.set_identity(1)
    metrics.state = lambda: "training"
    with serve_metrics(metrics, 0, None, "127.0.0.1") as endpoint:
        assert endpoint.address is not None
        assert endpoint.address.startswith("127.0.0.1:")
        assert "crossfade_build_info" in families(scrape(endpoint.address))
        status, body = ask(endpoint.address, "/healthz")
        assert (status, json.loads(body)["state"], json.loads(body)["rank"]) == (200, "training", "1")
        assert ask(endpoint.address, "/nothing")[0] == 404
        assert ask(endpoint.address, "/targets")[0] == 404
    with pytest.raises(OSError, match="refused"):
        ask(endpoint.address, "/healthz")


def test_stalled_process_is_unhealthy_until_progress() -> None:
    metrics = ProcessMetrics("plays", "worker", stall_timeout_seconds=-1.0)
    with serve_metrics(metrics, 0, None, "127.0.0.1") as endpoint:
        assert ask(str(endpoint.address), "/healthz")[0] == 503
        metrics._stall_timeout_seconds = 1000.0
        metrics.mark_alive()
        assert ask(str(endpoint.address), "/healthz")[0] == 200


def test_failing_collector_answers_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def collect(self) -> Any:
            raise ValueError("broken here")

    metrics = ProcessMetrics("plays", "worker")
    metrics.register("broken", Broken())
    metrics.set_identity(0)
    with serve_metrics(metrics, 0, None, "127.0.0.1") as endpoint:
        assert ask(str(endpoint.address), "/metrics")[0] == 500
        assert ask(str(endpoint.address), "/healthz")[0] == 200
    assert "broken here" in caplog.text


def test_port_in_use_is_rejected_and_null_serves_nothing() -> None:
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


def scrape_as_prometheus(address: str, path: str = "/metrics") -> None:
    request = urllib.request.Request(f"http://{address}{path}", headers={"X-Prometheus-Scrape-Timeout-Seconds": "10"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def test_end_waits_for_final_scrape_after_earlier_scrapes() -> None:
    metrics = ProcessMetrics("plays", "worker")
    with serve_metrics(metrics, 0, None, "127.0.0.1") as endpoint:
        address = str(endpoint.address)
        for _ in range(3):
            scrape(address)
        scrape_as_prometheus(address)
        scrape_as_prometheus(address, "/healthz")
        wait_until(lambda: math.isfinite(endpoint._scrapes[-1]), "the note of the scrape, which follows its answer")
        assert endpoint.seconds_until_scrape() == 0  # other clients do not count, nor does a first scrape
        endpoint._scrapes.extend([time.monotonic() - 100, time.monotonic()])  # a scrape every 100 seconds
        assert MAX_FINAL_WAIT_SECONDS - 1 < endpoint.seconds_until_scrape() <= MAX_FINAL_WAIT_SECONDS
        over = threading.Event()
        thread = threading.Thread(target=lambda: (endpoint.await_final_scrape(lambda: False), over.set()))
        thread.start()
        scrape(address)
        assert not over.wait(0.2)
        scrape_as_prometheus(address)
        assert over.wait(5)
        thread.join()
        endpoint._scrapes.extend([time.monotonic() - 100, time.monotonic()])
        endpoint.await_final_scrape(lambda: True)


def test_wildcard_host_advertises_role_address() -> None:
    with serve_metrics(ProcessMetrics("plays", "worker"), 0, "0.0.0.0", "127.0.0.2") as endpoint:
        assert str(endpoint.address).startswith("127.0.0.2:")
        assert ask(str(endpoint.address), "/healthz")[0] == 200
