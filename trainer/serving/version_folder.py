"""Versions of a trained model: copies of all that requests read, in files that are mapped into memory.

    card = write_version(model, folder, VersionOptions(), reporter)
    card = write_version(newer, other, VersionOptions(), reporter, earlier=folder)
    with closing(open_version(folder)) as version: ...          # version.py

    VERSION/version.json            VersionCard, with the checksums of the other files
    VERSION/job.yaml                the job that trained it
    VERSION/data/                   the dataset's manifest, vocabularies and features, without its interactions
    VERSION/vectors/ENTITY.npy      float32 (R, D)
    VERSION/names.sqlite            IDs and names (names.py)
    VERSION/histories/starts        int64 (Q + 1,): where the items of each query start
    VERSION/histories/items         int32 (N,): distinct items of each query, sorted
    VERSION/histories/weights       float64 (N,): the sum of the weights of their interactions
    VERSION/counts.npy              the interactions of each item in train, int64 (R,), base datasets included
    VERSION/popularity.parquet      the popularity term of the scores, if the model has one
    VERSION/metadata.duckdb         columns of the items, for filters (served_metadata.py)
    VERSION/index-METRIC/           an index of the items, as of 'crossfade index', if there are many

A version is complete in itself: it is served without the run, its checkpoints, or S3. Memory does not grow with the
tables while it is written, but for an index.

A version that continues another one is made from it, with the same answers as a complete copy: names, counts, and
histories take what is new in the dataset, and the index moves the vectors that have changed. Vectors are copied. One
continues another if its dataset is the same or extends it, every ID has kept its row, and tables have the same columns.

Shapes: Q queries, P parts of them, R rows, N rows of a part or items of all histories, D columns.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, Option
from crossfade.base.io.checksums import FileChecksum, checksums_of, verify_files
from crossfade.base.io.durable_file import link_or_copy
from crossfade.base.io.folder import Folder
from crossfade.base.io.regular_files import read_below
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.json_text import validate_json
from crossfade.kvstore.finite import find_non_finite_row
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import (
    FILE_NAME,
    DataFile,
    DatasetManifest,
    data_fingerprint,
    manifest_bytes,
    read_manifest,
)
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.split_names import ALL_SPLITS
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.files import GROUP_ROWS, VectorSource
from crossfade.trainer.embeddings.listing import POPULARITY_FILE
from crossfade.trainer.embeddings.popularity import PopularityTerm
from crossfade.trainer.model.spec import make_model
from crossfade.trainer.recommend.bulk import part_starts
from crossfade.trainer.recommend.history import StoredHistories, divide_histories
from crossfade.trainer.recommend.index_build import EarlierIndex, build_index
from crossfade.trainer.recommend.metadata_table import write_metadata
from crossfade.trainer.recommend.options import IndexOptions, MetadataFile
from crossfade.trainer.recommend.trained_model import TrainedModel
from crossfade.trainer.runs.run_folder import JOB_FILE
from crossfade.trainer.serving.names import changed_names, write_names

CARD_FILE, DATA, VECTORS = "version.json", "data", "vectors"
NAMES, HISTORIES, COUNTS, METADATA = "names.sqlite", "histories", "counts.npy", "metadata.duckdb"
_STARTS, _ITEMS, _WEIGHTS = "starts", "items", "weights"
_COPY_BYTES = 8 << 20
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionOptions:
    """What a version has in addition to the model.

    Attributes:
        metadata: a file with further columns of items, for filters.
        index_from: number of items from which requests search an index; None: they always rank exactly.
        recall: the recall@100 that the index must reach.
    """

    metadata: MetadataFile | None = None
    index_from: int | None = 50_000
    recall: float = 0.95


class VersionCard(BaseModel):
    """What a version was copied from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["crossfade-version"] = "crossfade-version"
    version: Literal[4] = 4
    model: str
    number: int | None
    """The number of the version of the service that the model is; None for other models."""
    fingerprint: str
    job: str
    score: ScoreKind
    date: str
    continues: str | None
    """The fingerprint of the model whose version it was made from; None for a complete copy."""
    has_metadata: bool
    indexes: list[ScoreKind]
    """The metrics that an index of the items searches by."""
    files: dict[str, FileChecksum]
    """All files of the version, but the card."""


def index_folder(folder: Path, metric: ScoreKind) -> Path:
    """Return the folder of the index that searches by ``metric``, in the version ``folder``."""
    return folder / f"index-{metric}"


