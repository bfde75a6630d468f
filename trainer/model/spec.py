"""The model: its embedding tables, the towers that combine them into vectors, and the score that compares vectors.

model = make_model(job, manifest)
[table.name for table in model.tables]      # ["customer", "track", "artist"]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod

from crossfade.base.arrays import FloatArray, IntArray
from crossfade.base.errors import InputError, Option, Text, command
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.config.sections import HISTORY, resolved
from crossfade.trainer.data.features import content_width
from crossfade.trainer.data.manifest import DatasetManifest


@dataclass(frozen=True)
class Score:
    """A score function: dot_scale·(q·i) − norm_scale·(|q|² + |i|²) + offset, on unit vectors if ``normalized``.

    - dot: q·i / T
    - cosine: (q/|q|)·(i/|i|) / T
    - euclidean: −|q − i|² / T, as in metric learning (Hsieh et al., "Collaborative metric learning", WWW 2017)

    ``offset_I``, float32 (I,), is what each item gains whatever the query is, such as by its popularity; None: nothing.
    """

    normalized: bool
    dot_scale: float
    norm_scale: float
    offset_I: FloatArray | None = field(default=None, compare=False)

    @staticmethod
    def of(kind: ScoreKind, temperature: float) -> Score:
        """Build the score of a job file's ``model.score`` and ``model.temperature`` T."""
        if kind == "euclidean":
            return Score(normalized=False, dot_scale=2.0 / temperature, norm_scale=1.0 / temperature)
        return Score(normalized=kind == "cosine", dot_scale=1.0 / temperature, norm_scale=0.0)

    def of_items(self, rows_N: IntArray | slice) -> Score:
        """Return the score of the items ``rows_N``, in their order."""
        return self if self.offset_I is None else replace(self, offset_I=self.offset_I[rows_N])


@dataclass(frozen=True)
class TowerSpec:
    """Which tables make up the vector of a row of ``entity``.

    Attributes:
        entity: the entity, with the width of its vectors.
        id_table: the table of ID embeddings; None if the vector consists of features only.
        features: the tables of its features. A row's values of a feature enter as their mean; features that a row has
            no value of are left out.
        content: the content columns of the row, which the content layer maps to one more embedding.
    """

    entity: TableSpec
    id_table: TableSpec | None
    features: tuple[TableSpec, ...]
    content: tuple[str, ...] = ()

    @property
    def tables(self) -> list[TableSpec]:
        """The ID table, if there is one, then those of the features."""
        return [*([self.id_table] if self.id_table else []), *self.features]


@dataclass(frozen=True)
class HistorySpec:
    """The histories of queries, of which the mean embedding is added to a query's vector.

    Attributes:
        table: the table of the items, whose embeddings histories share.
        length: items of a history, at most.
        half_life: after how many newer items an item counts for half as much; None: all count alike.
    """

    table: TableSpec
    length: int
    half_life: float | None

    @property
    def named(self) -> TableSpec:
        """The table, by the name ``HISTORY`` that its rows have in a step."""
        return replace(self.table, name=HISTORY)


