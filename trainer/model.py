"""The model: a table of embeddings for each entity, and the score that compares a query with an item."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.errors import InputError
from kvstore.store import TableSpec
from trainer.data.manifest import Manifest
from trainer.job import Job, ScoreKind


@dataclass(frozen=True)
class Score:
    """score(q, i) = product·(q·i) − square·(|q|² + |i|²), on unit vectors where ``normalised``.

    - dot: q·i / T
    - cosine: (q/|q|)·(i/|i|) / T
    - euclidean: −|q − i|² / T, as in metric learning (Hsieh et al., "Collaborative metric learning", WWW 2017)
    """

    normalised: bool
    product: float
    square: float

    @staticmethod
    def of(kind: ScoreKind, temperature: float) -> Score:
        """The score that a job file names."""
        if kind == "euclidean":
            return Score(normalised=False, product=2.0 / temperature, square=1.0 / temperature)
        return Score(normalised=kind == "cosine", product=1.0 / temperature, square=0.0)


@dataclass(frozen=True)
class Model:
    """Which table stands on which side, and how their rows are compared."""

    query: TableSpec
    item: TableSpec
    score: Score

    @property
    def tables(self) -> list[TableSpec]:
        """All tables."""
        return [self.query, self.item]


def make_model(job: Job, manifest: Manifest) -> Model:
    """The model of ``job`` on the data that ``manifest`` describes.

    Raises:
        InputError: the job names an entity that the data does not have, or several on one side.
    """
    source = f"job '{job.name}'"
    query, item = job.data.query or manifest.query, job.data.item or manifest.item
    for side, name, expected in (("query", query, manifest.query), ("item", item, manifest.item)):
        if name != expected:
            raise InputError(
                f"{source}: data.{side} is '{name}', but the {side} column of {job.data.shards} is '{expected}'"
            )
    for side, name, tower in (("query", query, job.model.query), ("item", item, job.model.item)):
        if tower not in ([], [name]):
            raise InputError(f"{source}: model.{side} is {tower}, but a tower takes one entity: expected [{name}]")
    query_table, item_table = (
        TableSpec(name, manifest.entities[name].rows, job.model.dim, job.model.initial_scale) for name in (query, item)
    )
    return Model(query_table, item_table, score=Score.of(job.model.score, job.model.temperature))
