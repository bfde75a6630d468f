"""Check the requests of the page for its callbacks before Dash reads them: it answers malformed ones with a traceback.

    check_callback_requests(app, {"selected": is_texts})

A request names a callback by its outputs, and has the values of its inputs and states, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from dash import Dash
from dash.exceptions import DependencyException
from flask import Response, request
from werkzeug.exceptions import HTTPException

_PATH = "/_dash-update-component"
IsValid = Callable[[object], bool]


def check_callback_requests(app: Dash, stores: Mapping[str, IsValid]) -> None:
    """Answer malformed requests of ``app`` by 400; ``stores`` check the values of the components of their names.

    Other values are counts of clicks and ticks. None stands for a value that is not set.
    """

    @app.server.before_request
    def check() -> Response | None:
        if request.path != _PATH or request.method != "POST":
            return None
        try:
            body = request.get_json()
        except HTTPException:
            raise  # another type than JSON, no JSON, or too large
        except (ValueError, RecursionError):
            return _rejection("expected JSON")
        problem = _problem(body, app.callback_map, stores)
        return None if problem is None else _rejection(problem)

    @app.server.errorhandler(DependencyException)
    def unknown_file(_: DependencyException) -> Response:
        return Response("there is no such file\n", HTTPStatus.NOT_FOUND, mimetype="text/plain")


def _rejection(problem: str) -> Response:
    return Response(f"{problem}\n", HTTPStatus.BAD_REQUEST, mimetype="text/plain")


def _problem(body: object, callbacks: Mapping[str, Mapping[str, Any]], stores: Mapping[str, IsValid]) -> str | None:
    """Return what is wrong with the body of a request; None: nothing."""
    if not isinstance(body, dict):
        return "expected an object"
    output, outputs = body.get("output"), body.get("outputs")
    if not isinstance(output, str) or output not in callbacks:
        return "output: expected that of a callback"
    named = [_name(each) for each in (outputs if isinstance(outputs, list) else [outputs])]
    if named != output.removeprefix("..").removesuffix("..").split("..."):
        return "outputs: expected those of the callback"
    inputs, states = callbacks[output]["inputs"], callbacks[output]["state"]
    changed, known = body.get("changedPropIds", []), set(map(_name, inputs))
    if not isinstance(changed, list) or not all(isinstance(each, str) and each in known for each in changed):
        return "changedPropIds: expected inputs of the callback"
    return _values_problem(body, "inputs", inputs, stores) or _values_problem(body, "state", states, stores)


def _values_problem(
    body: Mapping[str, Any], key: str, declared: list[dict[str, str]], stores: Mapping[str, IsValid]
) -> str | None:
    given = body.get(key, [])
    if not isinstance(given, list) or list(map(_name, given)) != list(map(_name, declared)):
        return f"{key}: expected those of the callback"
    for each in given:
        value, is_valid = each.get("value"), stores.get(each["id"], _is_count)
        if value is not None and not is_valid(value):
            return f"{key}: expected another value of {_name(each)}"
    return None


def _name(part: object) -> str | None:
    """Return the name of an input, state, or output, such as ``axis.data``; None if it has none."""
    if not isinstance(part, dict):
        return None
    id, property = part.get("id"), part.get("property")
    return f"{id}.{property}" if isinstance(id, str) and isinstance(property, str) else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Return whether ``value`` is text."""
    return isinstance(value, str)


def is_texts(value: object) -> bool:
    """Return whether ``value`` is a list of texts."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
