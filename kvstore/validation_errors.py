"""Render pydantic's validation errors as one line for a message.

except ValidationError as error:
    raise InputError(f"{path}: not a dataset manifest: {format_validation_error(error)}") from error
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError, WrapValidator

_MAX_LOCATION_LETTERS = 200

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlevel = 2


def format_validation_error(error: ValidationError, *, root: str = "the file", show_input: bool = False) -> str:
    """Return the first problem in ``error`` as ``location: problem``.

    Args:
        error: what pydantic raised.
        root: the location to name where the problem is in no particular field.
        show_input: whether to append the rejected value, shortened. Leave it out for input from the network.
    """
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:_MAX_LOCATION_LETTERS] or root
    if first["type"] == "missing":
        return f"{where}: is missing"
    if first["type"] == "extra_forbidden":
        return f"{where}: is not a known key"
    if first["type"] == "value_error":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    problem = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
    # Of any size, or a structure that contains itself (which YAML can express): reprlib bounds both.
    return f"{problem}, but found {_SHORT.repr(first['input'])}" if show_input else problem


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
