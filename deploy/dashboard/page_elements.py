"""Elements of the dashboard's page, for runs and for services."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from crossfade.deploy.dashboard.alert import Alert

Component = Any
"""A Dash component, or anything else that Dash can place in the page."""


def aria(**values: str | int) -> dict[str, Any]:
    """Return the attributes ``aria-NAME``."""
    return {f"aria-{name}": value for name, value in values.items()}


def graph_card(name: str, title: str, caption: str) -> Component:
    """Build the card of the graph ``name``, without data yet."""
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


def badge(state: str) -> Component:
    """Build a badge with a state or a kind in words; ``assets/page.css`` has their colors."""
    words = state.replace("_", " ")
    return html.Span(words, className=f"badge {words.replace(' ', '-')}")


def alert_list(label: str, alerts: Sequence[Alert]) -> Component:
    """Build the list of ``alerts``; None if there are none."""
    items = [
        html.Li([html.Strong(alert.level), html.Span(alert.text)], className=f"alert {alert.level}") for alert in alerts
    ]
    return html.Ul(items, className="alerts", **aria(label=label)) if items else None


def tile(title: str, value: str, note: str) -> Component:
    """Build a key figure of a description list."""
    return html.Div([html.Dt(title), html.Dd([html.Span(value, className="value"), html.Span(note, className="hint")])])


def table(
    caption: str,
    titles: Sequence[str],
    rows: Sequence[Sequence[Component]],
    *,
    text_columns: int = 1,
    stacked: bool = False,
) -> Component:
    """Build a table that scrolls sideways, also by keyboard; its first ``text_columns`` columns hold words.

    On a phone, the cells of each row of a ``stacked`` table stand below each other.
    """
    data_titles: list[dict[str, Any]] = [{"data-title": title} for title in titles]
    kinds = ["words" if index < text_columns else "number" for index in range(len(titles))]
    head_row = html.Tr([html.Th(title, scope="col", className=kind) for title, kind in zip(titles, kinds, strict=True)])
    body = [
        html.Tr(
            [
                html.Th(cell, scope="row", className="words")
                if index == 0
                else html.Td(cell, className=kinds[index], **data_titles[index])
                for index, cell in enumerate(row)
            ]
        )
        for row in rows
    ]
    content = html.Table([html.Caption(caption), html.Thead(head_row), html.Tbody(body)])
    return html.Div(
        content, className="scroll stacked" if stacked else "scroll", tabIndex=0, role="region", **aria(label=caption)
    )
