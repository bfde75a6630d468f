"""Write runs without training them: a dataset whose IDs and names need escaping, and embeddings or a checkpoint.

    run = write_run(tmp_path, score="dot")
    run.vectors["track"]                # what was written, float32 (rows, columns)

Track 3 is vacant, and track 5 has no interaction.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from builders import ITEM, QUERY, make_interactions, random_rows, write_manifest, write_vocabulary
from cluster_data import write_job
from saved_shards import random_table, save_shards, split_table

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.data.manifest import DatasetManifest, data_fingerprint
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.files import write_table
from crossfade.trainer.embeddings.listing import write_listing
from crossfade.trainer.runs.job_inputs import load_inputs

CUSTOMER_IDS = ["c'0", 'c"1"', "c\\2", "c,3", "c\t4", "ü5", "東6", "{7}", "$8", " 9 ", "c\n10"]
TRACK_NAMES = ["Ágætis byrjun", None, 'Blue "in" Green', None, "東京", "Unheard", "", "tab\there", "a\\b", "new\nline"]
TRACK_IDS = [1000 + 7 * row if row != 3 else None for row in range(len(TRACK_NAMES))]
UNTRAINED = [3, 5]
TRAINED = [row for row in range(len(TRACK_NAMES)) if row not in UNTRAINED]
OPTIMIZER = OptimizerSpec("adagrad")


@dataclass(frozen=True)
class WrittenRun:
    """A run folder, its dataset, and its vectors by entity."""

    path: Path
    data: Path
    vectors: dict[str, FloatArray]


class ArrayVectors:
    """Vectors in memory."""

    def __init__(self, arrays: dict[str, FloatArray]) -> None:
        self._arrays = arrays

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, sorted and unique."""
        assert (np.diff(rows_N) > 0).all()
        return self._arrays[entity][rows_N]


def write_dataset(
    folder: Path, untrained: Sequence[int] = UNTRAINED, counts: Mapping[str, IntArray] | None = None
) -> DatasetManifest:
    """Write the dataset, whose vocabularies have ``counts`` by entity or, without, 0 for the tracks ``untrained``."""
    counts_N = np.ones(len(TRACK_NAMES), np.int64)
    counts_N[list(untrained)] = 0
    counts = {ITEM: counts_N} if counts is None else counts
    counts_N = counts[ITEM]
    track = write_vocabulary(folder, ITEM, TRACK_IDS, names=TRACK_NAMES, counts=counts_N, group_rows=4)  # type: ignore[arg-type]
    plays = make_interactions(range(len(CUSTOMER_IDS)), [TRAINED[row % len(TRAINED)] for row in range(11)])
    entities = {
        QUERY: write_vocabulary(folder, QUERY, CUSTOMER_IDS, counts=counts.get(QUERY)),
        ITEM: track.model_copy(update={"vacant_rows": [3]}),
    }
    return write_manifest(folder, entities, {"train": [[plays]]})


def write_run(
    folder: Path,
    *,
    score: str = "cosine",
    dim: int = 4,
    seed: int = 1,
    embeddings: bool = True,
    untrained: Sequence[int] = UNTRAINED,
) -> WrittenRun:
    """Write a dataset and a run with embeddings in ``folder``, or with neither embeddings nor checkpoints."""
    data, run = folder / "data", folder / "run"
    if not data.exists():
        write_dataset(data, untrained)
    run.mkdir(parents=True)
    job = load_job(write_job(run / "job.yaml", data, model={"score": score, "dim": dim}))
    (run / "job.yaml").write_text(json.dumps(load_inputs(job).job.model_dump(mode="json")))
    arrays = {QUERY: random_rows(len(CUSTOMER_IDS), dim, seed), ITEM: random_rows(len(TRACK_NAMES), dim, seed + 1)}
    # Values that text must write in another way.
    arrays[ITEM][0, :3] = [1.0, -3.5e-12, 2.5e6]
    if embeddings:
        write_vectors(run / "embeddings", data, arrays)
    return WrittenRun(run, data, arrays)


def write_vectors(folder: Path, data: Path, arrays: dict[str, FloatArray]) -> None:
    """Write ``arrays`` as the embeddings in ``folder``."""
    manifest = DatasetManifest.model_validate_json((data / "manifest.json").read_bytes())
    for entity, vectors_RD in arrays.items():
        table = TableSpec(entity, len(vectors_RD), vectors_RD.shape[1], 0.1)
        write_table(folder, ArrayVectors(arrays), table, Vocabulary(Folder(data), manifest, entity))
    write_listing(Folder(folder))


def save_checkpoint(run: WrittenRun, step: int) -> dict[str, FloatArray]:
    """Write a checkpoint of ``run`` with random tables, and return them."""
    dim = run.vectors[ITEM].shape[1]
    tables = [TableSpec(QUERY, len(CUSTOMER_IDS), dim, 0.1), TableSpec(ITEM, len(TRACK_NAMES), dim, 0.1)]
    values = {table.name: random_table(table, OPTIMIZER, seed=step) for table in tables}
    held = [part for table in tables for part in split_table(table, values[table.name], num_shards=1)]
    training = {
        "run": "0",
        "job": json.loads((run.path / "job.yaml").read_text()),
        "data": data_fingerprint(Folder(run.data)),
    }
    save_shards(str(run.path / "checkpoints"), step, tables, OPTIMIZER, [held], training)
    return {name: arrays["weights"] for name, arrays in values.items()}
