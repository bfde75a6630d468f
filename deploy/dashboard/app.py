"""The Dash application of 'crossfade dashboard': rereads the runs while a browser shows them."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qs, urlencode

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update
from dash.exceptions import DependencyException
from flask import Response, request
from pydantic import Field, TypeAdapter

from crossfade.deploy.dashboard import bounded_lock, charts, page, service_page
from crossfade.deploy.dashboard.bounded_lock import BusyError
from crossfade.deploy.dashboard.charts import COLORS, MAX_RUNS, Axis, RunView
from crossfade.deploy.dashboard.explore import explore_pages
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.page import AXES, GRAPHS, layout
from crossfade.deploy.dashboard.run_reader import RunReader, Runs
from crossfade.deploy.dashboard.service_reader import ServiceSummary
from crossfade.deploy.dashboard.summary import latest_first, read_summaries, summarize
from crossfade.deploy.refresh.versions import ServiceVersions
from crossfade.deploy.web.middleware import MAX_PARAMETERS

_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' {scripts}; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""The content security policy; ``scripts`` are the hashes of those that Dash places in the page."""
_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}
<title>{%title%}</title>
{%favicon%}
{%css%}
<script src="/assets/early_theme.js"></script>
</head>
<body>
{%app_entry%}
<footer>{%config%}{%scripts%}{%renderer%}</footer>
</body>
</html>"""
_GRAPHS = tuple(GRAPHS)
_Element = TypeVar("_Element")
_Bounded = Annotated[list[_Element], Field(max_length=MAX_PARAMETERS)]
"""A bounded list: pydantic checks the length before the elements, each of which could add an error."""
_Text = Annotated[str, Field(max_length=64 << 10)]
"""Text in Unicode: where it has a maximum length, pydantic rejects surrogates that stand alone, too."""
_STORES: dict[str, TypeAdapter[Any]] = {
    **dict.fromkeys(("location", "listed", "shown-version"), TypeAdapter(_Text | None)),
    **dict.fromkeys(("service", "listed-services", "shown-service"), TypeAdapter(_Text | None)),
    "selected": TypeAdapter(_Bounded[_Text] | None),
    "axis": TypeAdapter(Axis),
}
"""What the values of components may be, other than counts of clicks and ticks."""
_COUNT: TypeAdapter[Any] = TypeAdapter(int | None)
_READ_SECONDS = 0.5
"""Longest time that a request reads logs; the next request continues."""
_PARTS = ("head", "alerts", "tiles", "processes", "events", "results", "job")


def make_app(runs: Runs, models: ExploredModels, source: str) -> Dash:
    """Build the application that shows ``runs`` and explores their ``models``; ``source`` names their folders."""
    app = Dash(
        "crossfade",
        assets_folder=str(Path(__file__).with_name("assets")),
        assets_ignore=r"^(explore|early)",  # those that pages load themselves
        title="Crossfade",
        update_title="",
        index_string=_INDEX,
        serve_locally=True,
        compress=False,
        add_log_handler=False,
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "color-scheme", "content": "light dark"},
        ],
    )
    app.layout = layout(source)
    app.server.register_blueprint(explore_pages(runs, models, source))
    _select_axis(app)
    _show_service(app, runs)
    _select_runs(app, runs)
    _show_runs(app, runs)
    _reject_malformed_requests(app)
    return app


def content_policy(app: Dash) -> str:
    """Forbid the browser to load anything from other servers, and to run scripts in the page but those of Dash."""
    return _POLICY.format(scripts=" ".join(app.csp_hashes()))


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
    outputs = body["outputs"] if isinstance(body["outputs"], list) else [body["outputs"]]
    given = {key: body.get(key, []) for key in ("inputs", "state")}
    for each in (*given["inputs"], *given["state"]):
        _STORES.get(each["id"], _COUNT).validate_python(each.get("value"), strict=True)
    return (
        "callback" in declared  # one that runs in the browser has no function here
        and [_name(each) for each in outputs] == body["output"].strip(".").split("...")
        and all(list(map(_name, given[key])) == list(map(_name, declared[key])) for key in given)
        and {*body.get("changedPropIds", [])} <= set(map(_name, given["inputs"]))
    )


def _name(part: Mapping[str, Any]) -> str:
    return f"{part['id']}.{part['property']}"


def _select_axis(app: Dash) -> None:
    @app.callback(
        Output("axis", "data"),
        *(Output(f"by-{axis}", "aria-pressed") for axis in AXES),
        *(Input(f"by-{axis}", "n_clicks") for axis in AXES),
    )
    def select(*_clicks: int | None) -> tuple[str, ...]:
        chosen = str(ctx.triggered_id or f"by-{AXES[0]}").removeprefix("by-")
        return (chosen, *("true" if axis == chosen else "false" for axis in AXES))


def _select_runs(app: Dash, runs: Runs) -> None:
    """List the runs and keep the selection: at first the runs in the page's address, which then follows it.

    The address has the service that is chosen too, which ``_show_service`` has read from it before.
    """

    @app.callback(
        Output("runs", "children"),
        Output("listed", "data"),
        Output("selected", "data"),
        Output("no-runs", "hidden"),
        Output("missing-runs", "children"),
        Output("location", "search"),
        Input("tick", "n_intervals"),
        Input("selected", "data"),
        Input("service", "data"),
        State("location", "search"),
        State("listed", "data"),
    )
    def select(
        _ticks: int | None, selected: list[str] | None, service: str | None, search: str | None, listed: str | None
    ) -> tuple[Any, ...]:
        summaries = latest_first(read_summaries(runs, _READ_SECONDS))
        known = [summary.name for summary in summaries]
        asked = parse_qs((search or "")[1:]).get("run", []) if selected is None else selected
        requested = list(dict.fromkeys(asked))
        existing = set(known).intersection(requested)
        chosen = ([name for name in requested if name in existing] or known[:1])[:MAX_RUNS]
        boxes = page.run_boxes(summaries, chosen)
        content = _checksum(boxes)
        query = [*(("run", name) for name in chosen), *([("service", service)] if service else [])]
        address = f"?{urlencode(query)}" if query else ""
        return (
            no_update if content == listed else boxes,
            content,
            no_update if chosen == selected else chosen,
            bool(known),
            page.missing_runs(requested, known) if selected is None else no_update,
            no_update if address == search else address,
        )

    # In the browser: a refresh that is under way on the server would otherwise overtake a click and undo it.
    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("crossfade", "toggle"),
        Output("selected", "data", allow_duplicate=True),
        Output("missing-runs", "children", allow_duplicate=True),
        Input({"run": ALL}, "n_clicks"),
        State("selected", "data"),
        prevent_initial_call=True,
    )


def _show_service(app: Dash, runs: Runs) -> None:
    """List the services and show the one that is chosen: at first by the page's address; without any, the first."""

    @app.callback(
        Output("services", "children"),
        Output("listed-services", "data"),
        Output("missing-service", "children"),
        Output("service", "data"),
        Output("service-panel", "hidden"),
        *(Output(f"service-{part}", "children") for part in service_page.PARTS),
        Output("graph-versions", "figure"),
        Output("description-versions", "aria-label"),
        Output("shown-service", "data"),
        Input("tick", "n_intervals"),
        Input("service", "data"),
        State("location", "search"),
        State("listed-services", "data"),
        State("shown-service", "data"),
    )
    def show(
        _ticks: int | None, service: str | None, search: str | None, listed: str | None, shown: str | None
    ) -> tuple[Any, ...]:
        now = time.time()
        summaries = [reader.summarize(now) for reader in runs.services()]
        known, missing = [summary.name for summary in summaries], no_update
        requested = service
        if requested is None:
            requested = _service_of(search, known)
            missing = service_page.missing(requested, known)
        chosen = requested if requested in known else ""
        boxes = service_page.boxes(summaries, chosen)
        content = _checksum(boxes)
        return (
            no_update if content == listed else boxes,
            content,
            missing,
            no_update if chosen == service else chosen,
            *_service_parts(summaries[known.index(chosen)] if chosen else None, runs, shown),
        )

    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("crossfade", "toggleService"),
        Output("service", "data", allow_duplicate=True),
        Output("missing-service", "children", allow_duplicate=True),
        Input({"service": ALL}, "n_clicks"),
        State("service", "data"),
        prevent_initial_call=True,
    )


