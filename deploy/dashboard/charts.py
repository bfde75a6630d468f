"""The page's graphs as Plotly figures: dictionaries made of runs, without side effects.

Lines and bars have a contrast of at least 3:1 with both backgrounds, as WCAG 2.1 asks of graphics (success criterion
1.4.11).

Shapes: N lines of a history, P points that are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from crossfade.base import formatting
from crossfade.base.arrays import FloatArray
from crossfade.deploy.dashboard.figures import MAX_POINTS, Figure, figure, names_axis, plain, short, thinned
from crossfade.deploy.dashboard.history import ColumnBuffer, EpochResult
from crossfade.deploy.dashboard.run_reader import RunReader
from crossfade.deploy.dashboard.service_reader import ServiceSummary
from crossfade.deploy.dashboard.summary import Summary
from crossfade.trainer.runs.shown_metrics import error_of, show_metric
from crossfade.trainer.training.phases import PHASES

Axis = Literal["step", "time"]
BY_AXIS = ("loss", "eval_metric", "throughput")
"""The graphs whose horizontal axis can be chosen; the others have their own."""
COLORS = ("#2f7fd1", "#d1602f", "#2a9568", "#a25bd0", "#c0487f", "#8a7a1f")
"""One for each selected run, in their order."""
MAX_RUNS = len(COLORS)
_PHASE_COLORS = ("#8a7a1f", "#b5762a", "#2a9568", "#2f7fd1", "#2b8fa3", "#a25bd0", "#c0487f", "#7b7f87")
_BASELINE_COLOR = "#6b6f77"
PHASE_COLORS = dict(zip(PHASES, _PHASE_COLORS, strict=True))
_MIN_LABELED_SHARE = 0.095
"""A bar's part below this share of the bar has no room for its label."""
_MAX_TICKS = 12
"""Of the numbers of versions."""
_TRAFFIC_ROWS = (
    ("bytes_pulled", "pulled"),
    ("bytes_pushed", "pushed"),
    ("dense_equivalent_bytes_pushed", "pushed if dense"),
)


@dataclass(frozen=True)
class RunView:
    """A selected run: its reader, its summary and its color."""

    run: RunReader
    summary: Summary
    color: str


def loss(shown: Sequence[RunView], axis: Axis) -> Figure:
    """Draw the loss of the steps, thinned by means, and the mean of each epoch."""
    traces = []
    for each in shown:
        steps = each.run.training.steps
        x_P, y_P = thinned(_axis(each, steps, axis), steps["loss"])
        traces.append(_line(each, x_P, y_P, opacity=0.45, width=1.5, legend=False))
        epochs = each.run.training.epochs
        x = _positions(each, epochs, axis)
        traces.append(_line(each, x, [epoch.loss for epoch in epochs], markers=True))
    return figure(traces, "The log has no step.", x_title=_axis_title(axis), legend=len(shown) > 1)


def eval_metric(shown: Sequence[RunView], axis: Axis) -> Figure:
    """Draw the metric that selects the best epoch, on the validation split."""
    traces = []
    for each in shown:
        evaluated = each.run.training.evaluated
        values = [epoch.valid.get(each.summary.best_metric) for epoch in evaluated]
        traces.append(_line(each, _positions(each, evaluated, axis), values, markers=True))
    reason = "No valid split has been evaluated."
    return figure(traces, reason, x_title=_axis_title(axis), legend=len(shown) > 1)


def evaluation(shown: Sequence[RunView]) -> Figure:
    """Draw the metric of each run and of the baselines on the split that decides, with their standard errors.

    Runs of the same dataset have the same baselines, which are drawn once.
    """
    split, metric = judged_by(shown)
    found = [(each.summary.name, each.summary.metrics.get(split, {}), each.color) for each in shown]
    of_baselines = [
        (f"by {name.replace('_', ' ')}", values, _BASELINE_COLOR)
        for each in shown
        for name, values in each.summary.baselines.get(split, {}).items()
    ]
    found += [each for number, each in enumerate(of_baselines) if each not in of_baselines[:number]]
    rows = [(name, values, color) for name, values, color in found if metric in values]
    names = [name for name, _, _ in rows]
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(rows))),
        "x": [values[metric] for _, values, _ in rows],
        "error_x": {"type": "data", "array": [values.get(error_of(metric), 0.0) for _, values, _ in rows]},
        "text": [formatting.decimals(values[metric]) for _, values, _ in rows],
        "textposition": "inside",
        "insidetextanchor": "start",
        "textangle": 0,
        "constraintext": "none",
        "marker": {"color": [color for _, _, color in rows]},
        "customdata": [[plain(name), show_metric(values, metric)] for name, values, _ in rows],
        "hovertemplate": "%{customdata[0]}: %{customdata[1]}<extra></extra>",
    }
    ticks = {"tickmode": "array", "tickvals": bar["y"], "ticktext": list(map(short, names))}
    axis = {"autorange": "reversed", "showgrid": False, "ticklen": 6, **ticks}
    title = f"{plain(metric)} on {split}"
    return figure([bar], "Not evaluated yet.", x_title=title, hover="closest", y=axis, bargap=0.4)


