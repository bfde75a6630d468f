"""Agents that fall silent, leave or are replaced, on a clock that the test moves."""

from scripted_agents import STALL, Cluster, Host

from crossfade.deploy.cluster.job_state import State
from crossfade.deploy.cluster.membership import LEASE_SECONDS


def test_expired_lease_ends_the_generation_and_the_job_waits(cluster: Cluster, other: Host) -> None:
    cluster.hosts.remove(other)
    cluster.wait(LEASE_SECONDS)
    assert cluster.state is State.RUNNING
    cluster.wait(1)
    assert cluster.state is State.WAITING
    assert cluster.events("waiting") == [{"event": "waiting", "hosts": 1}]
    cluster.wait(1000)
    assert cluster.state is State.WAITING
    new = cluster.join("10.0.0.9")
    cluster.start()
    assert new.generation == 2
    assert cluster.coordinator.restarts[0].cause == "the agent on host 10.0.0.2 (10.0.0.2) sent no heartbeat for 15 s"


def test_agent_rejoins_after_its_lease_expired(cluster: Cluster, other: Host) -> None:
    cluster.hosts.remove(other)
    cluster.wait(LEASE_SECONDS + 1)
    assert cluster.state is State.WAITING
    assert other.heartbeat().action == "wait"
    assert other.generation is None
    cluster.hosts.append(other)
    cluster.start()
    assert [host.generation for host in cluster.hosts] == [2, 2]


def test_silent_agent_does_not_delay_termination_beyond_its_lease(cluster: Cluster, other: Host) -> None:
    cluster.hosts.remove(other)
    cluster.fail()
    cluster.wait(LEASE_SECONDS - 1)
    assert cluster.state is State.TERMINATING
    cluster.wait(2)
    assert cluster.state is State.WAITING


def test_local_agent_has_no_lease(alone: Cluster) -> None:
    alone.wait_silently(STALL - 1)
    assert alone.state is State.RUNNING


def test_new_agent_replaces_the_one_at_its_address(cluster: Cluster, other: Host) -> None:
    new = Host(cluster, other.address, "the new one")
    new.heartbeat()
    cluster.heartbeat_all()
    cluster.local.heartbeat()
    assert other.desired.action == "leave"
    assert "has replaced it" in other.desired.message
    assert cluster.state is State.PREPARING
    cluster.hosts = [cluster.local, new]
    cluster.start()
    assert new.generation == 2
    assert other.heartbeat().action == "leave"
    assert cluster.state is State.RUNNING
    assert "was replaced by a new agent" in cluster.coordinator.restarts[0].cause


def test_leaving_agent_ends_the_generation_and_its_late_heartbeat_is_rejected(cluster: Cluster, other: Host) -> None:
    late = other.make_heartbeat()
    cluster.hosts.remove(other)
    cluster.coordinator.handle_heartbeat(
        other.make_heartbeat(generation=None, ended_generation=1, roles={}, leaving=True)
    )
    cluster.local.heartbeat()
    cluster.local.heartbeat()
    assert cluster.state is State.WAITING
    cluster.coordinator.handle_heartbeat(late)
    assert cluster.coordinator.remote_hosts() == []
    assert cluster.state is State.WAITING


def test_agent_that_ended_its_roles_causes_a_restart(cluster: Cluster, other: Host) -> None:
    other.generation, other.ended_generation, other.roles = None, 1, {}
    assert other.heartbeat().action == "wait"
    cluster.heartbeat_all()
    cluster.heartbeat_all()
    cluster.start()
    assert "ended its roles" in cluster.coordinator.restarts[0].cause


def test_late_heartbeat_of_a_lost_agent_does_not_evict_its_replacement(cluster: Cluster, other: Host) -> None:
    late = other.make_heartbeat()
    cluster.hosts.remove(other)
    cluster.wait(LEASE_SECONDS + 1)
    new = Host(cluster, other.address, "the new one")
    new.heartbeat()
    cluster.hosts.append(new)
    cluster.start()
    desired = cluster.coordinator.handle_heartbeat(late)
    assert (desired.action, desired.exit_code) == ("leave", 1)
    assert (cluster.state, new.heartbeat().action) == (State.RUNNING, "run")
