"""A service with small files of plays, and commands on it.

    with one_process() as process, training_there(process):    # not one for each command, which would load all modules
        service = ServiceFolder(tmp_path)
        service.add(1)                              # events/day-001.parquet
        succeeded(service.command("refresh"))
        service.record(1)["events"]                 # EVENTS

Shapes: N plays of a file.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_here import crossfade_here
from crashing_storage import Crash

from crossfade.base.io.folder import Folder
from crossfade.deploy.launch.trial_run import TrialProcess
from crossfade.deploy.refresh import increment, versions
from crossfade.deploy.tuning import study
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.split_names import ALL_SPLITS

EVENTS, TRACKS = 300, 25
CUSTOMERS, NEW_CUSTOMERS = 40, 5
"""Customers of the first day, and how many more each later one has."""


def plays(day: int, events: int = EVENTS) -> pa.Table:
    """Return the plays of a day; customer 0 plays on the days 1 and 2 only."""
    draw = np.random.default_rng(day)
    customer_N = draw.integers(int(day > 2), CUSTOMERS + NEW_CUSTOMERS * (day - 1), events)
    track_N = (customer_N * 7 + draw.integers(0, 8, events)) % TRACKS
    return pa.table(
        {
            "user": [f"c{customer}" for customer in customer_N],
            "track": [f"t{track}" for track in track_N],
            "at": day * 1000 + np.arange(events),
        }
    )


class ServiceFolder:
    """The file ``music.yaml``, event files in ``events``, and the versions in ``music``, all in one folder."""

    def __init__(self, folder: Path, *events: object, **keys: Any) -> None:
        self.folder, self.path = folder, folder / "music"
        self.file, self._events = folder / "music.yaml", folder / "events"
        self._events.mkdir()
        self._keys: dict[str, Any] = {
            "name": "music",
            "folder": str(self.path),
            "events": [*map(str, events), str(self._events / "*.parquet")],
            "prepare": {"query": "customer=user", "item": "track", "timestamp": "at", "hold_out_valid": "random:0.2"},
            "job": {"model": {"dim": 8, "popularity": "off"}, "train": {"epochs": 2, "batch_size": 64}},
            "increment_job": {"train": {"epochs": 1}},
            "publish_if": None,
            "settle_seconds": 0,
        }
        self.configure(**keys)

    def configure(self, **keys: Any) -> None:
        """Change keys of the file."""
        self._keys |= keys
        self.file.write_text(json.dumps(self._keys))

    def copied(self, folder: Path, **keys: Any) -> "ServiceFolder":
        """Return a copy, with the same event files and a folder of further ones."""
        copy = ServiceFolder(folder, *self._keys["events"], **keys)
        shutil.copytree(self.path, copy.path)
        return copy

    def event_file(self, day: int) -> Path:
        """Return the path of the plays of a day."""
        return self._events / f"day-{day:03d}.parquet"

    def add(self, day: int, table: pa.Table | None = None) -> Path:
        """Let the plays of a day arrive, by default ``plays(day)``: they have their name when they are complete."""
        path = self.event_file(day)
        partial = path.with_suffix(".partial")
        pq.write_table(plays(day) if table is None else table, partial)
        return partial.rename(path)

    def command(self, name: str, *options: object) -> CompletedProcess[str]:
        """Run ``crossfade refresh`` or ``rollback``."""
        return crossfade_here(name, self.file, *options, cwd=self.folder)

    def status(self) -> dict[str, Any]:
        """Return what ``refresh --status --json`` prints."""
        found: dict[str, Any] = json.loads(self.command("refresh", "--status", "--json").stdout)
        return found

    def record(self, number: int) -> dict[str, Any]:
        """Return the record of a version."""
        found: dict[str, Any] = json.loads((self.path / f"version-{number:06}.json").read_text())
        return found

    def statuses(self) -> list[str]:
        """Return the status of each version."""
        return [json.loads(path.read_text())["status"] for path in sorted(self.path.glob("version-*.json"))]

    def files(self, number: int) -> list[str]:
        """Return the names of the event files of a version."""
        return [Path(file["uri"]).name for file in self.record(number)["files"]]

    def current(self) -> Mapping[str, Any]:
        """Return what servers follow."""
        found: dict[str, Any] = json.loads((self.path / "current.json").read_text())
        return found

    def run(self, number: int) -> Path:
        """Return the run folder of a version."""
        return self.path / f"version-{number:06}"

    def data(self, number: int) -> Path:
        """Return the dataset of the new events of a version."""
        return self.path / f"version-{number:06}-data"

    def times(self, number: int) -> list[int]:
        """Return the times of the plays in the dataset of a version, in order."""
        splits = read_manifest(Folder(self.data(number))).splits
        tables = [
            pq.read_table(self.data(number) / file.path, columns=["timestamp"])
            for split in ALL_SPLITS
            for file in (splits[split].files if split in splits else [])
        ]
        return sorted(pa.concat_tables(tables)["timestamp"].to_pylist())


def rejected(result: CompletedProcess[str], *phrases: str) -> None:
    """Assert that a command printed nothing but an error as its last line, which has all ``phrases``."""
    error = result.stderr.splitlines()[-1]
    assert (result.returncode, result.stdout) == (2, "")
    assert all(phrase in error for phrase in phrases), error


def current(number: int) -> dict[str, Any]:
    """Return what ``current.json`` has while a version is served."""
    return {"version": number, "run": f"version-{number:06}", "data": f"version-{number:06}-data"}


class _Lent:
    """A process that a command does not end: the next one trains in it too."""

    def __init__(self, process: TrialProcess) -> None:
        self._process = process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    def close(self) -> None:
        """Keep the process for the next command."""


@contextmanager
def one_process() -> Iterator[TrialProcess]:
    """Let services and studies train in one child process while the context lasts, inside ``training_there``."""
    with closing(TrialProcess()) as process:
        yield process


@contextmanager
def training_there(process: TrialProcess) -> Iterator[None]:
    """Let all services and studies of this process train in ``process``, whose current folder is another."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (increment, study):
            patch.setattr(module, "TrialProcess", lambda: _Lent(process))
        yield


@contextmanager
def crash_at(call: int) -> Iterator[None]:
    """Crash a command before its step number ``call``, from 1, of those that change something in a service's folder."""
    calls = 0

    def crashing(function: Any, own: Callable[[Any], bool] = lambda _: True) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            if own(arguments[0]):
                calls += 1
                if calls == call:
                    raise Crash
            return function(*arguments, **options)

        return step

    def is_of_version(path: Any) -> bool:
        is_version = Path(path).name.startswith(("version-", ".trash-version-"))
        return is_version and Path(path).parent.name == "music" and Path(path).exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(increment, "prepare", crashing(increment.prepare))
        patch.setattr(increment.TrialRun, "train", crashing(increment.TrialRun.train))
        for module in (increment, versions):
            patch.setattr(module, "replace_file", crashing(module.replace_file))
        patch.setattr(Path, "unlink", crashing(Path.unlink, lambda path: path.name == versions.PLAN_FILE))
        patch.setattr(Path, "rename", crashing(Path.rename, is_of_version))
        patch.setattr(shutil, "rmtree", crashing(shutil.rmtree, is_of_version))
        yield
