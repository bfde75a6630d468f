"""The model: tables of embeddings, how a side's vectors are made of them, and the score that compares two vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal

from kvstore.errors import InputError
from kvstore.store import TableSpec
from trainer.config.model_sections import ScoreKind
from trainer.config.schema import JobConfig
from trainer.data.manifest import DatasetManifest


@dataclass(frozen=True)
class Score:
    """score(q, i) = product·(q·i) − square·(|q|² + |i|²), on unit vectors where ``normalised``.

    - dot: q·i / T
    - cosine: (q/|q|)·(i/|i|) / T
    - euclidean: −|q − i|² / T, as in metric learning (Hsieh et al., "Collaborative metric learning", WWW 2017)
    """

    normalized: bool
    dot_scale: float
    norm_scale: float

    @staticmethod
    def of(kind: ScoreKind, temperature: float) -> Score:
        """The score that a job file names."""
        if kind == "euclidean":
            return Score(normalized=False, dot_scale=2.0 / temperature, norm_scale=1.0 / temperature)
        return Score(normalized=kind == "cosine", dot_scale=1.0 / temperature, norm_scale=0.0)


@dataclass(frozen=True)
class TowerSpec:
    """Whose embeddings make the vector of a row of ``entity``: its own, if ``own`` is there, and those of features.

    The values of a feature count as their mean. What a row has no value of is left out; where ``mean``, the vector is
    the mean of what is left, and otherwise the sum.
    """

    entity: TableSpec
    id_table: TableSpec | None
    features: tuple[TableSpec, ...]
    mean: bool

    @property
    def tables(self) -> list[TableSpec]:
        """The tables of these embeddings."""
        return [*([self.id_table] if self.id_table else []), *self.features]


@dataclass(frozen=True)
class LayerSpec:
    """The dense layers that vectors of ``entity`` pass: see ``trainer/model/dense.py``.

    ``widths`` are those of what goes in and of what comes out of each layer. All layers but the last are followed by
    the activation, and before that normalised where ``layer_norm``. What goes into the first is added to what comes out
    of the last where ``residual``.
    """

    entity: str
    widths: tuple[int, ...]
    activation: Literal["relu", "tanh"]
    layer_norm: bool
    residual: bool

    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of each of their arrays of parameters, by its name."""
        shapes = {}
        for number, (inputs, outputs) in enumerate(pairwise(self.widths)):
            shapes[f"{self.entity}/{number}/weights"] = outputs, inputs
            shapes[f"{self.entity}/{number}/bias"] = 1, outputs
            if self.layer_norm and number < len(self.widths) - 2:
                shapes[f"{self.entity}/{number}/gain"] = 1, outputs
        return shapes

    @property
    def parameters(self) -> int:
        """How many numbers they hold."""
        return sum(prod(shape) for shape in self.shapes().values())


@dataclass(frozen=True)
class ModelSpec:
    """What stands on which side, and how rows are compared.

    ``query`` and ``item`` describe the vectors of the two entities. They lie in a table of that name, but where
    ``towers`` says how they are made instead. Then they pass the layers of ``dense``, if there are some.
    """

    query: TableSpec
    item: TableSpec
    score: Score
    towers: tuple[TowerSpec, ...] = ()
    dense: tuple[LayerSpec, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers it learns."""
        return sum(table.rows * table.dim for table in self.tables) + sum(spec.parameters for spec in self.dense)

    @property
    def tables(self) -> list[TableSpec]:
        """All tables, those of the query side first."""
        towers = {tower.entity: tower for tower in self.towers}
        return [
            table
            for entity in (self.query, self.item)
            for table in (towers[entity].tables if entity in towers else [entity])
        ]

    @property
    def has_item_features(self) -> bool:
        """Whether an item that nobody has met says what it is: then it is no negative, since nobody could choose it."""
        return any(tower.entity == self.item for tower in self.towers)

    @property
    def vectors(self) -> list[TableSpec]:
        """What there are vectors of: the two entities and their features."""
        return [self.query, self.item, *(table for tower in self.towers for table in tower.features)]


def make_model(job: JobConfig, manifest: DatasetManifest) -> ModelSpec:
    """The model of ``job`` on the data that ``manifest`` describes.

    Raises:
        InputError: the job names an entity that the data do not have there.
    """
    source = f"job '{job.name}'"
    query, item = job.data.query or manifest.query, job.data.item or manifest.item
    sides = (
        ("query", query, manifest.query, job.model.query_features),
        ("item", item, manifest.item, job.model.item_features),
    )
    for side, name, expected, tower in sides:
        if name != expected:
            raise InputError(
                f"{source}: data.{side} is '{name}', but the {side} column of {job.data.path} is '{expected}'"
            )
        _check_tower(f"{source}: model.{side}_features", tower, expected, manifest, job.data.path)

    def table(name: str) -> TableSpec:
        return TableSpec(name, manifest.entities[name].rows, job.model.dim, job.model.init_std)

    towers = tuple(
        TowerSpec(
            table(name),
            table(name) if name in tower else None,
            tuple(table(feature) for feature in tower if feature != name),
            mean=job.model.combine == "mean",
        )
        for _, name, _, tower in sides
        if tower not in ([], [name])
    )
    dense = tuple(
        LayerSpec(
            name,
            (job.model.dim, *widths),
            job.model.dense.activation,
            job.model.dense.layer_norm,
            job.model.dense.residual,
        )
        for name, widths in ((query, job.model.dense.query), (item, job.model.dense.item))
        if widths
    )
    return ModelSpec(table(query), table(item), Score.of(job.model.score, job.model.temperature), towers, dense)


def _check_tower(key: str, tower: Sequence[str], entity: str, manifest: DatasetManifest, shards: str) -> None:
    known = [entity, *manifest.features_of(entity)]
    for name in tower:
        if name not in known:
            others = f"; it has {', '.join(known[1:])}" if known[1:] else ""
            raise InputError(
                f"{key} names '{name}', but {shards} has no such feature of {entity}{others}: expected {entity} and "
                "its features, which 'crossfade prepare --features' adds"
            )
    if len(set(tower)) < len(tower):
        raise InputError(f"{key} is {list(tower)}: expected each name once")
