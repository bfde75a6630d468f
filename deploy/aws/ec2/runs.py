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

import yaml

from crossfade.base.errors import CrossfadeError, InputError, command
from crossfade.base.text import counted
from crossfade.deploy.aws.accelerators import notes
from crossfade.deploy.aws.aws_errors import CloudError, CloudRequestError
from crossfade.deploy.aws.clients import Aws
from crossfade.deploy.aws.ec2.follower import RunFollower
from crossfade.deploy.aws.ec2.options import SubmitEc2Options
from crossfade.deploy.aws.ec2.run_spec import RunSpec, check_run_name, make_spec
from crossfade.deploy.aws.ec2.run_storage import JOB_FILE, RunEnd, RunStorage
from crossfade.deploy.aws.ec2.stack import (
    Place,
    Stack,
    create,
    delete,
    find_instances,
    find_place,
    find_stacks,
    stack_request,
)
from crossfade.deploy.aws.ecr import check_image
from crossfade.deploy.aws.prices import describe_cost
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

    ``show`` receives the output of the head's command.

    Raises:
        InputError: the job or an option is invalid, or AWS rejects a request.
        CloudError: AWS cannot create the cluster now.
    """
    aws = options.aws()
    spec = make_spec(options, aws)
    log_notes(spec, aws)
    request = stack_request(aws, spec, find_place(aws, spec))
    check_image(aws, spec.image)  # before instances start, which cost money even if they cannot pull it
    _logger.info(f"run {spec.run}: {spec.storage}")
    follow_run, cleanup_run = command("submit ec2", follow=spec.run), command("submit ec2", cleanup=spec.run)
    with catch_signals() as signals:
        try:
            RunStorage(aws, spec.storage).write_text(JOB_FILE, _job_text(spec))
            kind = f"{options.hosts} x {options.instance_type}{' as spot instances' if options.spot else ''}"
            _logger.info(f"creating the cluster: {kind}")
            stack = create(aws, request, lambda: bool(signals))
            if options.detach:
                _await_instances(aws, stack, options.poll_seconds, signals)
            if options.detach and not signals:
                _logger.info(f"detached: {follow_run} follows it, {cleanup_run} ends it")
                return 0
            return follow(aws, stack, options.poll_seconds, signals, show)
        except CloudRequestError as error:
            if error.kind == "credentials":
                # Without valid credentials nothing can be deleted either.
                raise InputError(error.args, f"; then {follow_run} or {cleanup_run}") from error
            _try_to_take_down(aws, spec.run)
            raise
        except BaseException:
            _try_to_take_down(aws, spec.run)
            raise


def _await_instances(aws: Aws, stack: Stack, poll_seconds: float, signals: list[int]) -> None:
    """Wait until all hosts have been started, so that a detached run that cannot start is not left behind.

    Where a retry may help, as without capacity, Auto Scaling goes on without this command.

    Raises:
        CloudError, CloudRequestError: AWS does not answer, or cannot start them.
    """
    follower = RunFollower(aws, stack, _logger.info, _logger.info)
    while not signals and sum(one.is_live for one in find_instances(aws, stack.run)) < stack.hosts:
        if follower.check_launches():
            return
        _pause(poll_seconds, signals)


def _job_text(spec: RunSpec) -> str:
    return yaml.safe_dump(spec.job, sort_keys=False)


def dry_requests(options: SubmitEc2Options) -> list[tuple[str, dict[str, Any]]]:
    """Return the requests by which ``submit`` would create something: service.operation and its parameters.

    Values that AWS would return stand in <angle brackets>.

    Raises:
        InputError: the job or an option is invalid.
    """
    aws = options.aws()
    spec = make_spec(options, aws)
    log_notes(spec, None)
    return [
        ("s3.put_object", {"Key": f"{spec.storage}/{JOB_FILE}", "Body": _job_text(spec)}),
        ("cloudformation.create_stack", dict(stack_request(aws, spec, Place()))),
    ]


def log_notes(spec: RunSpec, aws: Aws | None) -> None:
    """Log what the user should read about the run and its instances, and its maximum cost."""
    options = spec.options
    for line in notes(check_job(spec.job, spec.run), options.instance_type, options.hosts):
        _logger.info(line)
    kind, hosts, hours = options.instance_type, options.hosts, options.max_hours
    _logger.info(describe_cost(aws, "AmazonEC2", kind, hosts=hosts, hours=hours, spot=options.spot))


def follow(
    aws: Aws, stack: Stack, poll_seconds: float, signals: list[int], show: Callable[[str], None], *, owns: bool = True
) -> int:
    """Follow a run to its end, delete its stack, and return its exit code.

    If the caller ``owns`` the run, the first signal asks it to stop after a checkpoint, and the second one ends it at
    once. Otherwise, the first one only ends the following.
    """
    follower, stopping, result = RunFollower(aws, stack, _logger.info, show), False, None
    while result is None and len(signals) < 1 + owns:
        if signals and not stopping:
            _logger.info("asking the run to stop after a checkpoint; a second signal ends it at once")
            follower.stop()
            stopping = True
        result = _poll(follower)
        if result is None:
            _pause(poll_seconds, signals)
    if result is None and not owns:
        cleanup_run = command("submit ec2", cleanup=stack.run)
        _logger.info(f"no longer following; the run continues, and {cleanup_run} ends it")
        return 128 + signals[0]
    take_down(aws, stack.run)
    if result is None:
        _logger.info("stopped at once, without a new checkpoint")
    else:
        _logger.info(f"the run has ended with exit code {result.exit_code}: {result.message}")
        _logger.info(f"its folder: {stack.storage}")
    return 128 + signals[0] if result is None or (signals and owns) else result.exit_code


def follow_existing(aws: Aws, run: str, poll_seconds: float, show: Callable[[str], None]) -> int:
    """Follow the detached run named ``run``; a signal only ends the following.

    Raises:
        InputError: there is no such run.
    """
    stack = _find(aws, run)
    with catch_signals() as signals:
        try:
            return follow(aws, stack, poll_seconds, signals, show, owns=False)
        except CrossfadeError:
            _logger.info(f"{command('submit ec2', cleanup=run)} deletes what is left of the run")
            raise


def list_runs(aws: Aws) -> list[tuple[str, ...]]:
    """Return a table of the runs that have a stack."""
    rows: list[tuple[str, ...]] = [("RUN", "INSTANCES", "LAUNCHED", "OWNER", "FOLDER")]
    live = [instance for instance in find_instances(aws) if instance.is_live]
    for stack in find_stacks(aws):
        types = [instance.type for instance in live if instance.run == stack.run]
        instances = f"{len(types)} x {types[0]}" if types else "none"
        rows.append((stack.run, instances, str(stack.created), stack.owner, stack.storage))
    return rows


def clean_up(aws: Aws, run: str) -> None:
    """End ``run`` and delete its stack; with an empty name, delete the stacks of the caller's runs without instances.

    Raises:
        InputError: there is no such run.
    """
    for stack in [_find(aws, run)] if run else _leftovers(aws):
        delete(aws, stack)
        _logger.info(f"deleted everything of the run {stack.run} except its folder on S3")


def _leftovers(aws: Aws) -> Iterator[Stack]:
    """Yield the stacks of the caller's runs without instances; log why other stacks stay."""
    _, owner = aws.caller()
    live = [instance.run for instance in find_instances(aws) if instance.is_live]
    for stack in find_stacks(aws):
        how = command("submit ec2", cleanup=stack.run)
        if count := live.count(stack.run):
            _logger.info(f"{stack.run} still has {counted(count, 'instance')}: {how} ends it")
        elif stack.status == "CREATE_IN_PROGRESS":
            _logger.info(f"{stack.run} is being created: {how} ends it")
        elif stack.owner != owner:
            _logger.info(f"{stack.run} belongs to {stack.owner}: {how} deletes it nevertheless")
        else:
            yield stack


def take_down(aws: Aws, run: str) -> None:
    """Delete the stack of ``run``, if there is one."""
    _logger.info("deleting the cluster")
    for stack in find_stacks(aws, run):
        delete(aws, stack)


def _try_to_take_down(aws: Aws, run: str) -> None:
    """Delete the stack of a run that has failed; log an error, which must not hide the reason of the failure."""
    try:
        take_down(aws, run)
    except CrossfadeError as error:
        _logger.warning(str(error))


def _find(aws: Aws, run: str) -> Stack:
    found = find_stacks(aws, check_run_name(run))
    if not found:
        raise InputError(
            f"run {run} not found in {aws.region}: it has no stack; {command('submit ec2', list=True)} lists all runs"
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
