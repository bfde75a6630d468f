"""Read the records of a service again and again, while another process writes them.

reader = RecordReader(ServiceVersions(Path("services/music")))
reader.read()                                   # all records but damaged ones, which are in reader.problems
newest_event(reader.read())                     # how fresh what is served is
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from crossfade.base.errors import InputError
from crossfade.deploy.refresh.versions import ServiceVersions, VersionRecord, read_record
from crossfade.trainer.data.time_values import exceed_seconds_range

_TICK_NANOSECONDS = 2_000_000_000
"""Two changes of a folder within this time may leave it with the same time."""


class RecordReader:
    """The records of the versions of a service, without their files; only what is new or has changed is read."""

    def __init__(self, versions: ServiceVersions) -> None:
        """Read nothing yet."""
        self._versions = versions
        self._known: dict[tuple[str, int, int], VersionRecord] = {}
        self._listed = 0
        self.file_counts: dict[int, int] = {}
        """How many event files each version took, by its number."""
        self.problems: list[str] = []
        """A description of each record that was damaged or could not be read."""

    def read(self) -> list[VersionRecord]:
        """Return all records, the oldest first, but damaged ones."""
        try:
            changed = self._versions.folder.stat().st_mtime_ns
        except OSError:
            return []
        # A record is written by a rename, which changes the time of the folder; a damaged one may be restored in place.
        if changed != self._listed or self.problems:
            self._list()
            self._listed = changed if time.time_ns() - changed > _TICK_NANOSECONDS else 0
        return list(self._known.values())

    def _list(self) -> None:
        found: dict[tuple[str, int, int], VersionRecord] = {}
        problems = []
        for path in self._versions.record_paths():
            try:
                status = path.stat()
                key = (path.name, status.st_ino, status.st_mtime_ns)
                if (record := self._known.get(key)) is None:
                    record = read_record(path)
                    self.file_counts[record.number] = len(record.files)
                found[key] = record.model_copy(update={"files": []})
            except FileNotFoundError:
                continue  # it was deleted meanwhile
            except InputError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{path.name} cannot be read: {error.strerror}")
        self._known, self.problems = found, problems  # as a whole: those who read may overlap


def newest_event(records: Sequence[VersionRecord]) -> int | None:
    """Return the Unix time of the newest event that the published versions have; None if unknown or not in seconds."""
    times = (record.newest for record in records if record.status == "published" and record.newest is not None)
    newest = max(times, default=None)
    return None if newest is None or exceed_seconds_range(newest) else newest
