"""Write small datasets with planted preferences, and jobs that train on them in a second.

Every customer likes one genre, track t is of genre t mod G, and nine plays in ten are of the customer's genre. A test
chooses the sizes of files and row groups, which may be uneven.
"""

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from builders import make_interactions, write_manifest, write_vocabulary

from crossfade.base.arrays import IntArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import Entity, Feature
from crossfade.trainer.data.parquet import file_entry
from crossfade.trainer.data.reader import Interactions

CUSTOMERS, TRACKS, GENRES = 300, 200, 5
HELD_OUT = 2
UNEVEN_FILES = ((1, 900, 17), (1500,), (60, 1, 250, 333), (0, 700))

Pairs = tuple[IntArray, IntArray]


def planted_plays(plays: int, *, seed: int = 7) -> IntArray:
    """Draw ``plays`` distinct tracks of each customer in the order of playing, int64 (customers, plays)."""
    random = np.random.default_rng(seed)
    genre_T = np.arange(TRACKS) % GENRES
    rows = []
    for customer in range(CUSTOMERS):
        mass_T = np.where(genre_T == customer % GENRES, 9.0, 1.0 / (GENRES - 1))
        rows.append(random.choice(TRACKS, size=plays, replace=False, p=mass_T / mass_T.sum()))
    return np.array(rows, dtype=np.int64)


def planted_splits(plays: int = 16, *, seed: int = 7) -> dict[str, Pairs]:
    """Draw the customer and track rows of each split; train is in random order."""
    tracks_CP = planted_plays(plays + 2 * HELD_OUT, seed=seed)
    splits = {}
    for name, part in (
        ("train", slice(0, plays)),
        ("valid", slice(plays, plays + HELD_OUT)),
        ("test", slice(plays + HELD_OUT, None)),
    ):
        chosen_CP = tracks_CP[:, part]
        customers_CP = np.repeat(np.arange(CUSTOMERS), chosen_CP.shape[1]).reshape(chosen_CP.shape)
        splits[name] = (customers_CP.ravel(), chosen_CP.ravel())
    order = np.random.default_rng(seed).permutation(len(splits["train"][0]))
    splits["train"] = (splits["train"][0][order], splits["train"][1][order])
    return splits


def write_planted(
    folder: Path,
    *,
    train_files: Sequence[Sequence[int]] = UNEVEN_FILES,
    named: bool = False,
    held_out: bool = True,
    tracks: int = TRACKS,
    with_genres: bool = False,
) -> Path:
    """Write a dataset to ``folder``: train in files of the given row groups, valid and test in one file each.

    Vocabularies are in two files. If there are more than ``TRACKS`` tracks, the last ones were never played.
    ``with_genres`` writes the feature ``genre`` of tracks.
    """
    splits = planted_splits()
    if not held_out:
        splits = {"train": splits["train"]}
    files = {name: [[len(pairs[0])]] for name, pairs in splits.items()} | {"train": train_files}
    counts_N = np.bincount(splits["train"][1][: sum(map(sum, train_files))], minlength=tracks)
    customers = [f"c{row:03d}" for row in range(CUSTOMERS)]
    entities = {
        "customer": write_vocabulary(folder, "customer", customers, file_rows=CUSTOMERS * 2 // 3),
        "track": write_vocabulary(
            folder,
            "track",
            [5000 + row for row in range(tracks)],
            counts=counts_N,
            names=[f"Genre {row % GENRES} Song {row}" for row in range(tracks)] if named else None,
            file_rows=tracks * 2 // 3,
        ),
    }
    features = {"track": {"genre": _write_genres(folder, entities, tracks)}} if with_genres else {}
    return write_data(folder, entities, {name: (splits[name], files[name]) for name in splits}, features)


def _write_genres(folder: Path, entities: dict[str, Entity], tracks: int) -> Feature:
    """Write the genre of each track, and add the vocabulary of genres to ``entities``."""
    genres = [f"Genre {genre}" for genre in range(GENRES)]
    entities["genre"] = write_vocabulary(folder, "genre", genres, file_rows=GENRES * 2 // 3)
    path = "features/track/genre/part-00000.parquet"
    (folder / path).parent.mkdir(parents=True)
    row_T = np.arange(tracks)
    pq.write_table(pa.table({"row": row_T, "value": row_T % GENRES}), folder / path)
    return Feature(files=[file_entry(Folder(folder), path)])


def write_data(
    folder: Path,
    entities: dict[str, Entity],
    splits: dict[str, tuple[Pairs, Sequence[Sequence[int]]]],
    features: dict[str, dict[str, Feature]] | None = None,
) -> Path:
    """Write interactions of ``customer`` and ``track`` in files of the given row groups, and the manifest."""
    write_manifest(folder, entities, {name: _groups(pairs, files) for name, (pairs, files) in splits.items()}, features)
    return folder


def _groups(pairs: Pairs, files: Sequence[Sequence[int]]) -> list[list[Interactions]]:
    """Divide pairs among files and their row groups."""
    ends = iter(accumulate(size for sizes in files for size in sizes))
    parts = [[(end - size, end) for size, end in zip(sizes, ends, strict=False)] for sizes in files]
    return [[make_interactions(*(column[start:end] for column in pairs)) for start, end in part] for part in parts]


def write_job(path: Path, data: Path | str, **sections: Any) -> Path:
    """Write a job file on ``data`` that trains in a second, updated with ``sections``: ``train={"epochs": 5}``."""
    job: dict[str, Any] = {
        "name": "planted",
        "data": {"path": str(data)},
        "model": {"dim": 8, "temperature": 0.1, "popularity": "off"},
        "negatives": {"kind": "shared", "count": 64},
        "optimizer": {"kind": "adagrad", "learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.0},
        "train": {"batch_size": 256, "epochs": 2, "query_frequency_power": 0.0, "item_frequency_power": 0.0},
        "evaluate": {"k": [5, 10], "best_metric": "ndcg@10"},
    }
    for name, values in sections.items():
        job[name] = {**job.get(name, {}), **values} if isinstance(values, dict) else values
    path.write_text(json.dumps(job, indent=1), encoding="utf-8")  # JSON is YAML
    return path


def train_rows(files: Sequence[Sequence[int]] = UNEVEN_FILES) -> int:
    """Return the number of interactions in ``files``."""
    return sum(map(sum, files))
