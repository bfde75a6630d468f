"""Slow and bad hosts: reported, and drained or given no more roles, on a clock that the test moves."""

from typing import Any

import pytest
from scripted_agents import KILLED, RESTARTS, Cluster, Host, saved, step

from crossfade.deploy.cluster.job_state import State
from crossfade.deploy.cluster.membership import LEASE_SECONDS
from crossfade.deploy.cluster.messages import Failure, NumberedEvent
from crossfade.trainer.runs.events import LoadEvent, StoppedEvent

TIMEOUT = 30.0
SLOW_STEP, STEP = 0.8, 0.2
BAD = "its roles failed 3 times in a row, those of the other hosts did not"


def make_cluster(*spares: str, **settings: Any) -> Cluster:
    """Return a cluster of two hosts and ``spares``, whose generation 1 has trained a step."""
    cluster = Cluster(hosts=2, slow_host_timeout_seconds=TIMEOUT, **settings)
    for address in ("10.0.0.2", *spares):
        cluster.join(address)
    cluster.start()
    cluster.local.report_events(step(1))
    return cluster


def load(role: str, host: Host, seconds: float, step_seconds: float) -> NumberedEvent:
    """Return the report of a worker that has taken a step each second for ``seconds``."""
    host.events += 1
    values = {"steps": seconds, "examples": seconds, "phase_seconds": {"gradients": step_seconds * seconds}}
    return NumberedEvent(number=host.events, generation=host.generation or 0, role=role, event=LoadEvent(load=values))


def train(cluster: Cluster, seconds: float, *, slow: str = "worker-1") -> None:
    """Let workers report their load for ``seconds``, or while the generation runs; ``slow`` is the slower one."""
    began = cluster.now
    while cluster.now < began + seconds and cluster.state is State.RUNNING:
        cluster.now += 2.0
        for host in cluster.hosts:
            workers = sorted(role for role in host.roles if role.startswith("worker"))
            spent = {role: SLOW_STEP if role == slow else STEP for role in workers}
            host.heartbeat(events=[load(role, host, cluster.now - cluster.began, spent[role]) for role in workers])
        cluster.local.report_events(step(2))
        cluster.coordinator.tick()


def drain(cluster: Cluster) -> None:
    """Let the workers write a checkpoint and all roles end."""
    assert cluster.state is State.DRAINING
    cluster.heartbeat_all()
    assert {host.desired.action for host in cluster.hosts if host.roles} == {"stop"}
    cluster.local.report_events(saved(8), StoppedEvent(step=8, checkpoint="checkpoints/step-000000008"))
    for host in cluster.hosts:
        if host.roles:
            host.finish_roles()
    cluster.heartbeat_all()
    cluster.heartbeat_all()


def test_slow_host_is_reported_and_drained_after_the_timeout() -> None:
    cluster = make_cluster("10.0.0.3")
    slow, spare = cluster.hosts[1:]
    train(cluster, TIMEOUT + 2)
    [event] = cluster.events("slow_role")
    assert event == {"event": "slow_role", "role": "worker-1", "host": "host 10.0.0.2", "ratio": 4.0}
    status = cluster.coordinator.status()
    assert status["slowdowns"] == pytest.approx({"worker-0": 1.0, "worker-1": 4.0})
    assert status["warnings"] == [
        "worker-1 on host 10.0.0.2 takes 4.0 times as long as the other workers for the same work"
    ]
    assert cluster.state is State.RUNNING
    train(cluster, TIMEOUT)
    drain(cluster)
    cluster.start("checkpoints/step-000000008", at_step=8)
    [excluded] = cluster.events("host_excluded")
    reason = "worker-1 was slow for 30 s (cluster.slow_host_timeout_seconds)"
    assert (excluded["address"], excluded["reason"]) == ("10.0.0.2", reason)
    assert (slow.generation, spare.generation) == (None, 2)
    [restart] = cluster.coordinator.restarts
    assert restart.cause == f"the host host 10.0.0.2 (10.0.0.2) is slow: {reason}"
    status = cluster.coordinator.status()
    assert [agent["excluded"] for agent in status["agents"]] == [None, reason, None]
    assert status["warnings"] == [
        f"host 10.0.0.2 (10.0.0.2) gets no more roles: {reason}; restart its agent to let it rejoin"
    ]