def judged_by(shown: Sequence[RunView]) -> tuple[str, str]:
    """Return the split and the metric that runs are compared by: test where one was evaluated on it, or valid."""
    split = "test" if any("test" in each.summary.metrics for each in shown) else "valid"
    return split, shown[0].summary.best_metric if shown else ""


def throughput(shown: Sequence[RunView], axis: Axis) -> Figure:
    """Draw examples per second of all workers."""
    traces = []
    for each in shown:
        time_P, step_P, rate_P = each.run.training.throughput(MAX_POINTS // 2)
        x_P = step_P if axis == "step" else _minutes(each, time_P)
        traces.append(_line(each, x_P, rate_P, hover="%{y:,.0f}/s"))
    reason = "A rate needs two steps in the log, which has one a second."
    return figure(traces, reason, x_title=_axis_title(axis), legend=len(shown) > 1, y={"rangemode": "tozero"})


def phases(shown: Sequence[RunView]) -> Figure:
    """Draw the mean time of a step by phase, in milliseconds, as measured on the first worker."""
    names = [plain(each.summary.name) for each in shown]
    per_step = []
    for each in shown:
        steps = max(1, _measured_steps(each))
        per_step.append({name: 1000 * seconds / steps for name, seconds in each.summary.phase_seconds.items()})
    totals = [sum(values.values()) or 1.0 for values in per_step]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": phase,
            "y": names,
            "x": [values.get(phase, 0.0) for values in per_step],
            "text": [
                formatting.share(share) if (share := values.get(phase, 0.0) / total) > _MIN_LABELED_SHARE else ""
                for values, total in zip(per_step, totals, strict=True)
            ],
            "textposition": "inside",
            "insidetextanchor": "middle",
            "textangle": 0,
            "constraintext": "none",
            "marker": {"color": PHASE_COLORS[phase]},
            "hovertemplate": f"{phase}: %{{x:.2f}} ms<extra>%{{y}}</extra>",
        }
        for phase in PHASES
        if any(phase in values for values in per_step)
    ]
    layout: dict[str, Any] = {"barmode": "stack", "bargap": 0.65 if len(shown) == 1 else 0.35}
    layout |= {"y": names_axis(names, (short(each.summary.name) for each in shown)), "hover": "closest"}
    return figure(traces, "No step has been timed.", x_title="milliseconds per step", legend=True, **layout)


def _measured_steps(each: RunView) -> int:
    """Count the steps behind the seconds by phase: in a resumed run, those of the process since it started."""
    if each.summary.state == "done" and each.run.report is not None and each.run.report.seconds_by_phase:
        return each.summary.step
    for name in ("worker-0", "in-process"):
        if load := each.run.processes.loads.get(name):
            return int(load.get("steps", 0))
    return each.summary.step


