"""Bodies of requests: read as JSON and validated, small ones in the event loop, large ones by a separate process.

    bodies = Bodies()
    request = await bodies.read(KINDS["recommend"], body)

A parser of JSON keeps Python's lock, and an invalid value may have a million faults. So a process that is killed at its
limit reads what is large, and validation stops at the first faults. Messages name them without repeating the input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from crossfade.deploy.serving.schemas import KnownRequest, NewRequest, SimilarRequest
from crossfade.trainer.serving.bounded_process import BoundedProcess, LimitError

LARGE_BYTES = 32 << 10
"""Size from which a body is read by the process."""
_SECONDS = 30.0
_MAX_KEYS, _MAX_PROBLEMS, _MAX_LETTERS = 16, 5, 80
_MAX_PARTS = 500_000
"""Brackets, braces, and colons of a body: the largest valid one has 300,000, and more in names."""
_THREADS = 2
Problem = dict[str, Any]


class InvalidRequestError(Exception):
    """A request has fields that are missing, unknown, or of other values; ``problems`` are the first of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


class Bodies:
    """Reads bodies."""

    def __init__(self) -> None:
        self._process = BoundedProcess(_BodyReader)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="bodies")

    def start(self) -> None:
        """Start the process, so that the first large body does not wait for it.

        Raises:
            CrossfadeError: it cannot start.
        """
        self._process.start()

    async def read(self, kind: str, body: bytes) -> Any:
        """Return the request of ``kind``, "recommend" or "similar", in ``body``.

        Raises:
            InvalidRequestError: it is no such request.
        """
        if len(body) < LARGE_BYTES:
            found = read_request(kind, body)
        else:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, self._read_large, kind, body)
        if isinstance(found, list):
            raise InvalidRequestError(found)
        return found

    def close(self) -> None:
        """End the process."""
        self._threads.shutdown()
        self._process.close()

    def _read_large(self, kind: str, body: bytes) -> BaseModel | list[Problem]:
        try:
            found: BaseModel | list[Problem] = self._process.ask("read", kind, body, seconds=_SECONDS)
        except LimitError as error:
            return [{"type": "json_invalid", "loc": ["body"], "msg": f"JSON decode error: {error}"}]
        return found


class _BodyReader:
    """Reads bodies in a process of its own."""

    def read(self, kind: str, body: bytes) -> BaseModel | list[Problem]:
        return read_request(kind, body)


def read_request(kind: str, body: bytes) -> BaseModel | list[Problem]:
    """Return the request of ``kind`` in ``body``, or its first problems."""
    if sum(map(body.count, (b"[", b"{", b":"))) > _MAX_PARTS:
        return [{"type": "too_long", "loc": ["body"], "msg": f"The body should have at most {_MAX_PARTS:,} values"}]
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        return [{"type": "json_invalid", "loc": ["body"], "msg": f"JSON decode error: {error}"}]
    if _has_large_object(value):
        return [{"type": "too_long", "loc": ["body"], "msg": f"Objects should have at most {_MAX_KEYS} keys"}]
    try:
        return _model(kind, value).model_validate(value)
    except ValidationError as error:
        return describe_problems(error.errors(include_url=False, include_input=False, include_context=False), "body")


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


def _has_large_object(value: object) -> bool:
    """Return whether an object has more keys than any of a request: each would be a fault of its own."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if len(part) > _MAX_KEYS:
                return True
            left += part.values()
        elif isinstance(part, list):
            left += part
    return False
