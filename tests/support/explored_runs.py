"""Runs for the Explore page: two trained on the same planted data, one without a model, and one with an invalid job."""

import shutil
from pathlib import Path

from cluster_data import GENRES, TRACKS, write_job, write_planted
from command_here import crossfade_here
from running_command import succeeded

COLD_TRACK = 5000 + TRACKS
"""The ID of a track without an interaction."""


def write_runs(folder: Path) -> Path:
    """Train ``runs/one`` and ``runs/two``, and write ``runs/empty`` and ``runs/invalid``, in ``folder``."""
    data = write_planted(folder / "data", named=True, tracks=TRACKS + 1)
    write_job(folder / "job.yaml", data, train={"epochs": 6})
    for seed, name in enumerate(("one", "two")):
        command = ("train", "job.yaml", "--run-dir", f"runs/{name}", "--set", f"train.seed={seed}")
        succeeded(crossfade_here(*command, cwd=folder))
    for run in ("empty", "invalid"):
        (folder / "runs" / run).mkdir()
        for name in ("job.yaml", "run.json"):
            shutil.copy(folder / "runs" / "one" / name, folder / "runs" / run)
    (folder / "runs" / "invalid" / "job.yaml").write_text("name: x\n")
    return folder


def name_of(row: int) -> str:
    """Return the name of a track."""
    return f"Genre {row % GENRES} Song {row}"
