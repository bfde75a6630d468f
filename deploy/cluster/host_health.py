"""Hosts that are slow, or whose roles keep failing: reported, and given no more roles where other hosts suffice."""

from __future__ import annotations

from collections.abc import Callable

from crossfade.deploy.cluster.generation import Generation
from crossfade.deploy.cluster.membership import Member, Membership
from crossfade.deploy.cluster.restart_policy import BAD_HOST_FAILURES, HostFailures
from crossfade.deploy.cluster.slow_roles import WINDOW_SECONDS
from crossfade.trainer.config.sections import ClusterConfig
from crossfade.trainer.runs.events import Event, HostExcluded, SlowRole


class HostHealth:
    """Decides which hosts get no more roles. The owner serializes all calls."""

    def __init__(self, cluster: ClusterConfig, members: Membership, emit: Callable[[Event], None]) -> None:
        """Judge the hosts of ``members``; ``emit`` receives what is found."""
        self._cluster, self._members, self._emit = cluster, members, emit
        self._failures = HostFailures()
        self.window_seconds = min(WINDOW_SECONDS, cluster.slow_host_timeout_seconds or WINDOW_SECONDS)
        """Time over which roles are compared."""

    def note_failure(self, member: Member) -> None:
        """Record that a role on the host of ``member`` has failed."""
        self._failures.note(member.id)

    def end_generation(self) -> None:
        """Exclude a bad host, if others suffice or the job may continue without it."""
        bad = self._failures.end_generation()
        member = self._members.get(bad) if bad is not None else None
        if member is not None and self._may_exclude(member):
            reason = f"its roles failed {BAD_HOST_FAILURES} times in a row, those of the other hosts did not"
            self._exclude(member, reason)

    def _may_exclude(self, member: Member) -> bool:
        """Return whether the job can continue: otherwise it goes on trying, until ``cluster.max_restarts``."""
        if self._cluster.host_timeout_seconds is not None:
            return not self._members.is_local(member)
        return self._members.can_spare(member)

    def exclude_slow_host(self, generation: Generation, now: float) -> str | None:
        """Report roles that have become slow; exclude the host of one that has been slow for too long.

        Returns:
            Why the generation must drain; None if it need not.
        """
        for role in generation.slow_roles.compare(now):
            self._emit(_slow_role(generation, role))
        timeout = self._cluster.slow_host_timeout_seconds
        for role, since in generation.slow_roles.slow().items():
            member = self._members.get(generation.agent_of(role))
            if timeout is not None and now - since >= timeout and member and self._members.can_spare(member):
                reason = f"{role} was slow for {timeout:g} s (cluster.slow_host_timeout_seconds)"
                self._exclude(member, reason)
                return f"the host {member.host} ({member.address}) is slow: {reason}"
        return None

    def _exclude(self, member: Member, reason: str) -> None:
        self._members.exclude(member, reason)
        self._emit(HostExcluded(host=member.host, address=member.address, reason=reason))

    def warnings(self, generation: Generation) -> list[str]:
        """Describe the slow roles and the excluded hosts, for users."""
        found = [_slow_role(generation, role) for role in generation.slow_roles.slow()]
        excluded = [
            HostExcluded(host=member.host, address=member.address, reason=reason)
            for member, reason in self._members.excluded()
        ]
        return [*(event.describe() for event in found), *(event.describe() for event in excluded)]


def _slow_role(generation: Generation, role: str) -> SlowRole:
    return SlowRole(role=role, host=generation.hosts[role], ratio=round(generation.slow_roles.ratios[role], 2))
