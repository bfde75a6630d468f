"""A trained model: recommendations, neighbors, vectors, and metrics as tables.

    model = load("runs/lastfm")                     # also a folder of checkpoints, a checkpoint, or s3://
    model.recommend("2", k=5)                       # or "all"
    model.recommend(history=["Radiohead", "Björk"])
    model.similar("Radiohead")
    model.vectors("artist")

Shapes: R rows of a table, D columns.
"""

import logging
import os
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.api import arguments
from crossfade.api.arguments import takes
from crossfade.api.frames import FrameKind, default_kind, to_frame
from crossfade.api.saving import save_model
from crossfade.base.arrays import BoolArray, FloatArray
from crossfade.base.errors import InputError
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.evaluation.options import EvaluateOptions
from crossfade.trainer.evaluation.run_evaluation import evaluate_rankings
from crossfade.trainer.recommend import model as recommend_model
from crossfade.trainer.recommend.bulk import recommend_to_queries, recommendation_table
from crossfade.trainer.recommend.options import RecommendOptions, SimilarOptions
from crossfade.trainer.recommend.queries import all_queries, find_queries
from crossfade.trainer.runs.options import ModelSource
from crossfade.trainer.runs.run_folder import REPORT_FILE, RunFolder

ALL_QUERIES = "all"
_OF_SOURCE = ("source", "data")
_OF_COMMAND = ("segments", "compare", "labels", "label_min_count", "shard", "merge", "out")
_logger = logging.getLogger(__name__)
Opened = recommend_model.Model
Result = TypeVar("Result")


