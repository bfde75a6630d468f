"""Cases of towers for gradient engines: each kind of tower with each kind of negatives, and losses and scores in turn.

    found = tower_gradients(engine, case)               # by table and by parameter of dense layers
    expected = tower_reference(name)                    # by PyTorch's autograd in float64

The reference computes the vector of each example's query and of each item from the tables, by formulas.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from builders import random_rows
from engine_cases import DIM, ITEMS, KINDS, LOSSES, QUERIES, TEMPERATURE, Case, make_case, score_of
from loss_formulas import Vector, autograd, leaves_of, loss_of
from towers import (
    CONTEXT,
    CONTEXT_NK,
    HISTORIES,
    QUERY_N,
    USES_ID,
    Parts,
    expected_content_vector,
    expected_item,
    expected_query,
    make_content_towers,
    make_towers,
    windows_of,
)

from crossfade.base.arrays import FloatArray
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.store import TableSpec
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.config.sections import LossKind, NegativesConfig
from crossfade.trainer.model.batches import Batch
from crossfade.trainer.model.dense import DenseLayers
from crossfade.trainer.model.engines.engine import Engine
from crossfade.trainer.model.losses import LossSpec
from crossfade.trainer.model.spec import LayerSpec, ModelSpec, Score
from crossfade.trainer.model.towers import Towers

Tables = Mapping[str, Any]
"""Rows of each table, and dense parameters, as tensors."""
Gradients = tuple[float, dict[str, FloatArray]]
"""A loss, and its gradients by complete table, and by dense parameter."""


@dataclass(frozen=True)
class Build:
    """A model with towers.

    Attributes:
        model: the model, with any score.
        towers: its towers.
        query: computes the vector of an example's query, whose row is the third argument.
        item: computes the vector of an item; the third argument is which items use their ID embedding.
        examples: what replaces the rows of a case, such as its histories.
    """

    model: ModelSpec
    towers: Towers
    query: Callable[[Tables, int, int], Vector] = lambda tables, _, row: tables["customer"][row]
    item: Callable[[Tables, int, Sequence[bool]], Vector] = lambda tables, row, _: tables["track"][row]
    examples: Mapping[str, Any] | None = None


def dense_output(spec: LayerSpec, parameters: Tables, vector_D: Vector) -> Vector:
    """Pass a vector through the layers of ``spec``, by the formulas of ``trainer/model/dense.py``."""
    hidden_D, last = vector_D, len(spec.widths) - 2
    for number in range(last + 1):
        name = f"{spec.entity}/{number}"
        hidden_D = parameters[f"{name}/weights"] @ hidden_D
        if number < last:
            centered_D = hidden_D - hidden_D.mean()
            hidden_D = parameters[f"{name}/gain"][0] * centered_D / ((centered_D**2).mean() + 1e-5) ** 0.5
        hidden_D = hidden_D + parameters[f"{name}/bias"][0]
        if number < last:
            hidden_D = hidden_D.relu()
    return vector_D + hidden_D


def _sums(parts: Parts, id_dropout: float = 0.0) -> Build:
    """Build vectors that are the sums of ``parts``."""
    model, towers = make_towers(parts, id_dropout)
    examples: dict[str, Any] = {"queries_B": QUERY_N}
    if parts.context:
        examples["context_NK"] = CONTEXT_NK
    if parts.history:
        examples["history"] = windows_of(HISTORIES)

    def query(tables: Tables, example: int, row: int) -> Vector:
        context = CONTEXT_NK[example] if parts.context else ()
        return expected_query(parts, tables, row, context, HISTORIES[example])

    def item(tables: Tables, row: int, uses_id: Sequence[bool]) -> Vector:
        # The rows of histories are active, whether tracks use their IDs or not.
        return expected_item(parts, tables, row, USES_ID if parts.history else uses_id)

    return Build(model, towers, query, item, examples)


def _content(id_dropout: float = 0.0) -> Build:
    model, towers = make_content_towers(id_dropout)
    layer = model.dense[-1]

    def item(tables: Tables, row: int, uses_id: Sequence[bool]) -> Vector:
        vector_D = expected_content_vector(tables, row, uses_id=uses_id[row])
        return dense_output(layer, tables, vector_D)

    return Build(model, towers, item=item)


def _dense() -> Build:
    """Build plain tables with two layers for customers and three for tracks."""
    widths = {"customer": (DIM, 5, DIM), "track": (DIM, 4, 6, DIM)}
    layers = {name: LayerSpec(name, widths[name]) for name in widths}
    tables = TableSpec("customer", QUERIES, DIM, 0.1), TableSpec("track", ITEMS, DIM, 0.1)
    model = ModelSpec(*tables, Score.of("dot", 1.0), dense=tuple(layers.values()))
    dense = DenseLayers(model.dense, OptimizerSpec(), seed=6)
    draw = np.random.default_rng(9)
    dense.parameters = {
        name: (0.5 * draw.standard_normal(values.shape)).astype(np.float32) for name, values in dense.parameters.items()
    }

    def side(name: str) -> Callable[[Tables, int], Vector]:
        return lambda found, row: dense_output(layers[name], found, found[name][row])

    query, item = side("customer"), side("track")
    return Build(
        model,
        Towers(model, [], dense=dense),
        lambda found, _, row: query(found, row),
        lambda found, row, _: item(found, row),
    )


BUILDS: dict[str, Callable[[], Build]] = {
    "features": lambda: _sums(Parts(("track", "artist", "tag"))),
    "features-without-ids": lambda: _sums(Parts(("artist", "tag"))),
    "features-id-dropout": lambda: _sums(Parts(("track", "artist", "tag")), id_dropout=0.5),
    "content": _content,
    "content-id-dropout": lambda: _content(id_dropout=0.5),
    "context": lambda: _sums(Parts(context=CONTEXT)),
    "context-and-features": lambda: _sums(Parts(customer=("customer", "country"), context=CONTEXT)),
    "history-plain": lambda: _sums(Parts(history=True)),
    "history-histories-alone": lambda: _sums(Parts(customer=(), history=True)),
    "history-context": lambda: _sums(Parts(context=CONTEXT, history=True)),
    "history-item-features": lambda: _sums(Parts(("track", "artist"), history=True)),
    "dense": _dense,
}


@dataclass(frozen=True)
class TowerCase:
    """A model with towers, in a step of a case."""

    case: Case
    model: ModelSpec
    build: Build
    batch: Batch
    tables: Mapping[str, FloatArray]

    @property
    def parts(self) -> tuple[ModelSpec, LossSpec, NegativesConfig]:
        """What its engine is made of."""
        return self.model, self.case.loss_spec, self.case.spec

    @property
    def active(self) -> dict[str, Any]:
        return self.build.towers.active(self.batch)


def make_tower_case(
    build: Build, loss: LossKind, score: ScoreKind, negatives: str, signs: str, *, log_q: bool
) -> TowerCase:
    case = make_case(loss, score, negatives, signs, build.model.item.rows, log_q=log_q)
    case = replace(case, **(build.examples or {}))
    tables = {table.name: table for table in build.model.tables}
    rows = {name: random_rows(table.rows, DIM, seed) for seed, (name, table) in enumerate(tables.items())}
    model = replace(build.model, score=Score.of(score, TEMPERATURE))
    return TowerCase(case, model, build, build.towers.add_tower_inputs(case.batch), rows)


def _named_cases() -> Iterator[tuple[str, TowerCase]]:
    for number, (name, negatives) in enumerate(product(BUILDS, KINDS)):
        loss = LOSSES[number % len(LOSSES)]
        score = score_of(loss, number // len(LOSSES))
        signs = "mixed" if number % 2 else "positive"
        if negatives == "all":
            loss = "softmax"
        log_q = loss == "softmax" and negatives != "all"
        case = make_tower_case(BUILDS[name](), loss, score, negatives, signs, log_q=log_q)
        yield f"{name}-{loss}-{score}-{negatives}", case


TOWER_CASES = dict(_named_cases())


def tower_gradients(engine: Engine, case: TowerCase) -> Gradients:
    """Return the loss of ``case`` by ``engine``, and its gradients by complete table and dense parameter."""
    towers = case.build.towers
    block = {name: case.tables[name][rows] for name, rows in case.active.items()}
    vectors, tape = towers.forward(case.batch, block)
    loss, by_vectors = engine.gradients(case.batch, vectors)
    result = towers.backward(case.batch, tape, by_vectors)
    found = {name: np.zeros_like(table) for name, table in case.tables.items()}
    for name, rows_A in case.active.items():
        found[name][rows_A] = result.tables[name]
    return loss, found | dict(result.dense)


@lru_cache
def tower_reference(name: str) -> Gradients:
    """Return what ``tower_gradients`` should, by autograd in float64."""
    tower_case = TOWER_CASES[name]
    case, build = tower_case.case, tower_case.build
    leaves = leaves_of({**tower_case.tables, **build.towers.dense.parameters})
    with_id = set(tower_case.active.get("track", []))
    uses_id = [row in with_id for row in range(case.items)]
    queries = [build.query(leaves, example, row) for example, row in enumerate(case.queries_B)]
    items = [build.item(leaves, row, uses_id) for row in range(case.items)]
    return autograd(loss_of(case, queries, items), leaves)
