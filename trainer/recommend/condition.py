"""Conditions on metadata: which SQL expressions are evaluated, for clients that anybody may be and for commands.

    check_condition(connection, "year > 1990 AND lower(name) LIKE 'a%'")

DuckDB's limits on memory and time do not hold within one call of a function: ``repeat('x', 1000000000)`` allocates a
gigabyte at once, and a pattern that is computed from a column is compiled for every row. So a condition is parsed
first. Only operators and functions whose results are about as large as their arguments are accepted, and patterns must
be constants.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import duckdb

from crossfade.base.errors import InputError, option_named
from crossfade.trainer.prepare.database import first_line

_CLASSES = {
    *("BETWEEN", "CASE", "CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "TYPE")
}
"""Classes of DuckDB's expressions: neither subqueries, windows, lambdas, collations, nor parameters."""
_OPERATORS = {
    *("OPERATOR_NOT", "OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL", "COMPARE_IN", "COMPARE_NOT_IN", "OPERATOR_COALESCE"),
    *("OPERATOR_CAST", "ARRAY_EXTRACT", "ARRAY_SLICE", "ARRAY_CONSTRUCTOR", "STRUCT_EXTRACT"),
}
"""Types of expressions of the class OPERATOR."""
_TYPES = {
    *("boolean", "tinyint", "smallint", "integer", "bigint", "hugeint", "float", "double", "decimal", "numeric"),
    *("int", "real", "varchar", "text", "string", "date", "time", "timestamp", "timestamptz", "interval"),
    *("timestamp with time zone", "int2", "int4", "int8", "float4", "float8", "bool", "char"),
}
"""Types that values may be cast to: those without parts."""
_PATTERN_OPERATORS = {"~~", "!~~", "~~*", "!~~*", "~~~", "like_escape", "not_like_escape", "ilike_escape"}
"""Operators that DuckDB parses as functions of a text and a pattern: ``~~`` is LIKE, ``~~~`` is GLOB."""
_OPERATOR_FUNCTIONS = {*"+-*/%^", "//", "**", "||"} | _PATTERN_OPERATORS
_REGEXES = {"regexp_matches", "regexp_full_match"}
FUNCTIONS = {
    *("abs", "ceil", "floor", "round", "greatest", "least", "nullif"),
    *("contains", "starts_with", "ends_with", "prefix", "suffix", "length", "lower", "upper", "trim", "ltrim", "rtrim"),
    *("left", "right", "substr", "substring", "strip_accents", *_REGEXES),
    *("len", "list_contains", "list_has", "list_has_all", "list_has_any", "list_value"),
    *("year", "month", "day", "date_part", "date_trunc", "date_diff", "now", "today"),
    *("to_days", "to_months", "to_years", "trunc"),
}
"""The functions that conditions may call."""
MAX_PATTERN, MAX_REPETITIONS = 200, 100
"""Letters of a pattern, and how often a regular expression may repeat a part by count, all counts multiplied."""
_MAX_PARTS = 1000
_PREFIX = "SELECT row FROM items WHERE "


def check_condition(connection: duckdb.DuckDBPyConnection, condition: str) -> None:
    """Check that ``condition`` can be evaluated for a client that is not trusted.

    Raises:
        InputError: it has another function, type, or kind of expression than those that are accepted, or is no
            expression.
    """
    named = option_named("where", condition)
    statement = _parse(connection, condition, named)
    # Whatever closes the parenthesis early (GROUP BY, ORDER BY, LIMIT, UNION) changes the statement elsewhere.
    if _without_condition(statement) != _without_condition(_parse(connection, "true", named)):
        raise InputError(f"{named}: expected one condition")
    for number, part in enumerate(_parts(statement["node"]["where_clause"])):
        if number == _MAX_PARTS:
            raise InputError(f"{named}: has more than {_MAX_PARTS:,} parts; expected a simpler condition")
        problem = _problem(part)
        if problem is not None:
            raise InputError(f"{named}: {problem}")


