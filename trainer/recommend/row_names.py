"""Find rows of an entity by ID or name, and label rows: by reading the vocabulary in parts.

    names = RowNames(model.vocabulary("artist"), "artist")
    [row] = names.find(["Radiohead"])
    names.labels(np.array([row]))                       # {7: RowLabel(id=154, name="Radiohead")}

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.kvstore.arrays import IntArray
from crossfade.kvstore.errors import InputError, format_names
from crossfade.trainer.data.vocabulary import Vocabulary

_SUGGESTIONS = 3
_MIN_SIMILARITY = 0.85
"""Jaro-Winkler similarity from which a name is suggested."""
_SIMILAR_NAMES = """
    SELECT label, jaro_winkler_similarity(strip_accents(lower(label)), strip_accents($wanted)) AS similarity
    FROM labels WHERE label IS NOT NULL ORDER BY similarity DESC, position LIMIT $count
"""


class RowLabel(NamedTuple):
    """ID and name of a row; ``name`` is None if it has none, ``id`` is None if the row is vacant."""

    id: int | str | None
    name: str | None

    def __str__(self) -> str:
        """Return the name or, without one, the ID."""
        return self.name or str(self.id)


class RowNames:
    """IDs and names of the rows of one entity."""

    def __init__(self, vocabulary: Vocabulary, entity: str) -> None:
        """Use ``vocabulary``, which is that of ``entity``."""
        self._vocabulary = vocabulary
        self._entity = entity

    def find(self, texts: Sequence[str]) -> list[int]:
        """Return the row of each text: that with this ID or else the first, which is the most frequent, of this name.

        Names are compared without regard to case.

        Raises:
            InputError: there is none; the message suggests similar names.
        """
        by_id = self._find("id", texts)
        by_name = self._find("name", [text for text in texts if text not in by_id], lower=True)
        missing = [text for text in texts if text not in by_id and text not in by_name]
        if missing:
            more = f" (and {len(missing) - 1} more are unknown)" if len(missing) > 1 else ""
            raise InputError(
                f"there is no {self._entity} with the ID or name '{missing[0]}'{more}{self._hint(missing[0])}"
            )
        return [by_id[text] if text in by_id else by_name[text] for text in texts]

    def rows_of(self, ids: pa.StringArray) -> tuple[IntArray, list[str]]:
        """Return the rows of ``ids``, sorted int64 (N,), and the IDs that have none."""
        by_id = self._find("id", ids.to_pylist())
        missing = [text for text in ids.to_pylist() if text not in by_id]
        return np.unique(np.fromiter(by_id.values(), np.int64, len(by_id))), missing

    def labels(self, rows_N: IntArray) -> dict[int, RowLabel]:
        """Return the labels of ``rows_N``, which need be neither sorted nor unique."""
        rows = np.unique(rows_N)
        table = self._vocabulary.take(rows)
        ids = table.column("id").to_pylist()
        names = table.column("name").to_pylist() if "name" in table.column_names else [None] * len(ids)
        return {int(row): RowLabel(*label) for row, *label in zip(rows, ids, names, strict=True)}

    def _find(self, column: str, texts: Sequence[str], *, lower: bool = False) -> dict[str, int]:
        """Return the first row of each text in ``column``, of those that occur."""
        if column not in self._vocabulary.columns or not texts:
            return {}
        fold: Callable[[str], str] = str.lower if lower else str
        wanted = {fold(text) for text in texts}
        found: dict[str, int] = {}
        for table in self._vocabulary.iter_tables(["row", column]):
            values = table.column(column).cast(pa.string())
            values = pc.utf8_lower(values) if lower else values
            is_wanted = pc.is_in(values, value_set=pa.array(sorted(wanted), pa.string()))
            rows = table.column("row").filter(is_wanted).to_pylist()
            for row, value in zip(rows, values.filter(is_wanted).to_pylist(), strict=True):
                found.setdefault(value, row)
            if len(found) == len(wanted):
                break
        return {text: found[fold(text)] for text in texts if fold(text) in found}

    def _hint(self, text: str) -> str:
        """Suggest what ``text`` may have meant; empty if nothing is similar."""
        near: list[tuple[float, str]] = []
        has_names = "name" in self._vocabulary.columns
        with duckdb.connect() as connection:
            for position, labels in enumerate(self._label_columns()):
                connection.register("labels", pa.table({"label": labels, "position": pa.array(range(len(labels)))}))
                found = connection.execute(_SIMILAR_NAMES, {"wanted": text.lower(), "count": _SUGGESTIONS}).fetchall()
                near += [(-similarity, label) for label, similarity in found if similarity >= _MIN_SIMILARITY]
                near = sorted(near, key=lambda pair: pair[0])[:_SUGGESTIONS]
                if position == 0:
                    examples = format_names(pc.drop_null(labels)[:3].to_pylist())
        if near and (has_names or not text.isdecimal()):
            return f"; did you mean {', '.join(repr(label) for _, label in near)}?"
        return f"; expected {'a name or an ID' if has_names else 'an ID'}, such as {examples}"

    def _label_columns(self) -> Iterator[Any]:
        """Yield the labels of all rows in parts: names or, where there is none, IDs."""
        for table in self._vocabulary.iter_tables():
            ids = table.column("id").cast(pa.string())
            yield pc.coalesce(table.column("name"), ids) if "name" in table.column_names else ids
