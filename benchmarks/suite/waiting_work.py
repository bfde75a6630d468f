"""Make what the section on waiting is measured on, by ``raw_events.py``: events in files, and distinct plays.

    events = make_events(folder, sizes)         # events.parquet, events.csv
    plays = make_plays(folder, sizes)           # train.csv and held_out.csv, for peers/plays.py

All of it is drawn once from a seed and kept, by its sizes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
from peers.plays import HELD_OUT, TRACK, TRAIN, USER
from raw_events import EVENTS_FOLDER, TIMESTAMP, EventGenerator, write_raw_events

from crossfade.trainer.prepare.options import SyntheticSpec

SURPLUS = 2
"""Events drawn for each distinct play."""
SEED = 1


@dataclass(frozen=True)
class WaitingSizes:
    """Sizes of what people wait for.

    ``events`` of ``event_users`` and ``event_tracks`` are prepared; ``plays`` of ``users`` and ``tracks`` are fitted.
    ``trained`` are customers, items, and interactions of the training whose share of evaluation is measured. A call is
    made ``calls`` times, and a command ``starts`` times.
    """

    events: int = 20_000_000
    event_users: int = 1_000_000
    event_tracks: int = 500_000
    plays: int = 300_000
    users: int = 5_000
    tracks: int = 20_000
    trained: tuple[int, int, int] = (200_000, 50_000, 2_000_000)
    calls: int = 500
    starts: int = 5


def make_events(folder: Path, sizes: WaitingSizes) -> Path:
    """Write raw events with text IDs and timestamps in seconds, in random order, unless they exist.

    Returns:
        the folder of ``events.parquet`` and ``events.csv``.
    """
    made = folder / f"events-{sizes.events}-{sizes.event_users}-{sizes.event_tracks}"
    if not made.exists():
        with _unfinished(made) as unfinished:
            drawn = _drawn(unfinished, sizes.event_users, sizes.event_tracks, sizes.events)
            columns = f"{USER}, {TRACK}, epoch({TIMESTAMP})::BIGINT AS {TIMESTAMP}"
            with duckdb.connect() as database:
                database.execute(f"CREATE TABLE events AS SELECT {columns} FROM {drawn} ORDER BY hash({USER}, {TRACK})")
                for kind in ("parquet", "csv"):
                    database.execute(f"COPY events TO '{unfinished}/events.{kind}'")
    return made


def make_plays(folder: Path, sizes: WaitingSizes) -> Path:
    """Draw distinct plays with planted tastes, and hold out another ninth as many, unless they exist.

    Returns:
        the folder of the files of ``peers/plays.py``.
    """
    made = folder / f"listening-{sizes.plays}-{sizes.users}-{sizes.tracks}"
    total = sizes.plays * 10 // 9
    if not made.exists():
        with _unfinished(made) as unfinished:
            drawn = _drawn(unfinished, sizes.users, sizes.tracks, SURPLUS * total)
            with duckdb.connect() as database:
                distinct = f"SELECT DISTINCT {USER}, {TRACK} FROM {drawn} ORDER BY hash({USER}, {TRACK}) LIMIT {total}"
                database.execute(f"CREATE TABLE plays AS {distinct}")
                if (found := len(database.table("plays"))) < total:
                    raise ValueError(f"only {found} of {total} plays are distinct: draw more, or from more tracks")
                for split, part in ((TRAIN, f"LIMIT {sizes.plays}"), (HELD_OUT, f"OFFSET {sizes.plays}")):
                    database.execute(f"COPY (FROM plays {part}) TO '{unfinished}/{split}.csv'")
    return made


def _drawn(folder: Path, users: int, tracks: int, events: int) -> str:
    """Draw events into ``folder``; return how DuckDB reads them."""
    spec = SyntheticSpec.of(queries=users, items=tracks, interactions=events)
    write_raw_events(folder / "raw", EventGenerator(spec, SEED))
    return f"read_parquet('{folder}/raw/{EVENTS_FOLDER}/*')"


@contextmanager
def _unfinished(made: Path) -> Iterator[Path]:
    """Yield an empty folder that gets the name ``made`` once it is complete, without the events it was drawn from."""
    unfinished = made.with_name(f"{made.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(unfinished / "raw")
    unfinished.replace(made)