class Model:
    """A trained model and its dataset, opened once: load a run again to see what was trained since.

    Tables are returned as ``frame`` names. IDs and names are looked up as text, so that 42 and "42" are the same.

    Attributes:
        source: the run folder, folder of checkpoints, or checkpoint.
        frame: the kind of tables that are returned: pandas, polars, duckdb, or arrow.
    """

    @takes(ModelSource)
    def __init__(
        self, source: str | Path, *, frame: FrameKind | None = None, workspace: Path | None = None, **options: Any
    ) -> None:
        """Open the model at ``source``.

        Args:
            source: a run folder, a folder of checkpoints, or a checkpoint; each may be on S3.
            frame: the kind of tables to return; None: pandas if it is installed, otherwise Arrow.
            workspace: a temporary folder, with the dataset, that is deleted along with the model.
            **options: the fields of ``ModelSource``.

        Raises:
            CheckpointError: a checkpoint is corrupt or cannot be read.
            InputError: there is no model, or its dataset is missing or another one.
        """
        self._options = ModelSource.of(source=source, **options)
        if frame is not None and frame not in get_args(FrameKind):
            raise InputError(f"frame={frame!r}: expected {', '.join(map(repr, get_args(FrameKind)))}, or None")
        self.frame = frame or default_kind()
        self._workspace: Callable[[], object] | None = None
        if workspace is not None:
            self._workspace = weakref.finalize(self, shutil.rmtree, workspace, ignore_errors=True)
        self._opened = recommend_model.open_model(self._options, _logger.info, keep=True)
        self.use(lambda _: None)

    def __repr__(self) -> str:
        """Return the source, the entities, and the size of the vectors."""
        described = self.use(lambda model: model.describe())
        query, item = described["query"], described["item"]
        rows, vectors = described["entities"][query]["rows"], described["entities"][item]
        sizes = f"{rows:,} of {query}, {vectors['rows']:,} of {item}, {vectors['dim']} columns"
        return f"Model({self.source!r}: {sizes})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process opens the model by.

        Raises:
            InputError: the model is in a temporary folder, which would not outlive it.
        """
        if self._workspace is not None:
            raise InputError(
                "cannot pickle or copy a model before it is saved, since its files are deleted with it: use "
                "model.save(FOLDER) and crossfade.load(FOLDER); model is model_ of a Recommender"
            )
        return {"options": self._options, "frame": self.frame}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the model when it is used."""
        self._options, self.frame, self._workspace = state["options"], state["frame"], None
        self._opened = recommend_model.open_model(self._options, _logger.info, keep=True)

    @property
    def source(self) -> str:
        """The run folder, folder of checkpoints, or checkpoint."""
        return self._options.source

    @property
    def job(self) -> JobConfig:
        """The job that trained the model."""
        return self.use(lambda model: model.trained.job)

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

    @takes(RecommendOptions)
    def recommend(self, queries: Any = None, *, history: Sequence[Any] | None = None, **options: Any) -> Any:
        """Recommend items: the nearest of all, exactly, without those that a query has already.

        Args:
            queries: an ID or name of a customer (or whatever the query entity is), or several; ``"all"``: all of them
                (``["all"]`` is the customer of that name).
            history: instead of ``queries``, the IDs or names of items that somebody new likes.
            **options: the fields of ``RecommendOptions``.

        Returns:
            A table with a row for each item, best first: QUERY (not with ``history``), rank, ITEM, score, and ITEM_name
            if items have names. With ``on_unknown="popular"`` also is_fallback: whether the items are the most popular,
            and the score their count, since the query has no trained vector.

        Raises:
            InputError: an ID is unknown or its vector is not trained (see ``on_unknown``), or an argument is invalid.
        """
        if (queries is None) == (history is None):
            found = "neither" if queries is None else "both"
            raise InputError(f'expected queries (IDs or names, or "all") or history, but found {found}')
        ranking = RecommendOptions.of(**options)
        if history is not None:
            liked = arguments.id_texts("history", history)
            return self._frame(lambda model: _recommend_by_history(model, ranking, liked))
        is_all = isinstance(queries, str) and queries == ALL_QUERIES
        texts = None if is_all else arguments.id_texts("queries", queries)
        return self._frame(lambda model: _recommend(model, ranking, texts))

    def knows(self, ids: Any, entity: str | None = None) -> BoolArray:
        """Return which IDs or names the model has a trained vector of, bool (N,), to filter by before a request.

        Args:
            ids: an ID or name, or several.
            entity: what they are of; None: queries.

        Raises:
            InputError: an ID is missing, or the model has no such entity.
        """
        texts = arguments.id_texts("ids", ids)
        return self.use(lambda model: model.knows(model.query if entity is None else model.entity(entity), texts))

    @takes(SimilarOptions)
    def similar(self, names: Any, **options: Any) -> Any:
        """Return the nearest neighbors of items or queries, by the cosine of their vectors.

        Args:
            names: an ID or name, or several.
            **options: the fields of ``SimilarOptions``.

        Returns:
            A table with a row for each neighbor, nearest first: ENTITY (the ID looked up), rank, neighbor (its ID),
            similarity, and neighbor_name if there are names.

        Raises:
            InputError: a name is unknown, or the model has no such entity.
        """
        ranking, texts = SimilarOptions.of(**options), arguments.id_texts("names", names)
        return self._frame(lambda model: _similar(model, texts, ranking))

    def vectors(self, entity: str | None = None) -> Any:
        """Return a table of the vectors of an entity (None: items): its ID, name if there are names, and vector.

        Vacant rows, such as those of customers who were forgotten, are left out; ``array`` and ``ids`` have them.
        """
        return self._frame(lambda model: _vectors(model, model.entity(entity)))

    def array(self, entity: str | None = None) -> FloatArray:
        """Return the vectors of an entity (None: items), float32 (R, D), in the order of ``ids``."""
        return self.use(lambda model: _all_vectors(model, model.entity(entity)))

    def ids(self, entity: str | None = None) -> list[Any]:
        """Return the IDs of an entity (None: items), the most frequent first; None for a vacant row."""

        def read(model: Opened) -> list[Any]:
            vocabulary = model.trained.vocabulary(model.entity(entity))
            found: list[Any] = vocabulary.read(0, vocabulary.rows, ["id"]).column("id").to_pylist()
            return found

        return self.use(read)

    @takes(EvaluateOptions, without=[*_OF_SOURCE, *_OF_COMMAND])
    def evaluate(self, split: SplitName = "test", **options: Any) -> Mapping[str, float]:
        """Rank all items for the queries with held-out items in ``split``, and return the metrics, such as ndcg@10.

        Args:
            split: train, valid, or test.
            **options: the fields of ``EvaluateOptions`` for rankings.

        Raises:
            InputError: the dataset has no such split, or the model is a checkpoint; export it first.
        """
        return evaluate_rankings(EvaluateOptions.of(**self._options.model_dump(), split=split, **options))

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
        data = self.use(lambda model: model.trained.data.uri)
        source = save_model(self.source, data, os.fspath(folder), overwrite, with_dataset=self._workspace is not None)
        self._opened.close()
        self._options = self._options.model_copy(update={"source": source})
        self._opened = recommend_model.open_model(self._options, _logger.info, keep=True)
        if self._workspace is not None:
            self._workspace()
            self._workspace = None

    def use(self, use: Callable[[Opened], Result]) -> Result:
        """Return ``use`` of the opened model, for what has no method here.

        Raises:
            CheckpointError: a checkpoint is corrupt or cannot be read.
        """
        return self._opened.use(use)

    def _frame(self, make: Callable[[Opened], pa.Table]) -> Any:
        return to_frame(self.use(make), self.frame)


