"""Towers: vectors of rows made of several embeddings, and gradients of vectors taken back to them.

    towers = load_towers(job, model, folder, manifest)
    batch = towers.complete(batch)                      # in the thread that makes batches
    block = store.pull(towers.active(batch))
    loss, gradients = engine.gradients(batch, towers.vectors(batch, block))
    store.push(towers.gradients(batch, gradients))      # by table: rows as in towers.active(batch)
    towers.update(rate_factor)                          # the dense layers, if there are some (trainer/dense.py)

With own embedding e, and x_f the mean of the embeddings of a row's values of feature f (0 without any), its vector is

    sum    e + Σ_f x_f
    mean   (e + Σ_f x_f) / (1 + how many of its features have a value)

A row that train has no positive interaction of (nor, where the run begins with the rows of an earlier one, the data
before) has learned nothing of its own: where it has values of a feature, e is
left out (and the 1), in training as in evaluation, so that a new track is what its artist and tags say. In a step, e is
left out of a share of the others too if the job says so (``model.id_dropout``; DropoutNet: Volkovs et al., NIPS 2017).

That vector then passes the dense layers of its side. A model whose sides have a table each, and no dense layers, passes
through untouched, at no cost. Letters of shapes: A active rows of a tower,
V active values of a feature, N uses of them, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit, prange

from kvstore.arrays import BoolArray, FloatArray, IntArray
from kvstore.optimizers import OptimizerSpec
from kvstore.philox import uniform
from kvstore.storage import Folder
from trainer.data.batches import ActiveRows, Batch
from trainer.data.features import JaggedFeature, load_feature
from trainer.data.manifest import DatasetManifest
from trainer.data.vocabulary import Vocabulary
from trainer.dense import DenseLayers
from trainer.job import JobConfig
from trainer.model import ModelSpec, TowerSpec

_STREAM = "ids"

Pull = Callable[[dict[str, IntArray]], Mapping[str, FloatArray]]


@njit(cache=True, error_model="numpy", parallel=True)
def _add_means(out_AD, values_VD, index_N, starts_A1, share_A):  # type: ignore[no-untyped-def]
    """Add to each row the embeddings of its values, each times the row's share."""
    for a in prange(out_AD.shape[0]):
        for n in range(starts_A1[a], starts_A1[a + 1]):
            for d in range(out_AD.shape[1]):
                out_AD[a, d] += share_A[a] * values_VD[index_N[n], d]


@njit(cache=True, error_model="numpy", parallel=True)
def _sum_shares(gradient_AD, owner_N, share_A, order_N, starts_V1):  # type: ignore[no-untyped-def]
    """Sum for each value the gradients of the rows that have it, in the order of rows, whatever the threads."""
    out_VD = np.zeros((starts_V1.shape[0] - 1, gradient_AD.shape[1]), gradient_AD.dtype)
    for v in prange(out_VD.shape[0]):
        for n in range(starts_V1[v], starts_V1[v + 1]):
            a = owner_N[order_N[n]]
            for d in range(out_VD.shape[1]):
                out_VD[v, d] += share_A[a] * gradient_AD[a, d]
    return out_VD


@dataclass(frozen=True)
class FeatureBag:
    """The values that some rows have of a feature: row a has uses ``starts_A1[a]`` to ``starts_A1[a + 1]``.

    ``counts_A``: how many each row has. ``owner_N``: whose each use is.
    """

    values: ActiveRows
    starts_A1: IntArray
    counts_A: IntArray
    owner_N: IntArray

    @staticmethod
    def of(values_N: IntArray, starts_A1: IntArray) -> FeatureBag:
        """That of the values ``values_N``, one row's after another's."""
        counts_A = np.diff(starts_A1)
        return FeatureBag(ActiveRows.of(values_N), starts_A1, counts_A, np.repeat(np.arange(len(counts_A)), counts_A))


