"""Towers: vectors of rows from several embeddings, and the gradients of those embeddings.

    towers = load_towers(job, model, folder, manifest)
    batch = towers.add_tower_inputs(batch)              # in the thread that makes batches
    block = store.pull(towers.active(batch))
    vectors, tape = towers.forward(batch, block)
    loss, gradients = engine.gradients(batch, vectors)
    result = towers.backward(batch, tape, gradients)
    store.push(...)                                     # result.tables: by table, rows as in towers.active(batch)
    towers.update(result.dense, lr_factor)              # the dense layers, if any (trainer/model/dense.py)

With ID embedding e, and x_f the mean of the embeddings of a row's values of feature f (0 without any), its vector is

    sum    e + Σ_f x_f + c
    mean   (e + Σ_f x_f + c) / (1 + number of features that the row has a value of)

Where the side has content, c is the output of its content layer (``dense.py``), and content counts as a feature.

A cold row, without a positive interaction in train (nor, after a warm start, in the data before), has an untrained ID
embedding. Where such a row has values of a feature, e is left out (and the 1), in training
as in evaluation, so that a new track is represented by its artist and tags. In a step, e is dropped for a fraction of
the warm rows as well (``model.id_dropout``; DropoutNet: Volkovs et al., NIPS 2017).

Where queries have context or histories, the vectors of the context rows and the mean embedding of the history are
added to that of the query (``Combinations``). Outside training, the history of a query is its latest one.

That vector then passes through the dense layers of its side. A model whose sides have one table each, and no dense
layers, passes through unchanged, at no cost.

Shapes: A active rows of a tower, N rows of an entity, F places of a row's content, M queries, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.base.io.folder import Folder
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.philox import uniform
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import HISTORY
from crossfade.trainer.data.features import load_content, load_feature
from crossfade.trainer.data.lineage import LineageReader
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.query_history import HistoryWindows, LatestHistories, latest_histories
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.dense import DenseGradients, DenseLayers, DenseTape
from crossfade.trainer.model.spec import HistorySpec, ModelSpec, TowerSpec, content_layer
from crossfade.trainer.model.tower_inputs import JoinedRows, TowerFeatures, TowerInputs, history_bag, query_sum_inputs

_STREAM = "ids"
"""Label of the random stream that drops ID embeddings; it seeds the draws, so it never changes."""

Pull = Callable[[dict[str, IntArray]], Mapping[str, FloatArray]]
"""Returns the embeddings of sorted rows of each table, float32 (A, D)."""
ReadRows = Callable[[str, IntArray], FloatArray]
"""Returns the vectors or embeddings of sorted rows of an entity or table, float32 (N, D)."""


@dataclass(frozen=True)
class TowerGradients:
    """Gradients of a step: ``tables`` by table for its active rows (A, D), ``dense`` by parameter of the layers."""

    tables: Mapping[str, FloatArray]
    dense: DenseGradients


class Towers:
    """The towers of a model that have features, and its dense layers; most models have neither."""

    def __init__(
        self,
        model: ModelSpec,
        features: Sequence[TowerFeatures],
        seed: int = 0,
        id_dropout: float = 0.0,
        dense: DenseLayers | None = None,
        latest: LatestHistories | None = None,
    ) -> None:
        """Combine the ``features`` of the model's towers with its ``dense`` layers.

        Args:
            model: names both sides.
            features: of each of ``model.towers``.
            seed: of ID dropout.
            id_dropout: fraction of ID embeddings that are dropped in a step.
            dense: the layers of both sides; None: no layers.
            latest: the history of each query after train, if ``model`` uses histories.
        """
        self.dense = dense or DenseLayers((), OptimizerSpec(), seed)
        self._names = model.query.name, model.item.name
        self._model = model
        self._query_sum = model.query_sum
        self.latest = latest
        self._features = {of.tower.entity.name: of for of in features}
        self._seed = seed
        self._id_dropout = id_dropout

    def of(self, entity: str) -> TowerFeatures | None:
        """Return the tower of ``entity``; None if its vectors are the rows of its table."""
        return self._features.get(entity)

    def history_table(self, entity: str) -> TableSpec | None:
        """Return the table of the items of histories, if those of ``entity`` are used."""
        spec = self._model.history
        return spec.table if spec is not None and entity == self._names[0] else None

    def add_tower_inputs(self, batch: Batch) -> Batch:
        """Return ``batch`` with the inputs of its towers."""
        if self._query_sum is not None:
            inputs = query_sum_inputs(batch.query.rows_A, batch.context_AK, batch.history, self._model)
            batch = replace(batch, query_inputs=inputs)
        if self._features:
            rows = self._rows(batch)
            tower_inputs = {
                name: of.inputs(rows[name], self._kept_ids(rows[name], batch)) for name, of in self._features.items()
            }
            batch = replace(batch, tower_inputs=tower_inputs)
        if self._model.history is not None:
            batch = replace(batch, item_rows=self._item_rows(batch))
        return batch

    def _item_rows(self, batch: Batch) -> JoinedRows:
        """Join the rows of the item table that items use with those that histories use."""
        item, inputs = self._names[1], batch.query_inputs
        assert inputs is not None
        own_A = batch.tower_inputs[item].id_rows if item in self._features else batch.item.rows_A
        return JoinedRows.of(own_A, inputs.bags[HISTORY].values.rows_A)

    def _rows(self, batch: Batch) -> dict[str, IntArray]:
        """Return the active rows of both sides, sorted and unique."""
        query_name, item_name = self._names
        if batch.query_inputs is None:
            return {query_name: batch.query.rows_A, item_name: batch.item.rows_A}
        if not self._model.has_query_vectors:
            return {item_name: batch.item.rows_A}
        return {query_name: batch.query_inputs.bags[query_name].values.rows_A, item_name: batch.item.rows_A}

    def _kept_ids(self, rows_A: IntArray, batch: Batch) -> BoolArray | None:
        """Draw which rows keep their ID embedding in this step, by row, so that every worker draws the same."""
        if not self._id_dropout:
            return None
        draw_A = uniform(rows_A, seed=self._seed, stream=_STREAM, epoch=batch.epoch, step=batch.step, slot=0)
        id_kept_A: BoolArray = draw_A >= self._id_dropout
        return id_kept_A

    def active(self, batch: Batch) -> dict[str, IntArray]:
        """Return the active rows of each table, sorted and unique."""
        active: dict[str, IntArray] = {}
        if batch.query_inputs is not None and self._query_sum is not None:
            active = batch.query_inputs.active(self._query_sum)
            active.pop(self._names[0], None)
        for name, rows_A in self._rows(batch).items():
            of = self._features.get(name)
            active |= {name: rows_A} if of is None else batch.tower_inputs[name].active(of.tower)
        if batch.item_rows is not None:
            del active[HISTORY]
            active[self._names[1]] = batch.item_rows.rows_A
        return active

    def forward(self, batch: Batch, block: Mapping[str, FloatArray]) -> tuple[Mapping[str, FloatArray], DenseTape]:
        """Compute the vectors of the active rows of both sides from those of each table in ``block``.

        Returns:
            The vectors by entity, float32 (A, D), of combinations where queries have context or histories, and the tape
            that ``backward`` needs.
        """
        if batch.item_rows is not None:
            item_AD = block[self._names[1]]
            joined = batch.item_rows
            block = {**block, self._names[1]: item_AD[joined.own_V], HISTORY: item_AD[joined.other_V]}
        contents, content_tape = self._forward_contents(batch)
        combined = {
            name: batch.tower_inputs[name].combine(of.tower, block, contents.get(content_layer(name)))
            for name, of in self._features.items()
        }
        vectors = {**block, **combined} if combined else block
        if batch.query_inputs is not None and self._query_sum is not None:
            vectors = {**vectors, self._names[0]: batch.query_inputs.combine(self._query_sum, vectors)}
        if not self.dense.entities:
            return vectors, {}
        vectors, tape = self.dense.forward(vectors)
        return vectors, {**content_tape, **tape}

    def _forward_contents(self, batch: Batch) -> tuple[Mapping[str, FloatArray], DenseTape]:
        """Compute the outputs of the content layers of both sides, by layer, and their tape."""
        return self.dense.forward(
            {
                content_layer(name): inputs.content_AF
                for name, inputs in batch.tower_inputs.items()
                if inputs.content_AF is not None
            }
        )

    def vectors_of(self, entity: str, inputs: TowerInputs, block: Mapping[str, FloatArray]) -> FloatArray:
        """Compute the vectors of ``entity``, outside training, from ``inputs`` and active rows in ``block``."""
        content_AD = None
        if inputs.content_AF is not None:
            content_AD = self.dense.apply(content_layer(entity), inputs.content_AF)
        return self.dense.apply(entity, inputs.combine(self._features[entity].tower, block, content_AD))

    def add_history(self, entity: str, rows_N: IntArray, row_vectors: ReadRows, embeddings: ReadRows) -> FloatArray:
        """Return the vectors of ``rows_N`` outside training: float32 (N, D).

        Args:
            entity: whose rows; queries get the mean of their latest history added, if the model uses histories.
            rows_N: int64, sorted and unique.
            row_vectors: returns the vectors of rows without histories.
            embeddings: returns rows of a table.
        """
        spec = self._model.history
        if spec is None or entity != self._names[0]:
            return row_vectors(entity, rows_N)
        assert self.latest is not None
        means_ND = mean_of_histories(
            spec, self.latest.gather(rows_N), lambda items_V: embeddings(spec.table.name, items_V)
        )
        return row_vectors(entity, rows_N) + means_ND if self._model.has_query_vectors else means_ND

    def backward(self, batch: Batch, tape: DenseTape, gradients: Mapping[str, FloatArray]) -> TowerGradients:
        """Compute the gradients of tables and layers from those of the vectors, with the tape of ``forward``."""
        dense: DenseGradients = {}
        if self.dense.entities:
            gradients, dense = self.dense.backward(tape, gradients)
        tables: dict[str, FloatArray] = {}
        contents: dict[str, FloatArray] = {}
        if batch.query_inputs is not None and self._query_sum is not None:
            tables = batch.query_inputs.gradients(self._query_sum, gradients[self._names[0]])
            gradients = {self._names[1]: gradients[self._names[1]]}
            if self._model.has_query_vectors:
                gradients[self._names[0]] = tables.pop(self._names[0])
        elif not self._features:
            return TowerGradients(gradients, dense)
        for name in gradients:
            of = self._features.get(name)
            if of is None:
                tables[name] = gradients[name]
                continue
            inputs = batch.tower_inputs[name]
            tables |= inputs.gradients(of.tower, gradients[name])
            if inputs.content_AF is not None:
                contents[content_layer(name)] = gradients[name]
        if batch.item_rows is not None:
            tables[self._names[1]] = batch.item_rows.sum(tables[self._names[1]], tables.pop(HISTORY))
        return TowerGradients(tables, {**dense, **self.dense.backward(tape, contents)[1]})

    def update(self, gradients: DenseGradients, lr_factor: float) -> None:
        """Apply ``gradients`` to the dense layers, at their learning rate times ``lr_factor``.

        Raises:
            DivergedError: a gradient or a new value is not finite.
            ClusterError: another worker was lost.
        """
        if self.dense.entities:
            self.dense.update(gradients, lr_factor)


class TowerVectors:
    """Vectors of any rows as ``towers`` compute them, outside training: without ID dropout."""

    def __init__(self, towers: Towers, pull: Pull) -> None:
        """Take embeddings from ``pull``."""
        self._towers = towers
        self._pull = pull

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Return the vectors of ``rows_N``, int64, sorted and unique: float32 (N, D)."""
        return self._towers.add_history(entity, rows_N, self._row_vectors, self._embeddings)

    def _embeddings(self, table: str, rows_N: IntArray) -> FloatArray:
        return self._pull({table: rows_N})[table]

    def _row_vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        of = self._towers.of(entity)
        if of is None:
            return self._towers.dense.apply(entity, self._pull({entity: rows_N})[entity])
        inputs = of.inputs(rows_N)
        return self._towers.vectors_of(entity, inputs, self._pull(inputs.active(of.tower)))


