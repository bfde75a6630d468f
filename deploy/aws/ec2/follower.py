"""Follow a run on EC2 to its end: wait for its hosts, show the log of the first one, replace reclaimed hosts.

    follower = RunFollower(aws, spec, log=print, show=print)
    while (result := follower.poll()) is None:
        time.sleep(spec.poll_seconds)

Hosts have no port that is open to the world: their state is read from the run's folder on S3, and from EC2 itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from crossfade.base.errors import ClusterError
from crossfade.base.text import counted
from crossfade.deploy.aws.aws_errors import CloudError
from crossfade.deploy.aws.ec2.launch import AwsContext, resolve_context, start_instances
from crossfade.deploy.aws.ec2.resources import Ec2Instance, find_instances, find_security_group
from crossfade.deploy.aws.ec2.run_spec import RunSpec
from crossfade.deploy.aws.ec2.run_storage import END_FILE, STOP_FILE, HostStatus, RunEnd, RunStorage, StopRequest

if TYPE_CHECKING:
    from crossfade.deploy.aws.clients import Aws

START_SECONDS = 1800.0
"""Time for a host to join after its start, which may include building a GPU driver."""
STOP_SECONDS = 180.0
"""Time for a run to write its checkpoint and its end after it is asked to stop."""
MAX_LOSSES = 3
"""Hosts that may be lost to AWS failures, spot interruptions not counted, before the run is given up."""
_MAX_BACKOFF_SECONDS = 300.0
_JOINED = {"running", "done"}
_ENDED = {"done", "stopped", "ended"}
_CONSOLE_LINES = 15


class RunFollower:
    """Follows one run. Call ``poll`` repeatedly; each call reads the state once."""

    def __init__(
        self,
        aws: Aws,
        spec: RunSpec,
        log: Callable[[str], None],
        show: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``log`` receives lines about the cluster, ``show`` the output of the first host's command."""
        self._aws, self._spec, self._log, self._show, self._clock = aws, spec, log, show, clock
        self._storage = RunStorage(aws, spec.storage)
        self._context: AwsContext | None = None
        self._last_log = 0
        self._joined = -1
        self._replaced: set[str] = set()  # the IDs of instances that have a replacement
        self._losses = 0
        self._waiting_since = clock()
        self._next_attempt, self._backoff_seconds = 0.0, spec.poll_seconds
        self._stop_deadline: float | None = None

    def stop(self) -> None:
        """Ask the run to stop after a checkpoint."""
        self._storage.write(STOP_FILE, StopRequest(stop=True))
        self._stop_deadline = self._clock() + STOP_SECONDS

    def poll(self) -> RunEnd | None:
        """Show new log lines and replace lost hosts; return how the run ended once it has.

        Raises:
            ClusterError: a host failed, or did not join in time.
            CloudError, CloudRequestError: AWS does not answer, a host cannot be replaced, or a file of the hosts is
                invalid.
        """
        end = self._storage.read(END_FILE, RunEnd)
        for number, text in self._storage.log_after(0, self._last_log):
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
        instances = [one for one in find_instances(self._aws, self._spec.run) if one.id not in self._replaced]
        hosts = {number: current_instance(instances, number) for number in range(self._spec.hosts)}
        statuses = {number: self._storage.read(f"hosts/{number}.json", HostStatus) for number in hosts}
        for number, host in hosts.items():
            self._check_host(number, host, statuses[number])
        joined = sum(_has_joined(host, statuses[number]) for number, host in hosts.items())
        if joined != self._joined:
            self._joined = joined
            self._log(f"{joined} of {self._spec.hosts} hosts have joined")
            self._waiting_since = self._clock()
        if joined < self._spec.hosts and self._clock() - self._waiting_since > START_SECONDS:
            raise ClusterError(
                f"only {joined} of {self._spec.hosts} hosts joined within {START_SECONDS / 60:.0f} minutes; "
                f"{self._consoles(hosts)}"
            )

    def _check_host(self, number: int, host: Ec2Instance | None, status: HostStatus | None) -> None:
        """Raise if a host failed; replace it if it was lost through no fault of the run."""
        current = _own_status(host, status)
        state = "" if current is None else current.state
        if current is not None and state == "failed":
            raise ClusterError(f"host {number} failed: {current.message}")
        if host is None or host.is_live or host.state == "shutting-down":
            return  # a replacement that is not listed yet is None
        if state in _ENDED:
            return  # its command has ended, which the first host reports
        reason = host.reason or "no reason given by EC2"
        if state != "interrupted" and not reason.startswith("Server.Spot"):
            if not reason.startswith("Server."):
                raise ClusterError(f"host {number} ({host.id}) has ended: {reason}; {console(self._aws, host)}")
            self._losses += 1
            if self._losses > MAX_LOSSES:
                raise ClusterError(f"AWS has lost {counted(self._losses, 'host')}, the last one with {reason}")
        self._replace(number, host, reason)

    def _replace(self, number: int, host: Ec2Instance, reason: str) -> None:
        """Start another instance as host ``number``; back off while there is no capacity."""
        if self._clock() < self._next_attempt:
            return
        if self._context is None:
            self._context = resolve_context(self._aws, self._spec)
        group = find_security_group(self._aws, self._spec.run)
        # In the subnet of its predecessor: the others of its placement group are in that zone.
        subnet = self._spec.subnet or host.subnet
        try:
            start_instances(self._aws, self._spec, self._context, group, [number], subnet)
        except CloudError as error:
            self._next_attempt = self._clock() + self._backoff_seconds
            self._log(f"host {number} was lost ({reason}); retrying in {self._backoff_seconds:.0f} s: {error}")
            self._backoff_seconds = min(2 * self._backoff_seconds, _MAX_BACKOFF_SECONDS)
            self._waiting_since = self._clock()
            return
        self._next_attempt, self._backoff_seconds = 0.0, self._spec.poll_seconds
        self._replaced.add(host.id)
        self._waiting_since = self._clock()
        self._log(f"host {number} was lost ({reason}); started another instance in its place")

    def _consoles(self, hosts: dict[int, Ec2Instance | None]) -> str:
        lines = [f"host {number}: {console(self._aws, host)}" for number, host in hosts.items() if host is not None]
        return "; ".join(lines) or "there are no instances"


def current_instance(instances: Sequence[Ec2Instance], number: int) -> Ec2Instance | None:
    """Return the instance that is host ``number`` now: a live one, else the one that was started last."""
    candidates = [instance for instance in instances if instance.number == number]
    return max(candidates, key=lambda instance: (instance.is_live, instance.launched), default=None)


def _own_status(host: Ec2Instance | None, status: HostStatus | None) -> HostStatus | None:
    """Return ``status`` if this instance wrote it, not its predecessor."""
    return status if host is not None and status is not None and status.instance == host.id else None


def _has_joined(host: Ec2Instance | None, status: HostStatus | None) -> bool:
    own = _own_status(host, status)
    return host is not None and host.is_live and own is not None and own.state in _JOINED


def console(aws: Aws, host: Ec2Instance) -> str:
    """Return the last lines of an instance's console, which has the output of its user data."""
    try:
        output = aws.ec2.get_console_output(InstanceId=host.id).get("Output", "")
    except Exception as error:  # must not hide the failure that is being reported
        return f"its console cannot be read ({type(error).__name__})"
    lines = [line.strip() for line in output.splitlines() if line.strip()][-_CONSOLE_LINES:]
    return f"its console ends: {' | '.join(lines)}" if lines else "its console is empty"
