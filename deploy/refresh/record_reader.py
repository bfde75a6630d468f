"""Read the records of a service again and again, while another process writes them.

reader = RecordReader(ServiceVersions(Path("services/music")))
reader.read()                                   # all records but damaged ones, which are in reader.problems
newest_event(reader.read())                     # how fresh what is served is
"""

from __future__ import annotations

from collections.abc import Sequence

from crossfade.base.errors import InputError
from crossfade.deploy.refresh.versions import ServiceVersions, VersionRecord, read_record
from crossfade.trainer.data.time_values import exceed_seconds_range


class RecordReader:
    """The records of the versions of a service; only what is new or has changed is read."""

    def __init__(self, versions: ServiceVersions) -> None:
        """Read nothing yet."""
        self._versions = versions
        self._known: dict[tuple[str, int, int], VersionRecord] = {}
        self.problems: list[str] = []
        """A description of each record that was damaged or could not be read."""

    def read(self) -> list[VersionRecord]:
        """Return all records, the oldest first, but damaged ones."""
        found: dict[tuple[str, int, int], VersionRecord] = {}
        problems = []
        for path in self._versions.record_paths():
            try:
                status = path.lstat()
                key = path.name, status.st_ino, status.st_mtime_ns
                found[key] = self._known.get(key) or read_record(path)
            except FileNotFoundError:
                continue  # it was deleted meanwhile
            except InputError as error:
                problems.append(str(error))
        self._known, self.problems = found, problems  # as a whole: those who read may overlap
        return list(found.values())


def newest_event(records: Sequence[VersionRecord]) -> int | None:
    """Return the Unix time of the newest event that the published versions have; None if unknown or not in seconds."""
    times = (record.newest for record in records if record.status == "published" and record.newest is not None)
    newest = max(times, default=None)
    return None if newest is None or exceed_seconds_range(newest) else newest
