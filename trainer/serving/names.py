"""IDs and names of all rows in an SQLite database: found, labeled and searched in microseconds.

    write_names({"artist": model.vocabulary("artist")}, folder / "names.sqlite", reporter)
    names = StoredNames(folder / "names.sqlite", "artist")
    names.find("radiohead")                         # 7
    names.search("radio", limit=10)                 # [7, 212, ...]

Each entity has a table, in the order of rows: row, id, name, and the name or, without one, the ID without accents and
case.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from crossfade.base.arrays import IntArray
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.data.vocabulary import Vocabulary
from crossfade.trainer.recommend.row_names import RowLabel, unknown

_SAME_NAME = 64
"""Rows compared with a name that several rows have without accents and case."""
_MAX_INTEGER = 2**63
_NamedRow = tuple[int, int | str, str | None, str]
"""Row, ID, name, and what is searched."""


def write_names(vocabularies: Mapping[str, Vocabulary], path: Path, reporter: ProgressReporter) -> None:
    """Write the IDs and names of ``vocabularies`` to ``path``; rows without an ID are left out.

    Raises:
        InputError: a vocabulary cannot be read.
        OSError: ``path`` cannot be written.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE entities (name TEXT PRIMARY KEY, number INTEGER, has_names INTEGER)")
        for number, (entity, vocabulary) in enumerate(vocabularies.items()):
            reporter.phase(f"names of {entity}", vocabulary.rows, "row")
            has_names = "name" in vocabulary.columns
            connection.execute("INSERT INTO entities VALUES (?, ?, ?)", (entity, number, has_names))
            _write_table(connection, number, vocabulary, reporter)
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from error
    finally:
        connection.close()


def _write_table(
    connection: sqlite3.Connection, number: int, vocabulary: Vocabulary, reporter: ProgressReporter
) -> None:
    connection.execute(f"CREATE TABLE rows_{number:d} (row INTEGER PRIMARY KEY, id, name TEXT, folded TEXT)")
    connection.execute("BEGIN")
    for table in vocabulary.iter_tables():
        connection.executemany(f"INSERT INTO rows_{number:d} VALUES (?, ?, ?, ?)", _named_rows(table))  # noqa: S608
        reporter.advance(table.num_rows)
    connection.execute("COMMIT")
    connection.execute(f"CREATE INDEX ids_{number:d} ON rows_{number:d} (id)")
    if "name" in vocabulary.columns:
        connection.execute(f"CREATE INDEX names_{number:d} ON rows_{number:d} (folded)")
    # Words of the names and IDs, which matches list in the order of rows, the most frequent first.
    connection.execute(
        f"CREATE VIRTUAL TABLE words_{number:d} USING fts5("
        f"folded, content = 'rows_{number:d}', content_rowid = 'row', detail = none, prefix = '1 2 3')"
    )
    connection.execute(f"INSERT INTO words_{number:d} (words_{number:d}) VALUES ('rebuild')")  # noqa: S608


def _named_rows(table: pa.Table) -> list[_NamedRow]:
    """Return the rows of ``table`` that have an ID."""
    rows, ids = table.column("row").to_pylist(), table.column("id").to_pylist()
    names = table.column("name").to_pylist() if "name" in table.column_names else [None] * len(rows)
    return [
        (row, id, name, fold(str(id) if name is None else name))
        for row, id, name in zip(rows, ids, names, strict=True)
        if id is not None
    ]


def fold(text: str) -> str:
    """Return ``text`` without accents and case, to compare names."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


class StoredNames:
    """IDs and names of one entity, read by any thread; implements ``RowLookup``."""

    def __init__(self, path: Path, entity: str) -> None:
        """Open what ``write_names`` has written to ``path``."""
        self._uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        self._local = threading.local()
        self._entity = entity
        [(self._number, self._has_names)] = self._connection().execute(
            "SELECT number, has_names FROM entities WHERE name = ?", [entity]
        )

    def found(self, texts: Sequence[str], log: Callable[[str], None] | None = None) -> dict[str, int]:
        """Return the row of each of ``texts`` that ``find`` finds."""
        rows = ((text, self.find(text)) for text in texts)
        return {text: row for text, row in rows if row is not None}

    def describe_unknown(self, missing: Sequence[str]) -> str:
        """Return that there is no row of any of ``missing``; similar names would take long to find."""
        return unknown(self._entity, missing)

    def rows_of(self, ids: Sequence[str]) -> tuple[IntArray, list[str]]:
        """Return the rows of ``ids``, which may be names, sorted and distinct, and the IDs that have none."""
        found = self.found(ids)
        return np.unique(np.array(list(found.values()), np.int64)), [id for id in ids if id not in found]

    def find(self, text: str) -> int | None:
        """Return the row with this ID or else the first, which is the most frequent, of this name; None: there is none.

        Names are compared without regard to case and accents, but an exact name is preferred.
        """
        number, connection = self._number, self._connection()
        ids = [text]
        if text.removeprefix("-").isdecimal() and abs(int(text)) < _MAX_INTEGER:
            ids.append(int(text))  # type: ignore[arg-type]
        marks = ", ".join("?" * len(ids))
        found = connection.execute(f"SELECT row FROM rows_{number:d} WHERE id IN ({marks}) LIMIT 1", ids).fetchone()  # noqa: S608
        if found is not None:
            return int(found[0])
        folded, same = fold(text), []
        if self._has_names:
            same = connection.execute(
                f"SELECT row, name FROM rows_{number:d} WHERE folded = ? AND name IS NOT NULL "  # noqa: S608
                f"ORDER BY row LIMIT {_SAME_NAME}",
                [folded],
            ).fetchall()
        exact = [row for row, name in same if name.lower() == text.lower()]
        return exact[0] if exact else same[0][0] if same else None

    def labels(self, rows: Collection[int]) -> dict[int, RowLabel]:
        """Return the labels of ``rows``, in any order; rows without an ID are left out."""
        if not rows:
            return {}
        number = self._number
        # A list as JSON, so that the statement does not depend on the number of rows.
        found = self._connection().execute(
            f"SELECT r.row, r.id, r.name FROM json_each(?) AS each JOIN rows_{number:d} AS r ON r.row = each.value",  # noqa: S608
            [json.dumps(list(map(int, rows)))],
        )
        return {row: RowLabel(id, name) for row, id, name in found}

    def search(self, text: str, limit: int) -> list[int]:
        """Return at most ``limit`` rows whose names or, without one, IDs have words that begin as those of ``text``.

        The row that ``find`` returns comes first, then the most frequent ones.
        """
        exact = self.find(text)
        rows = [] if exact is None else [exact]
        words = list(_words(fold(text)))
        if words:
            query = " AND ".join(f'"{word}" *' for word in words)
            table = f"words_{self._number:d}"
            found = self._connection().execute(
                f"SELECT rowid FROM {table} WHERE {table} MATCH ? ORDER BY rowid LIMIT ?",  # noqa: S608
                [query, limit],
            )
            rows += [row for (row,) in found if row != exact]
        return rows[:limit]

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = sqlite3.connect(self._uri, uri=True)
        connection: sqlite3.Connection = self._local.connection
        return connection


def _words(text: str) -> Iterator[str]:
    """Yield the words of ``text`` as the index divides names: letters and digits."""
    word = ""
    for letter in f"{text} ":
        if letter.isalnum():
            word += letter
        elif word:
            yield word
            word = ""
