"""A trained model: recommendations, neighbors, vectors, and metrics as tables.

    model = load("runs/lastfm")                     # also a folder of checkpoints, a checkpoint, or s3://
    model.recommend("2", k=5)
    model.recommend(history=["Radiohead", "Björk"])
    model.similar("Radiohead")
    model.vectors("artist")

Shapes: Q queries, R rows of a table, D columns.
"""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.api.frames import FrameKind, default_kind, to_frame
from crossfade.api.saving import save_model
from crossfade.kvstore.arrays import FloatArray, IntArray
from crossfade.kvstore.errors import InputError
from crossfade.trainer.config.schema import JobConfig, SplitName
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.evaluation.from_files import evaluate_embeddings
from crossfade.trainer.recommend.bulk import MAX_PART_QUERIES, RecommendationColumns
from crossfade.trainer.recommend.candidates import FilterOptions
from crossfade.trainer.recommend.history import make_sequences
from crossfade.trainer.recommend.metadata_table import MetadataFile
from crossfade.trainer.recommend.recommender import ALL_SPLITS, Recommender, RecommendOptions
from crossfade.trainer.recommend.row_names import RowNames
from crossfade.trainer.recommend.similar import similar_rows
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.folder import REPORT_FILE, RunFolder

_logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Model:
    """A trained model and its dataset. Vectors are read when they are used.

    Tables are returned as ``frame`` names. IDs and names are looked up as text, so that 42 and "42" are the same.

    Attributes:
        source: the run folder, folder of checkpoints, or checkpoint.
        frame: the kind of tables that are returned: pandas, polars, duckdb, or arrow.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        data: str | Path | None = None,
        frame: FrameKind | None = None,
        workspace: Path | None = None,
    ) -> None:
        """Open the model at ``source``.

        Args:
            source: a run folder, a folder of checkpoints, or a checkpoint; each may be on S3.
            data: the dataset, if it is not where the job of the model names it.
            frame: the kind of tables to return; None: pandas if it is installed, otherwise Arrow.
            workspace: a temporary folder, with the dataset, that is deleted along with the model.

        Raises:
            CheckpointError: every checkpoint is corrupt or cannot be read.
            InputError: there is no model, or its dataset is missing or another one.
        """
        self.source = str(source)
        self.frame = frame or default_kind()
        self._data = None if data is None else str(data)
        self._workspace: Callable[[], object] | None = None
        if workspace is not None:
            self._workspace = weakref.finalize(self, shutil.rmtree, workspace, ignore_errors=True)
        self.use(lambda _: None)

    def __repr__(self) -> str:
        """Return the source, the entities, and the size of the vectors."""
        return self.use(
            lambda model: (
                f"Model({self.source!r}: {model.spec.query.rows:,} of {model.spec.query.name}, "
                f"{model.spec.item.rows:,} of {model.spec.item.name}, {model.spec.item.dim} columns)"
            )
        )

    @property
    def job(self) -> JobConfig:
        """The job that trained the model."""
        return self.use(lambda model: model.job)

    @property
    def report(self) -> dict[str, Any] | None:
        """The report of the run: metrics, time, and sizes; None if it did not finish, or is not in a local folder."""
        path = Path(self.source) / REPORT_FILE
        return RunFolder(Path(self.source)).report() if path.exists() else None

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of the held-out splits, by split, as of the report; empty without one."""
        found: dict[str, dict[str, float]] = (self.report or {}).get("metrics", {})
        return found

    def recommend(
        self,
        queries: Any = None,
        *,
        history: Sequence[Any] | None = None,
        k: int = 10,
        exclude: Sequence[SplitName] = ALL_SPLITS,
        popularity_damping: float = 0.0,
        where: str | None = None,
        metadata: str | Path | None = None,
        max_per: tuple[str, int] | None = None,
    ) -> Any:
        """Recommend items: the nearest of all, exactly, without those that a query has already.

        Args:
            queries: an ID or name of a customer (or whatever the query entity is), or several; None: all of them.
            history: instead of ``queries``, the IDs or names of items that somebody new likes.
            k: items for each.
            exclude: splits whose items are left out for the queries that have them.
            popularity_damping: how much popular items are ranked lower; 0: the model's own ranking.
            where: an SQL condition on the items, such as ``"year > 1990"``, over the features in the dataset and the
                columns of ``metadata``.
            metadata: a file with more columns about items.
            max_per: a column and how many items with the same value one list may have, such as ``("artist", 2)``.

        Returns:
            A table with a row for each item, best first: QUERY (not with ``history``), rank, ITEM, score, and ITEM_name
            if items have names.

        Raises:
            InputError: an ID is unknown or its vector is not trained, or an option is invalid.
        """
        if k < 1:
            raise InputError(f"k={k}: expected 1 or more")
        if queries is not None and history is not None:
            raise InputError("expected either queries or history, but found both")
        file = MetadataFile(str(metadata)) if metadata is not None else None
        options = RecommendOptions(
            k, tuple(exclude), popularity_damping, FilterOptions(where, file, max_per=max_per), index=None
        )
        if history is not None:
            return self._frame(lambda model: _recommend_by_history(model, options, _texts(history)))
        return self._frame(lambda model: _recommend(model, options, None if queries is None else _texts(queries)))

    def similar(self, names: Any, *, k: int = 10, entity: str | None = None, where: str | None = None) -> Any:
        """Return the nearest neighbors of items or queries, by the cosine of their vectors.

        Args:
            names: an ID or name, or several.
            k: neighbors of each.
            entity: the table; None: items.
            where: an SQL condition on the neighbors, as in ``recommend``.

        Returns:
            A table with a row for each neighbor, nearest first: ENTITY (the ID looked up), rank, neighbor (its ID),
            similarity, and neighbor_name if there are names.

        Raises:
            InputError: a name is unknown, or the model has no such entity.
        """
        if k < 1:
            raise InputError(f"k={k}: expected 1 or more")
        return self._frame(lambda model: _similar(model, _texts(names), k, entity, FilterOptions(where)))

    def vectors(self, entity: str | None = None) -> Any:
        """Return a table of the vectors of an entity (None: items): its ID, name if there are names, and vector.

        Vacant rows, such as those of customers who were forgotten, are left out; ``array`` and ``ids`` have them.
        """
        return self._frame(lambda model: _vectors(model, entity or model.spec.item.name))

    def array(self, entity: str | None = None) -> FloatArray:
        """Return the vectors of an entity (None: items), float32 (R, D), in the order of ``ids``."""

        def read(model: TrainedModel) -> FloatArray:
            name = entity or model.spec.item.name
            return model.vectors.vectors(name, np.arange(model.vocabulary(name).rows))

        return self.use(read)

    def ids(self, entity: str | None = None) -> list[Any]:
        """Return the IDs of an entity (None: items), the most frequent first; None for a vacant row."""

        def read(model: TrainedModel) -> list[Any]:
            vocabulary = model.vocabulary(entity or model.spec.item.name)
            found: list[Any] = vocabulary.read(0, vocabulary.rows, ["id"]).column("id").to_pylist()
            return found

        return self.use(read)

    def evaluate(self, split: SplitName = "test", *, k: Sequence[int] | None = None) -> Mapping[str, float]:
        """Rank all items for the queries with held-out items in ``split``, and return the metrics, such as ndcg@10.

        Args:
            split: train, valid, or test.
            k: depths; None: those of the job.

        Raises:
            InputError: the dataset has no such split, or the model is a checkpoint; export it first.
        """
        job = self.job
        if k is not None:
            values = job.evaluate.model_copy(update={"k": list(k), "best_metric": f"ndcg@{k[0]}"})
            job = job.model_copy(update={"evaluate": values})
        if self._data is not None:
            job = job.model_copy(update={"data": job.data.model_copy(update={"path": self._data})})
        return evaluate_embeddings(job, RunFolder(Path(self.source)).embeddings, split)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to ``folder``, which the commands read, such as ``crossfade similar``.

        The dataset of a model that was trained on a data frame is written too. The model then belongs to ``folder``.

        Args:
            folder: a local folder that does not exist.
            overwrite: whether to replace the model in ``folder``; nothing but a model is replaced.

        Raises:
            CrossfadeError: ``folder`` cannot be written.
            InputError: ``folder`` exists, and ``overwrite`` is false or it is no model, or another process writes it.
        """
        data = self.use(lambda model: model.data.uri)
        self.source = save_model(self.source, data, str(folder), overwrite, with_dataset=self._workspace is not None)
        if self._workspace is not None:
            self._workspace()
            self._workspace = None

    def use(self, use: Callable[[TrainedModel], Result]) -> Result:
        """Return ``use`` of the opened model, for what has no method here.

        Raises:
            CheckpointError: every checkpoint is corrupt or cannot be read.
        """
        return with_trained_model(self.source, self._data, _logger.info, use)

    def _frame(self, make: Callable[[TrainedModel], pa.Table]) -> Any:
        return to_frame(self.use(make), self.frame)


def load(source: str | Path, *, data: str | Path | None = None, frame: FrameKind | None = None) -> Model:
    """Open the trained model at ``source``: a run folder, a folder of checkpoints, or a checkpoint, local or on S3.

    Args:
        source: where it is.
        data: its dataset, if that is not where the job of the model names it.
        frame: the kind of tables that its methods return; None: pandas if it is installed, otherwise Arrow.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: there is no model, or its dataset is missing or another one.
    """
    return Model(source, data=data, frame=frame)


def _texts(values: Any) -> list[str]:
    """Return one value or several as texts, the form in which IDs and names are looked up."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return [str(values)]
    return [str(value) for value in values]


