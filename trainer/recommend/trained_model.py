"""Open a trained model with its dataset: the embeddings of a run, or its newest checkpoint, in a folder or on S3.

    source = ModelSource(source="runs/lastfm")
    with_trained_model(source, print, lambda model: model.vectors.vectors("artist", np.arange(10)))

Vectors are read in blocks when they are used; nothing is loaded completely.

Shapes: R rows of a table, N some of them, D columns.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.errors import CheckpointError, InputError, Option
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.kvstore.checkpoint.checkpoint import Checkpoint
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.vocabulary import KeptVocabulary, Vocabulary
from crossfade.trainer.embeddings.checkpoint_source import (
    Log,
    NewestCheckpoint,
    job_of,
    locate_checkpoint,
    open_dataset_of,
)
from crossfade.trainer.embeddings.current_run import current_run
from crossfade.trainer.embeddings.files import GROUP_ROWS, EmbeddingFiles, VectorSource
from crossfade.trainer.embeddings.popularity import PopularityTerm, RankingVectors, ranking_spec, read_term
from crossfade.trainer.model.spec import ModelSpec, Score, make_model
from crossfade.trainer.model.towers import Towers, load_towers
from crossfade.trainer.runs.job_inputs import open_inputs, open_lineage
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.runs.run_folder import EMBEDDINGS_FOLDER, JOB_FILE

_KEPT_BYTES, _KEPT_ROWS = 1 << 28, 1 << 20
"""Vectors of a table in bytes, and rows of a vocabulary, up to which they may stay in memory."""
Made = TypeVar("Made")
Result = TypeVar("Result")


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and the dataset that has the IDs of its rows.

    Attributes:
        uri: the folder of embeddings or the checkpoint that the vectors are read from.
        job: the job that trained it.
        spec: its tables and score.
        data: the folder of the dataset.
        manifest: the manifest of the dataset.
        vectors: the vectors of every entity.
        fingerprint: differs between versions of the vectors at the same ``uri``.
        step: the step of the checkpoint; None for embeddings of a run.
        version: the number of the version of a service; None for other models.
        known_counts: counts of entities that ``counts`` returns as they are, where there is a copy without base
            datasets.
        popularity: what items gain by how often they were played; None: nothing.
        keep: whether vocabularies that fit stay in memory.
    """

    uri: str
    job: JobConfig
    spec: ModelSpec
    data: Folder
    manifest: DatasetManifest
    vectors: VectorSource
    fingerprint: str
    step: int | None = None
    version: int | None = None
    known_counts: Mapping[str, IntArray] = field(default_factory=dict)
    popularity: PopularityTerm | None = None
    keep: bool = False
    _vocabularies: dict[str, Vocabulary] = field(default_factory=dict, repr=False, compare=False)

    @property
    def score(self) -> Score:
        """The score without the temperature of the loss: the cosine, the dot product, or minus the squared distance.

        Plus the popularity term of each item, if the model has one.
        """
        score = Score.of(self.job.model.score, 1.0)
        return score if self.popularity is None else self.popularity.added_to(score, 1.0)

    @property
    def ranking_metric(self) -> ScoreKind:
        """The metric of ``ranking_model``, by which an index finds what the score ranks first."""
        return self.job.model.score if self.popularity is None else "dot"

    def ranking_model(self) -> TrainedModel:
        """Return the same model with the popularity term as one more column of its vectors, and dot products.

        Exports and indexes, whose search knows nothing but vectors, are of this model.
        """
        if self.popularity is None:
            return self
        job = self.job.model_copy(update={"model": self.job.model.model_copy(update={"score": "dot"})})
        vectors = RankingVectors(self.vectors, self.spec, self.score)
        return replace(self, job=job, spec=ranking_spec(self.spec), vectors=vectors, popularity=None)

    def compared_by(self, metric: ScoreKind) -> TrainedModel:
        """Return the model to compare by ``metric``: ``ranking_model`` for the metric of rankings, else this one."""
        return self.ranking_model() if metric == self.ranking_metric else self

    def vocabulary(self, entity: str) -> Vocabulary:
        """Return the vocabulary of ``entity``.

        Raises:
            InputError: it has no vectors.
        """
        known = [table.name for table in self.spec.vectors]
        if entity not in known:
            raise InputError(f"{self.uri}: has no embeddings of '{entity}'; it has those of {', '.join(known)}")
        if entity not in self._vocabularies:
            kind = KeptVocabulary if self.keep and self.manifest.entities[entity].rows <= _KEPT_ROWS else Vocabulary
            self._vocabularies[entity] = kind(self.data, self.manifest, entity)
        return self._vocabularies[entity]

    def open_lineage(self) -> LineageReader:
        """Return a reader of the dataset and its base datasets, which the caller closes."""
        return open_lineage(self.job, self.data, self.manifest)

    def counts(self, entity: str) -> IntArray:
        """Return how often each row of ``entity`` has occurred in train with a positive weight, here and earlier.

        Raises:
            InputError: a file is corrupt.
            StorageUnavailableError: storage does not answer.
        """
        if entity in self.known_counts:
            return self.known_counts[entity]
        with closing(self.open_lineage()) as lineage:
            return lineage.counts(entity)

    def table(self, entity: str) -> TableSpec:
        """Return the table of ``entity``, which has vectors."""
        return next(table for table in self.spec.vectors if table.name == entity)

    def trained_rows(self, entity: str) -> BoolArray:
        """Return which rows of ``entity`` have an ID and, of queries and items, a trained vector, bool (R,).

        A query or item without an interaction of positive weight in train has its initial vector, which is random
        unless it has features.

        Raises:
            InputError: it has no vectors.
        """
        vocabulary = self.vocabulary(entity)
        trained_R = np.ones(vocabulary.rows, np.bool_)
        has_tower = any(tower.entity.name == entity for tower in self.spec.towers)
        if not has_tower and entity in (self.spec.query.name, self.spec.item.name):
            trained_R = vocabulary.total_counts() > 0
        trained_R[self.manifest.entities[entity].vacant_rows] = False
        return trained_R

    def average_context(self, given: Collection[str] = ()) -> FloatArray:
        """Return what the context entities that are not ``given`` add to a query on average over train: float32 (D,).

        Where events have context, a query's vector is trained as one term of a sum. Alone, it lacks what all contexts
        have in common: a model of plays and likes leaves part of the popularity of items to their two vectors. An event
        without a value adds nothing, so the sum over values is divided by all interactions of positive weight.

        Raises:
            CheckpointError: the checkpoint is corrupt or cannot be read.
            InputError: the dataset cannot be read.
        """
        average_D = np.zeros(self.spec.query.dim)
        for table in self.spec.context:
            if table.name not in given:
                counts_R = self.vocabulary(table.name).counts()
                for start in range(0, table.rows, GROUP_ROWS):
                    row_N = np.arange(start, min(start + GROUP_ROWS, table.rows))
                    vectors_ND = self.vectors.vectors(table.name, row_N).astype(np.float64)
                    average_D += (counts_R[row_N, None] * vectors_ND).sum(axis=0)
        if average_D.any():
            average_D /= self.vocabulary(self.spec.item.name).counts().sum()
        return average_D.astype(np.float32)


