"""``crossfade status``: show the state of runs and services in the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from crossfade.base import formatting as text
from crossfade.cli.command import as_command
from crossfade.deploy.dashboard.options import RunsOptions
from crossfade.terminal import PrintOptions, align, print_lines, print_result

if TYPE_CHECKING:
    from crossfade.deploy.dashboard.figures import LastFailure, ProcessRow, Summary
    from crossfade.deploy.dashboard.service_reader import ServiceSummary

_DESCRIPTION = """\
Show the state of runs and services: progress, metrics, throughput, processes, checkpoints, restarts, the last failure,
and alerts; of services the served version, how fresh it is, and the last versions.

The command reads only these folders. It works during a run, on another host that shares the folder, and afterwards.
"""
_EXAMPLES = (
    ("crossfade status", "List the runs in runs/, and the services in services/."),
    ("crossfade status services/music", "Show a service, and list the runs of its versions."),
    ("watch crossfade status runs/lastfm", "Show one run, again every 2 seconds until Ctrl-C."),
    ("crossfade status runs/lastfm --json", "Print one line of JSON: objects in the lists runs and services."),
)
_BAR = 30
_LABEL = 13
_VERSIONS = 10


class StatusOptions(PrintOptions, RunsOptions):
    """Which runs and services are shown, and how."""


@as_command("status", _DESCRIPTION, _EXAMPLES)
def run(options: StatusOptions) -> int:
    """Show the runs."""
    from crossfade.deploy.dashboard.summary import read_summaries

    runs = options.open_runs()
    with runs.lock:
        found = [summary for _, summary in read_summaries(runs)]
        services = [service.summarize(time.time()) for service in runs.services()]
    value = {"runs": [run.to_json() for run in found], "services": [each.to_json() for each in services]}
    print_result(options, value, lambda: print_lines(_lines(found, services)))
    return 0


def _lines(found: Sequence[Summary], services: Sequence[ServiceSummary]) -> Iterator[str]:
    for service in services:
        yield from _service(service)
    if not found:
        yield "no runs yet"
    else:
        yield from _screen(found[0]) if len(found) == 1 else _table(found)


def _service(service: ServiceSummary) -> Iterator[str]:
    """Describe a service: what is served, how fresh that is, and its last versions, the oldest first."""
    from crossfade.deploy.dashboard.service_reader import TEXT_COLUMNS, TITLES, version_row

    yield f"{service.name}: {service.state}  ({service.path})"
    if service.served is not None:
        since = "" if service.since is None else f", since {text.local_time(service.since)}"
        yield _line("served", f"version {service.served}{since}")
    if service.newest is not None:
        yield _line("newest event", f"{text.duration(service.age_seconds)} old, {text.local_time(service.newest)}")
    if service.records:
        yield ""
        last = service.records[-_VERSIONS:]
        rows = [[title.lower() for title in TITLES], *(version_row(service, record) for record in last)]
        yield from align(rows, left=TEXT_COLUMNS)
    yield from (f"{alert.level}: {alert.text}" for alert in service.alerts)
    yield ""


def _screen(run: Summary) -> Iterator[str]:
    """Describe one run in full."""
    phase = f", {run.phase}" if run.phase and run.phase != "training" else ""
    early = ", stopped early" if run.stopped_early else ""
    generation = f", generation {run.generation}" if run.generation > 1 else ""
    yield f"{run.name}: {run.state}{early}{phase}{generation}, {text.duration(run.elapsed_seconds)}  ({run.path})"
    left = f", {text.duration(run.remaining_seconds)} remaining" if run.remaining_seconds else ""
    bar = ("#" * round(_BAR * run.progress)).ljust(_BAR, ".")
    yield f"[{bar}] {text.share(run.progress):>5}  {run.position}{left}"
    yield ""
    if run.run_id is not None:
        yield _line("run", f"{run.run_id}, started {text.local_time(run.started)}")
    yield _line("loss", f"{text.decimals(run.loss)} in the last epoch")
    if run.best_value is not None:
        last = f"{text.decimals(run.eval_metric)} in the last evaluation"
        best = f"{text.with_error(run.best_value, run.best_error)} in epoch {run.best_epoch}"
        yield _line("metric", f"best {run.best_metric} on valid {best}; {last}")
    yield from (_line("", line) for line in (run.advice, run.shortfall) if line is not None)
    yield _line(
        "throughput",
        f"{text.count(run.examples_per_second)} examples and {text.count(run.steps_per_second)} steps per second",
    )
    if spent := run.time_by_phase():
        yield _line("time", ", ".join(spent))
    yield _line("checkpoints", _checkpoints(run))
    yield _line("restarts", f"{len(run.restarts)}")
    if run.failure is not None:
        yield from _failure(run.failure)
    if run.processes:
        yield ""
        yield from _processes(run.processes)
    yield from (f"{alert.level}: {alert.text}" for alert in run.alerts)


def _line(label: str, value: str) -> str:
    return f"{label:<{_LABEL}}{value}"


def _checkpoints(run: Summary) -> str:
    kept = run.checkpoints
    failed = f", {kept['failed']} failed" if kept["failed"] else ""
    if kept["last_step"] is None:
        return f"none yet{failed}"
    age = f", {text.duration(time.time() - kept['last_time'])} ago" if run.live else ""
    return f"{kept['written']} written{failed}; the latest of step {kept['last_step']:,}{age}"


def _failure(failure: LastFailure) -> Iterator[str]:
    """Describe the last failure: what happened and when, the role's error and log, and what was lost."""
    event = failure.event
    yield _line("last failure", f"{event.describe()}, {text.local_time(failure.time)}")
    log = f"log: {event.log}" if event.log else ""
    if event.error:
        yield _line("", f"{event.error} ({log})" if log else event.error)
    elif log:
        yield _line("", log)
    yield _line("", f"lost {failure.work()}{'; it ended the run' if event.ends_run else ''}")


def _processes(rows: Sequence[ProcessRow]) -> Iterator[str]:
    from crossfade.deploy.dashboard.figures import PROCESS_COLUMNS, PROCESS_TEXT_COLUMNS, process_cells

    yield from align([PROCESS_COLUMNS, *map(process_cells, rows)], left=PROCESS_TEXT_COLUMNS)


def _table(runs: Sequence[Summary]) -> Iterator[str]:
    """Describe each run in a line."""
    head = ("run", "state", "done", "step", "loss", "best", "", "examples/s", "restarts", "alerts")
    cells = [
        (
            run.name,
            run.state,
            text.share(run.progress),
            f"{run.step:,}",
            text.decimals(run.loss),
            text.decimals(run.best_value),
            run.best_metric if run.best_value is not None else "",
            text.count(run.examples_per_second),
            str(len(run.restarts)),
            str(len(run.alerts)) if run.alerts else "",
        )
        for run in runs
    ]
    yield from align([head, *cells], left=2)
    for run in runs:
        yield from (f"{run.name}: {alert.level}: {alert.text}" for alert in run.alerts if alert.level != "info")