@dataclass(frozen=True)
class LayerSpec:
    """The dense layers of one side, or its content layer (``trainer/model/dense.py``).

    Attributes:
        entity: whose vectors pass through the layers; of a content layer, ``content_layer(entity)``.
        widths: of the input, then of each layer's output.
        init_std: standard deviation of the outputs of a content layer at the start; None: Glorot's initialization.
    """

    entity: str
    widths: tuple[int, ...]
    init_std: float | None = None

    @property
    def reads_content(self) -> bool:
        """Whether the input is content, which has no gradient."""
        return self.init_std is not None

    @property
    def side(self) -> str:
        """The entity, also of a content layer."""
        return self.entity.partition("/")[0]

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shape of each parameter array by its name."""
        shapes = {}
        for number, (inputs, outputs) in enumerate(pairwise(self.widths)):
            shapes[f"{self.entity}/{number}/weights"] = outputs, inputs
            shapes[f"{self.entity}/{number}/bias"] = 1, outputs
            if number < len(self.widths) - 2:
                shapes[f"{self.entity}/{number}/gain"] = 1, outputs
        return shapes

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(prod(shape) for shape in self.shapes().values())


def content_layer(entity: str) -> str:
    """Return the name of the content layer of ``entity``, by which its input, output, and parameters are found."""
    return f"{entity}/content"


@dataclass(frozen=True)
class ModelSpec:
    """A two-tower model.

    Attributes:
        query: the query entity, with the shape of its vectors.
        item: the item entity, likewise.
        score: compares a query's vector with an item's.
        towers: how vectors are combined, for sides with features; without a tower, they are the rows of the table.
        dense: layers that the vectors of a side then pass through.
        context: the tables of context entities, whose vectors are added to that of the query.
        history: the histories of queries, likewise; None: they are not used.
        has_query_vectors: whether queries have vectors besides; else, they are represented by their histories alone.
    """

    query: TableSpec
    item: TableSpec
    score: Score
    towers: tuple[TowerSpec, ...] = ()
    dense: tuple[LayerSpec, ...] = ()
    context: tuple[TableSpec, ...] = ()
    history: HistorySpec | None = None
    has_query_vectors: bool = True

    @property
    def parameters(self) -> int:
        """Number of parameters, of tables and dense layers."""
        return sum(table.rows * table.dim for table in self.tables) + sum(spec.parameters for spec in self.dense)

    @property
    def tables(self) -> list[TableSpec]:
        """All tables: of the query side, of context, and of the item side."""
        towers = {tower.entity: tower for tower in self.towers}
        query, item = (towers[entity].tables if entity in towers else [entity] for entity in (self.query, self.item))
        return [*(query if self.has_query_vectors else []), *self.context, *item]

    @property
    def writes_history_rows(self) -> bool:
        """Whether the rows of the table of histories are the vectors of items, so that written vectors have them."""
        has_layers = any(layer.side == self.item.name for layer in self.dense)
        has_tower = any(tower.entity == self.item for tower in self.towers)
        return self.history is not None and not has_layers and not has_tower

    @property
    def query_sum(self) -> TowerSpec | None:
        """The sum that makes up a query's vector, as a tower whose features are its parts; None if it has one part.

        The parts are the vector of its row, those of its context, and the mean of its history, of the table
        ``HISTORY``.
        """
        if not self.context and self.history is None:
            return None
        row = [self.query] if self.has_query_vectors else []
        history = [self.history.named] if self.history else []
        return TowerSpec(self.query, None, (*row, *self.context, *history))

    @property
    def has_item_features(self) -> bool:
        """Whether items have features or content.

        Cold items are then not used as negatives: no query could have interacted with them.
        """
        return any(tower.entity == self.item for tower in self.towers)

    @property
    def vectors(self) -> list[TableSpec]:
        """Everything that has vectors: the two entities, their features, and context."""
        return [self.query, self.item, *(table for tower in self.towers for table in tower.features), *self.context]


def make_model(job: JobConfig, manifest: DatasetManifest) -> ModelSpec:
    """Build the model of ``job`` for the dataset that ``manifest`` describes.

    Raises:
        InputError: the job names an entity or a feature that the dataset does not have there.
    """
    source = f"job '{job.name}'"
    query, item = job.data.query or manifest.query, job.data.item or manifest.item
    context = [name for name in job.model.query_features if name in manifest.context]
    uses_history = _uses_history(job, manifest)
    added = [*context, *([HISTORY] if uses_history else [])]
    if added:
        _check_added(f"{source}: model.query_features names '{added[0]}'", job, added)
    query_features = [name for name in job.model.query_features if name not in added]
    sides = (
        ("query", query, manifest.query, query_features, job.model.query_content),
        ("item", item, manifest.item, job.model.item_features, job.model.item_content),
    )
    for side, name, expected, tower, content in sides:
        if name != expected:
            raise InputError(
                f"{source}: data.{side} is '{name}', but the {side} column of {job.data.path} is '{expected}'"
            )
        _check_tower(f"{source}: model.{side}_features", tower, expected, manifest, job.data.path)
        _check_content(f"{source}: model.{side}_content", content, expected, manifest, job.data.path)

    def table(name: str) -> TableSpec:
        return TableSpec(name, manifest.entities[name].rows, job.model.dim, job.model.init_std)

    towers = tuple(
        TowerSpec(
            table(name),
            table(name) if name in tower or not tower else None,
            tuple(table(feature) for feature in tower if feature != name),
            content=tuple(content),
        )
        for _, name, _, tower, content in sides
        if tower not in ([], [name]) or content
    )
    dense = (*_content_layers(job, manifest, towers), *_dense_layers(job, query, item))
    score = Score.of(job.model.score, resolved(job.model.temperature))
    tables = table(query), table(item)
    history = _history(source, job, manifest, towers, tables[1]) if uses_history else None
    has_query_vectors = job.model.query_features != [HISTORY] or history is None
    _check_timestamps(source, job, manifest)
    return ModelSpec(*tables, score, towers, dense, tuple(map(table, context)), history, has_query_vectors)


def _uses_history(job: JobConfig, manifest: DatasetManifest) -> bool:
    """Whether the job names histories, and the dataset has no entity of that name, which it would name then."""
    return HISTORY in job.model.query_features and HISTORY not in manifest.entities


def _history(
    source: str, job: JobConfig, manifest: DatasetManifest, towers: Sequence[TowerSpec], item: TableSpec
) -> HistorySpec:
    spec, named = job.model.history, f"{source}: model.query_features names '{HISTORY}'"
    if not manifest.is_grouped:
        raise InputError(
            f"{named}, but {job.data.path} is not grouped, so that the other interactions of a query are not at "
            f"hand; write it with {command('prepare')}"
        )
    if spec.half_life is not None and not manifest.has_timestamp:
        raise InputError(
            f"{source}: model.history.half_life is {spec.half_life}, but {job.data.path} has no timestamps by which to "
            "order histories; leave it out, or prepare the data with ",
            Option("timestamp"),
        )
    is_written = not job.model.dense.item and all(tower.entity != item for tower in towers)
    if job.evaluate.by == "moment" and not is_written:
        raise InputError(
            f"{source}: evaluate.by is 'moment', which needs the embeddings of items in histories, but those are not "
            f"among the written vectors; leave out features, content, and layers of {item.name}, or set evaluate.by to "
            "query"
        )
    if any(tower.entity == item and tower.id_table is None for tower in towers):
        raise InputError(
            f"{named}, whose items share the table of {item.name}, but model.item_features leaves {item.name} out; add "
            f"{item.name} there, or leave {HISTORY} out"
        )
    return HistorySpec(item, spec.length, spec.half_life)


def _content_layers(job: JobConfig, manifest: DatasetManifest, towers: Sequence[TowerSpec]) -> Iterator[LayerSpec]:
    for tower in (tower for tower in towers if tower.content):
        name = tower.entity.name
        widths = content_width([manifest.content[name][column] for column in tower.content]), job.model.dim
        yield LayerSpec(content_layer(name), widths, init_std=job.model.init_std)


def _dense_layers(job: JobConfig, query: str, item: str) -> Iterator[LayerSpec]:
    dense = job.model.dense
    for name, widths in ((query, dense.query), (item, dense.item)):
        if widths:
            yield LayerSpec(name, (job.model.dim, *widths))


def _check_timestamps(source: str, job: JobConfig, manifest: DatasetManifest) -> None:
    half_life = None if job.train.half_life is None else f"train.half_life is {job.train.half_life}"
    found = "evaluate.by is 'moment'" if job.evaluate.by == "moment" else half_life
    if found is not None and not manifest.has_timestamp:
        raise InputError(
            f"{source}: {found}, but {job.data.path} has no timestamps; prepare it with ", Option("timestamp")
        )


def _check_content(key: str, names: Sequence[str], entity: str, manifest: DatasetManifest, path: str) -> None:
    known = list(manifest.content_of(entity))
    for name in names:
        if name not in known:
            others = f"; it has {', '.join(known)}" if known else ""
            raise InputError(
                f"{key} names '{name}', but {path} has no such content of {entity}{others}: expected columns that "
                f"{command('prepare', content=True)} adds"
            )
    if len(set(names)) < len(names):
        raise InputError(f"{key} is {list(names)}: expected each name once")


def _check_added(named: str, job: JobConfig, added: Sequence[str]) -> None:
    """Check that the vector of a query can be the sum of its entity's vector and those of ``added``."""
    if len(added) == len(job.model.query_features) and added != [HISTORY]:
        raise InputError(f"{named}, which is context, but no entity that has it; add the query entity or its features")
    if added == [HISTORY] == job.model.query_features and job.model.query_content:
        raise InputError(
            f"{named} alone, so queries have no other vector for model.query_content; add the query entity"
        )
    if len(set(job.model.query_features)) < len(job.model.query_features):
        raise InputError(f"{named}; expected each name of {job.model.query_features} once")
    if job.model.dense.query:
        raise InputError(f"{named}, whose vector is added to the query's; leave out model.dense.query")


def _check_tower(key: str, tower: Sequence[str], entity: str, manifest: DatasetManifest, path: str) -> None:
    known = [entity, *manifest.features_of(entity)]
    for name in tower:
        if name not in known:
            others = f"; it has {', '.join(known[1:])}" if known[1:] else ""
            context: Text = ""
            if entity == manifest.query:
                found = f" ({', '.join(manifest.context)})" if manifest.context else ""
                context = (f", and context{found}, which ", Option("context"), " adds")
            raise InputError(
                f"{key} names '{name}', but {path} has no such feature of {entity}{others}: expected {entity} and "
                f"its features, which {command('prepare', features=True)} adds",
                context,
            )
    if len(set(tower)) < len(tower):
        raise InputError(f"{key} is {list(tower)}: expected each name once")
