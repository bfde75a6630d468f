"""Launch, follow, list, and delete runs on EC2: what ``crossfade submit ec2`` does.

exit_code = submit(options, show=print)

Hosts have no port that is open to the world: how a run goes is read from its folder on S3, its log in CloudWatch, and
AWS itself. Auto Scaling replaces lost hosts, whether the run is followed or not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from crossfade.base.errors import ClusterError, CrossfadeError, InputError, command
from crossfade.base.exit_codes import STOPPED_EXIT_CODE
from crossfade.base.signals import stopper
from crossfade.deploy.aws.aws_errors import CloudError, translate_aws_errors
from crossfade.deploy.aws.ec2.options import SubmitEc2Options
from crossfade.deploy.aws.ec2.run_spec import RunSpec, make_spec
from crossfade.deploy.aws.ec2.run_storage import COORDINATOR_FILE, END_FILE, JOB_FILE, STOP_FILE, RunEnd, RunStorage
from crossfade.deploy.aws.ec2.stack import (
    LOG_GROUP,
    PREFIX,
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
from crossfade.deploy.aws.run_logs import LogReader

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

STOP_SECONDS = 180.0
"""Time for a run to write its checkpoint and its end after it is asked to stop."""
LOG_SECONDS = 10.0
"""Time for the last lines of a run to reach CloudWatch."""
_CONSOLE_LINES = 15
_logger = logging.getLogger(__name__)


def submit(options: SubmitEc2Options, show: Callable[[str], None]) -> int:
    """Launch the run of a job, and follow it unless it is detached; return its exit code.

    ``show`` receives the output of the head's command.

    Raises:
        InputError: the job or an option is invalid, or AWS rejects a request.
        ClusterError: the cluster cannot be created, or a host failed.
        CloudError: AWS cannot create the cluster now.
    """
    aws = options.aws()
    spec = make_spec(options, aws)
    request = stack_request(aws, spec, find_place(aws, spec))
    check_image(aws, spec.image)  # before instances start, which cost money even if they cannot pull it
    _logger.info(f"run {spec.run}: {spec.storage}")
    try:
        RunStorage(aws, spec.storage).write(JOB_FILE, _job_text(spec))
        kind = f"{options.hosts} x {options.instance_type}{' as spot instances' if options.spot else ''}"
        _logger.info(f"creating the cluster: {kind}, for {options.max_hours:g} hours at most")
        stack = create(aws, request)
        if options.detach:
            names = command("submit ec2", follow=spec.run), command("submit ec2", cleanup=spec.run)
            _logger.info(f"detached: {names[0]} follows it, {names[1]} ends it")
            return 0
        return follow(aws, stack, options.poll_seconds, show)
    except BaseException:
        try:
            _take_down(aws, spec.run)
        except CrossfadeError as error:  # must not hide the reason of the failure
            _logger.warning(f"{error}; {command('submit ec2', cleanup=spec.run)} deletes what is left")
        raise


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
    return [
        ("s3.put_object", {"Key": f"{spec.storage}/{JOB_FILE}", "Body": _job_text(spec)}),
        ("cloudformation.create_stack", dict(stack_request(aws, spec, Place()))),
    ]


def follow(aws: Aws, stack: Stack, poll_seconds: float, show: Callable[[str], None], *, owns: bool = True) -> int:
    """Follow a run to its end, delete its stack, and return its exit code.

    If the caller ``owns`` the run, the first signal asks it to stop after a checkpoint, and the second one ends it at
    once. Otherwise, the first one only ends the following.

    Raises:
        ClusterError: a host cannot start the run, or the run's time is over.
        CloudRequestError: AWS rejects a request, or a file of the hosts is invalid.
    """
    follower, end, signal_number, stop_by = _Follower(aws, stack, show), None, None, float("inf")
    with stopper.deferred():
        while end is None:
            if stopper.number is not None:
                if not owns:
                    cleanup_run = command("submit ec2", cleanup=stack.run)
                    _logger.info(f"no longer following; the run continues, and {cleanup_run} ends it")
                    return 128 + stopper.number
                if signal_number is not None:
                    break
                _logger.info("asking the run to stop after a checkpoint; a second signal ends it at once")
                signal_number, stop_by = stopper.number, time.monotonic() + STOP_SECONDS
                follower.storage.write(STOP_FILE, "{}\n")
                stopper.forget()
            end = follower.poll(is_stopping=signal_number is not None)
            if end is None and time.monotonic() > stop_by:
                message = f"stopped without a checkpoint, which was not written within {STOP_SECONDS:.0f} s"
                end = RunEnd(exit_code=STOPPED_EXIT_CODE, message=message)
            stopper.wait(poll_seconds if end is None else LOG_SECONDS)
        follower.show_log()
    _take_down(aws, stack.run)
    if end is None:
        _logger.info("stopped at once, without a new checkpoint")
    else:
        _logger.info(f"the run has ended with exit code {end.exit_code}{f': {end.message}' if end.message else ''}")
        _logger.info(f"its folder: {stack.storage}")
    return end.exit_code if end is not None and signal_number is None else 128 + (signal_number or 0)


class _Follower:
    """Reads how one run goes: each call of ``poll`` reads it once."""

    def __init__(self, aws: Aws, stack: Stack, show: Callable[[str], None]) -> None:
        """``show`` receives the output of the head's command."""
        self._aws, self._stack, self._show = aws, stack, show
        self.storage = RunStorage(aws, stack.storage)
        self._log = LogReader(aws, LOG_GROUP, f"{stack.run}/head-")
        self._gone: set[str] = set()  # the IDs of instances that have ended
        self._running = -1
        self._launch_problem = ""

    def poll(self, *, is_stopping: bool) -> RunEnd | None:
        """Show new log lines and report lost hosts; return how the run ended once it has.

        Raises:
            ClusterError, CloudRequestError: as ``follow``.
        """
        try:
            end = self.storage.read(END_FILE, RunEnd)
            self.show_log()
            if end is None and not is_stopping:
                self._check_hosts()
        except CloudError as error:
            _logger.warning(f"cannot read the state of the run; retrying: {error}")
            return None
        return end

    def show_log(self) -> None:
        """Show the new lines of the head's log. Without an answer of CloudWatch, the run is followed all the same."""
        try:
            lines = self._log.read()
        except CloudError as error:
            _logger.warning(f"cannot show the log of the run: {error}")
            return
        for line in lines:
            self._show(f"{line}\n")

    def _check_hosts(self) -> None:
        if datetime.now(UTC) > self._stack.ends:
            raise ClusterError(f"the run's time was over at {self._stack.ends:%H:%M} UTC, and its end was not written")
        instances = find_instances(self._aws, self._stack.run)
        stacks = find_stacks(self._aws, self._stack.id)
        if not stacks or stacks[0].status.startswith("DELETE"):
            raise ClusterError(f"the cluster of the run {self._stack.run} was deleted")
        for instance in instances:
            if instance["State"]["Name"] == "terminated" and instance["InstanceId"] not in self._gone:
                self._gone.add(instance["InstanceId"])
                self._report_loss(instance["InstanceId"], instance.get("StateReason", {}).get("Code", "unknown"))
        running = sum(instance["State"]["Name"] == "running" for instance in instances)
        if running != self._running:
            _logger.info(f"{running} of {self._stack.hosts} hosts are running")
        self._running = running
        if running < self._stack.hosts:
            self._report_launches()

    def _report_loss(self, host: str, reason: str) -> None:
        """Log a lost host, which Auto Scaling replaces; raise if hosts end before the head has started the run.

        AWS's codes of the reasons that are its own begin with Server, as in Server.SpotInstanceTermination.
        """
        if not reason.startswith("Server.") and not self.storage.has(COORDINATOR_FILE):
            raise ClusterError(f"host {host} has ended: {reason}; {_console(self._aws, host)}")
        _logger.info(f"host {host} was lost ({reason}); Auto Scaling starts another in its place")

    def _report_launches(self) -> None:
        """Log why Auto Scaling cannot start a host now, as without capacity or above a quota."""
        problem = ""
        for group in ("head", "workers"):
            with translate_aws_errors("reading why hosts are missing", self._aws.region):
                activities = self._aws.autoscaling.describe_scaling_activities(
                    AutoScalingGroupName=f"{PREFIX}{self._stack.run}-{group}", MaxRecords=1
                )["Activities"]
            if activities and activities[0]["StatusCode"] == "Failed":
                problem = activities[0].get("StatusMessage", "")
        if problem and problem != self._launch_problem:
            _logger.info(f"no host starts: {problem} Auto Scaling tries again")
        self._launch_problem = problem