def _recommend(model: TrainedModel, options: RecommendOptions, texts: Sequence[str] | None) -> pa.Table:
    query = model.spec.query
    trained_R = model.trained_rows(query)
    names = RowNames(model.vocabulary(query.name), query.name)
    if texts is None:
        rows_Q: IntArray = np.flatnonzero(trained_R)
    else:
        rows_Q = np.array(list(dict.fromkeys(names.find(texts))), np.int64)
        for row in rows_Q[~trained_R[rows_Q]]:
            raise InputError(
                f"{query.name} {names.labels(np.array([row]))[int(row)]}: has no interaction of positive weight in "
                "train, so its vector is not trained"
            )
    columns = RecommendationColumns(model)
    recommender = Recommender(model, options, NullReporter())
    tables = []
    for start in range(0, len(rows_Q), MAX_PART_QUERIES):
        sorted_Q = np.sort(rows_Q[start : start + MAX_PART_QUERIES])
        place_Q = np.searchsorted(sorted_Q, rows_Q[start : start + MAX_PART_QUERIES])
        found = recommender.for_rows(sorted_Q)
        found = replace(found, item_QK=found.item_QK[place_Q], score_QK=found.score_QK[place_Q])
        ids = model.vocabulary(query.name).take(sorted_Q, ["id"]).column("id").combine_chunks()
        tables.append(columns.table(ids.take(pa.array(place_Q)), found))
    return pa.concat_tables(tables)


