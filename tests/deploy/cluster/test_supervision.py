"""Distributed runs: restarts after processes fail, and how runs end without leaving anything behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from running_command import RunningCommand, messages, records, started, succeeded, wait_for_steps
from supervised_runs import (
    END_SECONDS,
    FOR_600_STEPS,
    NOTICE_SECONDS,
    ON_SERVERS,
    ROLES,
    START_SECONDS,
    read_report,
    wait_for,
)
from waiting import wait_until

pytestmark = pytest.mark.cluster


def test_each_killed_role_causes_one_restart_from_the_newest_checkpoint(
    job: Path, tmp_path: Path, free_port: int
) -> None:
    # In every generation, on the scheduler port that the job names. A worker stopped by another process counts too.
    victims = [("scheduler", "kill"), ("server-1", "kill"), ("worker-0", "kill"), ("worker-1", "terminate")]
    port = ("--set", f"cluster.scheduler_port={free_port}")
    with started("train", job, "--run-dir", "run", *ON_SERVERS, *FOR_600_STEPS, *port, cwd=tmp_path) as command:
        for generation, (victim, how) in enumerate(victims, 1):
            wait_for_saves(command, tmp_path / "run", generation)
            roles = command.roles()
            assert sorted(roles) == ROLES
            getattr(roles[victim], how)()
            sent = time.monotonic()
            wait_until(lambda of=roles: not any(role.is_running() for role in of.values()), END_SECONDS, "their end")
            assert how == "terminate" or time.monotonic() - sent < NOTICE_SECONDS
        result = succeeded(command.finish())
        assert command.mark.processes() == []
    report = read_report(tmp_path / "run")
    assert (report["restarts"], report["steps"]) == (len(victims), 600)
    expected = [f"{victim} was killed by SIGKILL" for victim, how in victims if how == "kill"]
    expected.append("a worker was asked to stop by another process")
    assert [cause["cause"] for cause in report["restart_causes"]] == expected
    for number, cause in enumerate(report["restart_causes"]):
        assert cause["generation"] == number + 2
        assert cause["step"] >= 40
        assert cause["seconds"] > 0
    # A checkpoint that was being written at that moment is skipped.
    lines = [line for line in messages(result.stderr) if not line.startswith("crossfade: skipped a checkpoint: ")]
    for number, (cause, line) in enumerate(zip(expected, lines, strict=True), 2):
        assert line.startswith(f"crossfade: {cause}; restarting (generation {number}) from step ")
    log = (tmp_path / "run" / "logs" / "server-1.log").read_text().splitlines()
    assert any(" server-1 generation=5 " in line for line in log)


def wait_for_saves(command: RunningCommand, run_dir: Path, generation: int) -> None:
    """Wait until this generation has written a checkpoint after its first step."""

    def has_saved() -> bool:
        assert command.process.poll() is None, command.finish()
        seen = records(run_dir)
        starts = [workspace for workspace, record in enumerate(seen) if record.get("name") == "training"]
        return len(starts) == generation and any(record["event"] == "checkpoint_saved" for record in seen[starts[-1] :])

    wait_until(has_saved, START_SECONDS, f"a checkpoint of generation {generation}")


def test_resumed_run_reports_earlier_restarts(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        command.roles()["worker-1"].kill()
        wait_until((tmp_path / "run" / "restarts.json").exists, START_SECONDS, "the record of a restart")
        command.process.kill()
    with started("train", job, "--run-dir", "run", "--set", "train.epochs=1", "--resume", cwd=tmp_path) as command:
        succeeded(command.finish())
    report = read_report(tmp_path / "run")
    assert report["restarts"] == 1
    assert report["restart_causes"][0]["cause"] == "worker-1 was killed by SIGKILL"


def test_role_killed_before_all_have_joined_causes_a_restart(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", *ON_SERVERS, *FOR_600_STEPS, cwd=tmp_path) as command:
        wait_until(lambda: sorted(command.roles()) == ROLES, 30, "the start of all roles")
        command.roles()["server-0"].kill()
        result = succeeded(command.finish())
    [cause] = read_report(tmp_path / "run")["restart_causes"]
    assert (cause["generation"], cause["cause"], cause["step"]) == (2, "server-0 was killed by SIGKILL", 0)
    assert messages(result.stderr) == [
        "crossfade: server-0 was killed by SIGKILL; restarting (generation 2) from the beginning"
    ]


def test_frozen_server_is_detected_by_the_stall_timeout(job: Path, tmp_path: Path) -> None:
    stall = ("--set", "cluster.stall_timeout_seconds=20")
    with started("train", job, "--run-dir", "run", *ON_SERVERS, *FOR_600_STEPS, *stall, cwd=tmp_path) as command:
        wait_for(command, tmp_path / "run", "checkpoint_saved")
        command.roles()["server-1"].suspend()
        succeeded(command.finish())
        assert command.mark.processes() == []
    report = read_report(tmp_path / "run")
    assert report["restart_causes"][0]["cause"] == "no sign of progress for 20 s"
    assert report["restarts"] == 1


def test_job_restarted_too_often_fails_with_the_last_cause(job: Path, tmp_path: Path) -> None:
    limit = ("--set", "cluster.max_restarts=1", "--set", "checkpoint.interval_seconds=null")
    with started("train", job, "--run-dir", "run", *ON_SERVERS, *limit, cwd=tmp_path) as command:
        for victim in ("worker-1", "server-0"):
            roles: dict[str, psutil.Process] = {}
            wait_until(lambda roles=roles: roles.update(command.roles()) or sorted(roles) == ROLES, 30, "all roles")
            roles[victim].kill()
            wait_until(lambda role=roles[victim]: not role.is_running(), END_SECONDS, f"the end of {victim}")
        result = command.finish()
        assert result.returncode == 1
        _, message = messages(result.stderr)
        assert message.startswith("crossfade: error: server-0 was killed by SIGKILL; restarted 1 times without a new ")
        assert message.endswith("log: run/logs/server-0.log)")
        assert command.mark.processes() == []
    assert not (tmp_path / "run" / "report.json").exists()


def test_wall_clock_change_has_no_effect(job: Path, tmp_path: Path) -> None:
    # In every process, each reading of the wall clock jumps a day back or forth.
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "real, jumps = time.time, itertools.cycle((0, 86400, -86400))\n"
        "time.time = lambda: real() + next(jumps)\n"
    )
    settings = ("--set", "cluster.stall_timeout_seconds=60", "--set", "checkpoint.interval_seconds=60")
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))}
    with started(
        "train", job, "--run-dir", "run", *ON_SERVERS, *FOR_600_STEPS, *settings, cwd=tmp_path, variables=variables
    ) as command:
        wait_for(command, tmp_path / "run", "checkpoint_saved")
        command.roles()["worker-1"].kill()
        succeeded(command.finish())
    assert read_report(tmp_path / "run")["restarts"] == 1
    times = [record["time"] for record in records(tmp_path / "run")]
    assert max(times) - min(times) > 80_000  # so the hook was active


@pytest.mark.parametrize("times", [3], ids=["in process"])
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_a_run_in_process_with_one_line(
    job: Path, tmp_path: Path, times: int, number: signal.Signals, exit_code: int
) -> None:
    # The signal may arrive at any point, so one short run proves little.
    for run in map(str, range(times)):
        with started("train", job, "--run-dir", run, cwd=tmp_path) as command:
            wait_for_steps(command, tmp_path / run)
            sent = time.monotonic()
            command.process.send_signal(number)
            result = command.finish()
            assert time.monotonic() - sent < END_SECONDS
            assert result.returncode == exit_code, result.stderr
            [message] = messages(result.stderr)
            assert message.startswith(f"crossfade: stopped by {number.name}")
            assert "Traceback" not in result.stderr
            assert result.stdout == ""
            assert command.mark.processes() == []


def test_stop_with_frozen_server_ends_after_the_grace_period(job: Path, tmp_path: Path) -> None:
    grace = ("--set", "cluster.grace_period_seconds=2")
    with started("train", job, "--run-dir", "run", *ON_SERVERS, *grace, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        command.roles()["server-0"].suspend()
        sent = time.monotonic()
        command.process.terminate()
        result = command.finish()
        assert 2 <= time.monotonic() - sent < END_SECONDS
        assert result.returncode == 143
        [message] = messages(result.stderr)
        assert message.startswith("crossfade: stopped by SIGTERM without a checkpoint, which took more than 2 s to wri")
        assert command.mark.processes() == []


def test_second_signal_ends_everything_at_once(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        command.roles()["server-0"].suspend()  # so that the first one waits for it
        command.process.send_signal(signal.SIGINT)
        caught = 1 << (signal.SIGTERM - 1)

        def has_handled_the_first_signal() -> bool:
            """Return whether SIGTERM is no longer caught, as after the first signal."""
            status = Path(f"/proc/{command.process.pid}/status").read_text()
            return not int(status.split("SigCgt:")[1].split()[0], 16) & caught

        wait_until(has_handled_the_first_signal, END_SECONDS, "the handling of the first signal")
        command.process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert command.finish().returncode == -signal.SIGTERM
        wait_until(lambda: not command.mark.processes(), END_SECONDS, "the end of all roles")
        assert time.monotonic() - sent < 2


def test_roles_die_with_a_killed_command(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        assert len(command.mark.processes()) == 1 + len(ROLES)
        assert len(listening_ports([psutil.Process(command.process.pid)])) == 1  # for metrics
        command.process.kill()
        wait_until(lambda: not command.mark.processes(), END_SECONDS, "the end of all roles")


def test_roles_that_have_not_joined_die_with_a_killed_command(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_until(lambda: len(command.mark.processes()) == 1 + len(ROLES), 30, "the start of all roles")
        command.process.kill()
        wait_until(lambda: not command.mark.processes(), END_SECONDS, "the end of all roles")


def test_worker_error_ends_the_job_with_its_message_and_exit_code(job: Path, tmp_path: Path) -> None:
    missing = tmp_path / "data" / "train" / "part-00001.parquet"
    missing.unlink()
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        result = command.finish()
        assert result.returncode == 2
        [message] = messages(result.stderr)
        assert message.startswith("crossfade: error: worker-")
        assert f"{missing}: no such file, but the manifest lists it" in message
        assert "Traceback" not in result.stderr
        assert command.mark.processes() == []


def test_corrupt_data_file_ends_a_running_job_with_its_name(job: Path, tmp_path: Path) -> None:
    shard = tmp_path / "data" / "train" / "part-00001.parquet"
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        with shard.open("r+b") as file:
            file.write(b"\0" * (shard.stat().st_size // 2))
        result = command.finish()
        assert result.returncode == 2
        [message] = messages(result.stderr)
        assert f"{shard}, row group 0: is corrupt and cannot be read" in message
        assert command.mark.processes() == []


def listening_ports(processes: list[psutil.Process]) -> set[int]:
    """Return the ports on which ``processes`` listen."""
    connections = [connection for process in processes for connection in process.net_connections("inet")]
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def files_below(folder: Path) -> set[Path]:
    """Return everything in ``folder`` except the run's folder."""
    return {path for path in folder.rglob("*") if not path.is_relative_to(folder / "work" / "run")}