@dataclass(frozen=True)
class TowerInputs:
    """What the vectors of some rows of a tower are made of.

    ``own_A``: whose own embedding counts, and ``rows``, which those are in its table. ``bags``: by feature.
    ``weight_A``: what each part counts, float64; None: 1.
    """

    own_A: BoolArray
    rows: IntArray
    bags: dict[str, FeatureBag]
    weight_A: FloatArray | None

    def active(self, tower: TowerSpec) -> dict[str, IntArray]:
        """The active rows of each table, sorted and unique."""
        own = {tower.id_table.name: self.rows} if tower.id_table else {}
        return own | {name: bag.values.rows_A for name, bag in self.bags.items()}

    def combine(self, tower: TowerSpec, block: Mapping[str, FloatArray]) -> FloatArray:
        """The vectors (A, D), of the active rows of each table in ``block``."""
        some_VD = next(iter(block[table.name] for table in tower.tables))
        out_AD = np.zeros((len(self.own_A), tower.entity.dim), some_VD.dtype)
        if tower.id_table is not None:
            out_AD[self.own_A] = block[tower.id_table.name]
            if self.weight_A is not None:
                out_AD *= self.weight_A[:, None].astype(out_AD.dtype)
        for name, bag in self.bags.items():
            share_A = self._share(bag, out_AD.dtype)
            _add_means(out_AD, block[name], bag.values.index_N, bag.starts_A1, share_A)
        return out_AD

    def gradients(self, tower: TowerSpec, gradient_AD: FloatArray) -> dict[str, FloatArray]:
        """The gradients by the active rows of each table, of those by the vectors."""
        own = {}
        if tower.id_table is not None:
            own_AD = gradient_AD[self.own_A]
            if self.weight_A is not None:
                own_AD *= self.weight_A[self.own_A, None].astype(own_AD.dtype)
            own[tower.id_table.name] = own_AD
        return own | {name: self._of_values(bag, gradient_AD) for name, bag in self.bags.items()}

    def _of_values(self, bag: FeatureBag, gradient_AD: FloatArray) -> FloatArray:
        share_A = self._share(bag, gradient_AD.dtype)
        gradient_VD: FloatArray = _sum_shares(
            gradient_AD, bag.owner_N, share_A, bag.values.order_N, bag.values.starts_A1
        )
        return gradient_VD

    def _share(self, bag: FeatureBag, dtype: np.dtype[np.floating[Any]]) -> FloatArray:
        """What one value counts in each row."""
        share_A = 1.0 / np.maximum(bag.counts_A, 1)
        return (share_A if self.weight_A is None else share_A * self.weight_A).astype(dtype)


@dataclass(frozen=True)
class TowerFeatures:
    """What a tower knows of its rows: by feature, their values; and who has a positive interaction in train."""

    tower: TowerSpec
    lists: Mapping[str, JaggedFeature]
    warm_R: BoolArray

    def parts(self, rows_A: IntArray, id_kept_A: BoolArray | None = None) -> TowerInputs:
        """What the vectors of ``rows_A``, sorted and unique, are made of; without the own embeddings not ``kept_A``."""
        bags = {}
        for table in self.tower.features:
            starts_A1, values_N = self.lists[table.name].gather(rows_A)
            bags[table.name] = FeatureBag.of(values_N, starts_A1)
        filled_A = np.sum([bag.counts_A > 0 for bag in bags.values()], axis=0)
        if self.tower.id_table is None:
            own_A = np.zeros(len(rows_A), np.bool_)
        else:
            own_A = self.warm_R[rows_A] if id_kept_A is None else self.warm_R[rows_A] & id_kept_A
            own_A = own_A | (filled_A == 0)
        weight_A = 1.0 / np.maximum(own_A + filled_A, 1) if self.tower.mean else None
        return TowerInputs(own_A, rows_A[own_A], bags, weight_A)


