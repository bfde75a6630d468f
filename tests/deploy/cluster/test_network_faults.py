"""Hosts that lose their network, or each other, or DNS."""

import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from fault_runs import (
    ON_ONE_SERVER,
    STEP_SECONDS,
    TOKEN,
    assert_last_is_complete,
    assert_training_continues,
    assert_undisturbed,
    train,
)
from needs import root
from net_hosts import network, unavailable
from paced_training import pace
from port_strangers import listening, reachable
from run_results import report_of
from running_command import started, succeeded
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

STALL_SECONDS = 20
"""More than the leases of 15 seconds, whose end is the cause where a link is cut."""


def logged_since(run_dir: Path, length: int) -> str:
    """Return what the log of processes has after its first ``length`` characters."""
    return (run_dir / "processes.jsonl").read_text(encoding="utf-8")[length:]


def test_cut_links_cost_time_and_not_the_result(workspace: Path, undisturbed: Path) -> None:
    """Short ones cost nothing; a restart follows if a server and a worker lose each other, or a host all others."""
    if reason := unavailable():
        pytest.skip(root(reason))
    run_dir = workspace / "hosts"
    token = {"CROSSFADE_TOKEN": TOKEN}
    variables = pace(workspace, workspace / "hosts.release", token, step_seconds=STEP_SECONDS)
    with network(4) as (first, second, third, stranger), ExitStack() as stack:
        listen = f"{first.address}:7070"
        settings = {
            "host": first.address,
            "coordinator_address": listen,
            "one_role_per_host": "true",
            "stall_timeout_seconds": STALL_SECONDS,
        }
        options = [part for name, value in settings.items() for part in ("--set", f"cluster.{name}={value}")]
        job = stack.enter_context(train(run_dir, *ON_ONE_SERVER, *options, variables=variables, within=first.within))
        steady, lost = (
            stack.enter_context(started(*join, cwd=workspace, variables=variables, within=host.within))
            for host, kind in ((second, "server"), (third, "worker"))
            for join in [("agent", "--join", listen, "--run-dir", run_dir, "--roles", kind)]
        )
        job.wait_for("checkpoint_saved")
        assert [sorted(host.roles()) for host in (job.command, steady, lost)] == [
            ["scheduler"],
            ["server-0"],
            ["worker-0"],
        ]
        roles = {**job.command.roles(), **steady.roles(), **lost.roles()}
        ports = {name: listening(role.pid) for name, role in roles.items()}
        assert all(len(found) == 2 for found in ports.values())  # for the others, and for metrics
        everything = set.union(*ports.values())
        assert reachable(everything, third.within) == everything
        admitted = reachable(everything, stranger.within)
        assert all(len(found & admitted) == 1 for found in ports.values())  # that for metrics
        # A cut that is shorter than the leases costs no restart, nor does a partition shorter than the stall timeout.
        third.cut_link()
        time.sleep(3)  # that is the fault
        third.restore_link()
        assert_training_continues(job)
        for directions in ([(third, second)], [(second, third), (third, second)]):
            for here, there in directions:
                here.drop_from(there)
            time.sleep(2)  # that is the fault
            for here, there in directions:
                here.accept_from(there)
            assert_training_continues(job)
        # Both reach the coordinator all the time, but not each other.
        second.drop_from(third)
        job.wait((run_dir / "restarts.json").exists, "a restart")
        second.accept_from(third)
        job.wait_for("checkpoint_saved")
        before_cut = len(logged_since(run_dir, 0))
        third.cut_link()
        wait_until(lambda: lost.roles() == {}, "the end of the roles that are cut off")
        assert job.command.roles(), "the other hosts restarted before the isolated roles had ended"
        job.wait(lambda: job.command.roles() == {} == steady.roles(), "the end of the other roles")
        job.wait(lambda: '"waiting"' in logged_since(run_dir, before_cut), "the job waiting for the host")
        assert lost.process.poll() is None
        third.restore_link()
        job.wait(lost.roles, "the next generation")
        result = succeeded(job.finish())
        for other in (steady, lost):
            assert "the job is done" in succeeded(other.finish()).stderr
    stalled, cut = (restart["cause"] for restart in report_of(run_dir)["restart_causes"])
    assert stalled == f"no sign of progress for {STALL_SECONDS} s"
    assert f"({third.address}) sent no heartbeat for 15 s" in cut
    assert "waiting for 1 more host to join" in result.stderr
    assert_undisturbed(run_dir, undisturbed)
    assert_last_is_complete(run_dir / "checkpoints")


def test_silent_dns_does_not_keep_an_agent_from_its_timeouts(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip(root("another resolv.conf, and port 53"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns:
        dns.bind(("127.0.0.77", 53))
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.77\noptions timeout:30 attempts:5\n")
        mount = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        within = ("unshare", "--mount", "sh", "-c", mount, tmp_path / "resolv.conf")
        join = ("agent", "--join", "coordinator.invalid:7070", "--run-dir", "run", "--advertise-address", "127.0.0.2")
        variables = {"CROSSFADE_TOKEN": TOKEN}
        with started(
            *join, "--coordinator-timeout", 5, cwd=tmp_path, variables=variables, within=list(map(str, within))
        ) as agent:
            result = agent.finish(seconds=120)  # a lookup takes 150
        assert b"coordinator" in dns.recv(512)
    assert result.returncode == 1
    assert "the coordinator at coordinator.invalid:7070 cannot be reached: no answer in time" in result.stderr
    assert "has not answered for 5 s (--coordinator-timeout)" in result.stderr
