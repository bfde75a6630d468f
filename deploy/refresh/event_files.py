"""Find the event files of a service: which of them the next version may take, and why the others wait.

    arrivals = find_arrivals(config, versions)
    arrivals.plan()                                 # what fits into one version
    arrivals.reasons()                              # why the others are not taken, a line each

A local file is taken once it has not been written for ``settle_seconds``; a text file without a final newline may be
half written, and is taken after twelve times as long. With ``prepare: {on_bad_line: skip}``, a file that cannot be read
is set aside, so that it does not keep the others waiting: ``set_aside.json`` names it until it changes, or the options
of prepare do.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import logging
import os
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from crossfade.base.errors import InputError, Option, Text, escape_unprintable
from crossfade.base.formatting import duration
from crossfade.base.io.durable_file import replace_file
from crossfade.base.io.regular_files import open_regular
from crossfade.base.text import counted
from crossfade.deploy.refresh.service_file import ServiceConfig
from crossfade.deploy.refresh.versions import EventFile, ServiceVersions, StoredRecord, read_stored
from crossfade.trainer.prepare.input_files import RawFile, Source, find_arriving, plain_path

SET_ASIDE_FILE = "set_aside.json"
MAX_LIST_BYTES = 32 << 20
"""The longest list of files of one version: records and manifests, which have it, are read up to 64 MiB."""
_UNFINISHED_FACTOR = 12
_MAX_PROBLEM = 500
_CLOCK_SECONDS = 1.0
"""Clocks of hosts that write event files may differ by this."""
_TEXT_FORMATS = {"csv", "tsv", "jsonl", "lightgcn"}
_logger = logging.getLogger(__name__)


class _AsideFile(EventFile):
    problem: str


class _Aside(StoredRecord):
    """``set_aside.json``: the files that cannot be read by the options ``prepare``."""

    prepare: dict[str, Any]
    files: list[_AsideFile]


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
        ahead: how many seconds in the future a file was written, by the clock of this host.
        set_aside: why a file cannot be read.
        unpublished: files among ``ready`` that a version had which was rejected or withdrawn.
        never_matched: the error of each pattern that matches nothing, and never has.
    """

    ready: dict[str, EventFile]
    settling: dict[str, float]
    ahead: dict[str, float]
    set_aside: dict[str, str]
    unpublished: list[str]
    never_matched: list[str]

    @property
    def waiting(self) -> list[str]:
        """The files that will be taken."""
        return [*self.ready, *self.settling, *self.ahead]

    def plan(self) -> list[EventFile]:
        """Return the files of the next version: as many as a list may have, first those that no version had."""
        files = list(self.ready.values())
        if sum(map(_listed_bytes, files)) <= MAX_LIST_BYTES:
            return files
        unpublished, size = set(self.unpublished), 0
        planned: list[EventFile] = []
        for file in sorted(files, key=lambda file: file.uri in unpublished):
            size += _listed_bytes(file)
            if planned and size > MAX_LIST_BYTES:
                break
            planned.append(file)
        _logger.warning(f"the next version takes {len(planned):,} of {counted(len(files), 'file')}; the others follow")
        return planned

    def warn(self) -> None:
        """Log which files will not be taken soon, if that has changed."""
        if self.ahead:
            _warn_once(_ahead_text(self.ahead), "ahead", sorted(self.ahead))
        if self.set_aside:
            _warn_once(_set_aside_text(self.set_aside), "set aside", sorted(self.set_aside))

    def reasons(self) -> list[Text]:
        """Return the reasons why files wait, a line each."""
        lines: list[Text] = [*self.never_matched]
        if self.settling:
            settle = "settles" if len(self.settling) == 1 else "settle"
            longest = duration(max(self.settling.values()))
            lines.append(f"{counted(len(self.settling), 'file')} {settle} for another {longest}")
        if self.ahead:
            lines.append(_ahead_text(self.ahead))
        if self.unpublished:
            were = f"{counted(len(self.unpublished), 'file')} of versions that were rejected or withdrawn"
            lines.append((f"{were}: taken with the next new file, or at once with ", Option("publish")))
        if self.set_aside:
            lines.append(_set_aside_text(self.set_aside))
        return lines


def _others(files: Mapping[str, object]) -> str:
    return f", and {counted(len(files) - 1, 'other')}" if len(files) > 1 else ""


def _set_aside_text(files: Mapping[str, str]) -> str:
    uri, problem = next(iter(files.items()))
    return f"{counted(len(files), 'file')} set aside: {uri}: {problem}{_others(files)}"


def _ahead_text(ahead: Mapping[str, float]) -> str:
    uri, seconds = max(ahead.items(), key=lambda entry: entry[1])
    return (
        f"{uri}: was written {duration(seconds)} in the future by this clock, and is taken after that time"
        f"{_others(ahead)}; correct the clock of what writes there, or 'touch' the file"
    )


def _listed_bytes(file: EventFile) -> int:
    """Return the bytes of a file in a record, at most."""
    return len(json.dumps(file.uri)) + len(json.dumps(file.state)) + 100


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


def describe_change(config: ServiceConfig, files: Sequence[EventFile]) -> str | None:
    """Describe how one of ``files`` has changed since it was found; None if none has."""
    found = find_event_files(config).files
    for file in files:
        with suppress(FileNotFoundError):
            if file.uri in found and state_of(found[file.uri]) == file.state:
                continue
            if file.uri in found:
                return (
                    f"{file.uri}: was changed while it was read; write event files under another name first, and "
                    "rename them when they are complete"
                )
        return f"{file.uri}: was deleted while it was read; the next attempt goes on without it"
    return None


