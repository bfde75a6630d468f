"""The metrics of ``crossfade refresh``: from recorded versions, and of a process that refreshes a service."""

import json
import re
import socket
from pathlib import Path

import pytest
from command_here import crossfade_here
from metric_groups import PROCESS, REFRESH
from recorded_service import write_service, write_versions
from refreshed_service import EVENTS, ServiceFolder, rejected
from running_command import started
from scraping import ask, assert_valid_metrics, families, samples, scrape, value
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.base.signals import StopSignal
from crossfade.deploy.refresh.increment import RefreshedService
from crossfade.deploy.refresh.metrics import RefreshMetrics
from crossfade.deploy.refresh.versions import ServiceVersions
from crossfade.trainer.monitoring.registry import ProcessMetrics

NEWEST, SUCCESS = "crossfade_refresh_newest_event_timestamp_seconds", "crossfade_refresh_last_success_timestamp_seconds"


def text_of(collector: RefreshMetrics) -> str:
    """Return the text of a process whose only collector is ``collector``."""
    process = ProcessMetrics("fresh", "refresh")
    process.register("process", collector)
    process.set_identity()
    return process.text().decode()


@pytest.fixture
def service(tmp_path: Path) -> RefreshedService:
    """Return a service of three versions: one is served, one was rejected, one withdrawn by a rollback."""
    return write_versions(tmp_path, {}, {"status": "rejected"}, {"status": "withdrawn"})


def test_records_tell_versions_metric_and_newest_event_also_after_a_restart(service: RefreshedService) -> None:
    service.find_arrivals()
    text = text_of(RefreshMetrics(service))
    assert families(text) == REFRESH
    assert_valid_metrics(text)
    assert all(
        labels.items() >= {"run": "fresh", "role": "refresh"}.items()
        for series in samples(text).values()
        for labels, _ in series
    )
    assert value(text, "crossfade_refresh_version") == 1
    # One that was withdrawn had been published.
    assert value(text, "crossfade_refresh_versions_total", result="published") == 2
    assert value(text, "crossfade_refresh_versions_total", result="rejected") == 1
    assert value(text, NEWEST) == 1_790_000_001
    assert value(text, SUCCESS) == 1_790_000_103
    assert value(text, "crossfade_refresh_last_result", result="withdrawn") == 1
    assert value(text, "crossfade_refresh_last_result") == 1  # and no other result has 1
    assert value(text, "crossfade_refresh_metric_before", metric="ndcg@10") == 0.23
    assert value(text, "crossfade_refresh_metric_after", metric="ndcg@10") == 0.28
    assert value(text, "crossfade_refresh_last_version_seconds", stage="train") == 40
    assert value(text, "crossfade_refresh_waiting_files") == 0


def test_changes_by_other_processes_and_damaged_records_show(service: RefreshedService) -> None:
    collector = RefreshMetrics(service)
    (service.folder / "version-000003.json").write_text("{")
    assert value(text_of(collector), "crossfade_refresh_last_result", result="rejected") == 1
    for number in (2, 3):
        (service.folder / f"version-00000{number}.json").unlink()
    ServiceVersions(service.folder).withdraw(after=0)
    found = samples(text_of(collector))
    assert found["crossfade_refresh_attempts_total"]
    assert "crossfade_refresh_version" not in found


@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        ([1_790_000_000_000], None),  # no seconds
        ([None], None),
        ([1_790_000_000, 1_780_000_000], 1_790_000_000),  # of all versions that are served
    ],
)
def test_newest_event_is_one_of_all_served_versions(
    tmp_path: Path, newest: list[int | None], expected: int | None
) -> None:
    text = text_of(RefreshMetrics(write_versions(tmp_path, *({"newest": each} for each in newest))))
    assert (value(text, NEWEST) if NEWEST in samples(text) else None) == expected


def test_attempts_are_counted_by_result_and_one_that_is_stopped_by_none(service: RefreshedService) -> None:
    collector = RefreshMetrics(service)
    failures: list[BaseException] = [InputError("a file"), OSError("a disk"), StopSignal()]
    for failure in failures:
        with pytest.raises(type(failure)), collector.attempt():
            raise failure
    assert collector.state() == "waiting"
    text = text_of(collector)
    assert value(text, "crossfade_refresh_attempts_total", result="failed") == 2
    assert value(text, "crossfade_refresh_attempts_total", result="succeeded") == 0
    assert value(text, "crossfade_refresh_consecutive_failures") == 2
    assert value(text, SUCCESS) == 1_790_000_103
    with collector.attempt():
        assert collector.state() == "refreshing"
    text = text_of(collector)
    assert value(text, "crossfade_refresh_attempts_total", result="failed") == 2
    assert value(text, "crossfade_refresh_attempts_total", result="succeeded") == 1
    assert value(text, "crossfade_refresh_consecutive_failures") == 0
    assert value(text, SUCCESS) > 1_790_000_103


def test_invalid_addresses_of_metrics_are_rejected(tmp_path: Path) -> None:
    path = write_service(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        for options, phrase in (
            (("--metrics-port", 0), "--metrics-port: needs --every"),
            (("--every", "1s", "--metrics-port", "all"), "--metrics-port all: "),
            (("--every", "1s", "--metrics-port", other.getsockname()[1]), "--metrics-port: cannot listen"),
        ):
            rejected(crossfade_here("refresh", path, *options), phrase)


@pytest.mark.slow
def test_process_serves_metrics_of_versions_and_failures(history: ServiceFolder, tmp_path: Path) -> None:
    copy = history.copied(tmp_path)
    with started("refresh", copy.file, "--every", "0.2s", cwd=tmp_path) as daemon:
        assert daemon.process.stderr is not None
        found = re.search(r"metrics: http://(\S+)/metrics", daemon.process.stderr.readline())
        assert found is not None
        address = found[1]

        def has(name: str, expected: float, **labels: str) -> bool:
            return (f"crossfade_refresh_{name}" in samples(text := scrape(address))) and (
                value(text, f"crossfade_refresh_{name}", **labels) == expected
            )

        wait_until(lambda: has("waiting_files", 0), "no file to wait")
        assert families(scrape(address)) == PROCESS | REFRESH
        assert has("version", 2)
        copy.event_file(3).write_bytes(b"no Parquet")
        wait_until(lambda: value(scrape(address), "crossfade_refresh_consecutive_failures") >= 2, "two failures")
        assert has("waiting_files", 1)
        status, answer = ask(address, "/healthz")
        assert (status, json.loads(answer)["run"]) == (200, "music")
        copy.add(3)
        wait_until(lambda: has("version", 3), "the third version")
        wait_until(lambda: has("consecutive_failures", 0), "the end of the failures")
        text = scrape(address)
        assert value(text, NEWEST) == 3000 + EVENTS - 1
        assert value(text, "crossfade_refresh_metric_before", metric="ndcg@10") > 0
        for stage in ("prepare", "train"):
            assert value(text, "crossfade_refresh_last_version_seconds", stage=stage) > 0
        (copy.path / "version-000001.json").write_text("{")
        wait_until(lambda: value(scrape(address), "crossfade_refresh_consecutive_failures") >= 2, "two failures")
