"""Find the event files of a service: which of them the next version may take, and why the others wait.

    arrivals = find_arrivals(config, versions)
    arrivals.plan()                                 # what fits into one version
    arrivals.reasons()                              # why the others are not taken, a line each

A local file is taken once it has not been written for ``settle_seconds``. With ``prepare: {on_bad_line: skip}``, a file
that cannot be read is set aside, so that it does not keep the others waiting: a version takes it without its events,
until it changes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crossfade.base.errors import InputError, Option, Text, escape_unprintable
from crossfade.base.formatting import duration
from crossfade.base.text import counted
from crossfade.deploy.refresh.service_file import ServiceConfig
from crossfade.deploy.refresh.versions import EventFile, ServiceVersions
from crossfade.trainer.prepare.input_files import RawFile, Source, find_arriving

MAX_FILES = 50_000
"""Files that a version takes, at most: records and manifests, which list them, are read up to 64 MiB."""
_SHOWN = 3
"""Names of files that a message has."""
_logger = logging.getLogger(__name__)


class FoundFiles(NamedTuple):
    """What the patterns of a service match.

    Attributes:
        files: the files by URI, which several patterns or links may name.
        unusable: the error of each file whose name cannot be used.
        unmatched: the patterns that match nothing.
    """

    files: dict[str, Source]
    unusable: dict[str, InputError]
    unmatched: list[str]


@dataclass(frozen=True)
class Arrivals:
    """The event files whose events are not in the current version, by URI.

    Attributes:
        ready: files that the next version may take.
        settling: in how many seconds a file that was written a moment ago may be taken.
        set_aside: files that cannot be read.
        unpublished: files among ``ready`` that a version had which was rejected or withdrawn.
        unmatched: the patterns that match no file.
    """

    ready: dict[str, EventFile]
    settling: dict[str, float]
    set_aside: list[str]
    unpublished: list[str]
    unmatched: list[str]

    @property
    def waiting(self) -> list[str]:
        """The files that will be taken."""
        return [*self.ready, *self.settling]

    def plan(self) -> list[EventFile]:
        """Return the files of the next version: if they are too many for one, first those that no version had."""
        if len(self.ready) <= MAX_FILES:
            return list(self.ready.values())
        return sorted(self.ready.values(), key=lambda file: file.uri in self.unpublished)[:MAX_FILES]

    def reasons(self) -> list[Text]:
        """Return the reasons why files wait, a line each."""
        lines: list[Text] = [f"events: no file matches {pattern}" for pattern in self.unmatched]
        if self.settling:
            settle = "settles" if len(self.settling) == 1 else "settle"
            longest = duration(max(self.settling.values()))
            lines.append(f"{counted(len(self.settling), 'file')} {settle} for another {longest}")
        if self.unpublished:
            were = f"{counted(len(self.unpublished), 'file')} of versions that were rejected or withdrawn"
            lines.append((f"{were}: taken with the next new file, or at once with ", Option("publish")))
        lines += [f"set aside until it changes, since it has faults: {uri}" for uri in self.set_aside]
        return lines


def find_event_files(config: ServiceConfig) -> FoundFiles:
    """Find all event files of a service.

    Raises:
        InputError: storage does not answer, or, unless files are set aside, a file has no known format.
    """
    found = FoundFiles({}, {}, [])
    for pattern in config.event_patterns():
        files, unusable = find_arriving("events", pattern, config.prepare.get("format"))
        found.files.update({uri_of(file): file for file in files})
        found.unusable.update(unusable)
        if not files and not unusable:
            found.unmatched.append(pattern)
    if found.unusable and not config.sets_aside:
        raise next(iter(found.unusable.values()))
    return found


def find_changed(config: ServiceConfig, files: Sequence[EventFile]) -> str | None:
    """Return the URI of one of ``files`` that was changed or deleted since it was found; None if none was."""
    found = find_event_files(config).files
    for file in files:
        with suppress(FileNotFoundError):
            if file.uri in found and state_of(found[file.uri]) == file.state:
                continue
        return file.uri
    return None


def find_arrivals(config: ServiceConfig, versions: ServiceVersions) -> Arrivals:
    """Find the event files that the current version does not have.

    Raises:
        InputError: as ``find_event_files``.
    """
    taken, tried = versions.taken(), versions.tried()
    found, now = find_event_files(config), time.time()
    for uri, error in found.unusable.items():
        _warn_once(f"{uri}: is set aside: {str(error).rpartition(f'{uri}: ')[2]}")
    arrivals, changed = Arrivals({}, {}, list(found.unusable), [], found.unmatched), []
    # A file that is gone from where it was may have moved with the folder of its service. The state of an object has
    # its address, so that no object is another.
    moved = {(Path(file.uri).name, file.state): file for file in taken.values() if not Path(file.uri).exists()}
    has_forgotten = any(not record.files for record in versions.published)
    for uri, source in found.files.items():
        with suppress(FileNotFoundError):  # it was deleted meanwhile
            file = EventFile(uri=uri, state=state_of(source), bytes=source.bytes)
            known = taken.get(uri) or moved.get((Path(uri).name, file.state))
            if known is not None and known.state == file.state:
                arrivals.set_aside.extend([uri] if known.is_faulty else [])
            elif known is not None and not known.is_faulty:
                if not has_forgotten or file.bytes >= known.bytes:  # else it may have lost events of forgotten IDs
                    changed.append(uri)
            elif (left := _seconds_left(source, config.settle_seconds, now)) <= 0:
                arrivals.ready[uri] = file
            else:
                arrivals.settling[uri] = left
    arrivals.unpublished.extend(uri for uri, file in arrivals.ready.items() if file in tried)
    if changed:
        names = first_names(changed)
        _warn_once(f"changed since taken, and not read again (give further events another name): {names}")
    return arrivals


def first_names(names: Sequence[str]) -> str:
    """Return the first of ``names``, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join([*names[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])])


def _seconds_left(source: Source, settle_seconds: float, now: float) -> float:
    """Return in how many seconds a file may be taken; objects on S3 appear complete."""
    return source.path.stat().st_mtime + settle_seconds - now if isinstance(source, RawFile) else 0.0


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    """Log ``message``, unless this process has."""
    if message not in _warned:
        _warned.add(message)
        _logger.warning(escape_unprintable(message))


def uri_of(file: Source) -> str:
    """Return what names a file whatever pattern or link leads to it."""
    return str(file.path.resolve()) if isinstance(file, RawFile) else str(file)


def state_of(file: Source) -> str:
    """Return what differs if a file was replaced or changed; a copy that keeps its time does not."""
    if isinstance(file, RawFile):
        status = file.path.stat()
        return json.dumps([status.st_size, status.st_mtime_ns])
    return json.dumps([str(file), file.bytes, file.modified])
