"""Follow, list and delete runs of ``crossfade submit ec2``.

with catch_signals() as signals:
    exit_code = follow(aws, spec, signals)
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from crossfade.base.text import counted
from crossfade.terminal import print_line, print_log

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws
    from crossfade.deploy.aws.ec2.follower import RunFollower
    from crossfade.deploy.aws.ec2.resources import Resources
    from crossfade.deploy.aws.ec2.spec import RunSpec
    from crossfade.deploy.aws.ec2.storage import RunEnd

_logger = logging.getLogger(__name__)


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the list that is yielded; none of them ends the command while the context lasts."""
    signals: list[int] = []

    def collect(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    before = {number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(aws: Aws, spec: RunSpec, signals: list[int]) -> int:
    """Follow the run of ``spec`` to its end, delete its resources and return its exit code.

    The first signal stops the run after a checkpoint, the second one at once.
    """
    from crossfade.deploy.aws.ec2.follower import RunFollower

    follower = RunFollower(aws, spec, _logger.info, print_log)
    stopping = False
    result = None
    while result is None and len(signals) < 2:
        if signals and not stopping:
            _logger.info("asking the run to stop after a checkpoint; a second signal ends it at once")
            follower.stop()
            stopping = True
        result = _poll(follower)
        if result is None:
            _pause(spec.poll_seconds, signals)
    take_down(aws, spec.run)
    if result is None:
        _logger.info("stopped at once, without a new checkpoint")
    else:
        _log_result(result, spec)
    if signals:
        return 128 + signals[0]
    assert result is not None
    return result.exit_code


def follow_existing(aws: Aws, run: str) -> int:
    """Follow the detached run named ``run``; a signal only ends the following.

    Raises:
        InputError: there is no such run.
    """
    from crossfade.base.errors import InputError
    from crossfade.deploy.aws.ec2.follower import RunFollower
    from crossfade.deploy.aws.ec2.spec import check_run_name
    from crossfade.deploy.aws.ec2.storage import RunStorage

    resources = _find(aws, check_run_name(run))
    if not resources.storage:
        raise InputError(f"the run {run} has no instances: end it with 'crossfade submit ec2 --cleanup {run}'")
    spec = RunStorage(aws, resources.storage).read_spec(resources.spec_digest)
    follower = RunFollower(aws, spec, _logger.info, print_log)
    with catch_signals() as signals:
        while not signals:
            result = _poll(follower)
            if result is not None:
                take_down(aws, spec.run)
                _log_result(result, spec)
                return result.exit_code
            _pause(spec.poll_seconds, signals)
    _logger.info(f"no longer following; the run continues, and '--cleanup {spec.run}' ends it")
    return 128 + signals[0]


def list_runs(aws: Aws) -> int:
    """Print the runs that have instances or leftovers."""
    from crossfade.deploy.aws.ec2.resources import find_resources

    rows = [("RUN", "INSTANCES", "LAUNCHED", "OWNER", "FOLDER")]
    for resources in find_resources(aws):
        live = resources.live_instances
        instances = f"{len(live)} x {live[0].type}" if live else f"none; {counted(len(resources.names()), 'leftover')}"
        if live or resources.names():
            launched = min((instance.launched for instance in live), default="")
            rows.append((resources.run, instances, launched, resources.owner, resources.storage))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print_line("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def clean_up(aws: Aws, run: str) -> int:
    """End ``run`` and delete its resources; with an empty name, delete the leftovers of the caller's ended runs.

    Raises:
        InputError: there is no such run.
    """
    from crossfade.cli.options.ec2 import identify_caller
    from crossfade.deploy.aws.ec2.resources import find_resources, remove
    from crossfade.deploy.aws.ec2.spec import check_run_name

    if run:
        remove(aws, _find(aws, check_run_name(run)), _logger.info)
        _logger.info(f"deleted everything of the run {run} except its folder on S3")
        return 0
    _, owner = identify_caller(aws)
    for resources in find_resources(aws):
        name = resources.run
        if resources.live_instances:
            _logger.info(
                f"{name} still has {counted(len(resources.live_instances), 'instance')}: '--cleanup {name}' ends it"
            )
        elif resources.owner not in {owner, ""}:
            _logger.info(f"{name} belongs to {resources.owner}: '--cleanup {name}' deletes it nevertheless")
        elif resources.names():
            remove(aws, resources, _logger.info)
            _logger.info(f"deleted everything of the run {name} except its folder on S3")
    return 0


def take_down(aws: Aws, run: str) -> None:
    """Delete all resources of ``run``, including those that another user created."""
    from crossfade.deploy.aws.ec2.resources import find_resources, remove

    _logger.info("deleting the cluster")
    for resources in find_resources(aws, run):
        remove(aws, resources, _logger.info)


def _find(aws: Aws, run: str) -> Resources:
    from crossfade.base.errors import InputError
    from crossfade.deploy.aws.ec2.resources import find_resources

    found = find_resources(aws, run)
    if not found:
        raise InputError(
            f"run {run} not found in {aws.region}: no instances or other resources; "
            "'crossfade submit ec2 --list' lists all runs"
        )
    return found[0]


def _poll(follower: RunFollower) -> RunEnd | None:
    """Poll the run once. AWS may be unreachable for a while without ending the run."""
    from crossfade.base.errors import CloudError

    try:
        return follower.poll()
    except CloudError as error:
        _logger.warning(f"cannot read the state of the run; retrying: {error}")
        return None


def _pause(seconds: float, signals: list[int]) -> None:
    """Wait ``seconds``, or until another signal arrives."""
    deadline, before = time.monotonic() + seconds, len(signals)
    while time.monotonic() < deadline and len(signals) == before:
        time.sleep(min(0.2, seconds))


def _log_result(result: RunEnd, spec: RunSpec) -> None:
    _logger.info(f"the run has ended with exit code {result.exit_code}: {result.message}")
    _logger.info(f"its folder: {spec.storage}")
