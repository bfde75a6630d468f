"""Open a trained model with its dataset: the embeddings of a run, or its newest checkpoint, in a folder or on S3.

    with_trained_model("runs/lastfm", None, print, lambda model: model.vectors.vectors("artist", np.arange(10)))

Vectors are read in blocks when they are used; nothing is loaded completely.

Shapes: R rows of a table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from crossfade.base.arrays import BoolArray, IntArray
from crossfade.base.errors import InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.storage_errors import translate_storage_errors
from crossfade.kvstore.checkpoint.reader import Checkpoint
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.loading import make_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.embeddings.checkpoint_source import Log, job_of, locate_checkpoint, open_dataset_of, use_newest
from crossfade.trainer.embeddings.checkpoint_vectors import CheckpointVectors
from crossfade.trainer.embeddings.files import EmbeddingFiles, VectorSource
from crossfade.trainer.model.given_vectors import GivenVectors
from crossfade.trainer.model.spec import ModelSpec, Score, make_model
from crossfade.trainer.model.towers import load_towers
from crossfade.trainer.runs.folder import EMBEDDINGS_FOLDER, JOB_FILE
from crossfade.trainer.runs.inputs import open_inputs, open_lineage

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
        known_counts: counts of entities that ``counts`` returns as they are, where there is a copy without base
            datasets.
    """

    uri: str
    job: JobConfig
    spec: ModelSpec
    data: Folder
    manifest: DatasetManifest
    vectors: VectorSource
    fingerprint: str
    step: int | None = None
    known_counts: Mapping[str, IntArray] = field(default_factory=dict)

    @property
    def score(self) -> Score:
        """The score without the temperature of the loss: the cosine, the dot product, or minus the squared distance."""
        return Score.of(self.job.model.score, 1.0)

    def vocabulary(self, entity: str) -> Vocabulary:
        """Return the vocabulary of ``entity``.

        Raises:
            InputError: it has no vectors.
        """
        known = [table.name for table in self.spec.vectors]
        if entity not in known:
            raise InputError(f"{self.uri}: has no embeddings of '{entity}'; it has those of {', '.join(known)}")
        return Vocabulary(self.data, self.manifest, entity)

    def open_lineage(self) -> LineageReader:
        """Return a reader of the dataset and its base datasets, which the caller closes."""
        return open_lineage(self.job, self.data, self.manifest)

    def counts(self, entity: str) -> IntArray:
        """Return how often each row of ``entity`` occurs in train with a positive weight, here and in base datasets.

        Raises:
            InputError: a base dataset cannot be reached, or a file is corrupt.
            StorageUnavailableError: storage does not answer.
        """
        if entity in self.known_counts:
            return self.known_counts[entity]
        with closing(self.open_lineage()) as lineage:
            return lineage.counts(entity)

    def trained_rows(self, table: TableSpec) -> BoolArray:
        """Return which rows of the queries or items, ``table``, training has given a vector, bool (R,).

        A row without an interaction of positive weight in train has its initial vector, which is random unless it has
        features or ``model.start`` gave it one.
        """
        if any(tower.entity == table for tower in self.spec.towers):
            trained_R = np.ones(table.rows, np.bool_)
            trained_R[self.manifest.entities[table.name].vacant_rows] = False
            return trained_R
        vocabulary, start = self.vocabulary(table.name), self.job.model.start.get(table.name)
        warm_R = vocabulary.warm_rows()
        return warm_R if start is None else warm_R | GivenVectors(table.name, start, vocabulary, table.dim).has_vector_R


def with_trained_model(
    location: str,
    data: str | None,
    log: Log,
    use: Callable[[TrainedModel], Result],
    *,
    history_from_this_dataset_only: bool = False,
    from_checkpoint: bool = False,
) -> Result:
    """Return ``use`` of the trained model at ``location``: a run folder, a folder of checkpoints, or a checkpoint.

    A run's embeddings are used if it has written them, otherwise its newest complete checkpoint; if ``use`` finds it
    corrupt, an older one. ``data`` is the dataset, if it is not where the job names it. ``log`` gets a line for each
    checkpoint that is skipped. ``history_from_this_dataset_only`` leaves out base datasets, as the job may.
    ``from_checkpoint`` has a checkpoint used even where there are embeddings.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: there is no model, its dataset is missing or another one, or ``use`` raised it.
    """

    def change(job: JobConfig) -> JobConfig:
        changes: dict[str, object] = {} if data is None else {"path": data}
        if history_from_this_dataset_only:
            changes["history_from_this_dataset_only"] = True
        return job.model_copy(update={"data": job.data.model_copy(update=changes)})

    folder = Folder(location)
    with translate_storage_errors(location, unreachable=InputError):
        model = None if from_checkpoint or not _has_embeddings(folder) else _open_embeddings(folder, change)
        source = locate_checkpoint(location) if model is None else None
    if model is not None:
        return use(model)
    assert source is not None
    return use_newest(source, log, lambda checkpoint: _use_checkpoint(checkpoint, change, use))


def source_fingerprint(location: str) -> str:
    """Return a text that differs when ``with_trained_model`` would use other vectors; it reads only lists of files.

    Raises:
        CheckpointError: no checkpoint is complete, or storage does not answer.
        InputError: there is no model.
    """
    folder = Folder(location)
    with translate_storage_errors(location):
        if _has_embeddings(folder):
            return EmbeddingFiles(folder.child(EMBEDDINGS_FOLDER)).fingerprint()
        return use_newest(locate_checkpoint(location), lambda _: None, lambda checkpoint: checkpoint.uri)


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
                "another dataset; name the dataset that the model was trained on with --data"
            )
    return model


def _use_checkpoint(
    checkpoint: Checkpoint, change: Callable[[JobConfig], JobConfig], use: Callable[[TrainedModel], Result]
) -> Result:
    job = change(job_of(checkpoint))
    folder = Folder(job.data.path)
    manifest = open_dataset_of(checkpoint, folder)
    spec = make_model(job, manifest)
    towers = load_towers(job, spec, folder, manifest)
    towers.dense.load(checkpoint)
    with tempfile.TemporaryDirectory(prefix="crossfade-vectors-") as scratch:
        vectors = CheckpointVectors(checkpoint, towers, Path(scratch))
        return use(
            TrainedModel(
                checkpoint.uri,
                job,
                spec,
                folder,
                manifest,
                vectors,
                f"{checkpoint.manifest.training['run']} {checkpoint.manifest.step}",
                checkpoint.manifest.step,
            )
        )
