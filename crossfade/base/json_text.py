"""Parse JSON that others may have written: one meaning, finite numbers, integers of 128 bits, bounded depth.

manifest = validate_json(DatasetManifest, folder.read("manifest.json"))
report = parse_json(data)

Of a key that is given twice, programs take the first or the last, and what follows an integer of any size may fail on
it. Such text is rejected rather than interpreted.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from crossfade.base.validation import format_validation_error

_MAX_INTEGER = 2**127 - 1
"""Counters of bytes exceed 64 bits in runs of billions of rows."""
_MAX_INTEGER_LETTERS = 40
_MAX_DEPTH = 100

Model = TypeVar("Model", bound=BaseModel)


def parse_json(data: bytes | str) -> Any:
    """Parse ``data``, of any size that is in memory already.

    Raises:
        ValueError: it is not such JSON; the message has one line.
    """
    try:
        value = json.loads(
            data,
            object_pairs_hook=_unique_keys,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_reject_constant,
        )
    except RecursionError:
        raise ValueError("invalid JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError("invalid JSON: not UTF-8 text") from error
    _check_depth(value)
    return value


def validate_json(model: type[Model], data: bytes) -> Model:
    """Parse ``data`` as the JSON of ``model``, without converting values of other types.

    Raises:
        ValueError: it is not; the message names the first problem, in one line.
    """
    try:
        found = model.model_validate_json(data, strict=True)
        parse_json(data)
    except ValidationError as error:
        raise ValueError(format_validation_error(error)) from error
    return found


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key '{key[:60]}' is given twice")
    return found


def _integer(text: str) -> int:
    value = int(text) if len(text) <= _MAX_INTEGER_LETTERS else _MAX_INTEGER + 1
    if abs(value) > _MAX_INTEGER:
        raise ValueError(f"the integer {text[:_MAX_INTEGER_LETTERS]}… has more than 128 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


def _reject_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number of JSON")


def _check_depth(value: Any) -> None:
    """Reject what is nested so deeply that code which follows it might exceed the stack."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError("invalid JSON: nested too deeply")
