"""``crossfade refresh``: keep a model fresh from event files that arrive, once or until it is stopped."""

from __future__ import annotations

import json
import logging
import time
from contextlib import closing
from typing import TYPE_CHECKING, NoReturn

from crossfade.base.command_line import command_line
from crossfade.base.errors import CrossfadeError, Option, Text, as_typed, worded
from crossfade.base.formatting import decimals, duration, with_error
from crossfade.base.io.disk_errors import describe_disk_error
from crossfade.base.signals import stopper
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.deploy.refresh.options import RefreshOptions
from crossfade.terminal import PrintOptions, print_line, print_lines, print_result

if TYPE_CHECKING:
    from crossfade.deploy.refresh.increment import RefreshedService
    from crossfade.deploy.refresh.versions import VersionRecord

_logger = logging.getLogger(__name__)
_MAX_WAIT = 60.0
"""Seconds that a single call waits for files to settle, at most."""
_ARRIVALS = ("waiting", "settling", "unpublished", "set_aside", "unmatched")
_EXAMPLES = (
    ("crossfade refresh music.yaml", "Take the event files that are new, train on them, and publish the version."),
    ("crossfade refresh music.yaml --every 10m", "The same every ten minutes, until a signal arrives."),
    ("crossfade serve services/music", "Serve the published version, and each later one as soon as it is there."),
    ("crossfade refresh music.yaml --status", "Show what waits."),
)
_NOTES = """\
SERVICE is a YAML file:

  name: music
  events: [s3://music/events/*/*.parquet]
  prepare: {query: customer=user_id, item: track=track_id, timestamp: at}
  job: {train: {epochs: 20}}
  increment_job: {train: {epochs: 4}}
  publish_if: ndcg@10 >= 0.98 * last

The first version trains on all events, by job. Each later one extends the dataset and continues the training on new
events and on earlier ones (replay), by job with the keys of increment_job. It is published if it meets publish_if on
new events that were held out; otherwise its events are taken again with the next file.

Each file is taken once, by its name; a local file that is being written should have another name until it is complete.
A command that was killed continues where it was; only one runs at a time.

Exit codes: 0 a version was published, or there was nothing new; 1 the training failed, or a version was rejected;
2 invalid input, such as an event file with faults, or events that never matched a file. Whatever fails, the last
version is served.
"""


class RefreshCommand(PrintOptions, RefreshOptions):
    """The options of the command."""


@as_command(
    "refresh",
    "Keep a model fresh: take new event files, train on them, judge the result, and publish it.",
    _EXAMPLES,
    _NOTES,
)
def run(options: RefreshCommand) -> int:
    """Take what is new, once or at intervals.

    Raises:
        CrossfadeError: a step failed; the last version is served.
    """
    from crossfade.deploy.refresh.increment import RefreshedService
    from crossfade.deploy.refresh.service_file import load_service

    config = load_service(options.service)
    with closing(RefreshedService(config)) as service:
        if options.status:
            _print_status(service, options)
            return 0
        if options.every is not None:
            _refresh_at_intervals(service, options, options.every)
        return _refresh(service, options)


def _refresh_at_intervals(service: RefreshedService, options: RefreshCommand, seconds: float) -> NoReturn:
    """Take what is new at intervals of ``seconds``, and serve metrics.

    Raises:
        StopSignal: a signal arrived.
        InputError: the metrics cannot be served at their address.
    """
    from crossfade.deploy.cluster.process_metrics import process_metrics
    from crossfade.deploy.refresh.metrics import RefreshMetrics
    from crossfade.trainer.monitoring.http import serve_metrics

    metrics, of_process = RefreshMetrics(service), process_metrics(service.config.name, "refresh")
    of_process.register("refresh", metrics)
    of_process.state = metrics.state
    of_process.set_identity()
    source = Option("metrics_port")
    with serve_metrics(of_process, options.metrics_port, options.metrics_host, "127.0.0.1", source=source) as listener:
        if listener.address is not None:
            _logger.info(f"metrics: http://{listener.address}/metrics")
        _logger.info(f"looking for new events every {duration(seconds)}")
        while True:
            began = time.monotonic()
            try:
                with metrics.attempt():
                    _refresh(service, options)
            except Exception as error:  # an error of one attempt ends no later one
                _report(error)
            stopper.wait(began + seconds - time.monotonic())
            stopper.check()