def _checksum(part: object) -> str:
    """Return a checksum of ``part``; the page sends it back, and an unchanged part is not sent again."""
    return f"{zlib.crc32(repr(part).encode(errors='replace'))}"


def _service_of(search: str | None, known: Sequence[str]) -> str:
    """Return the service that an address asks for, which may not exist; the first if it asks for nothing."""
    query = parse_qs((search or "")[1:])
    return query.get("service", ["" if "run" in query or not known else known[0]])[0]


def _service_parts(service: ServiceSummary | None, runs: Runs, shown: str | None) -> list[Any]:
    """Return whether to hide the panel, its parts, and a text by which the next call leaves out what has not changed.

    ``shown`` is that text of the parts that are shown. What is built again loses the keyboard's focus, and so does all
    that is in a component of which a property is set, also to the value that it has.
    """
    if service is None:
        hide = no_update if shown == "" else True
        return [hide, *[no_update] * (len(service_page.PARTS) + 2), ""]
    names = {run.path: run.name for run in runs.readers()}
    versions = ServiceVersions(Path(service.path))
    kept = {each.number: names.get(versions.run_path(each.number)) for each in service.records}
    figure = charts.versions(service)
    parts = [
        service_page.head(service),
        service_page.alerts(service),
        service_page.tiles(service),
        service_page.versions(service, {number: name for number, name in kept.items() if name is not None}),
        figure,
        service_page.describe_chart(service, figure),
    ]
    marks = [_checksum((service.name, part)) for part in parts]
    before = dict(enumerate((shown or "").split()))
    changed = [no_update if before.get(place) == marks[place] else part for place, part in enumerate(parts)]
    return [no_update if shown else False, *changed, " ".join(marks)]