class CheckpointVectors:
    """Provides the vectors of a checkpoint.

    A table that is read from front to back in blocks of ``GROUP_ROWS`` is verified by its CRC-32 at the end. Other rows
    are read by themselves, once the files that have them have been read and verified.

    The embeddings of features and histories are accessed in random order, so their tables are first copied to unnamed
    files in ``scratch``, which the operating system pages.
    """

    def __init__(self, checkpoint: Checkpoint, towers: Towers, scratch: Path) -> None:
        """Read from ``checkpoint`` and combine by ``towers``."""
        self._checkpoint = checkpoint
        self._towers = towers
        self._scratch = scratch
        self._copies: dict[str, FloatArray] = {}
        self._next_row: dict[str, int] = {}

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, int64, sorted and unique: float32 (N, D).

        Raises:
            CheckpointError: a file is corrupt or unreadable.
        """
        return self._towers.add_history(entity, rows_N, self._row_vectors, self._copied)

    def _copied(self, table: str, rows_N: IntArray) -> FloatArray:
        """Return rows of ``table``, in any order, from the copy that the first use makes."""
        if table not in self._copies:
            rows, dim = self._checkpoint.rows(table), self._checkpoint.weights(table, 0, 0).shape[1]
            with tempfile.TemporaryFile(dir=self._scratch) as file:
                copy = np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, dim))
            for start in range(0, rows, GROUP_ROWS):
                stop = min(start + GROUP_ROWS, rows)
                copy[start:stop] = self._checkpoint.weights(table, start, stop)
            self._copies[table] = copy
        return np.asarray(self._copies[table][rows_N])

    def _row_vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        of = self._towers.of(entity)
        if of is None:
            return self._towers.dense.apply(entity, self._weights(entity, rows_N))
        inputs = of.inputs(rows_N)
        block = {name: self._copied(name, bag.values.rows_A) for name, bag in inputs.bags.items()}
        if of.tower.id_table is not None:
            block[entity] = self._weights(entity, rows_N)[inputs.uses_id_A]
        return self._towers.vectors_of(entity, inputs, block)

    def _weights(self, table: str, rows_N: IntArray) -> FloatArray:
        if not len(rows_N):
            return self._checkpoint.weights(table, 0, 0)
        start, stop = int(rows_N[0]), int(rows_N[-1]) + 1
        is_block = stop == min(start + GROUP_ROWS, self._checkpoint.rows(table)) and stop - start == len(rows_N)
        if is_block and start in (0, self._next_row.get(table)):
            self._next_row[table] = stop
            return self._checkpoint.weights(table, start, stop)
        return self._checkpoint.read_rows(table, rows_N)


class KeptVectors:
    """Vectors of another source; a table that fits is read once, and stays in memory."""

    def __init__(self, source: VectorSource, tables: Iterable[TableSpec]) -> None:
        """Keep those of ``tables`` that have at most ``_KEPT_BYTES`` each."""
        self._source = source
        self._rows = {table.name: table.rows for table in tables if table.rows * table.dim * 4 <= _KEPT_BYTES}
        self._kept: dict[str, FloatArray] = {}

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, int64, sorted and unique: float32 (N, D)."""
        if entity not in self._rows:
            return self._source.vectors(entity, rows_N)
        if entity not in self._kept:
            rows = self._rows[entity]
            blocks = [np.arange(start, min(start + GROUP_ROWS, rows)) for start in range(0, rows, GROUP_ROWS)]
            self._kept[entity] = np.concatenate([self._source.vectors(entity, block_N) for block_N in blocks])
        vectors_ND: FloatArray = self._kept[entity][rows_N]
        return vectors_ND