def find_arrivals(config: ServiceConfig, versions: ServiceVersions) -> Arrivals:
    """Find the event files that the current version does not have.

    Raises:
        InputError: as ``find_event_files``, or the list of files that are set aside was damaged.
    """
    taken, tried = versions.taken(), versions.tried()
    found, aside, now = find_event_files(config), _read_aside(config), time.time()
    unusable = {name: str(error).rpartition(f"{name}: ")[2] for name, error in found.unusable.items()}
    arrivals = Arrivals({}, {}, {}, unusable, [], [])
    for uri, source in found.files.items():
        with suppress(FileNotFoundError):  # it was deleted meanwhile
            file = EventFile(uri=uri, state=state_of(source), bytes=source.bytes)
            if uri in taken:
                if taken[uri].state != file.state:
                    _warn_once(
                        f"{uri}: has changed since its events were taken, and is not read again; give further events "
                        "another name"
                    )
            elif uri in aside and aside[uri].state == file.state:
                arrivals.set_aside[uri] = aside[uri].problem
            elif (left := _seconds_left(source, config.settle_seconds, now)) <= 0:
                arrivals.ready[uri] = file
            elif (ahead := _modified(source) - now) > _CLOCK_SECONDS:
                arrivals.ahead[uri] = ahead
            else:
                arrivals.settling[uri] = left
    arrivals.unpublished.extend(uri for uri, file in arrivals.ready.items() if file in tried)
    arrivals.never_matched.extend(_never_matched(config, found.unmatched, versions))
    return arrivals


def _modified(source: Source) -> float:
    return source.path.stat().st_mtime if isinstance(source, RawFile) else 0.0


def _seconds_left(source: Source, settle_seconds: float, now: float) -> float:
    """Return in how many seconds a file may be taken; objects on S3 appear complete."""
    if not isinstance(source, RawFile):
        return 0.0
    left = _modified(source) + settle_seconds - now
    longer = left + (_UNFINISHED_FACTOR - 1) * settle_seconds
    if left > 0 or longer <= 0 or not _lacks_newline(source):
        return left
    _warn_once(
        f"{source}: has no newline at its end, and may be half written; taken in {duration(longer)} unless it changes",
        f"newline: {source}",
    )
    return longer


def _lacks_newline(file: RawFile) -> bool:
    """Return whether a text file that is not compressed has no newline at its end, and can be read."""
    if file.format not in _TEXT_FORMATS:
        return False
    try:
        with os.fdopen(open_regular(file.path), "rb") as opened:
            if not opened.read(1):
                return True
            opened.seek(-1, os.SEEK_END)
            return opened.read(1) not in (b"\n", b"\r") and file.compression() is None
    except OSError:
        return False  # The reader of its events reports the error.


def _never_matched(config: ServiceConfig, patterns: Sequence[str], versions: ServiceVersions) -> list[str]:
    """Return an error for each of ``patterns`` that matches no file of any version."""
    uris = [file.uri for record in versions.records for file in record.files] if patterns else []
    errors = []
    for given in patterns:
        pattern = plain_path(given)
        parts = PurePath(pattern).parts
        fixed = list(takewhile(lambda part: not glob.has_magic(part), parts[:-1]))
        folder, rest = pattern.rpartition("/")[0], pattern.rpartition("/")[2]
        if "://" not in pattern:
            folder = os.path.realpath(Path(*fixed))
            rest = "/".join(parts[len(fixed) :])
        # A * of fnmatch also matches slashes: a pattern that may have matched a file is no error.
        if not fnmatch.filter(uris, f"{folder}/{rest}".replace("**/", "*")):
            is_there = "://" in pattern or Path(folder).is_dir()
            errors.append(
                f"{config.source}: events: '{given}' has matched no file yet; looked in {folder}, which "
                f"{'has none' if is_there else 'does not exist'}; correct the pattern, or write event files there"
            )
    return errors


def _read_aside(config: ServiceConfig) -> dict[str, _AsideFile]:
    """Return the files that are set aside, by URI.

    Raises:
        InputError: the list was damaged.
    """
    path = config.path / SET_ASIDE_FILE
    if not config.sets_aside or not path.exists():
        return {}
    found = read_stored(_Aside, path, "a list of event files", "delete it, to read them again")
    return {file.uri: file for file in found.files} if found.prepare == config.prepare else {}


def set_aside(config: ServiceConfig, files: Mapping[str, tuple[EventFile, str]], found: Container[str]) -> None:
    """Leave files out of versions until they change: each with its problem, by URI; ``found`` has all event files."""
    known = {uri: file for uri, file in _read_aside(config).items() if uri in found}
    for uri, (file, problem) in files.items():
        known[uri] = _AsideFile(**file.model_dump(), problem=problem.removeprefix(f"{uri}: ")[:_MAX_PROBLEM])
        _logger.warning(escape_unprintable(f"{uri}: is set aside until it changes: {known[uri].problem}"))
    record = _Aside(prepare=config.prepare, files=list(known.values()))
    replace_file(config.path / SET_ASIDE_FILE, record.model_dump_json(indent=1).encode())


_warned: dict[str, Sequence[str]] = {}


def _warn_once(message: str, kind: str | None = None, files: Sequence[str] = ()) -> None:
    """Log ``message``, unless the last one of its ``kind`` was about the same ``files``."""
    if _warned.get(kind or message) != files:
        _warned[kind or message] = files
        _logger.warning(escape_unprintable(message))


def uri_of(file: Source) -> str:
    """Return what names a file whatever pattern or link leads to it."""
    return str(file.path.resolve()) if isinstance(file, RawFile) else str(file)


def state_of(file: Source) -> str:
    """Return what differs if a file was replaced or changed; a copy that keeps its time does not."""
    if isinstance(file, RawFile):
        status = file.path.stat()
        return json.dumps([status.st_size, status.st_mtime_ns])
    return json.dumps(file.version())
