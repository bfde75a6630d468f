"""The page's parts, as HTML, that each look at the runs makes anew; ``layout.py`` has the frame around them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import yaml
from dash import html

from deploy.dashboard import formatting as text
from deploy.dashboard.charts import RunView
from deploy.dashboard.layout import GRAPHS, Part, aria
from deploy.dashboard.summary import Summary


def run_boxes(summaries: Sequence[Summary], picked: Sequence[str]) -> list[Part]:
    """The runs to pick from, each a box to tick.

    Buttons that say they are boxes, since Dash's own list does not bear that its options change.
    """
    return [_run_box(summary, ticked=summary.name in picked) for summary in summaries]


def _run_box(summary: Summary, *, ticked: bool) -> Part:
    best = f"{summary.select} {text.decimals(summary.best)}" if summary.best is not None else "not judged yet"
    return html.Button(
        [
            html.Span([html.Span(summary.name, className="name"), _badge(summary.state)], className="line"),
            html.Span(f"{text.share(summary.progress)} · {best}", className="hint"),
        ],
        id={"run": summary.name},
        type="button",
        role="checkbox",
        **aria(checked="true" if ticked else "false"),
    )


def _badge(state: str) -> Part:
    return html.Span(state, className=f"badge {state.replace(' ', '-')}")


def head(shown: Sequence[RunView]) -> Part:
    """Which runs are shown, how far each is, and what it is doing."""
    return [_head(each) for each in shown]


def _head(each: RunView) -> Part:
    run = each.summary
    doing = f"{run.doing}, " if run.doing and run.doing != "training" else ""
    again = f"generation {run.generation}, " if run.generation > 1 else ""
    planned = f" of {run.planned_steps:,}" if run.planned_steps else ""
    epoch = f", epoch {run.epoch}" if run.epoch else ""
    epochs = f" of {run.planned_epochs}" if run.epoch and run.planned_epochs else ""
    left = f", {text.duration(run.remaining_seconds)} left" if run.remaining_seconds else ""
    return html.Div(
        [
            html.H1([html.Span(className="swatch", style={"background": each.color}), run.name, _badge(run.state)]),
            html.P(f"{doing}{again}step {run.step:,}{planned}{epoch}{epochs}, {text.duration(run.seconds)}{left}"),
            html.Div(
                html.Div(style={"width": f"{100 * run.progress:.1f}%", "background": each.color}),
                className="bar",
                role="progressbar",
                **aria(label=f"progress of {run.name}", valuenow=round(100 * run.progress), valuemin=0, valuemax=100),
            ),
        ],
        className="head",
    )


def alerts(shown: Sequence[RunView]) -> Part:
    """What wants attention."""
    found = [(each.summary.name, alert) for each in shown for alert in each.summary.alerts]
    if not found:
        return None
    name = len(shown) > 1
    items = [
        html.Li(
            [html.Strong(alert.level), html.Span(f"{run}: {alert.text}" if name else alert.text)],
            className=f"alert {alert.level}",
        )
        for run, alert in found
    ]
    return html.Ul(items, className="alerts", **aria(label="What wants attention"))


def figures(shown: Sequence[RunView]) -> Part:
    """The figures that matter most: tiles of one run, a table of several."""
    if not shown:
        return None
    if len(shown) == 1:
        return html.Dl([_tile(*tile) for tile in _tiles(shown[0].summary)], className="tiles")
    names = [name for name, _, _ in _tiles(shown[0].summary)]
    rows = [[each.summary.name, *(value for _, value, _ in _tiles(each.summary))] for each in shown]
    return table("The runs compared", ["run", *names], rows)


def _tile(name: str, value: str, note: str) -> Part:
    return html.Div([html.Dt(name), html.Dd([html.Span(value, className="value"), html.Span(note, className="hint")])])


def _tiles(run: Summary) -> list[tuple[str, str, str]]:
    """Name, value, and a note."""
    kept = run.checkpoints
    age = f"{text.duration(time.time() - kept['last_time'])} ago" if run.live and kept["last_time"] else ""
    saved = f"step {kept['last_step']:,}" if kept["last_step"] is not None else "none yet"
    best = f"best {text.decimals(run.best)} in epoch {run.best_epoch}" if run.best is not None else ""
    moved = f"{text.size(run.traffic.get('bytes_pushed'))} pushed" if run.traffic else ""
    return [
        ("loss", text.decimals(run.loss), "in the last epoch"),
        (run.select, text.decimals(run.quality), best),
        ("examples a second", text.count(run.examples_a_second), f"{text.count(run.steps_a_second)} steps"),
        ("less than dense", text.times(run.times_dense), moved),
        ("checkpoint", saved, age or text.size(kept["last_bytes"])),
        ("restarts", str(len(run.restarts)), f"{len(run.alerts)} alerts" if run.alerts else "no alerts"),
    ]


def table(caption: str, names: Sequence[str], rows: Sequence[Sequence[Part]], *, left: int = 1) -> Part:
    """A table that can be scrolled sideways, also by keys; its first ``left`` columns are words."""
    kind = ["words" if index < left else "number" for index in range(len(names))]
    head_row = html.Tr([html.Th(name, scope="col", className=how) for name, how in zip(names, kind, strict=True)])
    body = [
        html.Tr(
            [
                html.Th(cell, scope="row", className="words") if index == 0 else html.Td(cell, className=kind[index])
                for index, cell in enumerate(row)
            ]
        )
        for row in rows
    ]
    inside = html.Table([html.Caption(caption), html.Thead(head_row), html.Tbody(body)])
    return html.Div(inside, className="scroll", tabIndex=0, role="region", **aria(label=caption))


def processes(shown: Sequence[RunView]) -> Part:
    """Each process of each run."""
    names = (
        "process",
        "state",
        "host",
        "rows held",
        "bytes held",
        "rows/s",
        "updating",
        "memory",
        "left there",
        "cpu",
        "examples/s",
    )
    return [
        table(
            f"Processes of {each.summary.name}",
            names,
            [
                (
                    row.name,
                    _badge(row.state),
                    row.host or "",
                    text.count(row.rows),
                    text.size(row.held_bytes),
                    text.count(row.updated_a_second),
                    text.share(row.update_share),
                    text.size(row.resident_bytes),
                    text.size(row.memory_available_bytes),
                    text.share(row.cpu),
                    text.count(row.examples_a_second),
                )
                for row in each.summary.processes
            ],
            left=3,
        )
        if each.summary.processes
        else html.P(f"{each.summary.name}: nothing in its folder tells of its processes.", className="hint")
        for each in shown
    ]


def events(shown: Sequence[RunView]) -> Part:
    """Checkpoints and restarts, the latest first."""
    return [_events(each) for each in shown]


_MAX_EVENTS = 50


def _events(each: RunView) -> Part:
    name, found = each.summary.name, []
    for save in each.run.training.saves:
        if save["event"] == "saved":
            took = f"{text.size(save.get('bytes'))} in {text.duration(save.get('seconds'))}"
            waited = f"training waited {text.duration(save.get('pause_seconds'))}"
            found.append((save["time"], "checkpoint", save.get("step"), f"{took}; {waited}"))
        else:
            found.append((save["time"], "not saved", save.get("step"), str(save.get("message"))))
    for restart in each.summary.restarts:
        down = f"; nothing was trained for {text.duration(restart['seconds'])}" if restart.get("seconds") else ""
        found.append((restart.get("time"), "restart", restart.get("step"), f"{restart.get('cause')}{down}"))
    if not found:
        return html.P(f"{name}: none yet.", className="hint")
    latest = sorted(found, key=lambda event: -(event[0] or 0.0))
    rows = [
        (_clock(at), _badge(kind), f"{step:,}" if isinstance(step, int) else "", what)
        for at, kind, step, what in latest[:_MAX_EVENTS]
    ]
    more = f", the last {_MAX_EVENTS} of {len(latest):,}" if len(latest) > _MAX_EVENTS else ""
    return table(f"Checkpoints and restarts of {name}{more}", ("when", "what", "step", "how"), rows, left=4)


def _clock(at: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at is not None else ""


def results(shown: Sequence[RunView]) -> Part:
    """The last evaluation on each split."""
    columns = [(each.summary.name, split, values) for each in shown for split, values in each.summary.metrics.items()]
    if not columns:
        return html.P("Not judged yet.", className="hint")
    names = list(dict.fromkeys(name for _, _, values in columns for name in values))
    first = [name for name in names if name.startswith(("recall", "ndcg"))]
    titles = [f"{run}, {split}" if len(shown) > 1 else split for run, split, _ in columns]

    def rows(names: Sequence[str]) -> list[list[str]]:
        return [[name, *(_figure_of(name, values.get(name)) for _, _, values in columns)] for name in names]

    return [
        table("Recall and NDCG of the embeddings", ["metric", *titles], rows(first)),
        html.Details([html.Summary("All metrics"), table("All metrics", ["metric", *titles], rows(names))]),
    ]


def _figure_of(name: str, value: float | None) -> str:
    return text.count(value) if name == "queries" else text.decimals(value)


def job(shown: Sequence[RunView]) -> Part:
    """The resolved job of each run and, of several, what differs."""
    parts: list[Part] = [_differences(shown)] if len(shown) > 1 else []
    for each in shown:
        parts.append(
            html.Details(
                [
                    html.Summary(f"job.yaml of {each.summary.name}"),
                    html.Pre(each.run.job_text, tabIndex=0, role="region", **aria(label=f"job of {each.summary.name}")),
                ]
            )
        )
    return parts


def _differences(shown: Sequence[RunView]) -> Part:
    flat = [_flat(each.run.job) for each in shown]
    keys = [key for key in dict.fromkeys(key for job in flat for key in job) if len({job.get(key) for job in flat}) > 1]
    if not keys:
        return html.P("Their jobs are the same.", className="hint")
    rows = [[key, *(job.get(key, "") for job in flat)] for key in keys]
    return table("What differs", ["key", *(each.summary.name for each in shown)], rows, left=1 + len(shown))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    return found


def describe_chart(name: str, shown: Sequence[RunView]) -> str:
    """A figure in words, for whoever does not see it."""
    told = []
    for each in shown:
        run = each.summary
        of = {
            "loss": text.decimals(run.loss),
            "quality": f"{run.select} {text.decimals(run.quality)}",
            "throughput": f"{text.count(run.examples_a_second)} examples a second",
            "phases": ", ".join(f"{phase} {text.duration(spent)}" for phase, spent in run.phase_seconds.items()),
            "traffic": f"{text.size(run.traffic.get('bytes_pushed'))} pushed, "
            f"{text.size(run.traffic.get('bytes_pushed_if_dense'))} if dense",
            "memory": ", ".join(f"{row.name} {text.size(row.resident_bytes)}" for row in run.processes),
            "updates": ", ".join(
                f"{row.name} {text.count(row.updated_a_second)}" for row in run.processes if row.rows is not None
            ),
        }[name]
        told.append(f"{run.name}: {of}")
    return f"{GRAPHS[name][0]}. {'; '.join(told)}"
