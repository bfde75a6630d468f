"""Elements of the dashboard's page, for runs and for services."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from dash import dcc, html

from crossfade.deploy.dashboard.alert import Alert

Component = Any
"""A Dash component, or anything else that Dash can place in the page."""


@dataclass(frozen=True)
class Selection:
    """The runs and the service that are shown, which the page's address has."""

    runs: Sequence[str]
    service: str | None

    def address(self) -> str:
        """Return the address, relative to the page."""
        return (
            f"?{urlencode([*(('run', run) for run in self.runs), *([('service', self.service)] * bool(self.service))])}"
        )


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
            html.Div(graph, role="img", **aria(label=f"{title}. {caption}")),
        ],
        className="card",
    )


def box(kind: str, name: str, state: str, hint: str, address: str, *, is_shown: bool) -> Component:
    """Build the entry of a run or a service in a list: a link that adds it to what is shown, or removes it."""
    mark = [html.Span("shown: ", className="unseen")] if is_shown else []
    line = html.Span([html.Span([*mark, name], className="name"), badge(state)], className="line")
    content = [line, html.Span(hint, className="hint")]
    return dcc.Link(content, href=address, id={kind: name}, className="box shown" if is_shown else "box")


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
