"""The metrics of ``crossfade refresh``, from recorded versions; test_refresh_faults.py scrapes a process."""

import socket
from pathlib import Path

import pytest
from command_here import crossfade_here
from metric_groups import REFRESH
from recorded_service import write_service, write_versions
from refreshed_service import rejected
from scraping import assert_valid_metrics, families, samples, value

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