def _recommend_by_history(model: TrainedModel, options: RecommendOptions, texts: Sequence[str]) -> pa.Table:
    query, item = model.spec.query.name, model.spec.item
    rows_N = np.array(RowNames(model.vocabulary(item.name), item.name).find(texts), np.int64)
    histories = make_sequences(np.zeros_like(rows_N), rows_N, np.ones(len(rows_N), np.float32), 1, item.rows)
    found = Recommender(model, options, NullReporter()).for_histories(histories)
    return RecommendationColumns(model).table(pa.array([None], pa.string()), found).drop_columns([query])


def _similar(model: TrainedModel, texts: Sequence[str], k: int, entity: str | None, filters: FilterOptions) -> pa.Table:
    entity = entity or model.spec.item.name
    vocabulary = model.vocabulary(entity)
    names = RowNames(vocabulary, entity)
    rows_Q = np.array(names.find(texts), np.int64)
    row_QK, cosine_QK = similar_rows(model, entity, rows_Q, k, filters)
    kept_N = row_QK.ravel() >= 0
    row_N, from_N = row_QK.ravel()[kept_N], np.repeat(rows_Q, row_QK.shape[1])[kept_N]
    shown_N = np.unique(np.concatenate([row_N, from_N]))
    labels = vocabulary.take(shown_N).combine_chunks()
    place_N = pa.array(np.searchsorted(shown_N, row_N))
    columns = {
        entity: labels.column("id").take(pa.array(np.searchsorted(shown_N, from_N))),
        "rank": np.tile(np.arange(1, row_QK.shape[1] + 1, dtype=np.int32), len(rows_Q))[kept_N],
        "neighbor": labels.column("id").take(place_N),
        "similarity": cosine_QK.ravel()[kept_N],
    }
    if "name" in labels.column_names:
        columns["neighbor_name"] = labels.column("name").take(place_N)
    return pa.table(columns)


def _vectors(model: TrainedModel, entity: str) -> pa.Table:
    vocabulary = model.vocabulary(entity)
    labels = vocabulary.read(0, vocabulary.rows, [name for name in vocabulary.columns if name != "row"])
    vectors_RD = model.vectors.vectors(entity, np.arange(vocabulary.rows))
    columns = {entity: labels.column("id")}
    if "name" in labels.column_names:
        columns["name"] = labels.column("name")
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors_RD.ravel()), vectors_RD.shape[1])
    # A vacant row, such as that of somebody who was forgotten, has no ID.
    return pa.table(columns).filter(pc.is_valid(labels.column("id")))
