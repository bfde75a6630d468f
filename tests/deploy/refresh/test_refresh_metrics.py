"""The metrics of ``crossfade refresh``, from recorded versions; test_refresh_faults.py scrapes a process."""

from pathlib import Path

import pytest
from metric_groups import REFRESH
from recorded_service import write_versions
from scraping import assert_valid_metrics, families, samples, value

from crossfade.base.errors import InputError
from crossfade.base.signals import StopSignal
from crossfade.deploy.refresh.increment import RefreshedService
from crossfade.deploy.refresh.metrics import RefreshMetrics
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
