"""The Dash application of 'crossfade dashboard': rereads the runs while a browser shows them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update

from crossfade.deploy.dashboard import charts, page
from crossfade.deploy.dashboard.callback_requests import check_callback_requests, is_text, is_texts
from crossfade.deploy.dashboard.charts import COLORS, MAX_RUNS, Axis, RunView
from crossfade.deploy.dashboard.explore import explore_pages
from crossfade.deploy.dashboard.explored_models import ExploredModels
from crossfade.deploy.dashboard.page import AXES, GRAPHS, layout
from crossfade.deploy.dashboard.run_reader import RunReader, Runs
from crossfade.deploy.dashboard.summary import latest_first, read_summaries, summarize

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
_STORES = {
    "location": is_text,
    "listed": is_text,
    "shown-version": is_text,
    "selected": is_texts,
    "axis": lambda value: value in AXES if isinstance(value, str) else False,
}
"""What the values of components may be, other than counts."""
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
        health_endpoint="healthz",
        add_log_handler=False,
        meta_tags=[
            {"name": "viewport", "content": "width=device-width, initial-scale=1"},
            {"name": "color-scheme", "content": "light dark"},
        ],
    )
    app.layout = layout(source)
    app.server.register_blueprint(explore_pages(runs, models, source))
    _select_axis(app)
    _select_runs(app, runs)
    _show_runs(app, runs)
    check_callback_requests(app, _STORES)
    return app


def content_policy(app: Dash) -> str:
    """Forbid the browser to load anything from other servers, and to run scripts in the page but those of Dash."""
    return _POLICY.format(scripts=" ".join(app.csp_hashes()))


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
    """List the runs and keep the selection: at first the runs in the page's address, which then follows it."""

    @app.callback(
        Output("runs", "children"),
        Output("listed", "data"),
        Output("selected", "data"),
        Output("no-runs", "hidden"),
        Output("missing-runs", "children"),
        Output("location", "search"),
        Input("tick", "n_intervals"),
        Input("selected", "data"),
        State("location", "search"),
        State("listed", "data"),
    )
    def select(_ticks: int | None, selected: list[str] | None, search: str, listed: str | None) -> tuple[Any, ...]:
        summaries = latest_first(read_summaries(runs))
        known = [summary.name for summary in summaries]
        requested = parse_qs((search or "?")[1:]).get("run", []) if selected is None else selected
        chosen = ([name for name in requested if name in known] or known[:1])[:MAX_RUNS]
        boxes = page.run_boxes(summaries, chosen)
        content = str(boxes)
        address = f"?{urlencode([('run', name) for name in chosen])}" if chosen else ""
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
        chosen = [found[name] for name in selected or [] if name in found][:MAX_RUNS]
        with _locked(chosen):
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
            *_parts(shown),
            *(figures := _figures(shown, axis)),
            *[page.describe_chart(name, shown, figure) for name, figure in zip(_GRAPHS, figures, strict=True)],
            version,
            clock,
        )


@contextmanager
def _locked(runs: Sequence[RunReader]) -> Iterator[None]:
    """Refresh ``runs`` and hold their locks while the context lasts."""
    with ExitStack() as locks:
        for run in sorted(runs, key=lambda run: run.name):  # always in the same order, to avoid deadlocks
            locks.enter_context(run.lock)
            run.refresh()
        yield


def _parts(shown: Sequence[RunView]) -> list[Any]:
    """Build the parts other than graphs, in the order of ``_PARTS``."""
    return [getattr(page, part)(shown) for part in _PARTS]


def _figures(shown: Sequence[RunView], axis: Axis) -> list[Any]:
    """Draw the graphs, in the order of ``_GRAPHS``."""
    by_axis = {"loss": charts.loss, "eval_metric": charts.eval_metric, "throughput": charts.throughput}
    others = {
        "phases": charts.phases,
        "traffic": charts.traffic,
        "memory": charts.memory,
        "updates": charts.updates,
    }
    drawn = {name: draw(shown, axis) for name, draw in by_axis.items()}
    drawn |= {name: draw(shown) for name, draw in others.items()}
    return [drawn[name] for name in _GRAPHS]