def _console(aws: Aws, host: str) -> str:
    """Return the last lines of an instance's console, which has the output of its user data."""
    try:
        with translate_aws_errors("reading its console", aws.region):
            output = aws.ec2.get_console_output(InstanceId=host).get("Output", "")
    except CrossfadeError as error:  # must not hide the failure that is being reported
        return str(error)
    lines = [line.strip() for line in output.splitlines() if line.strip()][-_CONSOLE_LINES:]
    return f"its console ends: {' | '.join(lines)}" if lines else "its console is empty"


def list_runs(aws: Aws) -> list[tuple[str, ...]]:
    """Return a table of the runs that have a stack."""
    rows: list[tuple[str, ...]] = [("RUN", "INSTANCES", "LAUNCHED", "FOLDER")]
    for stack in find_stacks(aws):
        found = find_instances(aws, stack.run)
        types = [each["InstanceType"] for each in found if each["State"]["Name"] not in ("shutting-down", "terminated")]
        instances = f"{len(types)} x {types[0]}" if types else "none"
        rows.append((stack.run, instances, str(stack.created), stack.storage))
    return rows


def clean_up(aws: Aws, run: str) -> None:
    """End ``run``, and delete its stack.

    Raises:
        InputError: there is no such run.
    """
    delete(aws, find_run(aws, run))
    _logger.info(f"deleted everything of the run {run} except its folder on S3 and its log")


def find_run(aws: Aws, run: str) -> Stack:
    """Return the stack of ``run``.

    Raises:
        InputError: there is none.
    """
    found = find_stacks(aws, f"{PREFIX}{run}")
    if not found:
        raise InputError(
            f"run {run} not found in {aws.region}: it has no stack; {command('submit ec2', list=True)} lists all runs"
        )
    return found[0]


def _take_down(aws: Aws, run: str) -> None:
    """Delete the stack of ``run``, if there is one."""
    _logger.info("deleting the cluster")
    for stack in find_stacks(aws, f"{PREFIX}{run}"):
        delete(aws, stack)
