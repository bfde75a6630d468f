"""Distributed runs: restarts after processes fail, and how runs end without leaving anything behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from paced_training import Training, paced
from running_command import messages, records, started, succeeded, wait_for_steps
from supervised_runs import (
    FOR_240_STEPS,
    ON_ONE_SERVER,
    ON_SERVERS,
    ROLES,
    ROLES_OF_ONE_SERVER,
    STEPS,
    read_report,
)
from waiting import wait_until

pytestmark = pytest.mark.cluster


def test_each_killed_role_causes_one_restart_from_the_newest_checkpoint(
    job: Path, tmp_path: Path, free_port: int
) -> None:
    # In every generation, on the scheduler port that the job names. The first victim dies before all roles have joined.
    # A worker stopped by another process counts too.
    early, *later = victims = [
        ("server-0", "kill"),
        *(("scheduler", "kill"), ("server-1", "kill"), ("worker-0", "kill"), ("worker-1", "terminate")),
    ]
    port = ("--set", f"cluster.scheduler_port={free_port}")
    with paced("train", job, *ON_SERVERS, *FOR_240_STEPS, *port, run_dir=tmp_path / "run") as training:
        command = training.command
        wait_until(lambda: sorted(command.roles()) == ROLES, "the start of all roles")
        command.roles()[early[0]].kill()
        for number, (victim, how) in enumerate(later, 1):
            wait_for_saves(training, number)
            roles = command.roles()
            assert sorted(roles) == ROLES
            getattr(roles[victim], how)()
            wait_until(lambda of=roles: not any(role.is_running() for role in of.values()), "their end")
        result = succeeded(training.finish())
        assert command.mark.processes() == []
    report = read_report(tmp_path / "run")
    assert (report["restarts"], report["steps"]) == (len(victims), STEPS)
    expected = [f"{victim} was killed by SIGKILL" for victim, how in victims if how == "kill"]
    expected.append("a worker was asked to stop by another process")
    assert [cause["cause"] for cause in report["restart_causes"]] == expected
    for number, cause in enumerate(report["restart_causes"]):
        assert cause["generation"] == number + 2
        assert cause["step"] >= 10 if number else cause["step"] == 0
        assert cause["seconds"] > 0
    # A checkpoint that was being written at that moment is skipped.
    lines = [line for line in messages(result.stderr) if not line.startswith("crossfade: skipped a checkpoint: ")]
    for number, (cause, line) in enumerate(zip(expected, lines, strict=True), 2):
        start = "step " if number > 2 else "the beginning"
        assert line.startswith(f"crossfade: {cause}; restarting (generation {number}) from {start}")
        assert "; lost: " in line
    log = (tmp_path / "run" / "logs" / "server-1.log").read_text().splitlines()
    assert any(" server-1 generation=6 " in line for line in log)


def wait_for_saves(training: Training, number: int) -> None:
    """Wait until the ``number``-th generation that takes steps has written a checkpoint."""

    def has_saved() -> bool:
        seen = records(training.run_dir)
        starts = [workspace for workspace, record in enumerate(seen) if record.get("name") == "training"]
        return len(starts) == number and any(record["event"] == "checkpoint_saved" for record in seen[starts[-1] :])

    training.wait(has_saved, f"a checkpoint of generation {number}")


def test_frozen_server_is_detected_by_the_stall_timeout_whatever_the_wall_clock_says(job: Path, tmp_path: Path) -> None:
    # In every process, each reading of the wall clock jumps a day back or forth.
    hook = (
        "import itertools, time\n"
        "real, jumps = time.time, itertools.cycle((0, 86400, -86400))\n"
        "time.time = lambda: real() + next(jumps)\n"
    )
    settings = ("--set", "cluster.stall_timeout_seconds=30", "--set", "checkpoint.interval_seconds=60")
    options = (*ON_SERVERS, *FOR_240_STEPS, *settings)
    with paced("train", job, *options, run_dir=tmp_path / "run", hook=hook) as training:
        training.wait_for("checkpoint_saved")
        training.command.roles()["server-1"].suspend()
        state = tmp_path / "run" / "state.json"
        training.wait(lambda: json.loads(state.read_text())["failure"], "the failure in the state")
        failure = json.loads(state.read_text())["failure"]
        succeeded(training.finish())
        assert training.command.mark.processes() == []
    report = read_report(tmp_path / "run")
    assert report["restart_causes"][0]["cause"] == "no sign of progress for 30 s"
    assert failure["role"] == "server-1"
    assert re.fullmatch(r"sent nothing for \d\d s; no sign of progress for 30 s", failure["cause"])
    # On an overloaded machine, a start may take longer than that too.
    assert report["restarts"] == len(report["restart_causes"]) >= 1
    times = [record["time"] for record in records(tmp_path / "run")]
    assert max(times) - min(times) > 80_000  # so the hook was active


def test_job_restarted_too_often_fails_with_the_last_cause(job: Path, tmp_path: Path) -> None:
    limit = ("--set", "cluster.max_restarts=1", "--set", "checkpoint.interval_seconds=null")
    with started("train", job, "--run-dir", "run", *ON_ONE_SERVER, *limit, cwd=tmp_path) as command:
        for victim in ("worker-0", "server-0"):
            roles: dict[str, psutil.Process] = {}

            def has_started(roles: dict[str, psutil.Process] = roles) -> bool:
                roles.update(command.roles())
                return sorted(roles) == ROLES_OF_ONE_SERVER

            wait_until(has_started, "all roles")
            roles[victim].kill()
            wait_until(lambda role=roles[victim]: not role.is_running(), f"the end of {victim}")
        result = command.finish()
        assert result.returncode == 1
        _, message = messages(result.stderr)
        assert message.startswith("crossfade: error: server-0 was killed by SIGKILL; restarted 1 times without a new ")
        assert f" (cluster.max_restarts) (on {os.uname().nodename}; lost " in message
        assert message.endswith("log: run/logs/server-0.log)")
        assert command.mark.processes() == []
    failure = json.loads((tmp_path / "run" / "state.json").read_text())["failure"]
    assert (failure["role"], failure["cause"], failure["ends_run"]) == ("server-0", "was killed by SIGKILL", True)
    assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_a_run_in_process_with_one_line(
    job: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    with started("train", job, "--run-dir", "run", cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        command.process.send_signal(number)
        result = command.finish()
        assert result.returncode == exit_code, result.stderr
        assert not (tmp_path / "run" / "report.json").exists()
        [message] = messages(result.stderr)
        assert message.startswith(f"crossfade: stopped by {number.name}")
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert command.mark.processes() == []


def test_stop_with_frozen_server_ends_after_the_grace_period(job: Path, tmp_path: Path) -> None:
    grace = ("--set", "cluster.grace_period_seconds=2")
    with started("train", job, "--run-dir", "run", *ON_ONE_SERVER, *grace, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        command.roles()["server-0"].suspend()
        sent = time.monotonic()
        command.process.terminate()
        result = command.finish()
        assert time.monotonic() - sent >= 2
        assert result.returncode == 143
        [message] = messages(result.stderr)
        assert message.startswith("crossfade: stopped by SIGTERM without a checkpoint, which took more than 2 s to wri")
        assert command.mark.processes() == []


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


def test_roles_die_with_a_killed_command_whose_restarts_the_resumed_run_reports(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        victim = command.roles()["worker-1"]
        victim.kill()
        wait_until((tmp_path / "run" / "restarts.json").exists, "the record of a restart")
        seen = len(records(tmp_path / "run"))

        def has_steps_again() -> bool:
            return any(record["event"] == "step" for record in records(tmp_path / "run")[seen:])

        wait_until(has_steps_again, "a step of the next generation")
        assert len(command.mark.processes()) == 1 + len(ROLES)
        assert len(listening_ports([psutil.Process(command.process.pid)])) == 1  # for metrics
        command.process.kill()
        wait_until(lambda: not command.mark.processes(), "the end of all roles")
    with started("train", job, "--run-dir", "run", "--set", "train.epochs=1", "--resume", cwd=tmp_path) as command:
        succeeded(command.finish())
    report = read_report(tmp_path / "run")
    assert report["restarts"] == 1
    assert report["restart_causes"][0]["cause"] == "worker-1 was killed by SIGKILL"


def test_worker_error_ends_the_job_with_its_message_and_exit_code(job: Path, tmp_path: Path) -> None:
    missing = tmp_path / "data" / "train" / "part-00001.parquet"
    missing.unlink()
    with started("train", job, "--run-dir", "run", *ON_ONE_SERVER, cwd=tmp_path) as command:
        result = command.finish()
        assert result.returncode == 2
        [message] = messages(result.stderr)
        assert message.startswith("crossfade: error: worker-")
        assert f"{missing}: no such file, but the manifest lists it" in message
        assert "Traceback" not in result.stderr
        assert command.mark.processes() == []
    failure = json.loads((tmp_path / "run" / "state.json").read_text())["failure"]
    assert (failure["role"], failure["cause"], failure["ends_run"]) == ("worker-0", "ended with exit code 2", True)
    assert failure["error"].startswith(f"{missing}: no such file, but the manifest lists it")


def listening_ports(processes: list[psutil.Process]) -> set[int]:
    """Return the ports on which ``processes`` listen."""
    connections = [connection for process in processes for connection in process.net_connections("inet")]
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def files_below(folder: Path) -> set[Path]:
    """Return everything in ``folder`` except the run's folder."""
    return {path for path in folder.rglob("*") if not path.is_relative_to(folder / "work" / "run")}


