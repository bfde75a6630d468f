"""Runs for the Explore page: two trained on the same planted data, of which one has a map, and one without a model."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from cluster_data import GENRES, TRACKS, write_job, write_planted
from command_here import crossfade_here
from running_command import succeeded

from crossfade.trainer.maps.items_map import ItemsMap
from crossfade.trainer.maps.map_files import _write_table
from crossfade.trainer.maps.map_labels import Labels

COLD_TRACK = 5000 + TRACKS
"""The ID of a track without an interaction."""


def write_runs(folder: Path) -> Path:
    """Train ``runs/one`` and ``runs/two``, and write ``runs/empty``, in ``folder``."""
    data = write_planted(folder / "data", named=True, tracks=TRACKS + 1)
    write_job(folder / "job.yaml", data, train={"epochs": 6})
    for seed, name in enumerate(("one", "two")):
        command = ("train", "job.yaml", "--run-dir", f"runs/{name}", "--set", f"train.seed={seed}")
        succeeded(crossfade_here(*command, cwd=folder))
    write_map(folder / "runs" / "one")
    (folder / "runs" / "empty").mkdir()
    for name in ("job.yaml", "run.json"):
        shutil.copy(folder / "runs" / "one" / name, folder / "runs" / "empty")
    return folder


def name_of(row: int) -> str:
    """Return the name of a track."""
    return f"Genre {row % GENRES} Song {row}"


def write_map(run: Path) -> Path:
    """Write a map on which the tracks of a genre are a ring; the last track is not on it."""
    row_N = np.arange(TRACKS)
    genre_N, angle_N = row_N % GENRES, 2 * np.pi * row_N / TRACKS
    place_N2 = np.stack([10 * genre_N + np.cos(angle_N), np.sin(angle_N)], axis=1).astype(np.float32)
    labels = Labels(tuple(f"genre {genre}" for genre in range(GENRES)), np.where(row_N == 0, -1, genre_N))
    names = list(map(name_of, range(TRACKS)))
    nothing = np.empty((TRACKS, 0), np.int32)
    items_map = ItemsMap("planted", row_N, pa.array(5000 + row_N), names, place_N2, labels, nothing, None)
    (run / "map").mkdir(exist_ok=True)
    _write_table(items_map, run / "map" / "map.parquet")
    return run / "map" / "map.parquet"
