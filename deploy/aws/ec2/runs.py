"""Launch, follow, list, and delete runs on EC2: what ``crossfade submit ec2`` does.

exit_code = submit(options, show=print)
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from crossfade.base.errors import InputError, command
from crossfade.base.text import counted
from crossfade.deploy.aws.accelerators import notes
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError
from crossfade.deploy.aws.clients import Aws
from crossfade.deploy.aws.ec2.follower import RunFollower
from crossfade.deploy.aws.ec2.launch import dry_run, launch, resolve_context
from crossfade.deploy.aws.ec2.options import SubmitEc2Options
from crossfade.deploy.aws.ec2.resources import Resources, find_resources, remove
from crossfade.deploy.aws.ec2.run_spec import RunSpec, check_run_name, make_spec
from crossfade.deploy.aws.ec2.run_storage import RunEnd, RunStorage
from crossfade.deploy.aws.prices import Cost, hourly_price
from crossfade.trainer.config.loading import check_job

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


def submit(options: SubmitEc2Options, show: Callable[[str], None]) -> int:
    """Launch the run of a job, and follow it unless it is detached; return its exit code.

    ``show`` receives the output of the first host's command.

    Raises:
        InputError: the job or an option is invalid, or AWS rejects a request.
        CloudError: AWS cannot launch the instances now.
    """
    aws = options.aws()
    spec = make_spec(options, aws.region, aws)
    log_notes(spec, aws)
    context = resolve_context(aws, spec)
    _logger.info(f"run {spec.run}: {spec.storage}")
    follow_run, cleanup_run = command("submit ec2", follow=spec.run), command("submit ec2", cleanup=spec.run)
    with catch_signals() as signals:
        try:
            launch(aws, spec, context, _logger.info)
            if options.detach and not signals:
                _logger.info(f"detached: {follow_run} follows it, {cleanup_run} ends it")
                return 0
            return follow(aws, spec, signals, show)
        except CloudRequestError as error:
            if error.kind == "credentials":
                # Without valid credentials nothing can be deleted either.
                raise InputError(f"{error.marked}; then {follow_run} or {cleanup_run}") from error
            take_down(aws, spec.run)
            raise
        except BaseException:
            take_down(aws, spec.run)
            raise


def dry_requests(options: SubmitEc2Options) -> list[tuple[str, dict[str, Any]]]:
    """Return every request that ``submit`` would send, without sending one.

    Raises:
        InputError: the job or an option is invalid.
    """
    spec = make_spec(options, options.aws().region, None)
    log_notes(spec, None)
    return dry_run(spec)


def log_notes(spec: RunSpec, aws: Aws | None) -> None:
    """Log what the user should read about the run and its instances, and its maximum cost."""
    for line in notes(check_job(spec.job, spec.run), spec.instance_type, spec.hosts):
        _logger.info(line)
    price = hourly_price(aws, "AmazonEC2", spec.instance_type)
    _logger.info(Cost(price, spec.hosts, spec.max_hours).explain(spec.instance_type, spot=spec.spot))


def _watch(aws: Aws, spec: RunSpec, signals: list[int], show: Callable[[str], None], *, stops: bool) -> RunEnd | None:
    """Follow the run of ``spec``, and return its end once its resources are deleted; None if a signal ended this.

    If ``stops``, the first signal asks the run to stop after a checkpoint, and the second one ends the run at once.
    Otherwise, the first one only ends the following.
    """
    follower, stopping, result = RunFollower(aws, spec, _logger.info, show), False, None
    while result is None and len(signals) < 1 + stops:
        if signals and not stopping:
            _logger.info("asking the run to stop after a checkpoint; a second signal ends it at once")
            follower.stop()
            stopping = True
        result = _poll(follower)
        if result is None:
            _pause(spec.poll_seconds, signals)
    if result is not None or stops:
        take_down(aws, spec.run)
    if result is not None:
        _logger.info(f"the run has ended with exit code {result.exit_code}: {result.message}")
        _logger.info(f"its folder: {spec.storage}")
    return result


def follow(aws: Aws, spec: RunSpec, signals: list[int], show: Callable[[str], None]) -> int:
    """Follow the run of ``spec`` to its end, delete its resources and return its exit code."""
    result = _watch(aws, spec, signals, show, stops=True)
    if result is None:
        _logger.info("stopped at once, without a new checkpoint")
    if signals:
        return 128 + signals[0]
    assert result is not None
    return result.exit_code


def follow_existing(aws: Aws, run: str, show: Callable[[str], None]) -> int:
    """Follow the detached run named ``run``; a signal only ends the following.

    Raises:
        InputError: there is no such run.
    """
    resources = _find(aws, check_run_name(run))
    if not resources.storage:
        raise InputError(f"the run {run} has no instances: end it with {command('submit ec2', cleanup=run)}")
    spec = RunStorage(aws, resources.storage).read_spec(resources.spec_digest)
    with catch_signals() as signals:
        result = _watch(aws, spec, signals, show, stops=False)
    if result is not None:
        return result.exit_code
    _logger.info(f"no longer following; the run continues, and {command('submit ec2', cleanup=spec.run)} ends it")
    return 128 + signals[0]


def list_runs(aws: Aws) -> list[tuple[str, ...]]:
    """Return a table of the runs that have instances or leftovers."""
    rows: list[tuple[str, ...]] = [("RUN", "INSTANCES", "LAUNCHED", "OWNER", "FOLDER")]
    for resources in find_resources(aws):
        live, others = resources.live_instances, resources.others
        instances = f"{len(live)} x {live[0].type}" if live else f"none; {counted(len(others), 'leftover')}"
        if live or others:
            launched = min((instance.launched for instance in live), default="")
            rows.append((resources.run, instances, launched, resources.owner, resources.storage))
    return rows


def clean_up(aws: Aws, run: str) -> None:
    """End ``run`` and delete its resources; with an empty name, delete the leftovers of the caller's ended runs.

    Raises:
        InputError: there is no such run.
    """
    if run:
        remove(aws, _find(aws, check_run_name(run)), _logger.info)
        _logger.info(f"deleted everything of the run {run} except its folder on S3")
        return
    _, owner = aws.caller()
    for resources in find_resources(aws):
        name = resources.run
        if resources.live_instances:
            instances = counted(len(resources.live_instances), "instance")
            _logger.info(f"{name} still has {instances}: {command('submit ec2', cleanup=name)} ends it")
        elif resources.owner not in {owner, ""}:
            how = command("submit ec2", cleanup=name)
            _logger.info(f"{name} belongs to {resources.owner}: {how} deletes it nevertheless")
        elif resources.others:
            remove(aws, resources, _logger.info)
            _logger.info(f"deleted everything of the run {name} except its folder on S3")


def take_down(aws: Aws, run: str) -> None:
    """Delete all resources of ``run``, including those that another user created."""
    _logger.info("deleting the cluster")
    for resources in find_resources(aws, run):
        remove(aws, resources, _logger.info)


def _find(aws: Aws, run: str) -> Resources:
    found = find_resources(aws, run)
    if not found:
        raise InputError(
            f"run {run} not found in {aws.region}: no instances or other resources; "
            f"{command('submit ec2', list=True)} lists all runs"
        )
    return found[0]


def _poll(follower: RunFollower) -> RunEnd | None:
    """Poll the run once. AWS may be unreachable for a while without ending the run."""
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
