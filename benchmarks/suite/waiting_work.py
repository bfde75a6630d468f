"""Make what the section on waiting is measured on: raw events in files, and plays of planted tastes.

    events = make_events(folder, sizes)         # events.parquet, events.csv
    plays = make_plays(folder, sizes)           # arrays for peers/plays.py, plays.csv

All of it is drawn once from a seed and kept, by its sizes. Popularity follows Zipf's law in a random order of tracks.

Shapes: N events or plays, R rows of a table, K genres of a customer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from peers.columns import HELD_OUT, TRACK, TRAIN, USER, text_ids
from pyarrow import csv

from crossfade.base.arrays import FloatArray, IntArray

TIME = "time"
FIRST_TIME, SPAN = 1_600_000_000, 30_000_000
"""Seconds since 1970 of the first event, and seconds from there to the last."""
POPULARITY = 0.9
CHUNK = 1_000_000
GENRES, GENRES_OF_USER, OWN_GENRES = 40, 3, 0.8
"""Planted tastes: genres, how many of them a customer has, and the share of plays that are of those."""
SURPLUS = 2.0
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
    """Write raw events with text IDs and timestamps, unless they exist.

    Returns:
        the folder of ``events.parquet`` and ``events.csv``.
    """
    made = folder / f"raw-{sizes.events}-{sizes.event_users}-{sizes.event_tracks}"
    return _made_once(made, lambda unfinished: _write_events(unfinished, sizes))


def make_plays(folder: Path, sizes: WaitingSizes) -> Path:
    """Draw distinct plays with planted tastes, and hold out another ninth as many, unless they exist.

    Returns:
        the folder of the arrays of ``peers/plays.py``, and ``plays.csv`` with the plays that are not held out.
    """
    made = folder / f"plays-{sizes.plays}-{sizes.users}-{sizes.tracks}"
    return _made_once(made, lambda unfinished: _write_plays(unfinished, sizes))


def _made_once(made: Path, write: Callable[[Path], None]) -> Path:
    """Have ``write`` fill a folder that gets its name when it is complete."""
    if not made.exists():
        unfinished = made.with_name(f"{made.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.replace(made)
    return made


def _write_events(folder: Path, sizes: WaitingSizes) -> None:
    schema = pa.schema([(USER, pa.string()), (TRACK, pa.string()), (TIME, pa.int64())])
    with (
        pq.ParquetWriter(folder / "events.parquet", schema) as parquet,
        csv.CSVWriter(folder / "events.csv", schema, write_options=csv.WriteOptions(quoting_style="none")) as text,
    ):
        for chunk in _event_chunks(sizes, schema):
            parquet.write_table(chunk)
            text.write_table(chunk)


def _event_chunks(sizes: WaitingSizes, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield events in random order: uniform customers, tracks by popularity."""
    generator = np.random.default_rng(SEED)
    user_id = pa.array([f"user-{row:07d}" for row in range(sizes.event_users)])
    track_id = pa.array([f"track-{row:08d}" for row in generator.permutation(sizes.event_tracks)])
    cumulative_R = _cumulative(sizes.event_tracks)
    for start in range(0, sizes.events, CHUNK):
        count = min(CHUNK, sizes.events - start)
        user_N = generator.integers(0, sizes.event_users, count)
        track_N = np.searchsorted(cumulative_R, generator.random(count))
        time_N = FIRST_TIME + generator.integers(0, SPAN, count)
        columns = [user_id.take(pa.array(user_N)), track_id.take(pa.array(track_N)), pa.array(time_N)]
        yield pa.table(columns, schema=schema)


def _cumulative(rows: int) -> FloatArray:
    """Return the distribution function of ranks by Zipf's law: float64 (R,)."""
    cumulative_R = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -POPULARITY)
    return cumulative_R / cumulative_R[-1]


def _write_plays(folder: Path, sizes: WaitingSizes) -> None:
    total = sizes.plays * 10 // 9
    user_N, track_N = _draw_plays(sizes, total)
    parts = {TRAIN: slice(0, sizes.plays), HELD_OUT: slice(sizes.plays, total)}
    for split, part in parts.items():
        np.save(folder / f"{split}-{USER}.npy", user_N[part])
        np.save(folder / f"{split}-{TRACK}.npy", track_N[part])
    train = {USER: text_ids(USER, user_N[parts[TRAIN]]), TRACK: text_ids(TRACK, track_N[parts[TRAIN]])}
    csv.write_csv(pa.table(train), folder / "plays.csv")


def _draw_plays(sizes: WaitingSizes, total: int) -> tuple[IntArray, IntArray]:
    """Draw ``total`` distinct pairs in random order: customers (N,) and tracks (N,), int64.

    A track's genre is its rank modulo their number, so that all genres have popular tracks.
    """
    generator = np.random.default_rng(SEED)
    drawn = int(SURPLUS * total)
    user_N = generator.integers(0, sizes.users, drawn)
    tastes_RK = generator.integers(0, GENRES, (sizes.users, GENRES_OF_USER))
    rank_N = np.searchsorted(_cumulative(sizes.tracks), generator.random(drawn))
    genre_N = tastes_RK[user_N, generator.integers(0, GENRES_OF_USER, drawn)]
    of_genre_N = np.minimum(rank_N - rank_N % GENRES + genre_N, sizes.tracks - 1)
    track_N = np.where(generator.random(drawn) < OWN_GENRES, of_genre_N, rank_N)
    pair_N = generator.permutation(np.unique(user_N * sizes.tracks + track_N))[:total]
    if len(pair_N) < total:
        raise ValueError(f"only {len(pair_N)} of {total} plays are distinct: draw more, or from more tracks")
    return pair_N // sizes.tracks, pair_N % sizes.tracks
