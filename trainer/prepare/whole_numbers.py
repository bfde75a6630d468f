# ruff: noqa: S608  (what is put into SQL is quoted by `identifier` and `literal`, or is a number of this program)
"""Find the columns of integers that were written as fractional numbers, as pandas does where values are missing.

found = whole_texts(connection, "raw_rows", ["c0", "c2"])         # those of which all values are as "42.0" or empty
found = whole_floats(connection, "read_parquet('a.parquet')", ["user"])
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from crossfade.trainer.prepare.database import fetch_one, identifier

_EXACT_BELOW = 2**53
"""A double is one integer below this."""
_WHOLE_TEXT = r"-?[0-9]{1,15}\.0"


def whole_floats(connection: duckdb.DuckDBPyConnection, relation: str, columns: Sequence[str]) -> set[str]:
    """Return those of the ``columns`` of floats, in a ``relation``, whose values are all integers or missing."""
    numbers = [identifier(column) for column in columns]
    whole = (f"({number} = trunc({number}) AND abs({number}) < {_EXACT_BELOW})" for number in numbers)
    return _true_of_all(
        connection, relation, columns, [f"isnan({n}) OR {w}" for n, w in zip(numbers, whole, strict=True)]
    )


def integer_sql(column: str) -> str:
    """Return SQL of a column that ``whole_floats`` has found as integers; NaN is a missing value."""
    return f"CAST(CASE WHEN NOT isnan({identifier(column)}) THEN {identifier(column)} END AS BIGINT)"


def whole_texts(connection: duckdb.DuckDBPyConnection, relation: str, columns: Sequence[str]) -> set[str]:
    """Return those of the ``columns`` of text, in a ``relation``, whose values are all as "42.0" or empty."""
    likely = []
    for column in columns:  # the first value rules out most of them at no cost
        first = connection.execute(f"SELECT {column} FROM {relation} WHERE {column} <> '' LIMIT 1").fetchone()
        if first is not None and str(first[0]).endswith(".0"):
            likely.append(column)
    return _true_of_all(
        connection, relation, likely, [f"{c} = '' OR regexp_full_match({c}, '{_WHOLE_TEXT}')" for c in likely]
    )


def integer_text_sql(column: str) -> str:
    """Return SQL of a column that ``whole_texts`` has found, without the fraction."""
    return f"replace({column}, '.0', '')"


def _true_of_all(
    connection: duckdb.DuckDBPyConnection, relation: str, columns: Sequence[str], conditions: Sequence[str]
) -> set[str]:
    if not columns:
        return set()
    values = fetch_one(connection, f"SELECT {', '.join(f'bool_and({c})' for c in conditions)} FROM {relation}")
    return {column for column, value in zip(columns, values, strict=True) if value is not False}
