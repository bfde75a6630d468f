"""The page, as HTML: its frame, and its changing parts, which are rebuilt from the selected runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from dash import dcc, html

from crossfade.base.formatting import count, decimals, duration, local_time, share, size, times
from crossfade.base.text import counted
from crossfade.deploy.dashboard.alert import Alert
from crossfade.deploy.dashboard.charts import MAX_RUNS, RunView
from crossfade.deploy.dashboard.figures import PROCESS_COLUMNS, PROCESS_TEXT_COLUMNS, Summary, process_cells
from crossfade.deploy.dashboard.page_elements import (
    Component,
    Selection,
    alert_list,
    aria,
    badge,
    box,
    graph_card,
    table,
    tile,
)
from crossfade.deploy.dashboard.service_reader import TEXT_COLUMNS, TITLES, ServiceSummary, version_row
from crossfade.trainer.runs.events import CheckpointFailed, CheckpointSaved, TimedEvent
from crossfade.trainer.runs.shown_metrics import count_queries, show_metric

GRAPHS = {
    "loss": ("Loss", "Training loss of each step (smoothed), and the mean of each epoch."),
    "eval_metric": ("Validation metric", "The metric that selects the best epoch (evaluate.best_metric)."),
    "throughput": ("Throughput", "Examples per second of all workers together."),
}
"""Title and caption of each graph."""
PARTS = ("head", "alerts", "tiles", "results", "processes", "events", "job")
"""The parts that show the selected runs, each built by the function of its name."""
REFRESH_SECONDS = 2.0
EXPLORE_PATH = "/explore"
"""The page of searches, neighbors and recommendations."""
_MAX_EVENTS = _MAX_VERSIONS = 50


def layout(source: str) -> Component:
    """Build the page before any run has been read; ``source`` names the folders of the runs."""
    tools = [
        html.A("Explore", href=EXPLORE_PATH, className="page-link"),
        html.Span(id="clock", className="clock"),
    ]
    lists = [html.Div(id=part, className="list") for part in ("services", "runs")]
    graphs = [graph_card(name, *words) for name, words in GRAPHS.items()]
    content = [
        html.Section([html.Div(id="service"), html.Div(id="versions")], id="service-panel", **aria(label="Service")),
        *(html.Div(id=part) for part in ("head", "alerts", "tiles")),
        html.Section([html.H2("Training"), html.Div(graphs, className="graphs"), html.Div(id="results")]),
        html.Section([html.H2("Processes"), html.Div(id="processes")]),
        html.Section([html.H2("Checkpoints, restarts, and failures"), html.Div(id="events")]),
        html.Section([html.H2("Job"), html.Div(id="job")]),
    ]
    return html.Div(
        [
            dcc.Location(id="location", refresh=False),
            dcc.Interval(id="tick", interval=int(1000 * REFRESH_SECONDS)),
            dcc.Store(id="shown"),
            html.A("Skip to the run", href="#run", className="skip"),
            html.Header(
                [
                    html.Div([html.Span("Crossfade", className="brand"), html.Span(source, className="where")]),
                    html.Div(tools, className="tools"),
                ]
            ),
            html.Div(
                [
                    html.Nav(lists, className="picker", **aria(label="Runs and services")),
                    html.Main(content, id="run", tabIndex=-1),
                ],
                className="columns",
            ),
        ]
    )


def run_boxes(summaries: Sequence[Summary], selection: Selection) -> Component:
    """Build the list of runs."""
    if not summaries:
        return [html.H2("Runs"), html.P("No runs yet. New runs appear here.")]
    hint = html.P(f"Select up to {MAX_RUNS} runs to compare.", className="hint")
    return [html.H2("Runs"), hint, *(_run_box(summary, selection) for summary in summaries)]


def _run_box(summary: Summary, selection: Selection) -> Component:
    name, best = summary.name, "not evaluated yet"
    if summary.best_value is not None:
        best = f"{summary.best_metric} {decimals(summary.best_value)}"
    others = [run for run in selection.runs if run != name]
    is_shown = name in selection.runs
    address = Selection(others if is_shown else [*others, name], selection.service).address()
    return box("run", name, summary.state, f"{share(summary.progress)} · {best}", address, is_shown=is_shown)


def head(shown: Sequence[RunView]) -> Component:
    """Build the heading of each run: its name, state, phase and progress."""
    return [_head(each) for each in shown]


def _head(each: RunView) -> Component:
    run = each.summary
    phase = f"{run.phase}, " if run.phase and run.phase != "training" else ""
    generation = f"generation {run.generation}, " if run.generation > 1 else ""
    left = f", {duration(run.remaining_seconds)} left" if run.remaining_seconds else ""
    elapsed = duration(run.elapsed_seconds)
    end = f"; {run.advice}" if run.advice is not None else ""
    if run.stopped_early:
        end = f"; stopped early: no gain in {run.best_metric} beyond its standard error"
    return html.Div(
        [
            html.H1([html.Span(className="swatch", style={"background": each.color}), run.name, badge(run.state)]),
            html.P(f"{phase}{generation}{run.position}, {elapsed}{left}{end}"),
            html.P(f"run {run.run_id or 'without ID'}, started {local_time(run.started)}", className="hint"),
            html.Div(
                html.Div(style={"width": f"{100 * run.progress:.1f}%", "background": each.color}),
                className="bar",
                role="progressbar",
                **aria(label=f"progress of {run.name}", valuenow=round(100 * run.progress), valuemin=0, valuemax=100),
            ),
        ],
        className="head",
    )


def alerts(shown: Sequence[RunView]) -> Component:
    """Build the list of alerts; None if there are none."""
    several = len(shown) > 1
    found = [(each.summary.name, alert) for each in shown for alert in each.summary.alerts]
    return alert_list(
        "Alerts", [Alert(alert.level, f"{run}: {alert.text}") if several else alert for run, alert in found]
    )


def tiles(shown: Sequence[RunView]) -> Component:
    """Build the key figures: tiles of one run, a table of several."""
    if not shown:
        return None
    if len(shown) == 1:
        return html.Dl([tile(*figure) for figure in _key_figures(shown[0].summary)], className="tiles")
    titles = [title for title, _, _ in _key_figures(shown[0].summary)]
    rows = [[each.summary.name, *(value for _, value, _ in _key_figures(each.summary))] for each in shown]
    return table("Comparison of runs", ["Run", *titles], rows, stacked=True)


def _key_figures(run: Summary) -> list[tuple[str, str, str]]:
    """Return title, value and note of each key figure."""
    checkpoints = run.checkpoints
    last_time = checkpoints["last_time"]
    age = f"{duration(time.time() - last_time)} ago" if run.live and last_time else ""
    saved = f"step {checkpoints['last_step']:,}" if checkpoints["last_step"] is not None else "none yet"
    best = f"best, in epoch {run.best_epoch}; last {decimals(run.eval_metric)}" if run.best_value is not None else ""
    if run.best_error is not None:
        best = f"± {decimals(run.best_error)}; {best}"
    pushed = f"{size(run.traffic.get('bytes_pushed'))} pushed" if run.traffic else ""
    rate, spent = f"{count(run.steps_per_second)} steps/s", ", ".join(run.time_by_phase()[:3])
    return [
        ("Loss", decimals(run.loss), "mean of the last epoch"),
        (run.best_metric, decimals(run.best_value), best),
        ("Examples/s", count(run.examples_per_second), "; ".join(filter(None, (rate, spent)))),
        ("Saved vs. dense", times(run.dense_ratio), pushed),
        ("Checkpoint", saved, age or size(checkpoints["last_bytes"])),
        ("Restarts", str(len(run.restarts)), counted(len(run.alerts), "alert") if run.alerts else "no alerts"),
    ]


def results(shown: Sequence[RunView]) -> Component:
    """Say how each run stands beside the baselines, and why some are missing."""
    split = "test" if any("test" in each.summary.metrics for each in shown) else "valid"
    notes = dict.fromkeys(note for each in shown for note in each.summary.baseline_notes)
    verdicts = [html.P(f"{each.summary.name}: {_verdict(each.summary, split)}") for each in shown]
    return [*verdicts, *(html.P(note, className="hint") for note in notes)]


def _verdict(run: Summary, split: str) -> str:
    """Return in a sentence how ``run`` stands beside the baselines on ``split``."""
    values, metric = run.metrics.get(split, {}), run.best_metric
    if metric not in values:
        return f"not evaluated on {split} yet."
    if run.shortfall:
        return f"{run.shortfall}."
    queries = f"{count_queries(values)} queries" if "queries" in values else ""
    of_what = ", ".join(filter(None, (queries, f"task {run.task}" if run.task else "")))
    found = f"{metric} on {split} is {show_metric(values, metric)}{f' ({of_what})' if of_what else ''}"
    baselines = {name: each for name, each in run.baselines.get(split, {}).items() if metric in each}
    if not baselines:
        return f"{found}; {'baselines are measured at the end' if run.live else 'no baseline was measured'}."
    best = max(baselines, key=lambda name: baselines[name][metric])
    shown = f"{best.replace('_', ' ')} ({show_metric(baselines[best], metric)})"
    return f"{found}, above {shown}, the best of {counted(len(baselines), 'baseline')}."


def processes(shown: Sequence[RunView]) -> Component:
    """Build the table of processes of each run."""
    return [_processes(each.summary) for each in shown]


def _processes(run: Summary) -> Component:
    if not run.processes:
        return html.P(f"{run.name}: its folder has no data on processes.", className="hint")
    rows = [[name, badge(state), *others] for name, state, *others in map(process_cells, run.processes)]
    caption = f"Processes of {run.name}"
    return table(caption, PROCESS_COLUMNS, rows, text_columns=PROCESS_TEXT_COLUMNS, stacked=True)


def events(shown: Sequence[RunView]) -> Component:
    """Build the table of checkpoints, restarts, and the last failure of each run, the latest first."""
    return [_events(each) for each in shown]


_Row = tuple[float, str, int, str]
"""Time, kind, step and details of an event."""


def _events(each: RunView) -> Component:
    name = each.summary.name
    found = [_checkpoint_event(save) for save in each.run.training.saves]
    found += [(restart.time, "restart", restart.step, restart.describe()) for restart in each.summary.restarts]
    if (failure := each.summary.failure) is not None:
        ended = "; it ended the run" if failure.event.ends_run else ""
        log = f"log: {failure.event.log}" if failure.event.log else ""
        parts = (failure.event.describe(), failure.event.error, f"lost {failure.work()}{ended}", log)
        found.append((failure.time, "failure", failure.event.step, "; ".join(filter(None, parts))))
    if not found:
        return html.P(f"{name}: none yet.", className="hint")
    latest = sorted(found, reverse=True)
    rows = [(local_time(at), badge(kind), f"{step:,}", details) for at, kind, step, details in latest[:_MAX_EVENTS]]
    limit = f" (last {_MAX_EVENTS} of {len(latest):,})" if len(latest) > _MAX_EVENTS else ""
    return table(f"Events of {name}{limit}", ("Time", "Event", "Step", "Details"), rows, text_columns=4, stacked=True)


def _checkpoint_event(saved: TimedEvent) -> _Row:
    at, event = saved
    if isinstance(event, CheckpointFailed):
        return at, "not saved", event.step, event.message
    assert isinstance(event, CheckpointSaved)
    took = f"{size(event.bytes)} in {duration(event.seconds)}"
    return at, "checkpoint", event.step, f"{took}; training paused for {duration(event.pause_seconds)}"


def job(shown: Sequence[RunView]) -> Component:
    """Build the resolved job of each run and, for several, a table of the keys that differ."""
    parts: list[Component] = [_differences(shown)] if len(shown) > 1 else []
    for each in shown:
        text = html.Pre(each.run.job_text, tabIndex=0, role="region", **aria(label=f"job of {each.summary.name}"))
        parts.append(html.Details([html.Summary(f"job.yaml of {each.summary.name}"), text]))
    return parts


def _differences(shown: Sequence[RunView]) -> Component:
    jobs = [_flat(each.run.job) for each in shown]
    keys = [key for key in dict.fromkeys(key for job in jobs for key in job) if len({job.get(key) for job in jobs}) > 1]
    if not keys:
        return html.P("The jobs are identical.", className="hint")
    rows = [[key, *(job.get(key, "") for job in jobs)] for key in keys]
    titles = ["Key", *(each.summary.name for each in shown)]
    return table("Differences between jobs", titles, rows, text_columns=1 + len(shown))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    return found


# ---- services


def service_boxes(summaries: Sequence[ServiceSummary], selection: Selection) -> Component:
    """Build the list of services; None without any."""
    if not summaries:
        return None
    return [html.H2("Services"), *(_service_box(summary, selection) for summary in summaries)]


def _service_box(summary: ServiceSummary, selection: Selection) -> Component:
    served = "nothing is served yet" if summary.served is None else f"version {summary.served}"
    metric = ""
    if (record := summary.served_record) is not None and record.after is not None:
        metric = f" · {record.metric} {decimals(record.after)}"
    is_shown = summary.name == selection.service
    address = Selection(selection.runs, None if is_shown else summary.name).address()
    return box("service", summary.name, summary.state, f"{served}{metric}", address, is_shown=is_shown)


def service_head(service: ServiceSummary) -> Component:
    """Build the heading with what is served and since when, the alerts, and the key figures."""
    served = "No version is served yet."
    if service.served is not None:
        since = f" since {local_time(service.since)}" if service.since is not None else ""
        served = f"version {service.served} is served{since}"
    heading = [html.H1([service.name, badge(service.state)]), html.P(served), html.P(service.path, className="hint")]
    return [
        html.Div(heading, className="head"),
        alert_list(f"Alerts of {service.name}", service.alerts),
        html.Dl([tile(*figure) for figure in _service_figures(service)], className="tiles"),
    ]


def _service_figures(service: ServiceSummary) -> list[tuple[str, str, str]]:
    """Return title, value and note of each key figure."""
    record = service.served_record
    newest = local_time(service.newest) or "the time is unknown, or not in seconds"
    age = ("Age of the newest event", duration(service.age_seconds), newest)
    if record is None:
        return [age]
    before = "" if record.before is None else f"{decimals(record.before)} before training"
    return [age, (record.metric, decimals(record.after), before)]


def service_versions(service: ServiceSummary, runs: Mapping[int, str]) -> Component:
    """Build the table of versions, the latest first; ``runs`` has the names of the runs of some, which it links."""
    rows: list[list[Component]] = []
    for record in reversed(service.records[-_MAX_VERSIONS:]):
        number, decided, status, *others = version_row(service, record)
        run = runs.get(record.number)
        first = number if run is None else html.A(number, href=Selection([run], service.name).address())
        rows.append([first, decided, badge(status), *others])
    if not rows:
        return html.P("No version has been decided on yet.", className="hint")
    limit = f" (last {_MAX_VERSIONS} of {len(service.records):,})" if len(service.records) > _MAX_VERSIONS else ""
    caption = f"Versions of {service.name}{limit}; links open their runs"
    return table(caption, TITLES, rows, text_columns=TEXT_COLUMNS, stacked=True)
