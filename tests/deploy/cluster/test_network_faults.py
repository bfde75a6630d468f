"""Hosts that lose their network, or each other, or DNS."""

import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from fault_runs import (
    ON_SERVERS,
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
from port_strangers import listening, reachable, scrape
from run_results import report_of
from running_command import started, succeeded
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def logged_since(run_dir: Path, length: int) -> str:
    """Return what the log of processes has after its first ``length`` characters."""
    return (run_dir / "processes.jsonl").read_text(encoding="utf-8")[length:]


def test_host_with_cut_link_leaves_and_rejoins(workspace: Path, undisturbed: Path) -> None:
    if reason := unavailable():
        pytest.skip(root(reason))
    run_dir = workspace / "hosts"
    token = {"CROSSFADE_TOKEN": TOKEN}
    variables = pace(workspace, workspace / "hosts.release", token, step_seconds=STEP_SECONDS)
    with network(4) as (first, second, third, stranger):
        listen = f"{first.address}:7070"
        across = (f"cluster.host={first.address}", f"cluster.coordinator_address={listen}", "cluster.hosts=3")
        options = [part for setting in across for part in ("--set", setting)]
        agent = {"cwd": workspace, "variables": variables}
        join = ("agent", "--join", listen, "--run-dir", run_dir)
        with (
            train(run_dir, "--servers", 3, "--workers", 1, *options, variables=variables, within=first.within) as job,
            started(*join, within=second.within, **agent) as steady,
            started(*join, within=third.within, **agent) as lost,
        ):
            job.wait_for("checkpoint_saved")
            assert sorted(job.command.roles()) == ["scheduler", "server-0", "worker-0"]
            assert sorted([*steady.roles(), *lost.roles()]) == ["server-1", "server-2"]
            roles = {**job.command.roles(), **steady.roles(), **lost.roles()}
            ports = {name: listening(role.pid) for name, role in roles.items()}
            assert all(len(found) == 2 for found in ports.values())  # for the others, and for metrics
            everything = set.union(*ports.values())
            assert reachable(everything, third.within) == everything
            admitted = reachable(everything, stranger.within)
            assert all(len(found & admitted) == 1 for found in ports.values())  # that for metrics
            # A cut that is shorter than the leases costs no restart.
            third.cut_link()
            time.sleep(3)  # that is the fault
            third.restore_link()
            assert_training_continues(job)
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
    [restart] = report_of(run_dir)["restart_causes"]
    assert f"({third.address}) sent no heartbeat for 15 s" in restart["cause"]
    assert "waiting for 1 more host to join" in result.stderr
    assert_undisturbed(run_dir, undisturbed)
    assert_last_is_complete(run_dir / "checkpoints")


def test_requests_to_all_ports_of_a_job_on_one_host_change_nothing(workspace: Path, undisturbed: Path) -> None:
    run_dir = workspace / "strays"
    with train(run_dir, *ON_SERVERS) as job:
        job.wait_for("step")
        roles = job.command.roles()
        sockets = {name: unix_sockets(role) for name, role in roles.items()}
        assert all(len(paths) == 1 for paths in sockets.values())
        job.wait(lambda: not any(path.exists() for paths in sockets.values() for path in paths), "removed sockets")
        for role in roles.values():
            [address] = listening(role.pid)
            for _ in range(3):
                assert scrape(address).startswith(b"HTTP/1.0 200 OK")
        job.wait_for("checkpoint_saved")
        succeeded(job.finish())
    assert report_of(run_dir)["restarts"] == 0
    assert_undisturbed(run_dir, undisturbed)


def unix_sockets(role: psutil.Process) -> set[Path]:
    """Return the paths of the Unix sockets on which a process listens."""
    return {Path(connection.laddr) for connection in role.net_connections("unix") if connection.laddr}


STALL_SECONDS = 15


def test_partition_between_server_and_worker_costs_time_and_not_the_result(workspace: Path, undisturbed: Path) -> None:
    """Both reach the coordinator all the time, but not each other: in one direction, or in both."""
    if reason := unavailable():
        pytest.skip(root(reason))
    run_dir = workspace / "partition"
    token = {"CROSSFADE_TOKEN": TOKEN}
    variables = pace(workspace, workspace / "partition.release", token, step_seconds=STEP_SECONDS)
    with network(3) as (first, second, third), ExitStack() as stack:
        listen = f"{first.address}:7070"
        settings = {
            "host": first.address,
            "coordinator_address": listen,
            "one_role_per_host": "true",
            "stall_timeout_seconds": STALL_SECONDS,
        }
        options = [part for name, value in settings.items() for part in ("--set", f"cluster.{name}={value}")]
        options += ["--servers", 1, "--workers", 1]
        job = stack.enter_context(train(run_dir, *options, variables=variables, within=first.within))
        for host, kind in ((second, "server"), (third, "worker")):
            join = ("agent", "--join", listen, "--run-dir", run_dir, "--roles", kind)
            stack.enter_context(started(*join, cwd=workspace, variables=variables, within=host.within))
        job.wait_for("checkpoint_saved")
        for directions in ([(third, second)], [(second, third), (third, second)]):
            for here, there in directions:
                here.drop_from(there)
            time.sleep(2)  # that is the fault
            for here, there in directions:
                here.accept_from(there)
            assert_training_continues(job)
        second.drop_from(third)
        job.wait((run_dir / "restarts.json").exists, "a restart")
        second.accept_from(third)
        succeeded(job.finish())
    causes = {restart["cause"] for restart in report_of(run_dir)["restart_causes"]}
    assert causes == {f"no sign of progress for {STALL_SECONDS} s"}
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