def write_version(
    model: TrainedModel,
    folder: Path,
    options: VersionOptions,
    reporter: ProgressReporter,
    earlier: Path | None = None,
) -> VersionCard:
    """Write a version of ``model`` into the new folder ``folder``; the card comes last and completes it.

    It is made from the version in the folder ``earlier`` if it continues that one.

    Raises:
        CheckpointError: the checkpoint is corrupt or cannot be read.
        InputError: the dataset or the metadata file cannot be read.
        MissingExtraError: an index is needed, and FAISS is not installed.
        OSError: ``folder`` cannot be written.
        StorageUnavailableError: storage does not answer.
    """
    folder.mkdir(parents=True)
    data = _copy_dataset(model, folder / DATA, reporter)
    (folder / JOB_FILE).write_text(model.job.to_yaml(), encoding="utf-8")
    (folder / VECTORS).mkdir()
    for table in model.spec.vectors:
        _copy_vectors(model.vectors, table, folder / VECTORS / f"{table.name}.npy", reporter)
    item = model.spec.item
    with closing(model.open_lineage()) as lineage:
        continued = None if earlier is None else _continued(earlier, model, data, lineage)
        _write_interactions(model, lineage, continued, folder, reporter)
    if model.popularity is not None:
        model.popularity.save(Folder(folder))
    local = open_copy(folder, model.uri, model.fingerprint)
    _write_names(local, continued, folder, reporter)
    write_metadata(data, local.manifest, item.name, options.metadata, local.counts(item.name), folder / METADATA)
    metrics = _build_indexes(local, options, continued, folder, reporter)
    kept = {} if continued is None else continued.linked_files(folder)
    card = VersionCard(
        model=model.uri,
        number=model.version,
        fingerprint=model.fingerprint,
        job=model.job.name,
        score=model.ranking_metric,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        continues=None if continued is None else continued.card.fingerprint,
        has_metadata=options.metadata is not None,
        indexes=metrics,
        files={**kept, **checksums_of(folder, kept)},
    )
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return card


@dataclass(frozen=True)
class _Continued:
    """A version that another one continues.

    Attributes:
        folder: its folder.
        card: its card.
        model: the model in it.
        changed_names: the rows of each entity that it lacks or has with another name.
        has_all_events: whether the dataset is the same.
    """

    folder: Path
    card: VersionCard
    model: TrainedModel
    changed_names: Mapping[str, IntArray]
    has_all_events: bool

    def link(self, name: str, folder: Path) -> None:
        """Make the file ``name`` part of the version in ``folder``, too; neither may be written from then on."""
        link_or_copy(self.folder / name, folder / name)

    def linked_files(self, folder: Path) -> dict[str, FileChecksum]:
        """Return the checksums of the files that the version in ``folder`` has in common with it."""
        return {
            name: checksum
            for name, checksum in self.card.files.items()
            if (folder / name).exists() and (folder / name).samefile(self.folder / name)
        }

    def index(self, metric: ScoreKind) -> EarlierIndex | None:
        """Return its index that searches by ``metric``, if there is one."""
        return EarlierIndex(self.model, index_folder(self.folder, metric)) if metric in self.card.indexes else None


def _continued(folder: Path, model: TrainedModel, data: Folder, lineage: LineageReader) -> _Continued | None:
    """Open the version in ``folder`` if ``model``, whose dataset is copied to ``data``, continues it; None if not.

    ``lineage`` reads only what the version lacks from then on.
    """
    try:
        card = _read_card(folder)
        used = {name: sum for name, sum in card.files.items() if not name.startswith((VECTORS, METADATA))}
        verify_files(folder, used, CARD_FILE, "a complete copy takes its place")
        earlier = open_copy(folder, card.model, card.fingerprint)
        if _layout(earlier) != _layout(model):
            return None
        changed = {}
        for table in model.spec.vectors:
            now = Vocabulary(data, model.manifest, table.name)
            if (rows_N := changed_names(earlier.vocabulary(table.name), now)) is None:
                return None
            changed[table.name] = rows_N
    except (InputError, OSError, ValueError, EOFError) as error:
        _logger.warning(f"a complete copy of {model.uri} is written: {error}")
        return None
    fingerprint = data_fingerprint(earlier.data)
    has_all_events = fingerprint == data_fingerprint(data)
    if not has_all_events and not (fingerprint in model.manifest.lineage and lineage.skip_known(earlier.manifest)):
        return None
    return _Continued(folder, card, earlier, changed, has_all_events)


