"""The page's frame, as HTML: what does not change while somebody looks at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from deploy.dashboard.charts import MAX_RUNS, Axis

GRAPHS = {
    "loss": ("Loss", "Of the steps, smoothed, and the mean of each epoch."),
    "quality": ("Quality on valid", "The metric that chooses among the epochs (evaluate.best_metric)."),
    "throughput": ("Throughput", "Examples a second, of all workers together."),
    "phases": ("Where the time goes", "What a step takes, by phase, as the first worker sees it."),
    "traffic": ("Bytes moved", "All workers and servers together; below, what dense gradients would have been."),
    "memory": ("Memory", "Resident bytes of each process."),
    "updates": ("Rows updated", "A second, by each process that holds rows."),
}
AXES: tuple[Axis, ...] = ("step", "time")
TICK_SECONDS = 2.0
Part = Any
"""Something that Dash puts into the page."""


def aria(**values: str | int) -> dict[str, Any]:
    """The attributes ``aria-NAME``."""
    return {f"aria-{name}": value for name, value in values.items()}


def layout(what: str) -> Part:
    """The page, before anything is known of the runs in ``what``."""
    return html.Div(
        [
            dcc.Location(id="place", refresh=False),
            dcc.Interval(id="tick", interval=int(1000 * TICK_SECONDS)),
            dcc.Store(id="seen"),
            dcc.Store(id="picked"),
            dcc.Store(id="listed"),
            dcc.Store(id="axis", data=AXES[0]),
            html.A("Skip to the run", href="#run", className="skip"),
            html.Header(
                [
                    html.Div([html.Span("Crossfade", className="brand"), html.Span(what, className="where")]),
                    html.Div(
                        [
                            html.Span(id="clock", className="clock"),
                            html.Button("Dark", id="theme", className="theme", type="button"),
                        ],
                        className="tools",
                    ),
                ]
            ),
            html.Div([_picker(), _content()], className="columns"),
        ]
    )


def _picker() -> Part:
    return html.Nav(
        [
            html.H2("Runs"),
            html.P(f"Tick several to compare them, at most {MAX_RUNS}.", className="hint", id="runs-hint"),
            html.Div(id="runs", className="runs", role="group", **aria(label="Runs to show")),
            html.P("No runs yet: one that begins shows up here.", id="none", hidden=True),
        ],
        className="picker",
        **aria(label="Runs"),
    )


def _content() -> Part:
    axis = html.Div(
        [html.Button(f"by {each}", id=f"by-{each}", type="button", **aria(pressed="false")) for each in AXES],
        className="axis",
        role="group",
        **aria(label="Horizontal axis"),
    )
    rows: tuple[tuple[str, ...], ...] = (
        ("loss", "quality", "throughput"),
        ("phases", "traffic"),
        ("memory", "updates"),
    )
    sections = [
        html.Section([html.Div([html.H2("Training"), axis], className="heading"), _graphs(rows[0])]),
        html.Section([html.H2("What a step costs"), _graphs(rows[1])]),
        html.Section([html.H2("Processes"), html.Div(id="processes"), _graphs(rows[2])]),
        html.Section([html.H2("Checkpoints and restarts"), html.Div(id="events")]),
        html.Section([html.H2("Quality"), html.Div(id="results")]),
        html.Section([html.H2("Job"), html.Div(id="job")]),
    ]
    return html.Main(
        [html.Div(id="head"), html.Div(id="alerts"), html.Div(id="figures"), *sections], id="run", tabIndex=-1
    )


def _graphs(names: Sequence[str]) -> Part:
    return html.Div([_graph(name) for name in names], className=f"graphs of-{len(names)}")


def _graph(name: str) -> Part:
    title, what = GRAPHS[name]
    graph = dcc.Graph(
        id=f"graph-{name}",
        figure={"data": [], "layout": {"xaxis": {"visible": False}, "yaxis": {"visible": False}}},
        config={"displayModeBar": False, "responsive": True, "doubleClick": False, "scrollZoom": False},
        className="graph",
        style={"height": "250px"},
    )
    return html.Figure(
        [
            html.Figcaption([html.H3(title), html.P(what, className="hint")]),
            html.Div(graph, id=f"said-{name}", role="img", **aria(label=title)),
        ],
        className="card",
    )
