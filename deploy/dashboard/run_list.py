"""The list of runs beside the page, as HTML: a box for each, and those of a study together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dash import html

from crossfade.base.formatting import decimals, share
from crossfade.base.text import counted
from crossfade.deploy.dashboard.page_elements import Component, aria, badge
from crossfade.deploy.dashboard.summary import Summary

_TRIAL = re.compile(r"(rung-\d+-)?trial-\d+")
"""Names of the folders of trials in the folder of a study of 'crossfade tune'."""


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
    return html.Details([head, *boxes], open=is_open, key=name, **{"data-study": name})


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