class Towers:
    """All towers of a model that have more than a table of their own: none, most likely."""

    def __init__(
        self,
        model: ModelSpec,
        data: Sequence[TowerFeatures],
        seed: int = 0,
        id_dropout: float = 0.0,
        dense: DenseLayers | None = None,
    ) -> None:
        """``data`` of each of the model's towers. In a step, ``drop_ids`` of the own embeddings are left out."""
        self.dense = dense or DenseLayers((), OptimizerSpec(), seed)
        self._names = model.query.name, model.item.name
        self._data = {of.tower.entity.name: of for of in data}
        self._seed = seed
        self._drop_ids = id_dropout

    def of(self, entity: str) -> TowerFeatures | None:
        """The tower of ``entity``; None if its vectors are those of its table."""
        return self._data.get(entity)

    def add_tower_inputs(self, batch: Batch) -> Batch:
        """``batch``, with what its vectors are made of."""
        if not self._data:
            return batch
        rows = dict(zip(self._names, (batch.query.rows_A, batch.item.rows_A), strict=True))
        return replace(
            batch,
            tower_inputs={name: of.parts(rows[name], self._kept(rows[name], batch)) for name, of in self._data.items()},
        )

    def _kept(self, rows_A: IntArray, batch: Batch) -> BoolArray | None:
        """Whose own embedding stays in this step: a matter of the row, so that it is the same for every worker."""
        if not self._drop_ids:
            return None
        draw_A = uniform(rows_A, seed=self._seed, stream=_STREAM, epoch=batch.epoch, step=batch.step, slot=0)
        id_kept_A: BoolArray = draw_A >= self._drop_ids
        return id_kept_A

    def active(self, batch: Batch) -> dict[str, IntArray]:
        """The rows of each table that a step touches."""
        active: dict[str, IntArray] = {}
        for name, rows_A in zip(self._names, (batch.query.rows_A, batch.item.rows_A), strict=True):
            of = self._data.get(name)
            active |= {name: rows_A} if of is None else batch.tower_inputs[name].active(of.tower)
        return active

    def vectors(self, batch: Batch, block: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
        """The vectors of the active rows of both sides, of the active rows of each table in ``block``."""
        made = {name: batch.tower_inputs[name].combine(of.tower, block) for name, of in self._data.items()}
        block = {**block, **made} if made else block
        return self.dense.forward(block) if self.dense.entities else block

    def gradients(self, batch: Batch, gradients: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
        """The gradients by the active rows of each table, of those by the vectors that ``vectors`` has just given.

        Those by the dense layers are kept for ``update``.
        """
        if self.dense.entities:
            gradients = self.dense.backward(gradients)
        if not self._data:
            return gradients
        taken: dict[str, FloatArray] = {}
        for name in self._names:
            of = self._data.get(name)
            taken |= (
                {name: gradients[name]} if of is None else batch.tower_inputs[name].gradients(of.tower, gradients[name])
            )
        return taken

    def update(self, rate_factor: float) -> None:
        """Apply the step's gradients to the dense layers, at their learning rate times ``rate_factor``.

        Raises:
            DivergedError: they are not finite.
        """
        if self.dense.entities:
            self.dense.update(rate_factor)


class TowerVectors:
    """Vectors as ``towers`` make them, of rows that ``pull`` gives."""

    def __init__(self, towers: Towers, pull: Pull) -> None:
        """``pull`` takes sorted rows of each table."""
        self._towers = towers
        self._pull = pull

    def vectors(self, entity: str, rows_N: IntArray) -> FloatArray:
        """Vectors of ``rows_N``."""
        of = self._towers.of(entity)
        if of is None:
            return self._towers.dense.apply(entity, self._pull({entity: rows_N})[entity])
        parts = of.parts(rows_N)
        return self._towers.dense.apply(entity, parts.combine(of.tower, self._pull(parts.active(of.tower))))


def load_towers(job: JobConfig, model: ModelSpec, folder: Folder, manifest: DatasetManifest) -> Towers:
    """The towers of ``model``, with what the data in ``folder`` say of their rows.

    Raises:
        InputError: a file is missing or damaged.
        UnreachableError: storage does not answer.
    """
    data = []
    for tower in model.towers:
        name = tower.entity.name
        lists = {table.name: load_feature(folder, manifest, name, table.name) for table in tower.features}
        vocabulary = Vocabulary(folder, manifest, name)
        # What an earlier run has learned is there only if this one begins with it.
        warm_R = vocabulary.warm_rows() if job.checkpoint.warm_start_from else vocabulary.counts() > 0
        data.append(TowerFeatures(tower, lists, warm_R))
    return Towers(model, data, job.train.seed, job.model.id_dropout, DenseLayers.of(job, model))
