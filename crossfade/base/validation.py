"""Render pydantic's validation errors as one line for a message.

except ValidationError as error:
    raise InputError(f"{path}: not a dataset manifest: {format_validation_error(error)}") from error
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection
from typing import Any

from pydantic import ValidationError, WrapValidator

from crossfade.base.text import similar_name

_MAX_LOCATION_LETTERS = 200

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlevel = 2


def format_validation_error(
    error: ValidationError, *, root: str = "the file", show_input: bool = False, known: Collection[str] = ()
) -> str:
    """Return the first problem in ``error`` as ``location: problem``.

    Args:
        error: what pydantic raised.
        root: the location to name where the problem is in no particular field.
        show_input: whether to append the rejected value, shortened. Leave it out for input from the network.
        known: keys to suggest instead of an unknown one.
    """
    first = first_problem(error)
    where = ".".join(str(part) for part in first["loc"])[:_MAX_LOCATION_LETTERS] or root
    if first["type"] == "missing":
        return f"{where}: is missing"
    if first["type"] == "extra_forbidden":
        near = similar_name(where, known)
        return f"{where}: is not a known key" + (f"; did you mean '{near}'?" if near else "")
    if first["type"] == "value_error":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    problem = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
    # Of any size, or a structure that contains itself (which YAML can express): reprlib bounds both.
    return f"{problem}, but found {_SHORT.repr(first['input'])}" if show_input else problem


def first_problem(error: ValidationError) -> dict[str, Any]:
    """Return the first problem, before missing keys; of a word or a number that is neither, one for both.

    A key that is missing may be the unknown one, misspelled.

    Pydantic reports a value of ``Literal["auto"] | float`` once as a literal and once as a number, at locations of
    their own.
    """
    first = _problems(error)[0]
    alternatives = _alternatives(error)
    if len(alternatives) == 2:
        literal, other = (problem["msg"] for problem in alternatives)
        message = f"{literal} or {other.removeprefix('Input should be ')}" if isinstance(first["input"], str) else other
        first |= {"loc": first["loc"][:-1], "type": alternatives[1]["type"], "msg": message}
    return first


def count_problems(error: ValidationError) -> int:
    """Return how many values ``error`` rejects, counting as ``first_problem`` does."""
    return error.error_count() - (len(_alternatives(error)) == 2)


def _problems(error: ValidationError) -> list[dict[str, Any]]:
    """Return all problems, missing keys last."""
    return sorted(map(dict, error.errors(include_url=False)), key=lambda problem: problem["type"] == "missing")


def _alternatives(error: ValidationError) -> list[Any]:
    """Return the two problems of the first value if it can be a word or a number, and no others."""
    problems = _problems(error)[:2]
    same_value = len({problem["loc"][:-1] for problem in problems}) == 1
    is_literal = str(problems[0]["loc"][-1] if problems[0]["loc"] else "").startswith("literal[")
    return problems if same_value and is_literal else []


def described(expected: str) -> WrapValidator:
    """Return a validator that says ``expected`` of text that does not match the pattern of its field.

    The pattern stays in the schema of the field, for programs; a person should not have to read it.
    """

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            if error.errors()[0]["type"] != "string_pattern_mismatch":
                raise
            raise ValueError(f"expected {expected}, but found {value!r:.100}") from None

    return WrapValidator(check)
