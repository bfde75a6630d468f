"""``crossfade refresh``: keep a model fresh from event files that arrive, once or until it is stopped."""

from __future__ import annotations

import json
import logging
import time
from contextlib import closing
from typing import TYPE_CHECKING, NoReturn

from crossfade.base.errors import CrossfadeError, as_typed, option_named, worded
from crossfade.base.formatting import decimals, duration, local_time
from crossfade.base.options import option
from crossfade.base.signals import stopper
from crossfade.base.text import counted
from crossfade.cli.command import as_command
from crossfade.deploy.refresh.options import RefreshOptions
from crossfade.terminal import print_json, print_line, print_table

if TYPE_CHECKING:
    from crossfade.deploy.refresh.increment import RefreshedService
    from crossfade.deploy.refresh.versions import VersionRecord

_logger = logging.getLogger(__name__)
_MAX_BACKOFF_SECONDS = 3600.0
"""After unexpected errors, attempts follow at intervals that double up to this, unless the interval is longer."""
_EXAMPLES = (
    ("crossfade refresh music.yaml", "Take the event files that are new, train on them, and publish the version."),
    ("crossfade refresh music.yaml --every 10m", "The same every ten minutes, until a signal arrives."),
    ("crossfade serve services/music", "Serve the published version, and each later one as soon as it is there."),
    ("crossfade refresh music.yaml --status", "Show the versions and what waits."),
)
_NOTES = """\
SERVICE is a YAML file:

  name: music
  events: [s3://music/events/*/*.parquet]
  prepare: {query: customer=user_id, item: track=track_id, timestamp: at}
  job: {train: {epochs: 20}}
  increment_job: {train: {epochs: 4}}
  publish_if: ndcg@10 >= 0.98 * last

The first version trains on all events, by job. Each later one continues it: new files extend the dataset (--base),
customers and tracks keep their rows, and the model is trained on the new events and on earlier ones (replay), first
those of the customers who have new ones, by job with the keys of increment_job. Before that, the model that it
continues is judged by a sample of the new events, which no version is trained on; the new version is published if it
meets publish_if on the same sample. Otherwise its events wait for the next file, and are taken again with it.

Paths count from the folder of SERVICE. Each file is taken once, by its name; a local file that is being written should
have another name until it is complete. With prepare: {on_bad_line: skip}, files that cannot be read are set aside.
A command that was killed continues where it was; only one runs at a time. All keys: docs/fresh-models.md; metrics that
are served at intervals: docs/metrics.md.

Exit codes: 0 a version was published, or there was nothing new; 1 the training failed, or a version was rejected;
2 invalid input, such as an event file with faults, or events that never matched a file. Whatever fails, the last
version is served.
"""


class RefreshCommand(RefreshOptions):
    """The options of the command."""

    json_: bool = option(False, "print versions as JSON, a line each", group="output")


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
            _print_status(service, as_json=options.json_)
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
    source = option_named("metrics_port")
    with serve_metrics(of_process, options.metrics_port, options.metrics_host, "127.0.0.1", source=source) as listener:
        if listener.address is not None:
            _logger.info(f"metrics: http://{listener.address}/metrics")
        wait = seconds
        while True:
            began = time.monotonic()
            try:
                with metrics.attempt():
                    _refresh(service, options)
                wait = seconds
            except Exception as error:  # an error of one attempt ends no later one
                is_expected = isinstance(error, CrossfadeError | OSError)
                wait = seconds if is_expected else max(seconds, min(2 * wait, _MAX_BACKOFF_SECONDS))
                _report(service, error)
            _wait(began + wait)


def _refresh(service: RefreshedService, options: RefreshCommand) -> int:
    from crossfade.display import progress_bars

    with progress_bars() as bars:
        record = service.refresh(
            bars, lambda: stopper.number is not None, deferred=stopper.deferred, publish=options.publish
        )
    if (options.every is not None or record is not None) and service.arrivals is not None:
        service.arrivals.warn()
    if record is None:
        stopper.check("the same command continues")
        if options.every is None and not options.json_:
            print_line("no new event files")
            for line in service.arrivals.reasons() if service.arrivals is not None else ():
                print_line(worded(line, as_typed))
        return 0
    if options.json_:
        print_line(record.model_dump_json(), flush=True)
    else:
        print_line(_describe(record), flush=True)
    stopper.check()
    return int(record.status == "rejected")


def _wait(until: float) -> None:
    """Wait until that time of the monotonic clock.

    Raises:
        StopSignal: a signal arrived.
    """
    while (left := until - time.monotonic()) > 0:
        stopper.check()
        time.sleep(min(left, 0.5))


def _describe(record: VersionRecord) -> str:
    """Describe a version that was decided on in a line."""
    took = duration(sum(record.seconds.values()))
    metric = f"{record.metric} {decimals(record.after)}"
    if record.before is not None:
        metric += f", {decimals(record.before)} before"
    taken = f"{counted(record.events, 'new event')} of {counted(len(record.files), 'file')}"
    if not record.files:
        taken = "without the forgotten ids, and without new events"
    return f"version {record.number} {record.status}: {taken}, {metric}, {took}"


def _report(service: RefreshedService, error: Exception) -> None:
    """Report a failed attempt of several, with its details, and what is served meanwhile."""
    from crossfade.deploy.refresh.last_failure import FAILURE_FILE, failure_message

    for line in error.details if isinstance(error, CrossfadeError) else ():
        _logger.warning(worded(line, as_typed))
    message = failure_message(error)
    if not isinstance(error, CrossfadeError | OSError):
        message += f" (traceback: {service.folder / FAILURE_FILE})"
    try:
        current = service.versions.current
        served = "no version is published yet" if current is None else f"version {current.number} is still served"
    except Exception:  # a damaged record, or a folder that cannot be read, which is what is reported
        served = "the last version is still served"
    _logger.error(f"{message}; {served}, and the next attempt follows")


def _print_status(service: RefreshedService, *, as_json: bool) -> None:
    from crossfade.deploy.refresh.last_failure import read_failure

    versions, arrivals = service.versions, service.find_arrivals()
    current, failure = versions.current, read_failure(service.folder)
    if as_json:
        print_json(
            {
                "current": None if current is None else current.number,
                "versions": [json.loads(record.model_dump_json()) for record in versions.records],
                "waiting": arrivals.waiting,
                "settling": arrivals.settling,
                "ahead": arrivals.ahead,
                "unpublished": arrivals.unpublished,
                "set_aside": arrivals.set_aside,
                "never_matched": arrivals.never_matched,
                "last_failure": None if failure is None else failure.model_dump(),
            }
        )
        return
    rows = [["version", "decided", "status", "events", "files", "metric", "before", "after", "took"]]
    rows += [
        [
            str(record.number),
            local_time(record.decided),
            "served" if record == current else record.status,
            f"{record.events:,}",
            f"{len(record.files):,}",
            record.metric,
            decimals(record.before),
            decimals(record.after),
            duration(sum(record.seconds.values())),
        ]
        for record in versions.records
    ]
    print_table(rows)
    if versions.must_forget:
        print_line("ids were forgotten: the next call publishes a version without them, and then takes events")
    count = len(arrivals.waiting)
    print_line(f"{counted(count, 'file')} of events {'waits' if count == 1 else 'wait'}")
    for line in arrivals.reasons():
        print_line(worded(line, as_typed))
    if failure is not None:
        print_line(f"the last attempt failed at {local_time(failure.at)}: {failure.message}")