def _parse(connection: duckdb.DuckDBPyConnection, condition: str, named: str) -> dict[str, Any]:
    """Return the only statement of a query with ``condition``."""
    try:
        [(text,)] = connection.execute("SELECT json_serialize_sql(?)", [f"{_PREFIX}({condition}\n)"]).fetchall()
        parsed = json.loads(text)
    except RecursionError:
        raise InputError(f"{named}: is nested too deeply; expected a simpler condition") from None
    except (duckdb.Error, UnicodeError) as error:
        raise InputError(f"{named}: cannot be parsed: {first_line(error)}") from error
    if parsed["error"]:
        raise InputError(f"{named}: {parsed['error_message'].splitlines()[0]}; expected one condition")
    if len(parsed["statements"]) != 1 or parsed["statements"][0]["node"]["type"] != "SELECT_NODE":
        raise InputError(f"{named}: expected one condition")
    statement: dict[str, Any] = parsed["statements"][0]
    return statement


def _without_condition(statement: dict[str, Any]) -> dict[str, Any]:
    return {**statement, "node": {**statement["node"], "where_clause": None}}


def _problem(part: dict[str, Any]) -> str | None:
    """Return why an expression or a type is not accepted; None if it is."""
    kind = part["class"]
    if kind not in _CLASSES:
        return f"a {kind.lower()} is not accepted; expected operators and functions"
    if kind == "OPERATOR" and part["type"] not in _OPERATORS:
        return f"the operator {part['type'].lower()} is not accepted; expected a plainer one"
    if kind == "FUNCTION":
        return _function_problem(part)
    # An array's length is part of its type.
    if kind == "TYPE" and part["type_name"].lower() not in _TYPES:
        return f"the type {part['type_name']} is not accepted; expected a plain one, such as INTEGER or VARCHAR"
    return None


def _function_problem(part: dict[str, Any]) -> str | None:
    name = part["function_name"].lower()
    if name not in FUNCTIONS | _OPERATOR_FUNCTIONS or part["schema"] or part["catalog"]:
        return f"the function '{name}' is not accepted; expected one of {', '.join(sorted(FUNCTIONS))}"
    if part["filter"] or part["distinct"] or part["order_bys"]["orders"]:
        return f"{name}: FILTER, DISTINCT, and ORDER BY are not accepted; expected arguments alone"
    return _pattern_problem(name, part["arguments"]) if name in _REGEXES | _PATTERN_OPERATORS else None


def _pattern_problem(name: str, arguments: list[dict[str, Any]]) -> str | None:
    patterns = [argument["expression"] for argument in arguments[1:]]
    texts = [pattern["literal"]["text"] for pattern in patterns if pattern["class"] == "CONSTANT" and _is_text(pattern)]
    if len(texts) < len(patterns):
        return f"{name}: the pattern is computed; expected text in quotes"
    if max(map(len, texts), default=0) > MAX_PATTERN:
        return f"{name}: the pattern has more than {MAX_PATTERN} letters; expected a shorter one"
    if name in _REGEXES and _repetitions(texts[0] if texts else "") > MAX_REPETITIONS:
        return f"{name}: the pattern repeats a part more than {MAX_REPETITIONS} times; expected smaller counts"
    return None


def _is_text(constant: dict[str, Any]) -> bool:
    return bool(constant["literal"]["kind"] == "STRING")


def _repetitions(pattern: str) -> int:
    """Return the product of all counts, ``{N}`` or ``{M,N}``, of a regular expression: its compiled size grows so."""
    counts = re.findall(r"\{(\d+)(?:,(\d*))?\}", re.sub(r"\\.", "", pattern))
    return math.prod(max(1, *(int(count) for count in pair if count)) for pair in counts)


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield the expressions and types of a parsed condition."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            if "class" in node:
                yield node
            left += node.values()
        elif isinstance(node, list):
            left += node
