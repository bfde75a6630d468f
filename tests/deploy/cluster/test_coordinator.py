"""The coordinator's start and messages, on a clock that the test moves."""

import pytest
from scripted_agents import KILLED, Cluster, Host, step

from crossfade.deploy.cluster.job_state import GenerationSpec, State
from crossfade.deploy.cluster.membership import LEASE_SECONDS
from crossfade.deploy.cluster.messages import NumberedEvent
from crossfade.deploy.topology import Address


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_job_starts_once_all_hosts_have_joined(hosts: int) -> None:
    cluster = Cluster(hosts=hosts)
    for number in range(2, hosts + 1):
        assert cluster.state is State.WAITING
        assert cluster.local.heartbeat().action == "wait"
        cluster.join(f"10.0.0.{number}")
    assert cluster.state is State.PREPARING
    cluster.start()
    assert cluster.state is State.RUNNING
    assert [host.generation for host in cluster.hosts] == [1] * hosts


@pytest.mark.parametrize(
    ("hosts", "assigned"),
    [
        (1, [["scheduler", "server-0", "server-1", "server-2", "worker-0", "worker-1"]]),
        (2, [["scheduler", "server-0", "server-2", "worker-0"], ["server-1", "worker-1"]]),
        (3, [["scheduler", "server-0", "worker-0"], ["server-1", "worker-1"], ["server-2"]]),
    ],
)
def test_roles_are_assigned_to_hosts_in_turn(hosts: int, assigned: list[list[str]]) -> None:
    cluster = Cluster(hosts=hosts, servers=3, workers=2)
    for number in range(2, hosts + 1):
        cluster.join(f"10.0.0.{number}")
    cluster.start("folder/step-7", 7)
    assert [host.desired.roles for host in cluster.hosts] == assigned
    desired = cluster.hosts[-1].desired
    assert (desired.servers, desired.workers, desired.checkpoint, desired.job_digest) == (
        3,
        2,
        "folder/step-7",
        "digest",
    )
    assert desired.scheduler is not None
    assert (desired.scheduler.host, desired.scheduler.port) == ("10.0.0.1", 5001)


def test_spare_agent_replaces_a_lost_one() -> None:
    cluster = Cluster(hosts=2)
    lost = cluster.join("10.0.0.2")
    spare = cluster.join("10.0.0.3")
    cluster.start()
    assert (lost.desired.action, spare.desired.action) == ("run", "wait")
    cluster.hosts.remove(lost)
    cluster.wait(LEASE_SECONDS + 1)
    assert cluster.state is State.PREPARING
    cluster.start()
    assert spare.desired.roles == lost.desired.roles


def test_agent_of_another_coordinator_joins_after_ending_its_roles() -> None:
    cluster = Cluster(hosts=2)
    returning = Host(cluster, "10.0.0.2")
    desired = cluster.coordinator.handle_heartbeat(
        returning.make_heartbeat(
            coordinator="an earlier one", generation=7, roles={"server-1": "running"}, ended_generation=6
        )
    )
    assert (desired.action, desired.coordinator) == ("wait", cluster.coordinator.id)
    assert cluster.state is State.WAITING
    returning.heartbeat()
    assert cluster.state is State.PREPARING
    cluster.hosts.append(returning)
    cluster.start()
    assert returning.generation == 1


def test_host_lost_while_preparing_is_waited_for() -> None:
    cluster = Cluster(hosts=2)
    cluster.join("10.0.0.2").heartbeat(leaving=True)
    assert cluster.state is State.PREPARING
    cluster.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    assert (cluster.state, cluster.coordinator.generation) == (State.WAITING, 0)


def test_obsolete_start_is_ignored(alone: Cluster) -> None:
    alone.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    alone.coordinator.start_failed(OSError("late"))
    assert (alone.state, alone.coordinator.generation) == (State.RUNNING, 1)


def test_remote_agent_at_the_coordinators_address_is_rejected() -> None:
    cluster = Cluster(hosts=2)
    desired = Host(cluster, "10.0.0.1", "another").heartbeat()
    assert (desired.action, desired.exit_code) == ("leave", 1)
    assert "10.0.0.1 is the coordinator's own address" in desired.message
    assert cluster.state is State.WAITING


def test_repeated_heartbeats_and_events_count_once(alone: Cluster) -> None:
    alone.coordinator.take_events()
    report = alone.local.make_heartbeat(events=alone.local.number_events(step(2), step(3)))
    first, second = alone.coordinator.handle_heartbeat(report), alone.coordinator.handle_heartbeat(report)
    assert first == second
    assert [event["step"] for event in alone.events("step")] == [2, 3]
    # Its answer was lost, so the agent sends them again, with what came since.
    again = alone.local.make_heartbeat(events=[*report.events, *alone.local.number_events(step(4))])
    assert alone.coordinator.handle_heartbeat(again).acknowledged_event == again.events[-1].number
    assert [event["step"] for event in alone.events("step")] == [4]


def test_late_heartbeat_is_ignored(cluster: Cluster, other: Host) -> None:
    late = other.make_heartbeat(failure=KILLED)
    other.heartbeat()
    assert cluster.coordinator.handle_heartbeat(late).action == "run"
    assert cluster.state is State.RUNNING


def test_reports_about_an_earlier_generation_are_ignored(cluster: Cluster, other: Host) -> None:
    cluster.fail()
    cluster.start()
    cluster.coordinator.take_events()
    old = [NumberedEvent(number=99, generation=1, role="worker-0", event=step(77))]
    desired = cluster.coordinator.handle_heartbeat(
        other.make_heartbeat(generation=1, failure=KILLED, roles={"server-1": "done"}, events=old, ended_generation=0)
    )
    assert (desired.action, desired.generation, desired.acknowledged_event) == ("run", 2, 99)
    assert cluster.state is State.RUNNING
    assert cluster.coordinator.take_events() == []
    assert cluster.coordinator.status()["step"] == 0


def test_lost_answer_is_sent_again(cluster: Cluster, other: Host) -> None:
    cluster.local.heartbeat(failure=KILLED)
    for _ in range(3):
        assert cluster.coordinator.handle_heartbeat(other.make_heartbeat()).action == "wait"
    cluster.heartbeat_all()
    cluster.heartbeat_all()
    cluster.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    for _ in range(3):
        desired = cluster.coordinator.handle_heartbeat(other.make_heartbeat())
        assert (desired.action, desired.generation) == ("run", 2)