class OpenModel(Generic[Made]):
    """A trained model that is opened once; if its checkpoint turns out to be corrupt, an older one takes its place.

    A run's embeddings are used if it has written them, otherwise its newest complete checkpoint.
    """

    def __init__(
        self,
        source: ModelSource,
        log: Log,
        make: Callable[[TrainedModel], Made],
        *,
        keep: bool = False,
        from_checkpoint: bool = False,
    ) -> None:
        """Open the model at ``source`` when it is used.

        Args:
            source: where it is.
            log: gets a line for each checkpoint that is skipped.
            make: makes what ``use`` passes on from the opened model, once.
            keep: whether vectors, IDs, and names that fit stay in memory, for a model that is asked repeatedly.
            from_checkpoint: whether a checkpoint is used even where there are embeddings.
        """
        self._source, self._log, self._make, self._keep = source, log, make, keep
        self._from_checkpoint = from_checkpoint
        self._lock = threading.RLock()
        self._newest: NewestCheckpoint | None = None
        self._checkpoint: Checkpoint | None = None
        self._resources = ExitStack()
        self._made: Made | None = None

    def use(self, use: Callable[[Made], Result]) -> Result:
        """Return ``use`` of the model, by one thread at a time.

        Raises:
            CheckpointError: a checkpoint is corrupt or cannot be read.
            InputError: there is no model, its dataset is missing or another one, or ``use`` raised it.
        """
        with self._lock:
            while True:
                try:
                    if self._made is None:
                        self._made = self._make(self._open())
                    return use(self._made)
                except CheckpointError as error:
                    if self._newest is None or self._checkpoint is None:
                        raise
                    self.close()
                    self._newest.reject(self._checkpoint, error)

    def close(self) -> None:
        """Close files; the next use opens the model again."""
        self._made = None
        self._resources.close()

    def _open(self) -> TrainedModel:
        with translate_storage_errors(self._source.source, unreachable=InputError):
            location, data, version = current_run(self._source.source)
            folder, change = Folder(location), partial(self._change, data)
            if self._newest is None and not self._from_checkpoint and _has_embeddings(folder):
                model = _open_embeddings(folder, change)
            else:
                self._newest = self._newest or NewestCheckpoint(locate_checkpoint(location), self._log)
                model = None
        if model is None:
            assert self._newest is not None
            self._checkpoint = self._resources.enter_context(closing(self._newest.open()))
            scratch = self._resources.enter_context(temporary_folder("vectors"))
            model = _open_checkpoint(self._checkpoint, change, scratch)
        if self._keep:
            vectors = KeptVectors(model.vectors, model.spec.vectors)
            model = replace(model, vectors=vectors, keep=True, _vocabularies={})
        return replace(model, version=version)

    def _change(self, data: str | None, job: JobConfig) -> JobConfig:
        changes = {**({} if data is None else {"path": data}), **self._source.data_changes}
        return job.model_copy(update={"data": job.data.model_copy(update=changes)})