def load_towers(job: JobConfig, model: ModelSpec, folder: Folder, manifest: DatasetManifest) -> Towers:
    """Load the features of ``model``'s towers from the dataset in ``folder``, and initialize its dense layers.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    features = []
    for tower in model.towers:
        name = tower.entity.name
        lists = {table.name: load_feature(folder, manifest, name, table.name) for table in tower.features}
        vocabulary = Vocabulary(folder, manifest, name)
        # Rows that only an earlier run trained are warm only where this run starts from its checkpoint.
        count_R = vocabulary.total_counts() if job.checkpoint.warm_start_from else vocabulary.counts()
        content = load_content(folder, manifest, name, tower.content) if tower.content else None
        features.append(TowerFeatures(tower, lists, count_R > 0, content))
    latest = load_latest_histories(job, folder, manifest, model.history) if model.history else None
    return Towers(model, features, job.train.seed, job.model.id_dropout, DenseLayers.of(job, model), latest)


def mean_of_histories(
    spec: HistorySpec, histories: HistoryWindows, embeddings: Callable[[IntArray], FloatArray]
) -> FloatArray:
    """Return the weighted mean embedding of each history, float32 (M, D); zeros for an empty one.

    ``embeddings`` returns rows of the table of histories, sorted and unique.
    """
    bag = history_bag(histories, len(histories.first_N), spec.half_life)
    inputs = TowerInputs(np.zeros(len(bag.counts_A), np.bool_), np.empty(0, np.int64), {HISTORY: bag})
    tower = TowerSpec(spec.named, None, (spec.named,))
    return inputs.combine(tower, {HISTORY: embeddings(bag.values.rows_A)})


def load_latest_histories(
    job: JobConfig, folder: Folder, manifest: DatasetManifest, spec: HistorySpec
) -> LatestHistories:
    """Load the end of each query's interactions in train, here and in base datasets, up to ``data.until``.

    Raises:
        InputError: a file is missing or corrupt.
        StorageUnavailableError: storage does not answer.
    """
    time_range = job.data.time_range()
    until = None if time_range is None else time_range.until
    items = manifest.entities[manifest.item].rows

    def parts() -> Iterator[tuple[IntArray, IntArray, IntArray]]:
        for part in lineage.read_train(timestamps=True):
            timestamp_N = np.zeros(len(part), np.int64) if part.timestamp_N is None else part.timestamp_N
            kept_N = part.weight_N > 0
            if until is not None:
                kept_N &= timestamp_N < until
            query_N, item_N, timestamp_N = part.query_N[kept_N], part.item_N[kept_N], timestamp_N[kept_N]
            if not manifest.has_timestamp:  # Each item once, as in training.
                _, first_A = np.unique(query_N * items + item_N, return_index=True)
                query_N, item_N, timestamp_N = (of_N[np.sort(first_A)] for of_N in (query_N, item_N, timestamp_N))
            yield query_N, item_N, timestamp_N

    with closing(LineageReader(folder, manifest, job.data.reader_threads)) as lineage:
        return latest_histories(parts(), manifest.entities[manifest.query].rows, spec.length)