def _layout(model: TrainedModel) -> tuple[Any, ...]:
    """Return what a version and one that it continues have in common."""
    columns = [(table.name, table.dim) for table in model.spec.vectors]
    return model.job.model.score, model.popularity is None, columns


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


def _copy_dataset(model: TrainedModel, folder: Path, reporter: ProgressReporter) -> Folder:
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
    return Folder(folder)


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


def _write_interactions(
    model: TrainedModel, lineage: LineageReader, continued: _Continued | None, folder: Path, reporter: ProgressReporter
) -> None:
    """Write the counts of items, and the histories of all queries from all interactions, into ``folder``.

    Raises:
        InputError: the dataset cannot be read.
        StorageUnavailableError: storage does not answer.
    """
    (folder / HISTORIES).mkdir()
    if continued is not None and continued.has_all_events:
        for name in (COUNTS, *(f"{HISTORIES}/{name}" for name in (_STARTS, _ITEMS, _WEIGHTS))):
            continued.link(name, folder)
        return
    known = StoredHistories(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0))
    if continued is not None:
        known = map_histories(continued.folder / HISTORIES)
    content = BytesIO()  # not into the file: numpy ignores that its last bytes find no room
    np.save(content, lineage.counts(model.spec.item.name))
    (folder / COUNTS).write_bytes(content.getvalue())
    _write_histories(model, lineage, known, folder / HISTORIES, reporter)


def _write_histories(
    model: TrainedModel, lineage: LineageReader, known: StoredHistories, folder: Path, reporter: ProgressReporter
) -> None:
    """Write the histories of all queries of ``model`` into ``folder``: those in ``known``, and what ``lineage`` has."""
    query = model.spec.query
    starts_P1 = part_starts(lineage.counts(query.name))
    with (
        tempfile.TemporaryDirectory(prefix="parts-", dir=folder) as work,
        ExitStack() as stack,
    ):
        queries_Q = np.arange(query.rows, dtype=np.int64)
        divided = divide_histories(lineage, ALL_SPLITS, queries_Q, starts_P1, Path(work), reporter)
        starts, items, weights = (
            stack.enter_context((folder / name).open("wb")) for name in (_STARTS, _ITEMS, _WEIGHTS)
        )
        end = 0
        starts.write(np.zeros(1, np.int64).tobytes())
        for part in range(len(starts_P1) - 1):
            histories = divided.load_added(part, known)
            starts.write((end + histories.lists.starts_Q1[1:]).tobytes())
            items.write(histories.lists.items_N.astype(np.int32).tobytes())
            weights.write(histories.weight_N.tobytes())
            end += len(histories.lists.items_N)


def _write_names(model: TrainedModel, continued: _Continued | None, folder: Path, reporter: ProgressReporter) -> None:
    vocabularies = {table.name: model.vocabulary(table.name) for table in model.spec.vectors}
    if continued is None:
        write_names(vocabularies, folder / NAMES, reporter)
    elif any(map(len, continued.changed_names.values())):
        shutil.copyfile(continued.folder / NAMES, folder / NAMES)
        write_names(vocabularies, folder / NAMES, reporter, continued.changed_names)
    else:
        continued.link(NAMES, folder)


def _build_indexes(
    model: TrainedModel,
    options: VersionOptions,
    continued: _Continued | None,
    folder: Path,
    reporter: ProgressReporter,
) -> list[ScoreKind]:
    """Build the indexes of the items, if there are many; return what they search by."""
    if options.index_from is None or model.spec.item.rows < options.index_from:
        return []
    metrics: list[ScoreKind] = list(dict.fromkeys([model.ranking_metric, "cosine"]))
    for metric in metrics:
        index = IndexOptions(out=str(index_folder(folder, metric)), metric=metric, recall=options.recall)
        build_index(model, index, reporter, None if continued is None else continued.index(metric))
    return metrics


def map_histories(folder: Path) -> StoredHistories:
    """Map the histories in ``folder`` into memory: those of a query are read when they are needed."""
    return StoredHistories(
        _map(folder / _STARTS, np.int64), _map(folder / _ITEMS, np.int32), _map(folder / _WEIGHTS, np.float64)
    )


def _map(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    # A file of no bytes cannot be mapped.
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)