def _show_runs(app: Dash, runs: Runs) -> None:
    """Show the selected runs, rebuilt only when there is something new."""

    @app.callback(
        *(Output(part, "children") for part in _PARTS),
        *(Output(f"graph-{name}", "figure") for name in _GRAPHS),
        *(Output(f"description-{name}", "aria-label") for name in _GRAPHS),
        Output("shown-version", "data"),
        Output("clock", "children"),
        Input("tick", "n_intervals"),
        Input("selected", "data"),
        Input("axis", "data"),
        State("shown-version", "data"),
    )
    def show(_ticks: int | None, selected: list[str] | None, axis: Axis, shown_version: str | None) -> tuple[Any, ...]:
        found = {run.name: run for run in runs.readers()}
        chosen = [found[name] for name in dict.fromkeys(selected or []) if name in found][:MAX_RUNS]
        with _refreshed(chosen):
            return render(chosen, axis, shown_version)

    def render(chosen: list[RunReader], axis: Axis, shown_version: str | None) -> tuple[Any, ...]:
        summaries = [summarize(run) for run in chosen]
        live = any(summary.live for summary in summaries)
        states = [(summary.state, len(summary.alerts)) for summary in summaries]
        version = repr((axis, [(run.name, run.version) for run in chosen], states))
        clock = time.strftime("live, %H:%M:%S") if live else time.strftime("%H:%M:%S")
        if version == shown_version:
            return (*[no_update] * (len(_PARTS) + 2 * len(_GRAPHS) + 1), clock)
        shown = list(map(RunView, chosen, summaries, COLORS))
        return (
            *[getattr(page, part)(shown) for part in _PARTS],
            *(figures := _figures(shown, axis)),
            *[page.describe_chart(name, shown, figure) for name, figure in zip(_GRAPHS, figures, strict=True)],
            version,
            clock,
        )


@contextmanager
def _refreshed(runs: Sequence[RunReader]) -> Iterator[None]:
    """Refresh ``runs``, which are different ones, and hold their locks while the context lasts."""
    began = time.monotonic()
    with ExitStack() as locks:
        for run in sorted(runs, key=lambda run: run.name):  # always in the same order, to avoid deadlocks
            locks.enter_context(run.lock.held(began + bounded_lock.WAIT_SECONDS))
            run.refresh(began + _READ_SECONDS)
        yield


def _figures(shown: Sequence[RunView], axis: Axis) -> list[Any]:
    """Draw the graphs, in the order of ``_GRAPHS``."""
    return [getattr(charts, name)(*((shown, axis) if name in charts.BY_AXIS else (shown,))) for name in _GRAPHS]