def test_job_listens_on_loopback_only_and_leaves_only_its_run_folder(job: Path, tmp_path: Path) -> None:
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")  # of compiled kernels, for all runs
    variables = {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
        "XDG_CACHE_HOME": cache,
    }
    before = files_below(tmp_path)
    steps = ("--set", "train.epochs=16", "--set", "train.eval_every_epochs=8")
    with started(
        "train", job, "--run-dir", "run", *ON_SERVERS, *steps, cwd=tmp_path / "work", variables=variables
    ) as command:
        wait_for_steps(command, tmp_path / "work" / "run")
        roles = command.roles()
        assert sorted(roles) == ROLES
        ports = listening_ports(list(roles.values()))
        assert len(ports) == len(ROLES)  # one of each for metrics; the others connect by Unix sockets
        for name, process in [*roles.items(), ("agent", psutil.Process(command.process.pid))]:
            listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}, name
            assert len(listening) == 1, name
        succeeded(command.finish())
        assert command.mark.processes() == []
    assert max(record.get("step", 0) for record in records(tmp_path / "work" / "run")) >= 100
    baselines = tmp_path / "data" / "baselines.json"  # kept with the dataset, for the next run
    assert files_below(tmp_path) == before | {baselines}
    still = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.laddr.port in ports]
    assert [
        connection for connection in still if connection.pid in (None, *(role.pid for role in roles.values()))
    ] == []
    assert sorted(path.stem for path in (tmp_path / "work" / "run" / "logs").iterdir()) == ROLES


def test_roles_import_nothing_from_the_current_folder_and_resolve_host_names(job: Path, tmp_path: Path) -> None:
    (tmp_path / "crossfade").mkdir()
    (tmp_path / "crossfade" / "__init__.py").write_text("raise SystemExit('this is not the installed package')")
    options = ["--servers", "1", "--workers", "1", "--set", "cluster.host=localhost", "--set", "train.max_steps=3"]
    # The installed command, since `python -m` would itself look into the current folder.
    command = [str(Path(sys.executable).with_name("crossfade")), "train", str(job), "--run-dir", "run", *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.json").exists()