def test_slow_host_without_a_replacement_keeps_its_roles() -> None:
    cluster = make_cluster()
    train(cluster, 5 * TIMEOUT)
    assert cluster.state is State.RUNNING
    assert len(cluster.events("slow_role")) == 1
    # As soon as another host could take its roles, they go there.
    cluster.join("10.0.0.3")
    train(cluster, 4)
    assert cluster.state is State.DRAINING


def test_slow_host_of_the_coordinator_keeps_its_roles() -> None:
    cluster = make_cluster("10.0.0.3")
    train(cluster, 5 * TIMEOUT, slow="worker-0")
    assert cluster.state is State.RUNNING
    assert [event["host"] for event in cluster.events("slow_role")] == ["host 10.0.0.1"]


def test_checkpoint_of_a_slow_host_may_take_until_the_stall_timeout() -> None:
    cluster = make_cluster("10.0.0.3")
    train(cluster, 3 * TIMEOUT)
    cluster.wait(100)
    assert cluster.state is State.DRAINING
    cluster.wait(1)
    assert cluster.state is State.PREPARING
    cluster.start()
    assert cluster.coordinator.restarts[0].cause.endswith("; then its checkpoint took more than 100 s to write")


def fail_on(cluster: Cluster, *hosts: Host, failure: Failure = KILLED) -> None:
    """Let roles on ``hosts`` fail, and the next generation start unless hosts are missing."""
    for host in hosts:
        cluster.coordinator.handle_heartbeat(host.make_heartbeat(failure=failure))
    cluster.heartbeat_all()
    cluster.heartbeat_all()
    cluster.wait(5)
    if cluster.state is State.PREPARING:
        cluster.start()


def test_host_whose_roles_fail_repeatedly_gets_no_more() -> None:
    cluster = make_cluster("10.0.0.3")
    bad, spare = cluster.hosts[1:]
    for _ in range(2):
        fail_on(cluster, bad)
        assert (bad.generation, spare.generation) == (cluster.coordinator.generation, None)
    fail_on(cluster, bad)
    assert (bad.generation, spare.generation) == (None, 4)
    [excluded] = cluster.events("host_excluded")
    assert (excluded["address"], excluded["reason"]) == ("10.0.0.2", BAD)
    # A lost connection does not make it good; a new agent does.
    cluster.hosts.remove(bad)
    cluster.wait(LEASE_SECONDS + 1)
    bad.heartbeat()
    assert cluster.coordinator.status()["agents"][-1]["excluded"] == BAD
    Host(cluster, "10.0.0.2", "a new agent").heartbeat()
    assert [agent["excluded"] for agent in cluster.coordinator.status()["agents"]] == [None] * 3


def test_failures_of_several_hosts_exclude_none() -> None:
    cluster = make_cluster("10.0.0.3")
    first, second = cluster.local, cluster.hosts[1]
    for hosts in ((second,), (second,), (first,), (second,), (second,), (first, second), (second,), (second,)):
        cluster.local.report_events(saved(cluster.coordinator.generation + 1))
        fail_on(cluster, *hosts)
    corrupt = Failure(message="bad CRC", checkpoint="checkpoints/step-9")
    fail_on(cluster, second, failure=corrupt)
    assert second.generation == cluster.coordinator.generation == 10
    assert cluster.events("host_excluded") == []


def test_bad_host_without_a_replacement_keeps_its_roles_until_the_job_fails() -> None:
    cluster = make_cluster()
    for _ in range(RESTARTS + 1):
        fail_on(cluster, cluster.hosts[1])
    assert cluster.state is State.FAILED
    assert "restarted 3 times without a new checkpoint" in str(cluster.coordinator.error())


def test_bad_host_is_left_out_where_the_job_may_continue_without_it() -> None:
    cluster = make_cluster(host_timeout_seconds=10.0)
    bad = cluster.hosts[1]
    for _ in range(3):
        fail_on(cluster, bad)
    assert cluster.state is State.WAITING
    cluster.wait(10)
    cluster.start()
    assert (bad.generation, cluster.local.generation) == (None, 4)
    assert sorted(cluster.local.roles) == ["scheduler", "server-0", "server-1", "worker-0", "worker-1"]