def test_finished_job_leaves_only_its_run_folder(job: Path, tmp_path: Path) -> None:
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    variables = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    before = files_below(tmp_path)
    steps = ("--set", "train.epochs=16", "--set", "train.eval_every_epochs=8")
    with started(
        "train", job, "--run-dir", "run", *ON_SERVERS, *steps, cwd=tmp_path / "work", variables=variables
    ) as command:
        wait_for_steps(command, tmp_path / "work" / "run")
        roles = command.roles()
        ports = listening_ports(list(roles.values()))
        assert len(ports) == 2 * len(ROLES)  # one of each for the others, one for metrics
        succeeded(command.finish())
        assert command.mark.processes() == []
    assert max(record.get("step", 0) for record in records(tmp_path / "work" / "run")) >= 100
    assert files_below(tmp_path) == before
    still = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.laddr.port in ports]
    assert [
        connection for connection in still if connection.pid in (None, *(role.pid for role in roles.values()))
    ] == []
    assert sorted(path.stem for path in (tmp_path / "work" / "run" / "logs").iterdir()) == ROLES


def test_roles_import_nothing_from_the_current_folder_and_resolve_host_names(job: Path, tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").write_text("raise SystemExit('this is not the installed trainer')")
    options = ["--servers", "1", "--workers", "1", "--set", "cluster.host=localhost", "--set", "train.max_steps=3"]
    # The installed command, since `python -m` would itself look into the current folder.
    command = [str(Path(sys.executable).with_name("crossfade")), "train", str(job), "--run-dir", "run", *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.json").exists()