def traffic(shown: Sequence[RunView]) -> Figure:
    """Draw bytes pulled and pushed by all workers, and the bytes that dense gradients would have taken."""
    rows = [(each, name, label) for each in shown if each.summary.traffic for name, label in _TRAFFIC_ROWS]
    labels = [f"{plain(each.summary.name)}: {label}" if len(shown) > 1 else label for each, _, label in rows]
    ticks = [f"{short(each.summary.name)}: {label}" if len(shown) > 1 else label for each, _, label in rows]
    values = [each.summary.traffic.get(name, 0) for each, name, _ in rows]
    bar = {
        "type": "bar",
        "orientation": "h",
        "y": labels,
        "x": values,
        "text": [formatting.size(value) for value in values],
        "textposition": "outside",
        "textangle": 0,
        "marker": {
            "color": [each.color for each, _, _ in rows],
            "opacity": [0.35 if "dense" in name else 1.0 for _, name, _ in rows],
        },
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    # The labels stand outside the bars: leave room next to the longest.
    scale = {"tickformat": "~s", "ticksuffix": "B", "range": [0, 1.25 * max([1, *values])]}
    reason = "The log has no totals of bytes, which workers add up once a second."
    return figure([bar], reason, x=scale, hover="closest", y=names_axis(labels, ticks), bargap=0.4)


def memory(shown: Sequence[RunView]) -> Figure:
    """Draw the resident memory of each process over time."""
    reason = "No process has reported its memory."
    return _by_process(shown, lambda samples: (samples["time"], samples["resident_bytes"]), reason, suffix="B")


def updates(shown: Sequence[RunView]) -> Figure:
    """Draw the rows updated per second by each server, or without servers by each worker or the run in process."""

    def rates(samples: ColumnBuffer) -> tuple[FloatArray, FloatArray]:
        time_N, updated_N, pid_N = samples["time"], samples["updated"], samples["pid"]
        seconds_N = np.diff(time_N)
        # A new process counts from zero again, so a rate across two processes means nothing.
        same_N = (np.diff(pid_N) == 0) & (seconds_N > 0.1)
        return time_N[1:][same_N], np.diff(updated_N)[same_N] / seconds_N[same_N]

    reason = "A rate needs two reports of a process that holds tables, seconds apart."
    return _by_process(shown, rates, reason, suffix="", holders=True)


def versions(service: ServiceSummary) -> Figure:
    """Draw the metric of each version of a service before and after its training, and mark those that were rejected.

    Each version is judged on the events that were new then, so no line connects it with others.
    """
    metric = service.last.metric if service.last is not None else ""
    records = [record for record in service.records if record.metric == metric][-MAX_POINTS:]
    gains = [record for record in records if record.before is not None and record.after is not None]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [number for record in gains for number in (record.number, record.number, None)],
            "y": [value for record in gains for value in (record.before, record.after, None)],
            "line": {"color": _BASELINE_COLOR, "width": 2.0},
            "showlegend": False,
            "hoverinfo": "skip",
        }
    ]
    for name, color, symbol in (
        ("before", COLORS[1], "circle"),
        ("after", COLORS[0], "circle"),
        ("rejected", COLORS[4], "x"),
    ):
        drawn = [record for record in records if name != "rejected" or record.status == "rejected"]
        if not drawn:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name if name == "rejected" else f"{name} training",
                "x": [record.number for record in drawn],
                "y": [record.before if name == "before" else record.after for record in drawn],
                "marker": {"symbol": symbol, "size": 11 if name == "rejected" else 8, "color": color},
                "hovertemplate": "%{y:.4~g}",
            }
        )
    first, last = (records[0].number, records[-1].number) if records else (0, 0)
    numbers = {"dtick": max(1, -(-(last - first) // _MAX_TICKS)), "range": [first - 0.5, last + 0.5], "tickformat": "d"}
    title = f"version, by {plain(metric)} on its own new events"
    reason = "No version has been evaluated: no event was held out."
    return figure(traces, reason, x_title=title, legend=True, x=numbers)


def _by_process(
    shown: Sequence[RunView],
    pick: Any,
    reason: str,
    *,
    suffix: str,
    holders: bool = False,
) -> Figure:
    """Draw a line for each process of the runs, or with ``holders`` for each that holds tables."""
    traces = []
    for each in shown:
        processes = sorted(each.run.processes.samples.items())
        has_servers = any(name.startswith("server") for name, _ in processes)
        kinds: tuple[str, ...] = ("scheduler", "server", "worker", "in-process")
        if holders:
            kinds = ("server" if has_servers else "worker", "in-process")
        for number, (name, samples) in enumerate(processes):
            if not name.startswith(kinds):
                continue
            time_N, value_N = pick(samples)
            x_P, y_P = thinned(_minutes(each, time_N), value_N)
            label = plain(name) if len(shown) == 1 else f"{short(each.summary.name)}: {plain(name)}"
            color = COLORS[number % MAX_RUNS] if len(shown) == 1 else each.color
            dash = ("solid", "dash", "dot", "dashdot")[number % 4] if len(shown) > 1 else "solid"
            trace = _line(each, x_P, y_P, name=label)
            trace["line"] |= {"color": color, "dash": dash}
            traces.append(trace)
    scale = {"tickformat": "~s", "ticksuffix": suffix, "rangemode": "tozero"}
    return figure(traces, reason, x_title=_axis_title("time"), legend=True, y=scale)


# ---- building blocks


def _axis(each: RunView, columns: ColumnBuffer, axis: Axis) -> FloatArray:
    return columns["step"] if axis == "step" else _minutes(each, columns["time"])


def _positions(each: RunView, epochs: Sequence[EpochResult], axis: Axis) -> FloatArray:
    values_N = np.array([getattr(epoch, axis) for epoch in epochs], dtype=np.float64)
    return values_N if axis == "step" else _minutes(each, values_N)


def _minutes(each: RunView, time_N: FloatArray) -> FloatArray:
    return (time_N - (each.summary.started or 0.0)) / 60.0


def _axis_title(axis: Axis) -> str:
    return "step" if axis == "step" else "minutes since the start"


def _line(
    each: RunView,
    x_N: FloatArray,
    y_N: FloatArray | Sequence[float | None],
    *,
    name: str | None = None,
    markers: bool = False,
    opacity: float = 1.0,
    width: float = 2.0,
    legend: bool = True,
    hover: str = "%{y:.4~g}",
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers or len(x_N) == 1 else "lines",
        "name": name or short(each.summary.name),
        "x": np.asarray(x_N).tolist(),
        "y": [None if value is None or not np.isfinite(value) else float(value) for value in y_N],
        "line": {"color": each.color, "width": width},
        "marker": {"size": 5},
        "opacity": opacity,
        "showlegend": legend,
        "hovertemplate": hover,
    }
