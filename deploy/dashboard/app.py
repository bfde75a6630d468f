"""The Dash application of 'crossfade dashboard': rereads the runs while a browser shows them."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from dash import Dash, Input, Output, State, no_update
from dash.exceptions import DependencyException
from flask import Response, request
from pydantic import Field, TypeAdapter

from crossfade.deploy.dashboard import charts, page
from crossfade.deploy.dashboard.bounded_lock import BusyError
from crossfade.deploy.dashboard.charts import COLORS, MAX_RUNS, RunView
from crossfade.deploy.dashboard.explore import explore_pages
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.page_elements import Selection
from crossfade.deploy.dashboard.run_reader import Runs
from crossfade.deploy.dashboard.summary import read_summaries
from crossfade.deploy.refresh.versions import ServiceVersions

_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' {scripts}; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""The content security policy; ``scripts`` are the hashes of those that Dash places in the page."""
_Text = Annotated[str, Field(max_length=64 << 10)]
"""Text in Unicode: where it has a maximum length, pydantic rejects surrogates that stand alone, too."""
_VALUES: dict[str, TypeAdapter[Any]] = {
    "tick": TypeAdapter(int | None),
    "location": TypeAdapter(_Text | None),
    "shown": TypeAdapter(_Text | None),
}
"""What the values of components may be."""
_READ_SECONDS = 0.5
"""Longest time that a request reads logs; the next request continues."""


def make_app(runs: Runs, models: ExploredModels, source: str) -> Dash:
    """Build the application that shows ``runs`` and explores their ``models``; ``source`` names their folders."""
    app = Dash(
        "crossfade",
        assets_folder=str(Path(__file__).with_name("assets")),
        assets_ignore="^explore",  # which its page loads
        title="Crossfade",
        update_title="",
        serve_locally=True,
        compress=False,
        add_log_handler=False,
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "color-scheme", "content": "light dark"},
        ],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.layout = page.layout(source)
    app.server.register_blueprint(explore_pages(runs, models, source))
    _show(app, runs)
    _reject_malformed_requests(app)
    return app


def content_policy(app: Dash) -> str:
    """Forbid the browser to load anything from other servers, and to run other scripts in the page than Dash's."""
    return _POLICY.format(scripts=" ".join(app.csp_hashes()))


def _show(app: Dash, runs: Runs) -> None:
    """Show what the page's address selects, again and again; parts that have not changed are not sent.

    What is built again loses the keyboard's focus.
    """

    @app.callback(
        *(Output(part, "children") for part in ("services", "runs", "service", "versions", *page.PARTS, "clock")),
        *(Output(f"graph-{name}", "figure") for name in page.GRAPHS),
        Output("shown", "data"),
        Input("tick", "n_intervals"),
        Input("location", "search"),
        State("shown", "data"),
    )
    def show(_ticks: int | None, search: str | None, shown: str | None) -> tuple[Any, ...]:
        with runs.lock:
            parts = _build(runs, search or "")
        marks = [f"{zlib.crc32(repr(part).encode(errors='replace'))}" for part in parts]
        before = dict(enumerate((shown or "").split()))
        changed = [no_update if before.get(place) == marks[place] else part for place, part in enumerate(parts)]
        return *changed, " ".join(marks)


def _build(runs: Runs, search: str) -> list[Any]:
    """Build the parts of the page, which the address with the query ``search`` selects."""
    found = read_summaries(runs, _READ_SECONDS, parse_qs(search[1:]).get("run", []))
    services = {reader.name: reader.summarize(time.time()) for reader in runs.services()}
    selection = _select(search, [summary.name for _, summary in found], list(services))
    by_name = {summary.name: (run, summary) for run, summary in found}
    shown = [RunView(*by_name[name], color) for name, color in zip(selection.runs, COLORS, strict=False)]
    service = services.get(selection.service or "")
    versions = None
    if service is not None:
        names = {run.path: run.name for run, _ in found}
        kept = {each.number: ServiceVersions(Path(service.path)).run_path(each.number) for each in service.records}
        versions = page.service_versions(service, {each: names[kept[each]] for each in kept if kept[each] in names})
    is_live = any(each.summary.live for each in shown)
    return [
        page.service_boxes(list(services.values()), selection),
        page.run_boxes([summary for _, summary in found], selection),
        None if service is None else page.service_head(service),
        versions,
        *(getattr(page, part)(shown) for part in page.PARTS),
        time.strftime("live, %H:%M:%S" if is_live else "%H:%M:%S"),
        *(getattr(charts, name)(shown) for name in page.GRAPHS),
    ]


def _select(search: str, runs: Sequence[str], services: Sequence[str]) -> Selection:
    """Return the existing runs and the service that an address selects.

    Without a run, it is the latest. An address that names neither shows the first service, too.
    """
    query = parse_qs(search[1:])
    asked = [name for name in dict.fromkeys(query.get("run", [])) if name in runs]
    chosen = query.get("service", [] if "run" in query else services)
    service = chosen[0] if chosen and chosen[0] in services else None
    return Selection((asked or runs[:1])[:MAX_RUNS], service)


def _reject_malformed_requests(app: Dash) -> None:
    """Answer malformed requests for callbacks by 400: Dash would answer them with a traceback."""

    @app.server.before_request
    def check() -> Response | None:
        if request.path != "/_dash-update-component" or request.method != "POST":
            return None
        try:  # another type than JSON, no JSON, or too much raise errors with a status
            if _is_request(request.get_json(), app.callback_map):
                return None
        except (KeyError, TypeError, ValueError, RecursionError):  # it has another form
            pass
        problem = "expected a request of the page for a callback\n"
        return Response(problem, HTTPStatus.BAD_REQUEST, mimetype="text/plain")

    @app.server.errorhandler(BusyError)
    def busy(error: BusyError) -> Response:
        return Response(f"{error}\n", HTTPStatus.SERVICE_UNAVAILABLE, mimetype="text/plain")

    @app.server.errorhandler(DependencyException)
    def unknown_file(_: DependencyException) -> Response:
        return Response("there is no such file\n", HTTPStatus.NOT_FOUND, mimetype="text/plain")


def _is_request(body: Any, callbacks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether ``body`` names a callback by its outputs, and has values of its inputs and states in their order.

    Raises:
        KeyError, TypeError, ValueError: it has another form.
    """
    declared = callbacks[body["output"]]
    given = {key: body.get(key, []) for key in ("inputs", "state")}
    for each in (*given["inputs"], *given["state"]):
        _VALUES[each["id"]].validate_python(each.get("value"), strict=True)
    return (
        [_name(each) for each in body["outputs"]] == body["output"].strip(".").split("...")
        and all(list(map(_name, given[key])) == list(map(_name, declared[key])) for key in given)
        and {*body.get("changedPropIds", [])} <= set(map(_name, given["inputs"]))
    )


def _name(part: Mapping[str, Any]) -> str:
    return f"{part['id']}.{part['property']}"
