"""The part of the page about a service of 'crossfade refresh', as HTML: its frame, and its changing parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from dash import html

from crossfade.base.formatting import count, decimals, duration, local_time
from crossfade.base.text import counted
from crossfade.deploy.dashboard.figures import Figure, reason_for_no_data
from crossfade.deploy.dashboard.page_elements import Component, alert_list, aria, badge, graph_card, table, tile
from crossfade.deploy.dashboard.service_reader import TEXT_COLUMNS, TITLES, ServiceSummary, version_row
from crossfade.deploy.refresh.versions import VersionRecord

PARTS = ("head", "alerts", "tiles", "versions")
_CHART = "Metric before and after training"
_MAX_ROWS = 50


def picker() -> Component:
    """Build the list of services, which the style hides while there is none."""
    return html.Div(
        [
            html.H2("Services"),
            html.P("Select one to show.", className="hint"),
            html.Div(id="services", className="runs", role="group", **aria(label="Service to show")),
        ],
        className="services",
    )


def panel() -> Component:
    """Build the section of the service that is chosen, which is hidden while none is."""
    caption = "On new events that were held out: the model that was served, and the version trained from it."
    chart = html.Div(graph_card("versions", _CHART, caption), className="graphs of-1")
    parts: dict[str, Component] = {part: html.Div(id=f"service-{part}") for part in PARTS}
    return html.Section(
        [parts["head"], parts["alerts"], parts["tiles"], chart, parts["versions"]],
        id="service-panel",
        hidden=True,
        **aria(label="Service"),
    )


def boxes(summaries: Sequence[ServiceSummary], chosen: str) -> list[Component]:
    """Build the list of services, each with a checkbox."""
    return [_box(summary, ticked=summary.name == chosen) for summary in summaries]


def _box(summary: ServiceSummary, *, ticked: bool) -> Component:
    served = "nothing is served yet" if summary.served is None else f"version {summary.served}"
    metric = ""
    if (record := summary.served_record) is not None and record.after is not None:
        metric = f" · {record.metric} {decimals(record.after)}"
    return html.Button(
        [
            html.Span([html.Span(summary.name, className="name"), badge(summary.state)], className="line"),
            html.Span(f"{served}{metric}", className="hint"),
        ],
        id={"service": summary.name},
        type="button",
        role="checkbox",
        **aria(checked="true" if ticked else "false"),
    )


def missing(requested: str, known: Sequence[str]) -> Component:
    """Build the notice about a service in the page's address that does not exist; None if it does."""
    if not requested or requested in known:
        return None
    return f"There is no service '{requested}'. The list of services has all there are."


def head(service: ServiceSummary) -> Component:
    """Build the heading: the name, what is served and since when, and how fresh that is."""
    served = "No version is served yet."
    if service.served is not None:
        since = f" since {local_time(service.since)}" if service.since is not None else ""
        served = f"version {service.served} is served{since}"
    return html.Div(
        [html.H1([service.name, badge(service.state)]), html.P(served), html.P(service.path, className="hint")],
        className="head",
    )


def alerts(service: ServiceSummary) -> Component:
    """Build the list of alerts; None if there are none."""
    return alert_list(f"Alerts of {service.name}", service.alerts)


def tiles(service: ServiceSummary) -> Component:
    """Build the key figures."""
    record, last = service.served_record, service.last
    rejected = sum(each.status == "rejected" for each in service.records)
    withdrawn = sum(each.status == "withdrawn" for each in service.records)
    newest = local_time(service.newest) or "the time is unknown, or not in seconds"
    figures = [
        ("Served version", "none" if service.served is None else str(service.served), _since(service)),
        ("Age of the newest event", duration(service.age_seconds), newest),
        (
            "Metric" if record is None else record.metric,
            decimals(None if record is None else record.after),
            "" if record is None or record.before is None else f"{decimals(record.before)} before training",
        ),
        ("Versions", count(len(service.records)), f"{rejected:,} rejected, {withdrawn:,} withdrawn"),
        ("Last version took", duration(sum(last.seconds.values()) if last else None), _taken(service, last)),
    ]
    return html.Dl([tile(*figure) for figure in figures], className="tiles")


def _since(service: ServiceSummary) -> str:
    return "" if service.since is None else f"since {local_time(service.since)}"


def _taken(service: ServiceSummary, record: VersionRecord | None) -> str:
    """Return what a version took, in words."""
    if record is None:
        return ""
    return f"for {counted(record.events, 'event')} of {counted(len(record.files), 'file')}"


def versions(service: ServiceSummary, runs: Mapping[int, str]) -> Component:
    """Build the table of versions, the latest first; ``runs`` has the names of the runs of some, which it links."""
    rows: list[list[Component]] = []
    for record in reversed(service.records[-_MAX_ROWS:]):
        number, decided, status, *others = version_row(service, record)
        rows.append([_link(service, number, runs.get(record.number)), decided, badge(status), *others])
    if not rows:
        return html.P("No version has been decided on yet.", className="hint")
    limit = f" (last {_MAX_ROWS} of {len(service.records):,})" if len(service.records) > _MAX_ROWS else ""
    caption = f"Versions of {service.name}{limit}; links open their runs"
    return table(caption, TITLES, rows, text_columns=TEXT_COLUMNS, stacked=True)


def _link(service: ServiceSummary, number: str, run: str | None) -> Component:
    if run is None:
        return number
    address = f"?{urlencode([('run', run), ('service', service.name)])}"
    return html.A(number, href=address, **aria(label=f"version {number}: show its run"))


def describe_chart(service: ServiceSummary, figure: Figure) -> str:
    """Describe the chart, drawn as ``figure``, in words, for screen readers."""
    if (reason := reason_for_no_data(figure)) is not None or service.last is None:
        return f"{_CHART}. {reason or ''}"
    last, rejected = service.last, [str(each.number) for each in service.records if each.status == "rejected"]
    values = f"{last.metric} {decimals(last.before)} before and {decimals(last.after)} after training"
    ends = f"; rejected: {', '.join(rejected[-_MAX_ROWS:])}" if rejected else ""
    return f"{_CHART}. Version {last.number}: {values}{ends}"