def _refresh(service: RefreshedService, options: RefreshCommand) -> int:
    from crossfade.display import progress_bars

    with progress_bars() as bars:

        def take() -> VersionRecord | None:
            return service.refresh(
                bars, lambda: stopper.number is not None, deferred=stopper.deferred, publish=options.publish
            )

        record = take()
        settling = service.arrivals.settling.values() if service.arrivals is not None else ()
        if record is None and options.every is None and 0 < (seconds := max(settling, default=0.0)) <= _MAX_WAIT:
            _logger.info(f"files were written a moment ago (settle_seconds): waiting for {duration(seconds)}")
            stopper.wait(seconds)
            record = take()
    if record is None:
        stopper.check("the same command continues")
        if options.every is None and not options.json_:
            arrivals = service.arrivals
            print_line("nothing is taken yet" if arrivals is not None and arrivals.settling else "no new event files")
            for line in arrivals.reasons() if arrivals is not None else ():
                print_line(worded(line, as_typed))
        return 0
    print_line(record.model_dump_json() if options.json_ else _describe(record), flush=True)
    stopper.check()
    return int(record.status == "rejected")


def _describe(record: VersionRecord) -> str:
    """Describe a version that was decided on in a line."""
    took = duration(sum(record.seconds.values()))
    queries = counted(record.queries, "query", "queries")
    metric = f"{record.metric} {with_error(record.after, record.error)} of {queries}"
    if record.before is not None:
        metric += f", {decimals(record.before)} before"
    sound = sum(not file.is_faulty for file in record.files)
    taken = f"{counted(record.events, 'new event')} of {counted(sound, 'file')}"
    if not record.files:
        taken = "without the forgotten ids, and without new events"
    served = f"; version {record.base} is still served, and the next new file takes these events again"
    rejected = served if record.status == "rejected" else ""
    return f"version {record.number} {record.status}: {taken}, {metric}, {took}{rejected}"


def _report(error: Exception) -> None:
    """Report a failed attempt of several, with its details; of an error that is not foreseen, with the traceback."""
    for line in error.details if isinstance(error, CrossfadeError) else ():
        _logger.warning(worded(line, as_typed))
    match error:
        case CrossfadeError():
            message, traceback = error.worded(as_typed), None
        case OSError():
            message, traceback = describe_disk_error(error), None
        case _:
            message, traceback = f"unexpected {type(error).__name__}", error
    _logger.error(f"{message}; the last version is still served, and the next attempt follows", exc_info=traceback)


def _print_status(service: RefreshedService, options: RefreshCommand) -> None:
    from crossfade.deploy.refresh.event_files import first_names

    versions, arrivals = service.versions, service.find_arrivals()
    value = {
        "current": None if versions.current is None else versions.current.number,
        "versions": [json.loads(record.model_dump_json()) for record in versions.records],
        "failure": versions.failure,
        **{name: getattr(arrivals, name) for name in _ARRIVALS},
    }
    names = first_names(arrivals.waiting)
    waiting = f"{counted(len(arrivals.waiting), 'event file')} waiting{': ' if names else ''}{names}"
    lines: list[Text] = [waiting, *arrivals.reasons()]
    if versions.failure is not None:
        lines.insert(0, versions.failure)
    if versions.must_forget:
        lines.insert(0, "ids were forgotten: the next call publishes a version without them, and then takes events")
    next_step = command_line("status", service.folder)
    lines.append(f"versions: {next_step}" if versions.records else "no version yet")
    print_result(options, value, lambda: print_lines(worded(line, as_typed) for line in lines))
