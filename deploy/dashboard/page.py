"""The page, as HTML: its frame, and its changing parts, which are rebuilt from the selected runs."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import yaml
from dash import dcc, html

from crossfade.base.formatting import count, decimals, duration, local_time, share, size, times
from crossfade.base.text import counted
from crossfade.deploy.dashboard import charts, service_page
from crossfade.deploy.dashboard.alert import Alert
from crossfade.deploy.dashboard.charts import MAX_RUNS, Axis, RunView
from crossfade.deploy.dashboard.figures import Figure, reason_for_no_data
from crossfade.deploy.dashboard.page_elements import Component, alert_list, aria, badge, graph_card, table, tile
from crossfade.deploy.dashboard.processes import COLUMNS, STATE_TITLE, TEXT_COLUMNS
from crossfade.deploy.dashboard.summary import Summary, lost_steps
from crossfade.trainer.runs.events import CheckpointFailed, CheckpointSaved, TimedEvent
from crossfade.trainer.runs.shown_metrics import count_queries, show_metric

GRAPHS = {
    "loss": ("Loss", "Training loss of each step (smoothed), and the mean of each epoch."),
    "eval_metric": ("Validation metric", "The metric that selects the best epoch (evaluate.best_metric)."),
    "evaluation": ("Metric beside baselines", "The same metric of the best embeddings, ± its standard error."),
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
_MAX_EVENTS = 50
_TRIAL = re.compile(r"trial-\d+")
"""Names of the folders of trials in the folder of a study of 'crossfade tune'."""


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
            dcc.Store(id="service"),
            dcc.Store(id="listed-services"),
            dcc.Store(id="shown-service"),
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
            service_page.picker(),
            html.H2("Runs"),
            html.P(f"Select up to {MAX_RUNS} runs to compare.", className="hint", id="runs-hint"),
            html.Div(id="runs", className="runs", role="group", **aria(label="Runs to show")),
            html.P("No runs yet. New runs appear here.", id="no-runs", hidden=True),
        ],
        className="picker",
        **aria(label="Runs and services"),
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
        html.Section([html.H2("Evaluation"), html.Div(id="results"), _graphs(("evaluation",))]),
        html.Section([html.H2("Step time and traffic"), _graphs(rows[1])]),
        html.Section([html.H2("Processes"), html.Div(id="processes"), _graphs(rows[2])]),
        html.Section([html.H2("Checkpoints and restarts"), html.Div(id="events")]),
        html.Section([html.H2("Job"), html.Div(id="job")]),
    ]
    return html.Main(
        [
            html.P(id="missing-service", className="missing", role="status"),
            html.P(id="missing-runs", className="missing", role="status"),
            service_page.panel(),
            html.Div(id="head"),
            html.Div(id="alerts"),
            html.Div(id="tiles"),
            *sections,
        ],
        id="run",
        tabIndex=-1,
    )


def _graphs(names: Sequence[str]) -> Component:
    return html.Div([graph_card(name, *GRAPHS[name]) for name in names], className=f"graphs of-{len(names)}")


def run_boxes(summaries: Sequence[Summary], selected: Sequence[str]) -> list[Component]:
    """Build the list of runs, each with a checkbox; the trials of a study are together, at the place of the first.

    They are buttons with the role of a checkbox: Dash's own checklist loses its selection when its options change.
    """
    found: list[Component] = []
    studies: dict[str, list[Summary]] = {}
    for summary in summaries:
        study, _, trial = summary.name.rpartition("/")
        if not study or not _TRIAL.fullmatch(trial):
            found.append(_run_box(summary, ticked=summary.name in selected))
        elif study in studies:
            studies[study].append(summary)
        else:
            studies[study] = [summary]
            found.append(study)
    return [_study(each, studies[each], selected) if isinstance(each, str) else each for each in found]


def _study(name: str, trials: Sequence[Summary], selected: Sequence[str]) -> Component:
    """Build the boxes of the trials of a study below a line with its best value."""
    best = max(
        (trial for trial in trials if trial.best_value is not None),
        key=lambda trial: trial.best_value or 0.0,
        default=None,
    )
    shown = "" if best is None else f" · {best.best_metric} {decimals(best.best_value)}"
    boxes = [_run_box(trial, ticked=trial.name in selected) for trial in trials]
    is_open = any(trial.name in selected for trial in trials)
    head = html.Summary(f"{name}: {counted(len(trials), 'trial')}{shown}")
    mark: dict[str, Any] = {"data-study": name}
    return html.Details([head, *boxes], open=is_open, key=name, **mark)


def _run_box(summary: Summary, *, ticked: bool) -> Component:
    best = "not evaluated yet"
    if summary.best_value is not None:
        best = f"{summary.best_metric} {decimals(summary.best_value)}"
    return html.Button(
        [
            html.Span([html.Span(summary.name, className="name"), badge(summary.state)], className="line"),
            html.Span(f"{share(summary.progress)} · {best}", className="hint"),
        ],
        id={"run": summary.name},
        type="button",
        role="checkbox",
        **aria(checked="true" if ticked else "false"),
    )


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


def missing_runs(requested: Sequence[str], known: Sequence[str]) -> Component:
    """Build the notice about runs in the page's address that do not exist; None if all do."""
    missing = [f"'{name}'" for name in requested if name not in known]
    if not missing:
        return None
    instead = "; the latest is shown instead" if known and len(missing) == len(requested) else ""
    return f"There is no run {', '.join(missing)}{instead}. The list of runs has all there are."


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
    return [
        ("Loss", decimals(run.loss), "mean of the last epoch"),
        (run.best_metric, decimals(run.best_value), best),
        ("Examples/s", count(run.examples_per_second), f"{count(run.steps_per_second)} steps/s"),
        ("Saved vs. dense", times(run.dense_ratio), pushed),
        ("Checkpoint", saved, age or size(checkpoints["last_bytes"])),
        ("Restarts", str(len(run.restarts)), counted(len(run.alerts), "alert") if run.alerts else "no alerts"),
    ]


