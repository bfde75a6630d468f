"""Plotly figures as dictionaries: names, thinned lines, and the layout that all graphs of the page share.

Colors of text, grids and backgrounds come from ``assets/page.css`` and follow the page's theme.

Shapes: N lines of a history, P points that are drawn.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray

Figure = dict[str, Any]
MAX_POINTS = 400
"""Of a line; more would only slow the browser down."""
_MAX_NAME = 24
"""Characters of a run's name in a graph; longer ones are shortened."""
_LINE_BREAK, _MAX_LINE = "<br>", 40
"""Between the lines of the text in an empty graph, and their characters: as many as a phone has room for."""


def thinned(x_N: FloatArray, y_N: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Reduce a line to at most MAX_POINTS points, each the mean of its neighbors."""
    if len(x_N) <= MAX_POINTS:
        return x_N, y_N
    bounds_P = np.linspace(0, len(x_N), MAX_POINTS + 1).astype(np.int64)
    counts_P = np.diff(bounds_P)
    return np.add.reduceat(x_N, bounds_P[:-1]) / counts_P, np.add.reduceat(y_N, bounds_P[:-1]) / counts_P


def short(name: str) -> str:
    """Shorten a long name in its middle: the names of runs often differ in their ends."""
    half = _MAX_NAME // 2
    return plain(name if len(name) <= _MAX_NAME else f"{name[: half - 1]}…{name[-half:]}")


def plain(name: str) -> str:
    """Escape ``name`` for Plotly, which interprets some HTML elements, such as links, in all texts."""
    return html.escape(name, quote=False)


def names_axis(names: Sequence[str], shown: Iterable[str]) -> dict[str, Any]:
    """Return an axis of the categories ``names``, which are shown as ``shown``."""
    ticks = {"tickmode": "array", "tickvals": list(names), "ticktext": list(shown)}
    return {"categoryorder": "array", "categoryarray": list(reversed(names)), "showgrid": False, "ticklen": 6, **ticks}


def reason_for_no_data(figure: Figure) -> str | None:
    """Return why ``figure`` shows nothing; None if it shows something."""
    notes = figure["layout"].get("annotations")
    return str(notes[0]["text"]).replace(_LINE_BREAK, " ") if notes else None


def figure(
    traces: list[dict[str, Any]],
    reason: str,
    *,
    x_title: str = "",
    legend: bool = False,
    hover: str = "x unified",
    x: dict[str, Any] | None = None,
    y: dict[str, Any] | None = None,
    **layout: Any,
) -> Figure:
    """Return the figure of ``traces``; without any data, it gives the ``reason`` instead."""
    axis: dict[str, Any] = {"automargin": True, "zeroline": False, "showline": False, "fixedrange": True}
    if not any(value is not None for trace in traces for value in trace["y"]):
        axis["visible"] = legend = False
        place = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
        text = _LINE_BREAK.join(textwrap.wrap(reason, _MAX_LINE))
        layout["annotations"] = [{"text": text, **place}]
    return {
        "data": traces,
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12},
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "hovermode": hover,
            "dragmode": False,
            "showlegend": legend,
            "legend": {
                "orientation": "h",
                "yanchor": "bottom",
                "y": 1.02,
                "x": 0,
                "itemclick": False,
                "itemdoubleclick": False,
                "traceorder": "normal",
            },
            "xaxis": {**axis, "title": {"text": x_title, "standoff": 8}, **(x or {})},
            "yaxis": {**axis, **(y or {})},
            "uirevision": "kept",
            **layout,
        },
    }
