"""Write the example of a model card: Python that loads exported arrays and prints the rows of the highest score.

example = python_example("cosine", choose_example(model, ["customer", "track"]), NUMPY, manifest.entities)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossfade.trainer.config.sections import ScoreKind
from crossfade.trainer.data.manifest import Entity
from crossfade.trainer.model.spec import ModelSpec

_SCORES: dict[ScoreKind, str] = {
    "cosine": "vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))",
    "dot": "vectors @ query",
    "euclidean": "-np.square(vectors - query).sum(axis=1)",
}


@dataclass(frozen=True)
class ExampleTables:
    """The tables of an example: rows of ``ranked`` are ranked for a row of ``query``."""

    query: str
    ranked: str


@dataclass(frozen=True)
class ArrayReader:
    """Python that reads the arrays of a format; ``{}`` stands for the entity.

    Attributes:
        vectors: an expression for the vectors of all rows.
        rows: an expression for the table with their IDs and names; a second ``{}`` stands for the column that is shown.
        imports: lines that the expressions need, in addition to those of numpy and Parquet.
        function: a function that they need.
        marks_trained: whether the rows have the column ``trained``.
    """

    vectors: str
    rows: str
    imports: Sequence[str] = ()
    function: Sequence[str] = ()
    marks_trained: bool = False


def choose_example(model: ModelSpec, entities: Sequence[str]) -> ExampleTables:
    """Choose the tables of an example: items for a query if ``entities`` has both, otherwise one of them by itself."""
    ranked = model.item.name if model.item.name in entities else entities[0]
    has_both = {model.query.name, model.item.name} <= set(entities)
    return ExampleTables(model.query.name if has_both else ranked, ranked)


def python_example(score: ScoreKind, tables: ExampleTables, reader: ArrayReader, entities: Mapping[str, Entity]) -> str:
    """Return a block of Markdown with Python that ranks the rows of a table for the first row of another, or of it."""
    label = "name" if entities[tables.ranked].has_names else "id"
    lines = [
        "import numpy as np",
        "import pyarrow.parquet as pq",
        *reader.imports,
        "",
        *([*reader.function, ""] if reader.function else []),
        f"vectors = {reader.vectors.format(tables.ranked)}",
        f"rows = {reader.rows.format(tables.ranked, label)}",
        f"query = {reader.vectors.format(tables.query)}[0]  # the first {tables.query}",
        "",
        f"scores = {_SCORES[score]}",
        *(['scores[~rows["trained"].to_numpy()] = -np.inf'] if reader.marks_trained else []),
        "for row in np.argsort(-scores)[:10]:",
        f"    print(f\"{{scores[row]:.3f}} {{rows['{label}'][row]}}\")",
    ]
    return "\n".join(["```python", *lines, "```"])