def processes(shown: Sequence[RunView]) -> Component:
    """Build the table of processes of each run."""
    titles = [column.title for column in COLUMNS]
    return [
        table(
            f"Processes of {each.summary.name}",
            titles,
            [
                [badge(row.state) if column.title == STATE_TITLE else column.text(row) for column in COLUMNS]
                for row in each.summary.processes
            ],
            text_columns=TEXT_COLUMNS,
            stacked=True,
        )
        if each.summary.processes
        else html.P(f"{each.summary.name}: its folder has no data on processes.", className="hint")
        for each in shown
    ]


def events(shown: Sequence[RunView]) -> Component:
    """Build the last failure of each run, and the table of its checkpoints and restarts, the latest first."""
    return [part for each in shown for part in (*_failure(each.summary), _events(each))]


def _failure(run: Summary) -> list[Component]:
    """Build a table with the last failure of ``run``; nothing without one."""
    failure = run.failure
    if failure is None:
        return []
    ended = "; it ended the run" if failure.ends_run else ""
    parts = [
        failure.cause,
        failure.error,
        f"lost {failure.work()}{ended}",
        f"log: {failure.log}" if failure.log else "",
    ]
    row = (local_time(failure.time), failure.role or "", failure.host or "", "; ".join(filter(None, parts)))
    titles = ("Time", "Process", "Host", "Details")
    return [table(f"Last failure of {run.name}", titles, [row], text_columns=4, stacked=True)]


def _events(each: RunView) -> Component:
    name = each.summary.name
    found = [_checkpoint_event(save) for save in each.run.training.saves]
    for restart in each.summary.restarts:
        lost = f"; {steps}" if (steps := lost_steps(restart)) else ""
        downtime = f"; no training for {duration(restart['seconds'])}" if restart.get("seconds") else ""
        found.append((restart.get("time"), "restart", restart.get("step"), f"{restart.get('cause')}{lost}{downtime}"))
    if not found:
        return html.P(f"{name}: none yet.", className="hint")
    latest = sorted(found, key=lambda event: -(event[0] or 0.0))
    rows = [
        (local_time(at), badge(kind), f"{step:,}" if isinstance(step, int) else "", details)
        for at, kind, step, details in latest[:_MAX_EVENTS]
    ]
    limit = f" (last {_MAX_EVENTS} of {len(latest):,})" if len(latest) > _MAX_EVENTS else ""
    caption = f"Checkpoints and restarts of {name}{limit}"
    return table(caption, ("Time", "Event", "Step", "Details"), rows, text_columns=4, stacked=True)


def _checkpoint_event(saved: TimedEvent) -> tuple[float | None, str, int | None, str]:
    """Return time, kind, step and details of a checkpoint that was written or failed."""
    at, event = saved
    if isinstance(event, CheckpointFailed):
        return at, "not saved", event.step, event.message
    assert isinstance(event, CheckpointSaved)
    took = f"{size(event.bytes)} in {duration(event.seconds)}"
    return at, "checkpoint", event.step, f"{took}; training paused for {duration(event.pause_seconds)}"


def results(shown: Sequence[RunView]) -> Component:
    """Say how each run stands beside the baselines, and why some are missing."""
    notes = dict.fromkeys(note for each in shown for note in each.summary.baseline_notes)
    split, metric = charts.judged_by(shown)
    verdicts = [f"{each.summary.name}: {_verdict(each.summary, split, metric)}" for each in shown]
    return [*map(html.P, verdicts), *(html.P(note, className="hint") for note in notes)]


def _verdict(run: Summary, split: str, metric: str) -> str:
    """Return in a sentence how ``run`` stands beside the baselines on ``split``."""
    values = run.metrics.get(split, {})
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


def job(shown: Sequence[RunView]) -> Component:
    """Build the resolved job of each run and, for several, a table of the keys that differ."""
    parts: list[Component] = [_differences(shown)] if len(shown) > 1 else []
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


def describe_chart(name: str, shown: Sequence[RunView], figure: Figure) -> str:
    """Describe the graph ``name``, drawn as ``figure``, in words, for screen readers."""
    if (reason := reason_for_no_data(figure)) is not None:
        return f"{GRAPHS[name][0]}. {reason}"
    descriptions = [f"{each.summary.name}: {_describe(name, each.summary)}" for each in shown]
    return f"{GRAPHS[name][0]}. {'; '.join(descriptions)}"


def _describe(name: str, run: Summary) -> str:
    return {
        "loss": decimals(run.loss),
        "eval_metric": f"{run.best_metric} {decimals(run.eval_metric)}",
        "evaluation": "see the sentence above",
        "throughput": f"{count(run.examples_per_second)} examples per second",
        "phases": ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in run.phase_seconds.items()),
        "traffic": f"{size(run.traffic.get('bytes_pushed'))} pushed, "
        f"{size(run.traffic.get('dense_equivalent_bytes_pushed'))} if dense",
        "memory": ", ".join(f"{process.name} {size(process.resident_bytes)}" for process in run.processes),
        "updates": ", ".join(
            f"{process.name} {count(process.updated_per_second)} rows per second"
            for process in run.processes
            if process.rows is not None
        ),
    }[name]
