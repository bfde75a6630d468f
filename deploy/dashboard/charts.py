"""The page's graphs as Plotly figures: dictionaries made of runs, without side effects.

Colors of text, grids and backgrounds come from ``assets/page.css`` and follow the page's theme. Lines have a contrast
of at least 3:1 with both backgrounds, as WCAG 2.1 asks of graphics (success criterion 1.4.11).

Shapes: N lines of a history, P points that are drawn.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.deploy.dashboard.figures import Summary
from crossfade.deploy.dashboard.run_reader import RunReader

COLORS = ("#2f7fd1", "#d1602f", "#2a9568", "#a25bd0", "#c0487f", "#8a7a1f")
"""One for each selected run, in their order."""
MAX_RUNS = len(COLORS)
MAX_POINTS = 400
"""Of a line; more would only slow the browser down."""
_MAX_NAME = 24
"""Characters of a run's name in a graph; longer ones are shortened."""
Figure = dict[str, Any]


@dataclass(frozen=True)
class RunView:
    """A selected run: its reader, its summary and its color."""

    run: RunReader
    summary: Summary
    color: str


def loss(shown: Sequence[RunView]) -> Figure:
    """Draw the loss of the steps, thinned by means, and the mean of each epoch."""
    traces = []
    for each in shown:
        steps, epochs = each.run.training.steps, each.run.training.epochs
        x_P, y_P = _thinned(steps["step"], steps["loss"])
        traces.append(_line(each, x_P.tolist(), y_P.tolist()) | {"opacity": 0.45, "showlegend": False})
        traces.append(_line(each, [epoch.step for epoch in epochs], [epoch.loss for epoch in epochs], markers=True))
    return _figure(traces, legend=len(shown) > 1)


def eval_metric(shown: Sequence[RunView]) -> Figure:
    """Draw the metric that selects the best epoch, on the validation split."""
    traces = []
    for each in shown:
        evaluated = each.run.training.evaluated
        values = [epoch.valid.get(each.summary.best_metric) for epoch in evaluated]
        traces.append(_line(each, [epoch.step for epoch in evaluated], values, markers=True))
    return _figure(traces, legend=len(shown) > 1)


def throughput(shown: Sequence[RunView]) -> Figure:
    """Draw examples per second of all workers."""
    traces = []
    for each in shown:
        step_P, rate_P = each.run.training.throughput(MAX_POINTS // 2)
        traces.append(_line(each, step_P.tolist(), rate_P.tolist()) | {"hovertemplate": "%{y:,.0f}/s"})
    return _figure(traces, legend=len(shown) > 1, yaxis={"rangemode": "tozero"})


def _thinned(x_N: FloatArray, y_N: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Reduce a line to at most MAX_POINTS points, each the mean of its neighbors."""
    if len(x_N) <= MAX_POINTS:
        return x_N, y_N
    bounds_P = np.linspace(0, len(x_N), MAX_POINTS + 1).astype(np.int64)
    counts_P = np.diff(bounds_P)
    return np.add.reduceat(x_N, bounds_P[:-1]) / counts_P, np.add.reduceat(y_N, bounds_P[:-1]) / counts_P


def _line(each: RunView, x: Sequence[float], y: Sequence[float | None], *, markers: bool = False) -> dict[str, Any]:
    name, half = each.summary.name, _MAX_NAME // 2
    # Names of runs often differ in their ends.
    short = name if len(name) <= _MAX_NAME else f"{name[: half - 1]}…{name[-half:]}"
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers or len(x) == 1 else "lines",
        # Plotly interprets some HTML elements, such as links, in all texts.
        "name": html.escape(short, quote=False),
        "x": x,
        "y": [None if value is None or not np.isfinite(value) else value for value in y],
        "line": {"color": each.color, "width": 2.0},
        "marker": {"size": 5},
        "hovertemplate": "%{y:.4~g}",
    }


def _figure(traces: list[dict[str, Any]], *, legend: bool, yaxis: dict[str, Any] | None = None) -> Figure:
    """Return the figure of ``traces``; without any data, it says so instead."""
    axis: dict[str, Any] = {"automargin": True, "zeroline": False, "showline": False, "fixedrange": True}
    notes: list[dict[str, Any]] = []
    if not any(value is not None for trace in traces for value in trace["y"]):
        axis["visible"] = legend = False
        notes = [{"text": "no data yet", "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}]
    return {
        "data": traces,
        "layout": {
            "annotations": notes,
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12},
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "hovermode": "x unified",
            "dragmode": False,
            "showlegend": legend,
            "legend": {
                "orientation": "h",
                "y": 1.02,
                "yanchor": "bottom",
                "itemclick": False,
                "itemdoubleclick": False,
            },
            "xaxis": {**axis, "title": {"text": "step", "standoff": 8}},
            "yaxis": {**axis, **(yaxis or {})},
            "uirevision": "kept",
        },
    }
