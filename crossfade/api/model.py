"""A trained model: recommendations, neighbors, vectors, and metrics as tables.

    model = load("runs/lastfm")                     # also a folder of checkpoints, a checkpoint, or s3://
    model.recommend("2", k=5)                       # or "all"
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
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.api import arguments
from crossfade.api.frames import FrameKind, check_kind, default_kind, to_frame
from crossfade.api.saving import save_model
from crossfade.api.wording import in_python
from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError
from crossfade.trainer.config.schema import JobConfig, SplitName
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.evaluation.from_files import evaluate_embeddings, with_depths
from crossfade.trainer.recommend.bulk import RecommendationColumns, part_queries
from crossfade.trainer.recommend.candidates import FilterOptions
from crossfade.trainer.recommend.history import make_sequences
from crossfade.trainer.recommend.metadata_table import MetadataFile
from crossfade.trainer.recommend.recommender import ALL_SPLITS, Recommender, RecommendOptions
from crossfade.trainer.recommend.row_names import RowNames
from crossfade.trainer.recommend.similar import similar_rows
from crossfade.trainer.recommend.trained_model import TrainedModel, with_trained_model
from crossfade.trainer.runs.folder import REPORT_FILE, RunFolder

ALL_QUERIES = "all"
_logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Model:
    """A trained model and its dataset. Vectors are read when they are used.

    Tables are returned as ``frame`` names. IDs and names are looked up as text, so that 42 and "42" are the same.

    Attributes:
        source: the run folder, folder of checkpoints, or checkpoint.
        frame: the kind of tables that are returned: pandas, polars, duckdb, or arrow.
    """

    @in_python
    def __init__(
        self,
        source: str | Path,
        *,
        data: str | Path | None = None,
        frame: FrameKind | None = None,
        workspace: Path | None = None,
        history_from_this_dataset_only: bool = False,
    ) -> None:
        """Open the model at ``source``.

        Args:
            source: a run folder, a folder of checkpoints, or a checkpoint; each may be on S3.
            data: the dataset, if it is not where the job of the model names it.
            frame: the kind of tables to return; None: pandas if it is installed, otherwise Arrow.
            workspace: a temporary folder, with the dataset, that is deleted along with the model.
            history_from_this_dataset_only: whether to do without the base datasets that the dataset extends, such as
                where they cannot be reached: what is known from them counts as new.

        Raises:
            CheckpointError: every checkpoint is corrupt or cannot be read.
            InputError: there is no model, or its dataset is missing or another one.
        """
        self.source = arguments.path("source", source)
        if frame is not None:
            check_kind(frame)
        self.frame = frame or default_kind()
        self._data = None if data is None else arguments.path("data", data)
        self._history_from_this_dataset_only = history_from_this_dataset_only
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

    @in_python
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
            queries: an ID or name of a customer (or whatever the query entity is), or several; ``"all"``: all of them
                (``["all"]`` is the customer of that name).
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
            InputError: an ID is unknown or its vector is not trained, or an argument is invalid.
        """
        if (queries is None) == (history is None):
            found = "neither" if queries is None else "both"
            raise InputError(f'expected queries (IDs or names, or "all") or history, but found {found}')
        options = RecommendOptions(
            arguments.whole_number("k", k),
            cast(tuple[SplitName, ...], arguments.choices("exclude", exclude, ALL_SPLITS)),
            arguments.number_from_0("popularity_damping", popularity_damping),
            _filters(where, metadata, max_per),
        )
        if history is not None:
            liked = arguments.id_texts("history", history)
            return self._frame(lambda model: _recommend_by_history(model, options, liked))
        is_all = isinstance(queries, str) and queries == ALL_QUERIES
        texts = None if is_all else arguments.id_texts("queries", queries)
        return self._frame(lambda model: _recommend(model, options, texts))

    @in_python
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
        depth, texts, filters = arguments.whole_number("k", k), arguments.id_texts("names", names), _filters(where)
        return self._frame(lambda model: _similar(model, texts, depth, entity, filters))

    @in_python
    def vectors(self, entity: str | None = None) -> Any:
        """Return a table of the vectors of an entity (None: items): its ID, name if there are names, and vector.

        Vacant rows, such as those of customers who were forgotten, are left out; ``array`` and ``ids`` have them.
        """
        return self._frame(lambda model: _vectors(model, entity or model.spec.item.name))

    @in_python
    def array(self, entity: str | None = None) -> FloatArray:
        """Return the vectors of an entity (None: items), float32 (R, D), in the order of ``ids``."""

        def read(model: TrainedModel) -> FloatArray:
            name = entity or model.spec.item.name
            return model.vectors.vectors(name, np.arange(model.vocabulary(name).rows))

        return self.use(read)

    @in_python
    def ids(self, entity: str | None = None) -> list[Any]:
        """Return the IDs of an entity (None: items), the most frequent first; None for a vacant row."""

        def read(model: TrainedModel) -> list[Any]:
            vocabulary = model.vocabulary(entity or model.spec.item.name)
            found: list[Any] = vocabulary.read(0, vocabulary.rows, ["id"]).column("id").to_pylist()
            return found

        return self.use(read)

    @in_python
    def evaluate(self, split: SplitName = "test", *, k: int | Sequence[int] | None = None) -> Mapping[str, float]:
        """Rank all items for the queries with held-out items in ``split``, and return the metrics, such as ndcg@10.

        Args:
            split: train, valid, or test.
            k: a depth or several; None: those of the job.

        Raises:
            InputError: the dataset has no such split, or the model is a checkpoint; export it first.
        """
        job = self.job
        (split,) = cast(
            tuple[SplitName],
            arguments.choices("split", arguments.text("split", split, "train, valid, or test"), ALL_SPLITS),
        )
        data: dict[str, object] = {} if self._data is None else {"path": self._data}
        if self._history_from_this_dataset_only:
            data["history_from_this_dataset_only"] = True
        job = job.model_copy(update={"data": job.data.model_copy(update=data)})
        if k is not None:
            given: Iterable[object] = k if isinstance(k, Iterable) else [k]
            depths = [arguments.whole_number("k", depth) for depth in given]
            if not depths:
                raise InputError("k is empty; expected depths, such as [10, 100]")
            job = with_depths(job, depths)
        return evaluate_embeddings(job, RunFolder(Path(self.source)).embeddings, split)

    @in_python
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
        path, data = arguments.path("folder", folder), self.use(lambda model: model.data.uri)
        self.source = save_model(self.source, data, path, overwrite, with_dataset=self._workspace is not None)
        if self._workspace is not None:
            self._workspace()
            self._workspace = None

    def use(self, use: Callable[[TrainedModel], Result]) -> Result:
        """Return ``use`` of the opened model, for what has no method here.

        Raises:
            CheckpointError: every checkpoint is corrupt or cannot be read.
        """
        only = self._history_from_this_dataset_only
        return with_trained_model(self.source, self._data, _logger.info, use, history_from_this_dataset_only=only)

    def _frame(self, make: Callable[[TrainedModel], pa.Table]) -> Any:
        return to_frame(self.use(make), self.frame)


