"""Versions of a trained model: copies of all that requests read, in files that are mapped into memory.

    card = write_version(model, folder, VersionOptions(), reporter)
    with closing(open_version(folder)) as version: ...          # version.py

    VERSION/version.json            VersionCard, with the checksums of the other files
    VERSION/job.yaml                the job that trained it
    VERSION/data/                   the dataset's manifest, vocabularies and features, without its interactions
    VERSION/vectors/ENTITY.npy      float32 (R, D)
    VERSION/names.sqlite            IDs and names (names.py)
    VERSION/histories/starts        int64 (Q + 1,): where the items of each query start
    VERSION/histories/items         int32 (N,): distinct items of each query, sorted
    VERSION/histories/weights       float32 (N,): the sum of the weights of their interactions
    VERSION/counts.npy              the interactions of each item in train, int64 (R,), base datasets included
    VERSION/popularity.parquet      the popularity term of the scores, if the model has one
    VERSION/metadata.duckdb         columns of the items, for filters (served_metadata.py)
    VERSION/index-METRIC/           an index of the items, as of 'crossfade index', if there are many

A version is complete in itself: it is served without the run, its checkpoints, or S3. Memory does not grow with the
tables while it is written, but for an index.

Shapes: Q queries, R rows, N rows of a part or items of all histories, D columns.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, Option
from crossfade.base.io.checksums import FileChecksum, checksums_of, verify_files
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import read_below
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.json_text import validate_json
from crossfade.kvstore.finite import find_non_finite_row
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.manifest import (
    FILE_NAME,
    DataFile,
    DatasetManifest,
    manifest_bytes,
    read_manifest,
)
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.embeddings.files import GROUP_ROWS, VectorSource
from crossfade.trainer.embeddings.listing import POPULARITY_FILE
from crossfade.trainer.embeddings.popularity import PopularityTerm
from crossfade.trainer.model.spec import make_model
from crossfade.trainer.recommend.history import write_histories
from crossfade.trainer.recommend.index_build import build_index
from crossfade.trainer.recommend.metadata_table import write_metadata
from crossfade.trainer.recommend.options import IndexOptions
from crossfade.trainer.recommend.trained_model import TrainedModel
from crossfade.trainer.runs.run_folder import JOB_FILE
from crossfade.trainer.serving.names import write_names

CARD_FILE, DATA, VECTORS = "version.json", "data", "vectors"
NAMES, HISTORIES, COUNTS, METADATA = "names.sqlite", "histories", "counts.npy", "metadata.duckdb"
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class VersionOptions:
    """What a version has in addition to the model.

    Attributes:
        metadata: a file with further columns of items, for filters.
        index_from: number of items from which requests search an index; None: they always rank exactly.
        recall: the recall@100 that the index must reach.
    """

    metadata: str | None = None
    index_from: int | None = 50_000
    recall: float = 0.95


class VersionCard(BaseModel):
    """What a version was copied from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["crossfade-version"] = "crossfade-version"
    version: Literal[5] = 5
    model: str
    number: int | None
    """The number of the version of the service that the model is; None for other models."""
    fingerprint: str
    job: str
    score: ScoreKind
    date: str
    has_metadata: bool
    indexes: list[ScoreKind]
    """The metrics that an index of the items searches by."""
    files: dict[str, FileChecksum]
    """All files of the version, but the card."""


def index_folder(folder: Path, metric: ScoreKind) -> Path:
    """Return the folder of the index that searches by ``metric``, in the version ``folder``."""
    return folder / f"index-{metric}"


def write_version(
    model: TrainedModel, folder: Path, options: VersionOptions, reporter: ProgressReporter
) -> VersionCard:
    """Write a version of ``model`` into the new folder ``folder``; the card comes last and completes it.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the dataset or the metadata file cannot be read.
        MissingExtraError: an index is needed, and FAISS is not installed.
        OSError: ``folder`` cannot be written.
        StorageUnavailableError: storage does not answer.
    """
    folder.mkdir(parents=True)
    _copy_dataset(model, folder / DATA, reporter)
    (folder / JOB_FILE).write_text(model.job.to_yaml(), encoding="utf-8")
    (folder / VECTORS).mkdir()
    for table in model.spec.vectors:
        _copy_vectors(model.vectors, table, folder / VECTORS / f"{table.name}.npy", reporter)
    item = model.spec.item
    (folder / HISTORIES).mkdir()
    with closing(model.open_lineage()) as lineage:
        content = BytesIO()  # np.save ignores that the last bytes of a file find no room
        np.save(content, lineage.counts(item.name))
        (folder / COUNTS).write_bytes(content.getvalue())
        write_histories(lineage, ALL_SPLITS, folder / HISTORIES, reporter)
    if model.popularity is not None:
        model.popularity.save(Folder(folder))
    local = open_copy(folder, model.uri, model.fingerprint)
    write_names({table.name: local.vocabulary(table.name) for table in model.spec.vectors}, folder / NAMES, reporter)
    write_metadata(local, item.name, options.metadata, folder / METADATA)
    metrics = _build_indexes(local, options, folder, reporter)
    card = VersionCard(
        model=model.uri,
        number=model.version,
        fingerprint=model.fingerprint,
        job=model.job.name,
        score=model.ranking_metric,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        has_metadata=options.metadata is not None,
        indexes=metrics,
        files=checksums_of(folder),
    )
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return card


