"""Distributed runs: restarts after processes fail, and how runs end without leaving anything behind."""

import signal
from pathlib import Path

import psutil
import pytest
from command_here import crossfade_here
from fault_runs import ON_ONE_SERVER, ROLES_OF_ONE_SERVER, assert_undisturbed, train, wait_for_saves
from port_strangers import listening
from run_results import report_of
from running_command import messages, started, succeeded, wait_for_steps
from scraping import ask
from waiting import wait_until

pytestmark = pytest.mark.cluster


def test_killed_roles_cause_one_restart_each_which_the_resumed_run_reports(workspace: Path, undisturbed: Path) -> None:
    # The first victim dies before all roles have joined. A worker stopped by another process counts too.
    early, *later = victims = [
        *(("server-0", "kill"), ("scheduler", "kill"), ("worker-0", "terminate")),
    ]
    run_dir = workspace / "killed"
    with train(run_dir, *ON_ONE_SERVER) as training:
        command = training.command
        wait_until(lambda: sorted(command.roles()) == ROLES_OF_ONE_SERVER, "the start of all roles")
        command.roles()[early[0]].kill()
        for number, (victim, how) in enumerate(later, 1):
            wait_for_saves(training, number)
            roles = command.roles()
            assert sorted(roles) == ROLES_OF_ONE_SERVER
            getattr(roles[victim], how)()
            wait_until(lambda of=roles: not any(role.is_running() for role in of.values()), "their end")
        wait_for_saves(training, len(victims))
        command.process.kill()
        wait_until(lambda: not command.mark.processes(), "the end of all roles")
        killed = command.finish()
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", run_dir, "--resume", cwd=workspace))
    assert_undisturbed(run_dir, undisturbed)
    causes = report_of(run_dir)["restart_causes"]
    expected = [f"{victim} was killed by SIGKILL" for victim, how in victims if how == "kill"]
    expected.append("a worker was asked to stop by another process")
    assert [cause["cause"] for cause in causes] == expected
    for number, cause in enumerate(causes):
        assert cause["generation"] == number + 2
        assert cause["step"] > 0 if number else cause["step"] == 0
    # A checkpoint that was being written at that moment is skipped.
    lines = [line for line in messages(killed.stderr) if not line.startswith("crossfade: skipped a checkpoint: ")]
    for number, (cause, line) in enumerate(zip(expected, lines, strict=True), 2):
        start = "step " if number > 2 else "the beginning"
        assert line.startswith(f"crossfade: {cause}; restarting (generation {number}) from {start}")
        assert "; lost: " in line
    log = (run_dir / "logs" / "server-0.log").read_text().splitlines()
    assert any(" server-0 generation=4 " in line for line in log)


def test_second_signal_ends_everything_at_once(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", *ON_ONE_SERVER, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        command.roles()["server-0"].suspend()  # so that the first one waits for it
        command.process.send_signal(signal.SIGINT)
        caught = 1 << (signal.SIGTERM - 1)

        def has_handled_the_first_signal() -> bool:
            """Return whether SIGTERM is no longer caught, as after the first signal."""
            status = Path(f"/proc/{command.process.pid}/status").read_text()
            return not int(status.split("SigCgt:")[1].split()[0], 16) & caught

        wait_until(has_handled_the_first_signal, "the handling of the first signal")
        command.process.send_signal(signal.SIGTERM)
        # Not 143, with which it would end after the grace period.
        assert command.finish().returncode == -signal.SIGTERM
        wait_until(lambda: not command.mark.processes(), "the end of all roles")


def test_job_on_one_host_is_reached_by_nobody_else_and_leaves_only_its_run_folder(
    workspace: Path, undisturbed: Path, tmp_path: Path
) -> None:
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    variables = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    run_dir = tmp_path / "work" / "run"
    with train(run_dir, *ON_ONE_SERVER, job=workspace / "job.yaml", variables=variables) as training:
        training.wait_for("step")
        roles = training.command.roles()
        sockets = {name: unix_sockets(role) for name, role in roles.items()}
        assert all(len(paths) == 1 for paths in sockets.values())
        training.wait(lambda: not any(path.exists() for paths in sockets.values() for path in paths), "removed sockets")
        # Each process listens for scrapes of metrics; the others of the job connected by Unix sockets.
        ports = [listening(pid) for pid in (training.command.process.pid, *(role.pid for role in roles.values()))]
        assert [[address.partition(":")[0] for address in found] for found in ports] == [["127.0.0.1"]] * len(ports)
        for [address] in ports:
            for _ in range(3):
                assert ask(address, "/metrics")[0] == 200
        training.wait_for("checkpoint_saved")
        succeeded(training.finish())
        assert training.command.mark.processes() == []
    assert report_of(run_dir)["restarts"] == 0
    assert_undisturbed(run_dir, undisturbed)
    assert [*(tmp_path / "home").iterdir(), *(tmp_path / "temporary").iterdir()] == []
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"run", "hook", "run.release"}  # two of this test
    assert sorted(path.stem for path in (run_dir / "logs").iterdir()) == sorted(roles)


def unix_sockets(role: psutil.Process) -> set[Path]:
    """Return the paths of the Unix sockets on which a process listens."""
    return {Path(connection.laddr) for connection in role.net_connections("unix") if connection.laddr}
