"""Bodies of requests: read as JSON and validated.

    request = read_request("recommend", body)

A parser of JSON keeps Python's lock, so a body is small, and validation stops at the first faults. Messages name them
without repeating the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from crossfade.deploy.serving.schemas import KnownRequest, NewRequest, SimilarRequest

MAX_JSON_BYTES = 128 << 10
"""Of a request: it is read in about 10 ms, for which others wait."""
_MAX_PROBLEMS, _MAX_LETTERS = 5, 80
Problem = dict[str, Any]


class InvalidRequestError(Exception):
    """A request has fields that are missing, unknown, or of other values; ``problems`` are the first of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


def read_request(kind: str, body: bytes) -> Any:
    """Return the request of ``kind``, "recommend" or "similar", in ``body``.

    Raises:
        InvalidRequestError: it is no such request.
    """
    if len(body) > MAX_JSON_BYTES:
        message = f"A request should have at most {MAX_JSON_BYTES:,} bytes; send several"
        raise InvalidRequestError([{"type": "too_long", "loc": ["body"], "msg": message}])
    try:
        value = from_json(body, allow_inf_nan=False)
        return _model(kind, value).model_validate(value, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidRequestError(describe_problems(found, "body")) from None
    except ValueError as error:
        problem = {"type": "json_invalid", "loc": ["body"], "msg": f"JSON decode error: {error}"}
        raise InvalidRequestError([problem]) from None


def describe_problems(errors: Iterable[Mapping[str, Any]], *where: str) -> list[Problem]:
    """Return the first of pydantic's ``errors``, which are at ``where``, without the values that caused them."""
    return [
        {
            "type": error["type"],
            "loc": [part[:_MAX_LETTERS] if isinstance(part, str) else part for part in (*where, *error["loc"])],
            "msg": error["msg"].partition(", but found")[0],
        }
        for _, error in zip(range(_MAX_PROBLEMS), errors, strict=False)
    ]


def _model(kind: str, value: object) -> type[BaseModel]:
    if kind == "similar":
        return SimilarRequest
    return NewRequest if isinstance(value, dict) and "histories" in value else KnownRequest
