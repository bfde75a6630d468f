"""The agents that have joined a job: their leases, the roles that they accept, and the hosts that are missing.

An agent is a member from its first heartbeat until it leaves, is replaced by another agent at its address, or is silent
for longer than its lease. The owner serializes all calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from crossfade.deploy.cluster.messages import Heartbeat, NumberedEvent, RoleState
from crossfade.deploy.topology import AcceptedRoles, missing_hosts
from crossfade.trainer.config.sections import ClusterConfig

LEASE_SECONDS = 15.0
"""Time without a heartbeat after which an agent is lost. Longer than an agent waits before it ends its
own roles, so that none still writes when the next generation starts."""


@dataclass
class Member:
    """An agent, as of its newest heartbeat."""

    id: str
    host: str
    address: str
    accepted_roles: AcceptedRoles
    heard_at: float
    heartbeat_number: int = 0
    metrics_address: str | None = None
    source: str | None = None
    """The address that its heartbeats come from, which differs from ``address`` on a host with several."""
    acknowledged_event: int = 0
    interruption_notice: str | None = None
    roles: dict[str, RoleState] = field(default_factory=dict)
    is_clear: bool = True
    """Whether it has reported, since the generation began to end, that it runs no role of it."""

    def update(self, heartbeat: Heartbeat, now: float, generation: int) -> None:
        """Record ``heartbeat``; roles of another generation than ``generation`` do not count."""
        self.heard_at, self.heartbeat_number = now, heartbeat.number
        self.metrics_address = heartbeat.metrics_address
        self.is_clear = heartbeat.generation != generation
        self.roles = {} if self.is_clear else heartbeat.roles

    def acknowledge(self, events: Iterable[NumberedEvent]) -> Iterator[NumberedEvent]:
        """Yield those of ``events`` that are new: a lost answer makes the agent send them again."""
        for event in events:
            if event.number > self.acknowledged_event:
                self.acknowledged_event = event.number
                yield event


class Membership:
    """The members of a job, in the order in which they joined."""

    def __init__(self, cluster: ClusterConfig, local_agent: str, clock: Callable[[], float]) -> None:
        """Start without members. ``local_agent`` is the agent in the coordinator's process, which has no lease."""
        self._cluster, self._local_agent, self._clock = cluster, local_agent, clock
        self._members: dict[str, Member] = {}
        self._departed: set[str] = set()
        self._addresses: dict[str, str] = {}
        """The address of each agent that was ever heard."""
        self._newest: dict[str, str] = {}
        """The agent at each address that was first heard last. A late message of an earlier one does not replace it."""
        self._changed_at = clock()

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def get(self, agent: str) -> Member | None:
        """Return the member with the ID ``agent``."""
        return self._members.get(agent)

    def rejection(self, heartbeat: Heartbeat) -> str | None:
        """Return why the sender of ``heartbeat`` may not take part; None if it may."""
        local = self._members.get(self._local_agent)
        if local is not None and heartbeat.agent != local.id and heartbeat.address == local.address:
            return (
                f"{heartbeat.address} is the coordinator's own address, where an agent runs already; give this host's, "
                "as advertise_address"
            )
        if heartbeat.agent not in self._addresses:
            self._addresses[heartbeat.agent], self._newest[heartbeat.address] = heartbeat.address, heartbeat.agent
        if heartbeat.agent in self._departed or self._newest[heartbeat.address] != heartbeat.agent:
            return f"this agent has left, or another agent at {heartbeat.address} has replaced it"
        return None

    def at_address(self, address: str) -> list[Member]:
        """Return the members whose roles listen on ``address``: those that a new agent there replaces."""
        return [member for member in self if member.address == address]

    def join(self, heartbeat: Heartbeat) -> Member:
        """Add the sender of ``heartbeat``."""
        self._changed_at = self._clock()
        member = Member(
            heartbeat.agent, heartbeat.host, heartbeat.address, heartbeat.accepted_roles, heard_at=self._changed_at
        )
        self._members[member.id] = member
        return member

    def remove(self, member: Member, *, for_good: bool) -> None:
        """Remove ``member``; ``for_good`` rejects later heartbeats of the same agent."""
        del self._members[member.id]
        self._changed_at = self._clock()
        if for_good:
            self._departed.add(member.id)

    def expired(self) -> list[Member]:
        """Return the members whose lease is over."""
        now = self._clock()
        return [member for member in self if member.id != self._local_agent and now - member.heard_at > LEASE_SECONDS]

    def note_interruption(self, member: Member, notice: str) -> None:
        """Record that the host of ``member`` is about to be reclaimed: it gets no more roles."""
        member.interruption_notice, self._changed_at = notice, self._clock()

    def require_clear(self) -> None:
        """Require each member to report again that it runs no role of the generation."""
        for member in self:
            member.is_clear = False

    def are_clear(self, agents: Iterable[str]) -> bool:
        """Return whether all ``agents`` that are still members have ended their roles of the generation."""
        return all(member.is_clear for agent in agents if (member := self._members.get(agent)))

    def addresses(self, agents: Iterable[str]) -> list[str]:
        """Return the addresses from which the roles of ``agents`` connect to others."""
        members = [member for agent in agents if (member := self._members.get(agent))]
        return sorted({each for member in members for each in (member.address, member.source) if each})

    def role_states(self) -> dict[str, RoleState]:
        """Return the state of each role that a member reports."""
        return {name: state for member in self for name, state in member.roles.items()}

    def scrape_targets(self) -> list[tuple[str, str, str]]:
        """Return where agents can be scraped: process, host and HOST:PORT."""
        return [("agent", member.host, member.metrics_address) for member in self if member.metrics_address]

    def accepted_roles(self) -> dict[str, AcceptedRoles]:
        """Return what each agent that may get roles accepts: the local agent first, the others as they joined."""
        staying = [member for member in self if member.interruption_notice is None]
        remote = {member.id: member.accepted_roles for member in staying if member.accepted_roles != "none"}
        return {self._local_agent: "all", **remote}

    def missing_hosts(self) -> int:
        """Return how many hosts the job lacks."""
        return missing_hosts(self._cluster, self.accepted_roles())

    def can_start(self, *, started_before: bool) -> bool:
        """Return whether a generation can start: with all hosts, or without those whose host timeout is over.

        A job that never ran waits for its hosts, since they may still be starting.
        """
        if self._local_agent not in self._members:
            return False
        if not self.missing_hosts():
            return True
        timeout = self._cluster.host_timeout_seconds
        if timeout is None or self._clock() - self._changed_at < timeout:
            return False
        kinds = {kind for agent, kind in self.accepted_roles().items() if agent != self._local_agent}
        return started_before or (self._cluster.one_role_per_host and ("all" in kinds or {"server", "worker"} <= kinds))