def open_card(folder: Path) -> VersionCard:
    """Read the card of the version in ``folder``, and verify its files.

    Raises:
        InputError: a file is missing or damaged.
    """
    card = _read_card(folder)
    verify_files(folder, card.files, CARD_FILE, "it is written again from the model when the server starts")
    return card


def _read_card(folder: Path) -> VersionCard:
    path = folder / CARD_FILE
    try:
        return validate_json(VersionCard, read_below(folder, CARD_FILE))
    except ValueError as error:
        raise InputError(f"{path}: is not the card of a version: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def open_copy(folder: Path, uri: str, fingerprint: str) -> TrainedModel:
    """Open the model whose job, dataset and vectors are in the version ``folder``.

    ``uri`` and ``fingerprint`` are those of the model that it is a copy of.
    """
    job = make_job((folder / JOB_FILE).read_text(encoding="utf-8"), str(folder / JOB_FILE))
    data = Folder(folder / DATA)
    manifest = read_manifest(data)
    vectors = MappedVectors(folder / VECTORS)
    spec = make_model(job, manifest)
    counts = {spec.item.name: np.asarray(np.load(folder / COUNTS, mmap_mode="r"))}
    term = None
    if (path := folder / POPULARITY_FILE).exists():
        term = PopularityTerm.from_table(pq.read_table(path), spec.item.rows)
    return TrainedModel(uri, job, spec, data, manifest, vectors, fingerprint, known_counts=counts, popularity=term)


class MappedVectors:
    """Vectors in files that are mapped into memory."""

    def __init__(self, folder: Path) -> None:
        """Map the files in ``folder``."""
        self._vectors = {path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in folder.glob("*.npy")}

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, int64, in any order: float32 (N, D)."""
        vectors_ND: FloatArray = self._vectors[entity][rows_N]
        return vectors_ND


def _copy_dataset(model: TrainedModel, folder: Path, reporter: ProgressReporter) -> None:
    """Copy the dataset without its interactions; reading the copy detects files that are corrupt."""
    files = dataset_files(model.manifest)
    reporter.phase("vocabularies", sum(file.bytes for file in files), "B")
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        uri = f"{model.data.uri}/{file.path}"
        with translate_storage_errors(uri):
            source = model.data.open_random(file.path)
        with closing(source), path.open("wb") as copy:
            _copy_bytes(source, copy, uri, reporter)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_bytes(manifest_bytes(model.data))


def dataset_files(manifest: DatasetManifest) -> list[DataFile]:
    """Return the files of vocabularies and features."""
    files = [file for entity in manifest.entities.values() for file in entity.files]
    features = [feature for some in manifest.features.values() for feature in some.values()]
    return [*files, *(file for feature in features for file in feature.files)]


def _copy_bytes(source: Any, copy: Any, uri: str, reporter: ProgressReporter) -> None:
    """Copy ``source`` to ``copy``; only errors of reading are those of ``uri``."""
    buffer = memoryview(bytearray(_COPY_BYTES))
    while True:
        with translate_storage_errors(uri):
            count = source.readinto(buffer)
        if not count:
            return
        copy.write(buffer[:count])
        reporter.advance(count)


def _copy_vectors(source: VectorSource, table: TableSpec, path: Path, reporter: ProgressReporter) -> None:
    """Write the vectors of ``table`` to ``path``; the file system has room for them before the first is read."""
    reporter.phase(f"vectors of {table.name}", table.rows, "row")
    header = {"descr": "<f4", "fortran_order": False, "shape": (table.rows, table.dim)}
    if shutil.disk_usage(path.parent).free < table.rows * table.dim * 4:
        raise InputError(
            f"{path.parent}: has no room for the vectors of {table.name}, {table.rows * table.dim * 4:,} bytes; name a "
            "folder on a larger disk with ",
            Option("work_dir"),
        )
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, header)  # type: ignore[no-untyped-call]
        for first in range(0, table.rows, GROUP_ROWS):
            rows_N = np.arange(first, min(first + GROUP_ROWS, table.rows), dtype=np.int64)
            vectors_ND = source.vectors(table.name, rows_N)
            if (bad := find_non_finite_row(vectors_ND)) is not None:
                raise InputError(f"the vector of row {first + bad} of '{table.name}' is not finite; train it again")
            file.write(vectors_ND.astype("<f4").tobytes())
            reporter.advance(len(rows_N))


def _build_indexes(
    model: TrainedModel, options: VersionOptions, folder: Path, reporter: ProgressReporter
) -> list[ScoreKind]:
    """Build the indexes of the items, if there are many; return what they search by."""
    if options.index_from is None or model.spec.item.rows < options.index_from:
        return []
    metrics: list[ScoreKind] = list(dict.fromkeys([model.ranking_metric, "cosine"]))
    for metric in metrics:
        index = IndexOptions(out=str(index_folder(folder, metric)), metric=metric, recall=options.recall)
        build_index(model, index, reporter)
    return metrics
