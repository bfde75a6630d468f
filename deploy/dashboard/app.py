"""The page of 'crossfade dashboard': a Dash application that looks at runs again and again while somebody watches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update
from flask import Response

from deploy.dashboard import charts as figures
from deploy.dashboard import page
from deploy.dashboard.charts import COLORS, MAX_RUNS, Axis, RunView
from deploy.dashboard.layout import AXES, GRAPHS, layout
from deploy.dashboard.run_reader import RunReader
from deploy.dashboard.runs import Runs
from deploy.dashboard.summary import latest_first, read_summaries, summarize

_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; frame-ancestors 'self'; object-src 'none'; base-uri 'self'"
)
_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}
<title>{%title%}</title>
{%favicon%}
{%css%}
<script>try { const t = localStorage.getItem("crossfade-theme"); if (t) document.documentElement.dataset.theme = t }
catch { /* storage may be forbidden */ }</script>
</head>
<body>
{%app_entry%}
<footer>{%config%}{%scripts%}{%renderer%}</footer>
</body>
</html>"""
_GRAPHS = tuple(GRAPHS)
_PARTS = ("head", "alerts", "figures", "processes", "events", "results", "job")


def make_app(runs: Runs, what: str) -> Dash:
    """The application that shows ``runs``; ``what`` says in a word or two which those are."""
    app = Dash(
        "crossfade",
        assets_folder=str(Path(__file__).with_name("assets")),
        title="Crossfade",
        update_title="",
        index_string=_INDEX,
        serve_locally=True,
        compress=False,
        health_endpoint="healthz",
        add_log_handler=False,
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "color-scheme", "content": "light dark"},
        ],
    )
    app.layout = layout(what)
    app.server.after_request(_protect)
    _pick_axis(app)
    _pick_runs(app, runs)
    _show_runs(app, runs)
    return app


def _protect(response: Response) -> Response:
    """Let the page load from here alone."""
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def _pick_axis(app: Dash) -> None:
    @app.callback(
        Output("axis", "data"),
        *(Output(f"by-{axis}", "aria-pressed") for axis in AXES),
        *(Input(f"by-{axis}", "n_clicks") for axis in AXES),
    )
    def pick(*_clicks: int | None) -> tuple[str, ...]:
        chosen = str(ctx.triggered_id or f"by-{AXES[0]}").removeprefix("by-")
        return (chosen, *("true" if axis == chosen else "false" for axis in AXES))


def _pick_runs(app: Dash, runs: Runs) -> None:
    """Which runs there are to pick, and which are picked: at first those of the address, which follows them then."""

    @app.callback(
        Output("runs", "children"),
        Output("listed", "data"),
        Output("picked", "data"),
        Output("none", "hidden"),
        Output("place", "search"),
        Input("tick", "n_intervals"),
        Input("picked", "data"),
        State("place", "search"),
        State("listed", "data"),
    )
    def pick(_ticks: int | None, picked: list[str] | None, search: str, listed: str | None) -> tuple[Any, ...]:
        summaries = latest_first(read_summaries(runs))
        known = [summary.name for summary in summaries]
        wanted = parse_qs((search or "?")[1:]).get("run", []) if picked is None else picked
        chosen = ([name for name in wanted if name in known] or known[:1])[:MAX_RUNS]
        boxes = page.run_boxes(summaries, chosen)
        told = str(boxes)
        address = f"?{urlencode([('run', name) for name in chosen])}" if chosen else ""
        return (
            no_update if told == listed else boxes,
            told,
            no_update if chosen == picked else chosen,
            bool(known),
            no_update if address == search else address,
        )

    # Not by the server: what it is asked meanwhile for the clock's sake would overtake a click, and undo it.
    app.clientside_callback(  # type: ignore[no-untyped-call]
        ClientsideFunction("crossfade", "toggle"),
        Output("picked", "data", allow_duplicate=True),
        Input({"run": ALL}, "n_clicks"),
        State("picked", "data"),
        prevent_initial_call=True,
    )


def _show_runs(app: Dash, runs: Runs) -> None:
    """What is shown of those that are picked, made anew when there is something new."""

    @app.callback(
        *(Output(part, "children") for part in _PARTS),
        *(Output(f"graph-{name}", "figure") for name in _GRAPHS),
        *(Output(f"said-{name}", "aria-label") for name in _GRAPHS),
        Output("seen", "data"),
        Output("clock", "children"),
        Input("tick", "n_intervals"),
        Input("picked", "data"),
        Input("axis", "data"),
        State("seen", "data"),
    )
    def show(_ticks: int | None, picked: list[str] | None, axis: Axis, seen: str | None) -> tuple[Any, ...]:
        found = {run.name: run for run in runs.readers()}
        chosen = [found[name] for name in picked or [] if name in found][:MAX_RUNS]
        with _held(chosen):
            return look(chosen, axis, seen)

    def look(chosen: list[RunReader], axis: Axis, seen: str | None) -> tuple[Any, ...]:
        summaries = [summarize(run) for run in chosen]
        live = any(summary.live for summary in summaries)
        told = repr((axis, [(run.name, run.version) for run in chosen], [(s.state, len(s.alerts)) for s in summaries]))
        clock = time.strftime("live, %H:%M:%S") if live else time.strftime("%H:%M:%S")
        if told == seen:
            return (*[no_update] * (len(_PARTS) + 2 * len(_GRAPHS) + 1), clock)
        shown = list(map(RunView, chosen, summaries, COLORS))
        return (
            *_parts(shown),
            *_drawn(shown, axis),
            *[page.describe_chart(name, shown) for name in _GRAPHS],
            told,
            clock,
        )


@contextmanager
def _held(runs: Sequence[RunReader]) -> Iterator[None]:
    """Keep others from reading on in ``runs``, read just now, while the context lasts."""
    with ExitStack() as held:
        for run in sorted(runs, key=lambda run: run.name):  # in one order, or two could wait for each other
            held.enter_context(run.lock)
            run.refresh()
        yield


def _parts(shown: Sequence[RunView]) -> list[Any]:
    """Those of the page that are no graphs, in the order of ``_PARTS``."""
    return [getattr(page, part)(shown) for part in _PARTS]


def _drawn(shown: Sequence[RunView], axis: Axis) -> list[Any]:
    """The graphs, in the order of ``_GRAPHS``."""
    by_axis = {"loss": figures.loss, "quality": figures.quality, "throughput": figures.throughput}
    others = {
        "phases": figures.phases,
        "traffic": figures.traffic,
        "memory": figures.memory,
        "updates": figures.updates,
    }
    drawn = {name: draw(shown, axis) for name, draw in by_axis.items()}
    drawn |= {name: draw(shown) for name, draw in others.items()}
    return [drawn[name] for name in _GRAPHS]
