"""The part of the page about a service of 'crossfade refresh', as HTML, which is rebuilt from the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dash import html

from crossfade.base.formatting import count, decimals, duration, local_time
from crossfade.base.text import counted
from crossfade.deploy.dashboard.page_elements import Component, Selection, alert_list, badge, box, table, tile
from crossfade.deploy.dashboard.service_reader import TEXT_COLUMNS, TITLES, ServiceSummary, version_row

_MAX_ROWS = 50


def boxes(summaries: Sequence[ServiceSummary], selection: Selection) -> Component:
    """Build the list of services; None without any."""
    if not summaries:
        return None
    return [html.H2("Services"), *(_box(summary, selection) for summary in summaries)]


def _box(summary: ServiceSummary, selection: Selection) -> Component:
    served = "nothing is served yet" if summary.served is None else f"version {summary.served}"
    metric = ""
    if (record := summary.served_record) is not None and record.after is not None:
        metric = f" · {record.metric} {decimals(record.after)}"
    is_shown = summary.name == selection.service
    address = Selection(selection.runs, None if is_shown else summary.name).address()
    return box("service", summary.name, summary.state, f"{served}{metric}", address, is_shown=is_shown)


def head(service: ServiceSummary) -> Component:
    """Build the heading with what is served and since when, the alerts, and the key figures."""
    served = "No version is served yet."
    if service.served is not None:
        since = f" since {local_time(service.since)}" if service.since is not None else ""
        served = f"version {service.served} is served{since}"
    heading = [html.H1([service.name, badge(service.state)]), html.P(served), html.P(service.path, className="hint")]
    return [
        html.Div(heading, className="head"),
        alert_list(f"Alerts of {service.name}", service.alerts),
        html.Dl([tile(*figure) for figure in _key_figures(service)], className="tiles"),
    ]


def _key_figures(service: ServiceSummary) -> list[tuple[str, str, str]]:
    """Return title, value and note of each key figure."""
    record, last = service.served_record, service.last
    statuses = [each.status for each in service.records]
    files = 0 if last is None else service.file_counts.get(last.number, 0)
    return [
        (
            "Age of the newest event",
            duration(service.age_seconds),
            local_time(service.newest) or "the time is unknown, or not in seconds",
        ),
        (
            "Metric" if record is None else record.metric,
            decimals(None if record is None else record.after),
            "" if record is None or record.before is None else f"{decimals(record.before)} before training",
        ),
        (
            "Versions",
            count(len(statuses)),
            f"{statuses.count('rejected'):,} rejected, {statuses.count('withdrawn'):,} withdrawn",
        ),
        (
            "Last version took",
            duration(sum(last.seconds.values()) if last else None),
            f"for {counted(last.events, 'event')} of {counted(files, 'file')}" if last else "",
        ),
    ]


def versions(service: ServiceSummary, runs: Mapping[int, str]) -> Component:
    """Build the table of versions, the latest first; ``runs`` has the names of the runs of some, which it links."""
    rows: list[list[Component]] = []
    for record in reversed(service.records[-_MAX_ROWS:]):
        number, decided, status, *others = version_row(service, record)
        run = runs.get(record.number)
        first = number if run is None else html.A(number, href=Selection([run], service.name).address())
        rows.append([first, decided, badge(status), *others])
    if not rows:
        return html.P("No version has been decided on yet.", className="hint")
    limit = f" (last {_MAX_ROWS} of {len(service.records):,})" if len(service.records) > _MAX_ROWS else ""
    caption = f"Versions of {service.name}{limit}; links open their runs"
    return table(caption, TITLES, rows, text_columns=TEXT_COLUMNS, stacked=True)
