"""Follows a run on EC2 to its end: awaits its hosts, shows what the first one prints, replaces those that are taken.

Hosts have no port open to the world: what is known of them comes through the run's folder on S3, and from EC2 itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.aws.ec2.launch import AwsContext, resolve_context, start_instances
from deploy.aws.ec2.resources import Ec2Instance, instances_of, security_group_of
from deploy.aws.ec2.spec import RunSpec
from deploy.aws.ec2.storage import END, STOP, RunStorage
from kvstore.errors import CloudError, ClusterError

if TYPE_CHECKING:
    from deploy.aws.clients import Aws

START_SECONDS = 1800.0
"""How long a host may take from when it is started until it takes part: a GPU's driver is built meanwhile."""
STOP_SECONDS = 180.0
"""How long a run that is asked to stop may take to write its checkpoint and say so."""
MAX_LOSSES = 3
"""Hosts that AWS lost, but not to the spot market, after which the run is given up."""
_MAX_BACKOFF_SECONDS = 300.0
_TAKING_PART = {"running", "done"}
_ENDED = {"done", "stopped", "ended"}
_CONSOLE_LINES = 15


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    exit_code: int
    message: str


class RunFollower:
    """One client that follows a run. ``turn`` is called over and over; it looks once."""

    def __init__(
        self,
        aws: Aws,
        plan: RunSpec,
        say: Callable[[str], None],
        show: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``say`` gets lines about the cluster, ``show`` what the first host's command prints."""
        self._aws, self._plan, self._say, self._show, self._clock = aws, plan, say, show, clock
        self._objects = RunStorage(aws, plan.storage)
        self._around: AwsContext | None = None
        self._last_log = 0
        self._ready = -1
        self._replaced: dict[int, str] = {}
        self._losses = 0
        self._started = clock()
        self._next_try, self._back_off = 0.0, plan.poll_seconds
        self._stop_by: float | None = None

    def skip_log(self) -> None:
        """Show only what is printed from now on."""
        self._last_log = self._objects.last_log(0)

    def stop(self) -> None:
        """Ask the run to stop after a checkpoint."""
        self._objects.write(STOP, {"stop": True})
        self._stop_by = self._clock() + STOP_SECONDS

    def turn(self) -> RunResult | None:
        """Look once: show what is new, replace hosts that are gone; how the run ended, once it has.

        Raises:
            ClusterError: a host failed, or did not come.
            CloudError, RefusedError: AWS does not answer, or a host cannot be replaced.
        """
        end = self._objects.read(END)
        for number, text in self._objects.log_after(0, self._last_log):
            self._last_log = number
            self._show(text)
        if end is not None:
            return RunResult(int(end["exit_code"]), str(end["message"]))
        if self._stop_by is not None:
            if self._clock() > self._stop_by:
                return RunResult(
                    143, f"stopped without a checkpoint, which took more than {STOP_SECONDS:.0f} s to write"
                )
            return None
        self._look_at_hosts()
        return None

    def _look_at_hosts(self) -> None:
        instances = instances_of(self._aws, self._plan.run)
        hosts = {number: current_instance(instances, number) for number in range(self._plan.hosts)}
        status = {number: self._objects.read(f"hosts/{number}.json") or {} for number in hosts}
        for number, host in hosts.items():
            self._check(number, host, status[number])
        ready = sum(
            host is not None
            and host.living
            and is_of(host, status[number])
            and status[number].get("state") in _TAKING_PART
            for number, host in hosts.items()
        )
        if ready != self._ready:
            self._ready = ready
            self._say(f"{ready} of {self._plan.hosts} hosts take part")
            self._started = self._clock()
        if ready < self._plan.hosts and self._clock() - self._started > START_SECONDS:
            raise ClusterError(
                f"only {ready} of {self._plan.hosts} hosts took part after {START_SECONDS / 60:.0f} minutes; "
                f"{self._last_words(hosts)}"
            )

    def _check(self, number: int, host: Ec2Instance | None, status: dict[str, Any]) -> None:
        """See how a host fares; replace it if it is gone for no fault of the run."""
        mine = host is not None and is_of(host, status)
        if mine and status.get("state") == "failed":
            raise ClusterError(f"host {number} failed: {status.get('message', '')}")
        if host is None or host.living or host.state == "shutting-down":
            return
        if self._replaced.get(number) == host.id or (mine and status.get("state") in _ENDED):
            return  # its successor is not seen yet, or its command has ended, of which the first host tells
        reason = host.reason or "for no reason that EC2 names"
        if not (mine and status.get("state") == "interrupted") and not reason.startswith("Server.Spot"):
            if not reason.startswith("Server."):
                raise ClusterError(f"host {number} ({host.id}) has ended: {reason}; {console(self._aws, host)}")
            self._losses += 1
            if self._losses > MAX_LOSSES:
                raise ClusterError(f"AWS has lost {self._losses} hosts, the last one of {reason}")
        self._replace(number, host, reason)

    def _replace(self, number: int, host: Ec2Instance, reason: str) -> None:
        """Start another instance as host ``number``, as soon as there is capacity."""
        if self._clock() < self._next_try:
            return
        if self._around is None:
            self._around = resolve_context(self._aws, self._plan)
        group = security_group_of(self._aws, self._plan.run)
        try:
            start_instances(self._aws, self._plan, self._around, group, [number], self._plan.subnet or host.subnet)
        except CloudError as error:
            self._next_try = self._clock() + self._back_off
            self._say(f"host {number} is gone ({reason}); trying again in {self._back_off:.0f} s: {error}")
            self._back_off = min(2 * self._back_off, _MAX_BACKOFF_SECONDS)
            self._started = self._clock()
            return
        self._next_try, self._back_off = 0.0, self._plan.poll_seconds
        self._replaced[number] = host.id
        self._started = self._clock()
        self._say(f"host {number} is gone ({reason}); another instance takes its place")

    def _last_words(self, hosts: dict[int, Ec2Instance | None]) -> str:
        words = [f"host {number}: {console(self._aws, host)}" for number, host in hosts.items() if host is not None]
        return "; ".join(words) or "there are no instances"


def current_instance(instances: Sequence[Ec2Instance], number: int) -> Ec2Instance | None:
    """The one that is host ``number`` now: a living one, or the one started last."""
    candidates = [instance for instance in instances if instance.number == number]
    return max(candidates, key=lambda instance: (instance.living, instance.launched), default=None)


def is_of(host: Ec2Instance, status: dict[str, Any]) -> bool:
    """Whether ``told`` is what this instance says of itself, and not what the one before it said."""
    return bool(status.get("instance") == host.id)


def console(aws: Aws, host: Ec2Instance) -> str:
    """The last lines on an instance's console, which is where its script prints."""
    try:
        output = aws.ec2.get_console_output(InstanceId=host.id).get("Output", "")
    except Exception as error:  # the failure that is being told matters more
        return f"its console cannot be read ({type(error).__name__})"
    lines = [line.strip() for line in output.splitlines() if line.strip()][-_CONSOLE_LINES:]
    return f"its console ends: {' | '.join(lines)}" if lines else "its console is empty"