@takes(ModelSource)
def load(source: str | Path, *, frame: FrameKind | None = None, **options: Any) -> Model:
    """Open the trained model at ``source``: a run folder, a folder of checkpoints, or a checkpoint, local or on S3.

    Args:
        source: where it is.
        frame: the kind of tables that its methods return; None: pandas if it is installed, otherwise Arrow.
        **options: the fields of ``ModelSource``.

    Raises:
        CheckpointError: a checkpoint is corrupt or cannot be read.
        InputError: there is no model, or its dataset is missing or another one.
    """
    return Model(source, frame=frame, **options)


def _recommend(model: Opened, options: RecommendOptions, texts: Sequence[str] | None) -> pa.Table:
    on_unknown = options.on_unknown
    if texts is None:
        return recommend_to_queries(model, all_queries(model, on_unknown), options)
    return recommend_to_queries(model, find_queries(model, texts, on_unknown, _logger.warning), options)


def _recommend_by_history(model: Opened, options: RecommendOptions, texts: Sequence[str]) -> pa.Table:
    rows_N = model.find(model.item, texts, trained=False)
    histories = model.make_histories([rows_N], [np.ones(len(rows_N), np.float32)])
    found = model.recommend_to_histories(histories, options)
    return recommendation_table(model, pa.array([None], pa.string()), found).drop_columns([model.query])


def _similar(model: Opened, texts: Sequence[str], options: SimilarOptions) -> pa.Table:
    entity = model.entity(options.entity)
    rows_Q = model.find(entity, texts)
    row_QK, cosine_QK = model.similar(rows_Q, options)
    kept_N = row_QK.ravel() >= 0
    row_N, from_N = row_QK.ravel()[kept_N], np.repeat(rows_Q, row_QK.shape[1])[kept_N]
    columns = {
        entity: model.ids(entity, from_N),
        "rank": np.tile(np.arange(1, row_QK.shape[1] + 1, dtype=np.int32), len(rows_Q))[kept_N],
        "neighbor": model.ids(entity, row_N),
        "similarity": cosine_QK.ravel()[kept_N],
    }
    if "name" in model.trained.vocabulary(entity).columns:
        columns["neighbor_name"] = model.ids(entity, row_N, "name")
    return pa.table(columns)


def _all_vectors(model: Opened, entity: str) -> FloatArray:
    return model.vectors(entity, np.arange(model.tables[entity].rows))


def _vectors(model: Opened, entity: str) -> pa.Table:
    vocabulary = model.trained.vocabulary(entity)
    labels = vocabulary.read(0, vocabulary.rows, [name for name in vocabulary.columns if name != "row"])
    vectors_RD = _all_vectors(model, entity)
    columns = {entity: labels.column("id")}
    if "name" in labels.column_names:
        columns["name"] = labels.column("name")
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors_RD.ravel()), vectors_RD.shape[1])
    # A vacant row, such as that of somebody who was forgotten, has no ID.
    return pa.table(columns).filter(pc.is_valid(labels.column("id")))
