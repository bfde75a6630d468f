"""Hosts that accept one kind of role, as containers do: assignment, lost hosts and standbys."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from fault_runs import ON_ONE_SERVER, TOKEN, assert_undisturbed, train
from paced_training import pace
from running_command import records, started, succeeded
from scripted_agents import KILLED, Cluster, Host, step
from waiting import wait_until

from crossfade.base.errors import InputError
from crossfade.deploy.cluster.job_state import State
from crossfade.deploy.cluster.membership import LEASE_SECONDS
from crossfade.deploy.topology import AcceptedRoles, assign_roles, missing_hosts
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.config.sections import ClusterConfig

HOST_TIMEOUT_SECONDS = 30.0


SEPARATE, TOGETHER = {"one_role_per_host": True}, {"hosts": 2}


@pytest.mark.parametrize(
    ("settings", "sizes", "accepted", "expected", "missing"),
    [
        (SEPARATE, (1, 1), "server worker", "scheduler | server-0 | worker-0", 0),
        (SEPARATE, (1, 1), "worker server", "scheduler | worker-0 | server-0", 0),
        (SEPARATE, (1, 1), "all all", "scheduler | server-0 | worker-0", 0),
        (SEPARATE, (1, 1), "all server", "scheduler | worker-0 | server-0", 0),
        (SEPARATE, (1, 1), "server server worker", "scheduler | server-0 | | worker-0", 0),
        # Roles of missing hosts go to the others, and last to the coordinator's.
        (SEPARATE, (2, 2), "server worker worker", "scheduler | server-0 server-1 | worker-0 | worker-1", 1),
        (SEPARATE, (2, 2), "server server worker", "scheduler | server-0 | server-1 | worker-0 worker-1", 1),
        (SEPARATE, (2, 2), "worker worker", "scheduler server-0 server-1 | worker-0 | worker-1", 2),
        (SEPARATE, (2, 2), "all", "scheduler | server-0 server-1 worker-0 worker-1", 3),
        (SEPARATE, (2, 2), "", "scheduler server-0 server-1 worker-0 worker-1", 4),
        (SEPARATE, (2, 2), "server all worker all", "scheduler | server-0 | server-1 | worker-0 | worker-1", 0),
        (TOGETHER, (2, 2), "worker all", "scheduler server-0 server-1 worker-0 | worker-1 |", 0),
        (TOGETHER, (3, 2), "all", "scheduler server-0 server-2 worker-0 | server-1 worker-1", 0),
        # Workers that hold the tables need neither scheduler nor servers.
        (SEPARATE, (0, 3), "worker all worker", "| worker-0 | worker-2 | worker-1", 0),
        (SEPARATE, (0, 3), "server worker", "| | worker-0 worker-1 worker-2", 2),
        (SEPARATE, (0, 3), "", "worker-0 worker-1 worker-2", 3),
        (TOGETHER, (0, 3), "all", "worker-0 worker-2 | worker-1", 0),
    ],
)
def test_each_role_is_assigned_to_a_host_that_accepts_it(
    settings: dict[str, Any], sizes: tuple[int, int], accepted: str, expected: str, missing: int
) -> None:
    cluster = ClusterConfig(servers=sizes[0], workers=sizes[1], **settings)
    offers = {str(number): cast(AcceptedRoles, offer) for number, offer in enumerate(accepted.split())}
    hosts: dict[str, AcceptedRoles] = {"home": "all", **offers}
    assigned = assign_roles(cluster, hosts)
    assert [[role.name for role in assigned.get(host, [])] for host in hosts] == [
        names.split() for names in expected.split("|")
    ]
    assert missing_hosts(cluster, hosts) == missing


def test_hosts_with_one_role_per_host_is_rejected() -> None:
    with pytest.raises(
        InputError, match="hosts is 3, but one_role_per_host determines the number of hosts: set only one of them"
    ):
        check_job(
            {"name": "a", "data": {"path": "d"}, "cluster": {"servers": 1, "hosts": 3, "one_role_per_host": True}},
            "job",
        )


# ---- lost hosts


class Roles:
    """A coordinator with a host for each of two servers and two workers."""

    def __init__(self, **settings: Any) -> None:
        self.cluster = Cluster(one_role_per_host=True, **{"host_timeout_seconds": HOST_TIMEOUT_SECONDS} | settings)
        self.servers = [self.cluster.join(f"10.0.1.{number}", "server") for number in range(2)]
        self.workers = [self.cluster.join(f"10.0.2.{number}", "worker") for number in range(2)]

    def run(self) -> None:
        self.cluster.start()
        self.cluster.local.report_events(step(1))

    def lose(self, *hosts: Host) -> None:
        """Silence hosts until their leases expire."""
        for host in hosts:
            self.cluster.hosts.remove(host)
        self.cluster.wait(LEASE_SECONDS + 1)
        assert self.cluster.state is State.WAITING


def test_host_that_accepts_no_role_learns_the_outcome() -> None:
    cluster = Cluster(servers=1, workers=1, one_role_per_host=True)
    watcher = cluster.join("10.0.3.1", "none")
    cluster.join("10.0.1.1", "server")
    assert cluster.state is State.WAITING
    cluster.join("10.0.2.1", "worker")
    cluster.start()
    cluster.local.report_events(step(1))
    assert (watcher.desired.action, watcher.desired.roles) == ("wait", [])
    watcher.heartbeat(leaving=True)  # it has no role to lose
    assert cluster.state is State.RUNNING
    late = cluster.join("10.0.3.2", "none")
    for host in cluster.hosts:
        if host.roles:
            host.finish_roles()
    desired = late.heartbeat()
    assert (desired.action, desired.exit_code, desired.message) == ("leave", 0, "the job is done")


def test_lost_host_is_waited_for_and_replaced() -> None:
    roles = Roles()
    roles.run()
    lost = roles.workers[1]
    roles.lose(lost)
    assert roles.cluster.events("waiting") == [{"event": "waiting", "hosts": 1}]
    roles.cluster.wait(HOST_TIMEOUT_SECONDS - 5)
    assert roles.cluster.state is State.WAITING
    roles.cluster.join("10.0.1.9", "server")  # a worker is missing, not a server
    roles.cluster.wait(HOST_TIMEOUT_SECONDS - 5)  # which begins again with each new host
    assert roles.cluster.state is State.WAITING
    new = roles.cluster.join("10.0.2.9", "worker")
    assert roles.cluster.state is State.PREPARING
    roles.cluster.start()
    assert new.desired.roles == lost.desired.roles
    assert roles.cluster.events("hosts_missing") == []


def test_job_continues_without_a_host_after_the_host_timeout() -> None:
    roles = Roles()
    roles.run()
    roles.lose(roles.workers[0], *roles.servers)
    roles.cluster.wait(HOST_TIMEOUT_SECONDS)
    assert roles.cluster.state is State.PREPARING
    roles.cluster.start("folder/step-1", 1)
    assert roles.cluster.local.desired.roles == ["scheduler", "server-0", "server-1"]
    assert roles.workers[1].desired.roles == ["worker-0", "worker-1"]
    assert roles.cluster.events("hosts_missing") == [{"event": "hosts_missing", "hosts": 3}]
    # A host that joins now is a spare: the running generation is not disturbed.
    spare = roles.cluster.join("10.0.1.9", "server")
    assert spare.desired.action == "wait"
    roles.cluster.wait(HOST_TIMEOUT_SECONDS)
    roles.cluster.fail(KILLED)
    roles.cluster.wait(2)  # the second failure in a row causes a pause
    roles.cluster.start("folder/step-1", 1)
    assert spare.desired.roles == ["server-0", "server-1"]
    assert roles.cluster.local.desired.roles == ["scheduler"]


@pytest.mark.parametrize(("begun", "state"), [(False, State.WAITING), (True, State.PREPARING)])
def test_new_job_does_not_start_on_the_coordinators_host_alone(begun: bool, state: State) -> None:
    cluster = Cluster(one_role_per_host=True, host_timeout_seconds=HOST_TIMEOUT_SECONDS, started_before=begun)
    cluster.join("10.0.1.1", "server")
    cluster.wait(HOST_TIMEOUT_SECONDS + 1)
    assert cluster.state is state
    cluster.join("10.0.2.1", "worker")
    cluster.wait(HOST_TIMEOUT_SECONDS + 1)
    assert cluster.state is State.PREPARING


# ---- real processes, with loopback addresses as hosts


@pytest.mark.cluster
def test_standby_resumes_the_job_of_a_killed_coordinator(workspace: Path, undisturbed: Path, free_port: int) -> None:
    run_dir, coordinator = workspace / "standby", f"127.0.0.1:{free_port}"
    (workspace / "token").write_text(TOKEN)
    variables = {"CROSSFADE_TOKEN_FILE": str(workspace / "token")}
    options = ("one_role_per_host=true", "host_timeout_seconds=60", f"coordinator_address={coordinator}")
    command = (*ON_ONE_SERVER, "--standby", *(part for option in options for part in ("--set", f"cluster.{option}")))
    with ExitStack() as stack:
        first = stack.enter_context(train(run_dir, *command, variables=variables))
        paced = pace(workspace, workspace / "standby.release", variables)
        server, worker, watcher = (
            stack.enter_context(started(*join, "--roles", roles, cwd=workspace, variables=paced))
            for address, roles in (("127.0.0.2", "server"), ("127.0.0.3", "worker"), ("127.0.0.4", "none"))
            for join in [("agent", "--join", coordinator, "--run-dir", run_dir, "--advertise-address", address)]
        )
        first.wait((run_dir / "run.lock").exists, "the first coordinator's run")
        standby = stack.enter_context(train(run_dir, *command, variables=variables))
        first.wait_for("checkpoint_saved")
        assert [sorted(host.roles()) for host in (first.command, standby.command, server, worker, watcher)] == [
            *(["scheduler"], [], ["server-0"]),
            *(["worker-0"], []),
        ]
        first.command.process.kill()
        stderr = succeeded(standby.finish()).stderr
        assert f"{run_dir}: a run is in progress; standing by" in stderr
        assert "resuming from" in stderr
        for agent in (server, worker, watcher):
            assert "the job is done" in succeeded(agent.finish()).stderr
    assert_undisturbed(run_dir, undisturbed)


@pytest.mark.slow
def test_standby_exits_with_the_outcome_of_the_run(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", cwd=tmp_path) as first, ExitStack() as stack:
        wait_until(lambda: records(tmp_path / "run"), "the run")
        standby = stack.enter_context(started("train", job, "--run-dir", "run", "--standby", cwd=tmp_path))
        assert standby.process.stderr is not None
        assert "standing by" in standby.process.stderr.readline()
        first.process.terminate()
        assert first.finish().returncode == 143
        result = standby.finish()
    assert result.returncode == 143
    assert result.stderr.endswith("run: the run there is over (stopped): nothing to resume\n")
