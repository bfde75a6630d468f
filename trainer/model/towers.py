"""Towers: vectors of rows made of several embeddings, and gradients of vectors taken back to them.

    towers = load_towers(job, model, folder, manifest)
    batch = towers.complete(batch)                      # in the thread that makes batches
    block = store.pull(towers.active(batch))
    loss, gradients = engine.gradients(batch, towers.vectors(batch, block))
    store.push(towers.gradients(batch, gradients))      # by table: rows as in towers.active(batch)
    towers.update(rate_factor)                          # the dense layers, if there are some (trainer/model/dense.py)

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

import numpy as np

from kvstore.arrays import BoolArray, FloatArray, IntArray
from kvstore.io.folder import Folder
from kvstore.optimizers import OptimizerSpec
from kvstore.philox import uniform
from trainer.config.schema import JobConfig
from trainer.data.features import JaggedFeature, load_feature
from trainer.data.manifest import DatasetManifest
from trainer.data.vocabulary import Vocabulary
from trainer.model.batches import Batch
from trainer.model.dense import DenseLayers
from trainer.model.spec import ModelSpec, TowerSpec
from trainer.model.tower_inputs import FeatureBag, TowerInputs

_STREAM = "ids"


Pull = Callable[[dict[str, IntArray]], Mapping[str, FloatArray]]


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
