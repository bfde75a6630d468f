"""The page's frame, as HTML: everything that stays the same while runs progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from crossfade.deploy.dashboard.charts import MAX_RUNS, Axis

GRAPHS = {
    "loss": ("Loss", "Training loss of each step (smoothed), and the mean of each epoch."),
    "eval_metric": ("Validation metric", "The metric that selects the best epoch (evaluate.best_metric)."),
    "throughput": ("Throughput", "Examples per second of all workers together."),
    "phases": ("Time per step by phase", "Mean of a step, measured on the first worker."),
    "traffic": ("Bytes pulled and pushed", "Totals of all workers, and what dense gradients would have taken."),
    "memory": ("Memory", "Resident memory of each process."),
    "updates": ("Row updates", "Rows updated per second by each process that holds tables."),
}
"""Title and caption of each graph."""
AXES: tuple[Axis, ...] = ("step", "time")
REFRESH_SECONDS = 2.0
EXPLORE_PATH = "/explore"
"""The page of searches, neighbors and recommendations."""
Component = Any
"""A Dash component, or anything else that Dash can place in the page."""


def aria(**values: str | int) -> dict[str, Any]:
    """Return the attributes ``aria-NAME``."""
    return {f"aria-{name}": value for name, value in values.items()}


def layout(source: str) -> Component:
    """Build the page before any run has been read; ``source`` names the folders of the runs."""
    return html.Div(
        [
            dcc.Location(id="location", refresh=False),
            dcc.Interval(id="tick", interval=int(1000 * REFRESH_SECONDS)),
            dcc.Store(id="shown-version"),
            dcc.Store(id="selected"),
            dcc.Store(id="listed"),
            dcc.Store(id="axis", data=AXES[0]),
            html.A("Skip to the run", href="#run", className="skip"),
            html.Header(
                [
                    html.Div([html.Span("Crossfade", className="brand"), html.Span(source, className="where")]),
                    html.Div(
                        [
                            html.A("Explore", href=EXPLORE_PATH, className="page-link"),
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


def _picker() -> Component:
    return html.Nav(
        [
            html.H2("Runs"),
            html.P(f"Select up to {MAX_RUNS} runs to compare.", className="hint", id="runs-hint"),
            html.Div(id="runs", className="runs", role="group", **aria(label="Runs to show")),
            html.P("No runs yet. New runs appear here.", id="no-runs", hidden=True),
        ],
        className="picker",
        **aria(label="Runs"),
    )


def _content() -> Component:
    axis = html.Div(
        [html.Button(f"by {each}", id=f"by-{each}", type="button", **aria(pressed="false")) for each in AXES],
        className="axis",
        role="group",
        **aria(label="Horizontal axis"),
    )
    rows: tuple[tuple[str, ...], ...] = (
        ("loss", "eval_metric", "throughput"),
        ("phases", "traffic"),
        ("memory", "updates"),
    )
    sections = [
        html.Section([html.Div([html.H2("Training"), axis], className="heading"), _graphs(rows[0])]),
        html.Section([html.H2("Evaluation"), html.Div(id="results")]),
        html.Section([html.H2("Step time and traffic"), _graphs(rows[1])]),
        html.Section([html.H2("Processes"), html.Div(id="processes"), _graphs(rows[2])]),
        html.Section([html.H2("Checkpoints and restarts"), html.Div(id="events")]),
        html.Section([html.H2("Job"), html.Div(id="job")]),
    ]
    return html.Main(
        [
            html.P(id="missing-runs", role="status"),
            html.Div(id="head"),
            html.Div(id="alerts"),
            html.Div(id="tiles"),
            *sections,
        ],
        id="run",
        tabIndex=-1,
    )


def _graphs(names: Sequence[str]) -> Component:
    return html.Div([_graph(name) for name in names], className=f"graphs of-{len(names)}")


def _graph(name: str) -> Component:
    title, caption = GRAPHS[name]
    graph = dcc.Graph(
        id=f"graph-{name}",
        figure={"data": [], "layout": {"xaxis": {"visible": False}, "yaxis": {"visible": False}}},
        config={"displayModeBar": False, "responsive": True, "doubleClick": False, "scrollZoom": False},
        className="graph",
        style={"height": "250px"},
    )
    return html.Figure(
        [
            html.Figcaption([html.H3(title), html.P(caption, className="hint")]),
            html.Div(graph, id=f"description-{name}", role="img", **aria(label=title)),
        ],
        className="card",
    )
