"""A host that loses its network."""

import time
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
from net_hosts import network, unavailable
from paced_training import pace
from port_strangers import listening, reachable, scrape
from run_results import report_of
from running_command import started, succeeded
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_host_with_cut_link_leaves_and_rejoins(workspace: Path, undisturbed: Path) -> None:
    if reason := unavailable():
        pytest.skip(reason)
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
            third.cut_link()
            wait_until(lambda: lost.roles() == {}, 20, "the end of the roles that are cut off")
            assert job.command.roles(), "the other hosts restarted before the isolated roles had ended"
            job.wait(lambda: job.command.roles() == {} == steady.roles(), "the job waiting")
            assert lost.process.poll() is None
            third.restore_link()
            job.wait(lost.roles, "the next generation")
            result = succeeded(job.finish())
            for other in (steady, lost):
                assert "the job is done" in succeeded(other.finish()).stderr
    [restart] = report_of(run_dir)["restart_causes"]
    assert f"({third.address}) sent no heartbeat for 15 s" in restart["cause"]
    assert "waiting for 1 more host(s) to join" in result.stderr
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