def with_trained_model(
    source: ModelSource, log: Log, use: Callable[[TrainedModel], Result], *, from_checkpoint: bool = False
) -> Result:
    """Return ``use`` of the trained model at ``source``.

    ``from_checkpoint``: see ``OpenModel``. ``log`` gets a line for each checkpoint that is skipped. ``use`` is called
    again with an older checkpoint if it finds that one is corrupt.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: there is no model, its dataset is missing or another one, or ``use`` raised it.
    """
    with closing(OpenModel(source, log, lambda model: model, from_checkpoint=from_checkpoint)) as opened:
        return opened.use(use)


def source_fingerprint(location: str) -> str:
    """Return a text that differs when ``with_trained_model`` would use other vectors; it reads only lists of files.

    Raises:
        CheckpointError: no checkpoint is complete, or storage does not answer.
        InputError: there is no model.
    """
    with translate_storage_errors(location):
        location = current_run(location).run
        folder = Folder(location)
        if _has_embeddings(folder):
            embeddings = folder.child(EMBEDDINGS_FOLDER)
            # Also of a file that was written again, or damaged: their list stays as it is.
            states = sorted((path, found.bytes, found.modified) for path, found in embeddings.files().items())
            return f"{folder.uri} {EmbeddingFiles(embeddings).fingerprint()} {states}"
        with closing(NewestCheckpoint(locate_checkpoint(location), lambda _: None).open()) as checkpoint:
            return checkpoint.uri


def _has_embeddings(folder: Folder) -> bool:
    is_folder = folder.path is None or folder.path.is_dir()
    return is_folder and {JOB_FILE, EMBEDDINGS_FOLDER} <= set(folder.names())


def _open_embeddings(run: Folder, change: Callable[[JobConfig], JobConfig]) -> TrainedModel:
    inputs = open_inputs(change(make_job(run.read(JOB_FILE), f"{run.uri}/{JOB_FILE}")))
    embeddings = EmbeddingFiles(run.child(EMBEDDINGS_FOLDER))
    model = TrainedModel(
        f"{run.uri}/{EMBEDDINGS_FOLDER}",
        inputs.job,
        inputs.model,
        inputs.folder,
        inputs.manifest,
        embeddings,
        embeddings.fingerprint(),
    )
    for table in inputs.model.vectors:
        if table.name in embeddings.entities and not embeddings.has_rows_of(table.name, model.vocabulary(table.name)):
            raise InputError(
                f"{inputs.folder.uri}: has other rows of '{table.name}' than {model.uri}: it was prepared again, or is "
                "another dataset; name the dataset that the model was trained on with ",
                Option("data"),
            )
    return replace(model, popularity=read_term(embeddings, inputs.model.item.rows))


def _open_checkpoint(checkpoint: Checkpoint, change: Callable[[JobConfig], JobConfig], scratch: Path) -> TrainedModel:
    job = change(job_of(checkpoint))
    folder = Folder(job.data.path)
    manifest = open_dataset_of(checkpoint, folder)
    spec = make_model(job, manifest)
    towers = load_towers(job, spec, folder, manifest)
    towers.dense.load(checkpoint)
    return TrainedModel(
        checkpoint.uri,
        job,
        spec,
        folder,
        manifest,
        CheckpointVectors(checkpoint, towers, scratch),
        f"{checkpoint.manifest.training['run']} {checkpoint.manifest.step}",
        checkpoint.manifest.step,
    )
