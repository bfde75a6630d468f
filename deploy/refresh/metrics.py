"""Metrics of ``crossfade refresh``: which version is served, how fresh it is, and whether attempts succeed.

    metrics = RefreshMetrics(service)
    process_metrics.register("refresh", metrics)
    with metrics.attempt():
        service.refresh(progress, stop_requested)

All but the results of attempts is read from the records in the folder of the service, so that a restart of the process
resets little, and a rollback by another process shows. A scrape reads only records that are new or have changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prometheus_client.core import Metric as Family

from crossfade.base.errors import CrossfadeError
from crossfade.deploy.refresh.increment import RefreshedService
from crossfade.deploy.refresh.record_reader import RecordReader, newest_event
from crossfade.deploy.refresh.versions import Status, VersionRecord
from crossfade.trainer.monitoring import names

_RESULTS: tuple[Status, ...] = ("published", "rejected", "withdrawn")


class RefreshMetrics:
    """The state of a service that this process refreshes; registered with ``ProcessMetrics``."""

    def __init__(self, service: RefreshedService) -> None:
        """Read the state from ``service`` and its folder."""
        self._service, self._records = service, RecordReader(service.versions)
        self._attempts = {"succeeded": 0, "failed": 0}
        self._consecutive_failures = 0
        self._succeeded_at = 0.0
        self._is_active = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Count the attempt that is made in the context by its result; one that a signal ends has none."""
        self._is_active = True
        try:
            yield
        except Exception:
            self._attempts["failed"] += 1
            self._consecutive_failures += 1
            raise
        else:
            self._attempts["succeeded"] += 1
            self._consecutive_failures, self._succeeded_at = 0, time.time()
            self._count_waiting_again()
        finally:
            self._is_active = False

    def _count_waiting_again(self) -> None:
        """Count the files that wait after an attempt that has taken some, or did not have to look for them."""
        if self._service.arrivals is None or self._service.arrivals.waiting:
            with suppress(CrossfadeError, OSError):  # the next attempt reports it
                self._service.find_arrivals()

    def state(self) -> str:
        """Return what the process does, for /healthz."""
        return "refreshing" if self._is_active else "waiting"

    def collect(self) -> Iterator[Family]:
        """Yield the current values."""
        records = self._records.read()  # without damaged ones, which the next attempt reports
        decided = max((record.decided for record in records), default=0.0)
        yield names.REFRESH_ATTEMPTS.family(*(((result,), count) for result, count in self._attempts.items()))
        yield names.REFRESH_FAILURES.single(self._consecutive_failures)
        yield names.REFRESH_LAST_SUCCESS.single(max(self._succeeded_at, decided) or None)
        arrivals = self._service.arrivals
        yield names.REFRESH_WAITING.single(None if arrivals is None else len(arrivals.waiting))
        yield names.REFRESH_SET_ASIDE.single(None if arrivals is None else len(arrivals.set_aside))
        rejected = sum(record.status == "rejected" for record in records)
        yield names.REFRESH_VERSIONS.family((("published",), len(records) - rejected), (("rejected",), rejected))
        yield from _of_served([record for record in records if record.status == "published"])
        yield from _of_last(records[-1] if records else None)


def _of_served(published: list[VersionRecord]) -> Iterator[Family]:
    """Yield the metrics of the version that is served, the last of ``published``."""
    yield names.REFRESH_VERSION.single(published[-1].number if published else None)
    yield names.REFRESH_NEWEST_EVENT.single(newest_event(published))


def _of_last(last: VersionRecord | None) -> Iterator[Family]:
    """Yield the metrics of the version that was decided on last."""
    if last is None:
        return
    yield names.REFRESH_LAST_RESULT.family(*(((result,), float(result == last.status)) for result in _RESULTS))
    for metric, value in ((names.REFRESH_BEFORE, last.before), (names.REFRESH_AFTER, last.after)):
        yield metric.family(*([] if value is None else [((last.metric,), value)]))
    yield names.REFRESH_SECONDS.family(*(((stage,), seconds) for stage, seconds in last.seconds.items()))
