"""Roles on several hosts: which ports a host that does not belong to the job reaches."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from fault_runs import ON_ONE_SERVER, STEP_SECONDS, TOKEN, train
from needs import root
from net_hosts import network, unavailable
from paced_training import pace
from port_strangers import listening, reachable
from running_command import started


@pytest.mark.slow
@pytest.mark.cluster
def test_only_hosts_of_a_job_reach_the_ports_of_its_roles(workspace: Path) -> None:
    if reason := unavailable():
        pytest.skip(root(reason))
    run_dir = workspace / "hosts"
    variables = pace(workspace, workspace / "hosts.release", {"CROSSFADE_TOKEN": TOKEN}, step_seconds=STEP_SECONDS)
    with network(4) as (first, second, third, stranger), ExitStack() as stack:
        listen = f"{first.address}:7070"
        settings = {"host": first.address, "coordinator_address": listen, "one_role_per_host": "true"}
        options = [part for name, value in settings.items() for part in ("--set", f"cluster.{name}={value}")]
        job = stack.enter_context(train(run_dir, *ON_ONE_SERVER, *options, variables=variables, within=first.within))
        server, worker = (
            stack.enter_context(started(*join, cwd=workspace, variables=variables, within=host.within))
            for host, kind in ((second, "server"), (third, "worker"))
            for join in [("agent", "--join", listen, "--run-dir", run_dir, "--roles", kind)]
        )
        job.wait_for("checkpoint_saved")
        roles = {**job.command.roles(), **server.roles(), **worker.roles()}
        assert sorted(roles) == ["scheduler", "server-0", "worker-0"]
        ports = {name: listening(role.pid) for name, role in roles.items()}
        assert all(len(found) == 2 for found in ports.values())  # for the others, and for metrics
        everything = set.union(*ports.values())
        assert reachable(everything, third.within) == everything
        admitted = reachable(everything, stranger.within)
        assert all(len(found & admitted) == 1 for found in ports.values())  # the port for metrics
