"""Follow a run on EC2 to its end: wait for its hosts, show the log of the head, and report hosts that are lost.

    follower = RunFollower(aws, stack, log=print, show=print)
    while (result := follower.poll()) is None:
        time.sleep(5)

Hosts have no port that is open to the world: their state is read from the run's folder on S3, and from AWS itself.
Auto Scaling replaces lost hosts, whether the run is followed or not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from crossfade.base.errors import ClusterError, CrossfadeError
from crossfade.base.text import counted
from crossfade.deploy.aws.aws_errors import CloudError, error_from_code, translate_aws_errors
from crossfade.deploy.aws.ec2.run_storage import END_FILE, HEAD, STOP_FILE, HostStatus, RunEnd, RunStorage
from crossfade.deploy.aws.ec2.stack import PREFIX, Ec2Instance, Stack, find_instances, find_stacks

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

START_SECONDS = 1800.0
"""Time for all hosts to join after the start, which may include building a GPU driver."""
STOP_SECONDS = 180.0
"""Time for a run to write its checkpoint and its end after it is asked to stop."""
MAX_LOSSES = 3
"""Hosts that may be lost to AWS failures, spot interruptions not counted, before the run is given up."""
_JOINED = {"running", "done"}
_ENDED = {"done", "stopped", "ended"}
_LAUNCH_ERROR = re.compile(r"(?:^|[ .])([A-Z][A-Za-z.]+) - (.+)")
"""The code and message of EC2 in the status of a scaling activity."""
_CONSOLE_LINES = 15


class RunFollower:
    """Follows one run. Call ``poll`` repeatedly; each call reads the state once."""

    def __init__(
        self,
        aws: Aws,
        stack: Stack,
        log: Callable[[str], None],
        show: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``log`` receives lines about the cluster, ``show`` the output of the head's command."""
        self._aws, self._stack, self._log, self._show, self._clock = aws, stack, log, show, clock
        self._storage = RunStorage(aws, stack.storage)
        self._last_log = 0
        self._joined = -1
        self._gone: set[str] = set()  # the IDs of instances that have ended
        self._losses = 0
        self._launch_problem = ""
        self._waiting_since = clock()
        self._is_complete = False  # whether all hosts had joined once
        self._stop_deadline: float | None = None

    def stop(self) -> None:
        """Ask the run to stop after a checkpoint."""
        self._storage.write_text(STOP_FILE, "{}\n")
        self._stop_deadline = self._clock() + STOP_SECONDS

    def poll(self) -> RunEnd | None:
        """Show new log lines and report lost hosts; return how the run ended once it has.

        Raises:
            ClusterError: a host failed, or hosts did not join in time.
            CloudError, CloudRequestError: AWS does not answer or cannot start hosts, or a file of the hosts is invalid.
        """
        end = self._storage.read(END_FILE, RunEnd)
        for number, text in self._storage.log_after(HEAD, self._last_log):
            self._last_log = number
            self._show(text)
        if end is not None:
            return end
        if self._stop_deadline is None:
            self._check_hosts()
        elif self._clock() > self._stop_deadline:
            message = f"stopped without a checkpoint, which was not written within {STOP_SECONDS:.0f} s"
            return RunEnd(exit_code=143, message=message)
        return None

    def _check_hosts(self) -> None:
        if datetime.now(UTC) > self._stack.ends:
            raise ClusterError(f"the run's time was over at {self._stack.ends:%H:%M} UTC, and its end was not written")
        instances = [one for one in find_instances(self._aws, self._stack.run) if one.id not in self._gone]
        stacks = find_stacks(self._aws, self._stack.run)
        if not stacks or stacks[0].status.startswith("DELETE"):
            raise ClusterError(f"the cluster of the run {self._stack.run} was deleted")
        joined = sum(self._check_host(instance) for instance in instances)
        if joined != self._joined:
            self._joined, self._waiting_since = joined, self._clock()
            self._log(f"{joined} of {self._stack.hosts} hosts have joined")
        self._is_complete = self._is_complete or joined >= self._stack.hosts
        if joined >= self._stack.hosts:
            return
        self.check_launches()
        if self._launch_problem and self._is_complete:
            self._waiting_since = self._clock()  # a run that has begun waits for capacity
        if self._clock() - self._waiting_since > START_SECONDS:
            consoles = "; ".join(f"host {one.id}: {console(self._aws, one)}" for one in instances if one.is_live)
            raise ClusterError(
                f"only {joined} of {self._stack.hosts} hosts joined within {START_SECONDS / 60:.0f} minutes; "
                f"{consoles or self._launch_problem or 'there are no instances'}"
            )

    def _check_host(self, host: Ec2Instance) -> bool:
        """Return whether a host has joined; raise if it failed, and report it if it was lost."""
        status = self._storage.read(f"hosts/{host.id}.json", HostStatus)
        state = "" if status is None else status.state
        if status is not None and state == "failed":
            raise ClusterError(f"host {host.id} failed: {status.message}")
        if host.is_live or host.state == "shutting-down":
            return host.is_live and state in _JOINED
        self._gone.add(host.id)
        if state in _ENDED:
            return False  # its command has ended, which the head reports
        reason = host.reason or "no reason given by EC2"
        if state != "interrupted" and not reason.startswith("Server.Spot"):
            if not reason.startswith("Server."):
                raise ClusterError(f"host {host.id} has ended: {reason}; {console(self._aws, host)}")
            self._losses += 1
            if self._losses > MAX_LOSSES:
                raise ClusterError(f"AWS has lost {counted(self._losses, 'host')}, the last one with {reason}")
        self._log(f"host {host.id} was lost ({reason}); Auto Scaling starts another in its place")
        return False

    def check_launches(self) -> bool:
        """Log why Auto Scaling cannot start a host now, and return whether it cannot; raise if a retry cannot help."""
        problem = ""
        for group in ("head", "workers"):
            with translate_aws_errors("reading why hosts are missing", self._aws.region):
                activities = self._aws.autoscaling.describe_scaling_activities(
                    AutoScalingGroupName=f"{PREFIX}{self._stack.run}-{group}", MaxRecords=1
                )["Activities"]
            if activities and activities[0]["StatusCode"] == "Failed":
                error = _launch_error(activities[0].get("StatusMessage", ""), self._aws.region)
                if not isinstance(error, CloudError):
                    raise error
                problem = str(error)
        if problem and problem != self._launch_problem:
            self._log(f"{problem}; Auto Scaling tries again")
        self._launch_problem = problem
        return bool(problem)


def _launch_error(message: str, region: str) -> CrossfadeError:
    """Translate the status message of a scaling activity that failed."""
    doing, found = "starting a host", _LAUNCH_ERROR.search(message)
    if found is None:
        return CloudError(f"{doing}: {message}", kind="fault")
    return error_from_code(found[1], found[2], "RunInstances", doing, region)


def console(aws: Aws, host: Ec2Instance) -> str:
    """Return the last lines of an instance's console, which has the output of its user data."""
    try:
        with translate_aws_errors("reading its console", aws.region):
            output = aws.ec2.get_console_output(InstanceId=host.id).get("Output", "")
    except CrossfadeError as error:  # must not hide the failure that is being reported
        return str(error)
    lines = [line.strip() for line in output.splitlines() if line.strip()][-_CONSOLE_LINES:]
    return f"its console ends: {' | '.join(lines)}" if lines else "its console is empty"