def load(
    source: str | Path,
    *,
    data: str | Path | None = None,
    frame: FrameKind | None = None,
    history_from_this_dataset_only: bool = False,
) -> Model:
    """Open the trained model at ``source``: a run folder, a folder of checkpoints, or a checkpoint, local or on S3.

    Args:
        source: where it is.
        data: its dataset, if that is not where the job of the model names it.
        frame: the kind of tables that its methods return; None: pandas if it is installed, otherwise Arrow.
        history_from_this_dataset_only: whether to do without the base datasets that the dataset extends, such as where
            they cannot be reached: what is known from them counts as new.

    Raises:
        CheckpointError: every checkpoint is corrupt or cannot be read.
        InputError: there is no model, or its dataset is missing or another one.
    """
    return Model(source, data=data, frame=frame, history_from_this_dataset_only=history_from_this_dataset_only)


def _filters(where: object, metadata: object = None, max_per: tuple[str, int] | None = None) -> FilterOptions:
    """Return the filters that arguments stand for.

    Raises:
        InputError: an argument is invalid.
    """
    condition = None if where is None else arguments.text("where", where, 'an SQL condition, such as "year > 1990"')
    file = None if metadata is None else MetadataFile(arguments.path("metadata", metadata))
    if file is not None and condition is None and max_per is None:
        raise InputError("metadata has no effect without where or max_per, which name its columns; leave it out")
    if max_per is not None:
        if not isinstance(max_per, Sequence) or isinstance(max_per, str) or len(max_per) != 2:
            raise InputError(f'max_per={arguments.shown(max_per)}: expected a column and a number: ("artist", 2)')
        column, number = max_per
        max_per = arguments.text("max_per[0]", column, "a column"), arguments.whole_number("max_per[1]", number)
    return FilterOptions(condition, file, max_per=max_per)


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
    step = part_queries(model, options.count)
    for start in range(0, len(rows_Q), step):
        sorted_Q = np.sort(rows_Q[start : start + step])
        place_Q = np.searchsorted(sorted_Q, rows_Q[start : start + step])
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
