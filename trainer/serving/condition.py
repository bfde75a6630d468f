"""Conditions of requests: which SQL expressions are evaluated for clients that anybody may be.

    check_condition(connection, "year > 1990 AND lower(name) LIKE 'a%'")

DuckDB's limits on memory and time do not hold within one call of a function: ``repeat('x', 1000000000)`` allocates a
gigabyte at once, and cannot be interrupted. So a condition is parsed first, and only operators and functions whose
results are about as large as their arguments are accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from crossfade.kvstore.errors import InputError

_EXPRESSIONS = {
    *("BETWEEN", "CASE", "CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "TYPE")
}
"""Classes of DuckDB's expressions: neither subqueries, windows, lambdas, nor parameters."""
_OPERATORS = {*"+-*/%^", "//", "**", "||", "~~", "!~~", "~~*", "!~~*", "~~~", "like_escape", "not_like_escape"}
"""Operators that DuckDB parses as functions: ``~~`` is LIKE, ``~~~`` is GLOB."""
FUNCTIONS = {
    *("abs", "ceil", "floor", "round", "greatest", "least", "nullif"),
    *("contains", "starts_with", "ends_with", "prefix", "suffix", "length", "lower", "upper", "trim", "ltrim", "rtrim"),
    *("left", "right", "substr", "substring", "strip_accents", "regexp_matches", "regexp_full_match"),
    *("len", "list_contains", "list_has", "list_has_all", "list_has_any", "list_value"),
    *("year", "month", "day", "date_part", "date_trunc", "date_diff", "now", "today"),
    *("to_days", "to_months", "to_years", "trunc"),
}
"""The functions that conditions may call."""


def check_condition(connection: duckdb.DuckDBPyConnection, condition: str) -> None:
    """Check that ``condition`` can be evaluated for a client that is not trusted.

    Raises:
        InputError: it has another function, type, or kind of expression than those that are accepted, or is no
            expression.
    """
    query = f"SELECT row FROM items WHERE ({condition}\n)"  # noqa: S608 - it is not executed
    [(text,)] = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    try:
        parsed = json.loads(text)
    except RecursionError:
        raise InputError(f"where {condition}: is nested too deeply; expected a simpler condition") from None
    if parsed["error"]:
        raise InputError(f"where {condition}: {parsed['error_message']}")
    statements = parsed["statements"]
    if len(statements) != 1 or statements[0]["node"]["type"] != "SELECT_NODE":
        raise InputError(f"where {condition}: expected one condition")
    for found in _parts(statements):
        _check(found, condition)


def _check(part: dict[str, Any], condition: str) -> None:
    kind, name = part["class"], str(part.get("function_name", "")).lower()
    if kind not in _EXPRESSIONS:
        raise InputError(f"where {condition}: a {kind.lower()} is not accepted; expected operators and functions")
    if kind == "FUNCTION" and name not in FUNCTIONS | _OPERATORS:
        listed = ", ".join(sorted(FUNCTIONS))
        raise InputError(f"where {condition}: the function '{name}' is not accepted; expected one of {listed}")
    # Not an array, whose length is part of the type.
    if kind == "TYPE" and any(child["class"] == "TYPE" for child in part["children"]):
        raise InputError(f"where {condition}: the type {part['type_name']} is not accepted; expected a plain one")


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield the expressions and types of a parsed statement."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            if "class" in node:
                yield node
            left += node.values()
        elif isinstance(node, list):
            left += node
