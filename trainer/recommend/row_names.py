"""Find rows of an entity by ID or name, and label rows: by reading the vocabulary in parts.

    names = RowNames(model.vocabulary("artist"), "artist")
    names.found(["Radiohead"])                          # {"Radiohead": 7}
    names.labels(np.array([row]))                       # {7: RowLabel(id=154, name="Radiohead")}

Shapes: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossfade.base.arrays import IntArray
from crossfade.base.errors import InputError, escape_unprintable, format_names
from crossfade.trainer.data.vocabulary import KeptVocabulary, Vocabulary

Fold = Callable[[Any], Any]
"""Makes equal the texts of an array that count as equal."""

_EXAMPLES = 3
_NAMESAKES = 5
"""Rows of the same name that are listed."""


def _without_accents(values: Any) -> Any:
    """Return texts without accents and case."""
    return pc.utf8_lower(pc.replace_substring_regex(pc.utf8_normalize(values, form="NFKD"), r"\pM+", ""))


class RowLabel(NamedTuple):
    """ID and name of a row; ``name`` is None if it has none, ``id`` is None if the row is vacant."""

    id: int | str | None
    name: str | None

    def __str__(self) -> str:
        """Return the name or, without one, the ID, in one printable line."""
        return escape_unprintable(self.name or str(self.id))

    def as_record(self, entity: str) -> dict[str, int | str | float | None]:
        """Return the ID, by the name of the ``entity``, and the name if there is one, as JSON values."""
        return {entity: self.id} if self.name is None else {entity: self.id, "name": self.name}


def unknown(entity: str, texts: Sequence[str]) -> str:
    """Return that there is no row of ``entity`` that one of ``texts`` names."""
    if len(texts) == 1:
        return f"there is no {entity} with the ID or name '{texts[0]}'"
    return f"the model has no {entity} with these {len(texts):,} IDs or names: {format_names(texts)}"


def untrained(entity: str, texts: Sequence[str]) -> str:
    """Return that the rows of ``entity`` that ``texts`` name cannot be used."""
    reason = "no interaction of positive weight in train"
    if len(texts) == 1:
        return f"{entity} '{texts[0]}' has {reason}, so its vector is not trained"
    which = f"the vectors of {len(texts):,} IDs of {entity}"
    return f"{which} are not trained, since they have {reason}: {format_names(texts)}"


def distinct_labels(labels: Mapping[int, RowLabel]) -> dict[int, str]:
    """Return the text of each of ``labels`` of one list: the name, and the ID where others of the list have it too."""
    names = Counter(map(str, labels.values()))
    return {row: f"{label} ({label.id})" if names[str(label)] > 1 else str(label) for row, label in labels.items()}


class UnknownRowError(InputError):
    """There is no row with an ID or name, no entity of a name, or the vector of the row is not trained."""


class RowLookup(Protocol):
    """IDs and names of the rows of one entity, of a dataset (``RowNames``) or of a copy."""

    def found(self, texts: Sequence[str], log: Callable[[str], None] | None = None) -> dict[str, int]:
        """Return the row of each of ``texts``, IDs or names, that has one; ``log`` gets a line for ambiguous ones."""

    def describe_unknown(self, missing: Sequence[str]) -> str:
        """Return that there is no row of any of ``missing``."""

    def rows_of(self, ids: Sequence[str]) -> tuple[IntArray, list[str]]:
        """Return the rows of a long list of IDs, sorted and distinct, and the IDs that have none."""

    def labels(self, rows: Collection[int]) -> dict[int, RowLabel]:
        """Return the labels of ``rows``, in any order."""


class RowNames:
    """IDs and names of the rows of one entity, from its vocabulary."""

    def __init__(self, vocabulary: Vocabulary, entity: str) -> None:
        """Use ``vocabulary``, which is that of ``entity``."""
        self._vocabulary = vocabulary
        self._entity = entity

    def found(self, texts: Sequence[str], log: Callable[[str], None] | None = None) -> dict[str, int]:
        """Return the row with each text as its ID or else the first, which is the most frequent, of this name.

        Names are compared without regard to case and accents, but a name that differs only in case is preferred.
        ``log`` gets a line for each name that several rows have.
        """
        found = self._find("id", texts)
        for fold in (pc.utf8_lower, _without_accents):
            named = self._find("name", [text for text in texts if text not in found], fold)
            if log is not None:
                for text, rows in named.items():
                    if len(rows) > 1:
                        log(self._describe_namesakes(text, rows))
            found |= named
        return {text: rows[0] for text, rows in found.items()}

    def describe_unknown(self, missing: Sequence[str]) -> str:
        """Return that there is no row of any of ``missing``, with examples of what there is."""
        return unknown(self._entity, missing) + self._examples()

    def rows_of(self, ids: Sequence[str]) -> tuple[IntArray, list[str]]:
        """Return the rows of ``ids``, sorted int64 (N,), and the IDs that have none."""
        by_id = self._find("id", ids)
        missing = [text for text in ids if text not in by_id]
        return np.unique(np.fromiter((row for row, *_ in by_id.values()), np.int64, len(by_id))), missing

    def labels(self, rows: Collection[int]) -> dict[int, RowLabel]:
        """Return the labels of ``rows``, which need be neither sorted nor unique."""
        rows_N = np.unique(np.fromiter(rows, np.int64, len(rows)))
        table = self._vocabulary.take(rows_N)
        ids = table.column("id").to_pylist()
        names = table.column("name").to_pylist() if "name" in table.column_names else [None] * len(ids)
        return {int(row): RowLabel(*label) for row, *label in zip(rows_N, ids, names, strict=True)}

    def _find(self, column: str, texts: Sequence[str], fold: Fold = lambda values: values) -> dict[str, list[int]]:
        """Return the rows of each text in ``column``, of those that occur, as ``fold`` compares them."""
        if column not in self._vocabulary.columns or not texts:
            return {}
        if column == "id" and isinstance(self._vocabulary, KeptVocabulary):
            by_id = self._vocabulary.rows_by_id
            return {text: [by_id[text]] for text in texts if text in by_id}
        wanted = fold(pa.array(texts, pa.string())).to_pylist()
        distinct = pa.array(sorted(set(wanted)), pa.string())
        found: dict[str, list[int]] = {}
        for table in self._vocabulary.iter_tables(["row", column]):
            rows, values = table.column("row"), fold(table.column(column).cast(pa.string()))
            # To compare with one text takes a tenth of the time.
            is_wanted = pc.equal(values, distinct[0]) if len(distinct) == 1 else pc.is_in(values, value_set=distinct)
            wanted_rows = rows.filter(is_wanted).to_pylist()
            for row, value in zip(wanted_rows, values.filter(is_wanted).to_pylist(), strict=True):
                found.setdefault(value, []).append(row)
            if column == "id" and len(found) == len(distinct):  # an ID has one row
                break
        return {text: found[value] for text, value in zip(texts, wanted, strict=True) if value in found}

    def _describe_namesakes(self, text: str, rows: Sequence[int]) -> str:
        """Describe the ``rows`` that have the name ``text``, the first of which is meant."""
        ids = [str(label.id) for label in self.labels(rows[:_NAMESAKES]).values()]
        more = f" and {len(rows) - _NAMESAKES:,} more" if len(rows) > _NAMESAKES else ""
        return (
            f"{len(rows):,} rows of {self._entity} are named '{text}': {', '.join(ids)}{more}; the first is used; name "
            "another one by its ID"
        )

    def _examples(self) -> str:
        """Return some of what ``found`` accepts."""
        labels = self.labels(range(min(_EXAMPLES, self._vocabulary.rows))).values()
        kind = "a name or an ID" if "name" in self._vocabulary.columns else "an ID"
        return f"; expected {kind}, such as {format_names([str(label) for label in labels if label.id is not None])}"
