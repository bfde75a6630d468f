"""Read a service of 'crossfade refresh' repeatedly, and summarize it in figures and alerts.

    for service in Runs([Path("services")]).services():
        summary = service.summarize(now)
        print(summary.name, summary.served, summary.newest, summary.alerts)

Only the records of versions, ``current.json``, ``failure.txt``, and ``forgotten.json`` are read. Alerts have the
limits of ``docker/prometheus/rules.yml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from crossfade.base.errors import InputError, reason_of
from crossfade.base.formatting import decimals, duration, local_time, with_error
from crossfade.base.io.regular_files import read_below
from crossfade.base.json_text import validate_json
from crossfade.deploy.dashboard.alert import Alert
from crossfade.deploy.refresh.record_reader import RecordReader, newest_event
from crossfade.deploy.refresh.versions import (
    FAILURE_FILE,
    FORGOTTEN_FILE,
    Forgotten,
    ServiceVersions,
    VersionRecord,
)
from crossfade.trainer.embeddings.current_run import CURRENT_FILE, CurrentRun
from crossfade.trainer.monitoring.thresholds import STALE_EVENTS_SECONDS

_Note = TypeVar("_Note")


@dataclass(frozen=True)
class ServiceSummary:
    """One service. Times are Unix times in seconds; figures that are unknown are None."""

    name: str
    path: str
    records: list[VersionRecord]
    """All versions that were decided on, the oldest first."""
    served: int | None
    """The version that servers follow."""
    since: float | None
    """When it was published, or published again by a rollback."""
    newest: int | None
    """The time of the newest event in what is served; None also if timestamps are not in seconds."""
    age_seconds: float | None
    """The age of that event."""
    alerts: list[Alert]
    forgotten: Forgotten | None = None
    """A deletion of IDs, of which the version that is served may have vectors."""

    @property
    def last(self) -> VersionRecord | None:
        """The version that was decided on last."""
        return self.records[-1] if self.records else None

    @property
    def served_record(self) -> VersionRecord | None:
        """The record of the version that is served, if it can be read."""
        return next((record for record in self.records if record.number == self.served), None)

    @property
    def state(self) -> str:
        """What deserves attention first, in a word or two."""
        if self.last is not None and self.last.status == "rejected":
            return "rejected"
        if self.served is None:
            return "no version"
        if self.age_seconds is None:
            return "served"
        return "stale" if self.age_seconds > STALE_EVENTS_SECONDS else "fresh"

    def status(self, record: VersionRecord) -> str:
        """Return ``served`` for the version that is served, and the status of any other."""
        return "served" if record.number == self.served else record.status

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the state as JSON values, and versions with the number of their files."""
        versions = [{**record.model_dump(mode="json"), "files": len(record.files)} for record in self.records]
        fields = ("name", "path", "state", "served", "since", "newest", "age_seconds")
        return {
            **{name: getattr(self, name) for name in fields},
            "forgotten": None if self.forgotten is None else self.forgotten.model_dump(),
            "alerts": [asdict(alert) for alert in self.alerts],
            "versions": versions,
        }


class ServiceReader:
    """A service in a folder, whose files may be damaged."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the folder ``path``; ``name`` is the service's name among those that are shown."""
        self.path, self.name = path, name
        self._versions = ServiceVersions(path)
        self._reader = RecordReader(self._versions)
        self._problems: list[str] = []

    def summarize(self, now: float) -> ServiceSummary:
        """Read what is new, and summarize the service at the Unix time ``now``."""
        self._problems = []
        records, current = self._reader.read(), self._read_current()
        noted = self._read_note(lambda: self._versions.forgotten, FORGOTTEN_FILE)
        failure = self._read_note(lambda: self._versions.failure, FAILURE_FILE)
        served, since = _served(records, current)
        newest = newest_event(records)
        newest = None if newest is None or newest < 0 else newest
        age = None if newest is None else max(0.0, now - newest)
        forgotten = noted if noted and served and served <= noted.through else None
        return ServiceSummary(
            name=self.name,
            path=str(self.path),
            records=records,
            served=served,
            since=since,
            newest=newest,
            age_seconds=age,
            forgotten=forgotten,
            alerts=[
                *([] if failure is None else [Alert("warning", failure)]),
                *_alerts(records[-1:], served, age, forgotten),
                *(Alert("warning", problem) for problem in (*self._problems, *self._reader.problems)),
            ],
        )

    def _read_current(self) -> tuple[int, float] | None:
        """Return the version that servers follow, and when the file that names it was written."""
        path = self.path / CURRENT_FILE
        try:
            return validate_json(CurrentRun, read_below(self.path, CURRENT_FILE)).version, path.stat().st_mtime
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._problems.append(f"{CURRENT_FILE} cannot be read: {reason_of(error)}")
        return None

    def _read_note(self, read: Callable[[], _Note | None], name: str) -> _Note | None:
        """Return what ``read`` does: a note in the file ``name`` that the next attempt may delete."""
        try:
            return read()
        except FileNotFoundError:  # it was deleted meanwhile
            return None
        except InputError as error:
            self._problems.append(str(error))
        except OSError as error:
            self._problems.append(f"{name} cannot be read: {reason_of(error)}")
        return None


def _served(records: list[VersionRecord], current: tuple[int, float] | None) -> tuple[int | None, float | None]:
    """Return the version that is served, and since when: without ``current.json``, the last that was published."""
    published = [record.number for record in records if record.status == "published"]
    if not current and not published:
        return None, None
    served = current[0] if current else published[-1]
    if current and any(record.number > served and record.status == "withdrawn" for record in records):
        return served, current[1]  # by a rollback
    return served, next((record.decided for record in records if record.number == served), None)


TITLES = ("Version", "Decided", "Status", "Metric", "Events", "Files", "Before", "After", "Took")
TEXT_COLUMNS = 4
"""The first columns hold words and are aligned to the left; the others hold numbers."""


def version_row(service: ServiceSummary, record: VersionRecord) -> list[str]:
    """Return the cells of a version, in the order of ``TITLES``."""
    return [
        str(record.number),
        local_time(record.decided),
        service.status(record),
        record.metric,
        f"{record.events:,}",
        f"{len(record.files):,}",
        decimals(record.before),
        with_error(record.after, record.error),
        duration(sum(record.seconds.values())),
    ]


def _alerts(
    last: list[VersionRecord], served: int | None, age: float | None, forgotten: Forgotten | None
) -> Iterator[Alert]:
    instead = "no version is served" if served is None else f"version {served} is still served"
    for record in last:
        if record.status == "rejected":
            after = with_error(record.after, record.error)
            fell = f"{record.metric} {after} after training, {decimals(record.before)} before"
            yield Alert("warning", f"version {record.number} was rejected: {fell}; {instead}")
    if age is not None and age > STALE_EVENTS_SECONDS:
        yield Alert("warning", f"the newest event in the served version is {duration(age)} old")
    if forgotten is not None:
        yield Alert("info", f"ids were forgotten: version {served} may have vectors of them until the next refresh")
        if not forgotten.complete:
            yield Alert("warning", "a deletion of ids was interrupted: repeat it; no version is made before that")
