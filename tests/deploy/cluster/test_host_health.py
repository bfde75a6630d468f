"""Bad hosts get no more roles, on a clock that the test moves."""

from typing import Any

from scripted_agents import KILLED, RESTARTS, Cluster, Host, saved, step

from crossfade.deploy.cluster.job_state import State
from crossfade.deploy.cluster.membership import LEASE_SECONDS
from crossfade.deploy.cluster.messages import Failure

BAD = "its roles failed 3 times in a row, those of the other hosts did not"


def make_cluster(*spares: str, **settings: Any) -> Cluster:
    """Return a cluster of two hosts and ``spares``, whose generation 1 has trained a step."""
    cluster = Cluster(hosts=2, **settings)
    for address in ("10.0.0.2", *spares):
        cluster.join(address)
    cluster.start()
    cluster.local.report_events(step(1))
    return cluster


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
