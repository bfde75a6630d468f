"""How a run ends: well, by a signal, or because one of its processes died; and that nothing of it stays behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cluster_data import write_job, write_planted
from running_command import records, started, succeeded, wait_for_steps
from waiting import wait_until

pytestmark = pytest.mark.cluster

ON_SERVERS = ("--servers", 2, "--workers", 2)
ROLES = ["scheduler", "server-0", "server-1", "worker-0", "worker-1"]
END_SECONDS = 10.0


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job that nobody waits for the end of."""
    train = {"epochs": 1_000_000, "evaluate_every": 1_000_000}
    return write_job(tmp_path / "job.yaml", write_planted(tmp_path / "data"), train=train)


def messages(stderr: str) -> list[str]:
    """What the command itself has said, beside its progress bar."""
    return [line for line in stderr.splitlines() if line.startswith("crossfade")]


@pytest.mark.parametrize("victim", ["scheduler", "server-1", "worker-0"])
def test_a_killed_role_ends_the_job_at_once_and_is_named(job: Path, tmp_path: Path, victim: str) -> None:
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        roles = command.roles()
        assert sorted(roles) == ROLES
        killed = time.monotonic()
        roles[victim].kill()
        result = command.finish()
        assert time.monotonic() - killed < END_SECONDS
        assert result.returncode == 1
        [message] = messages(result.stderr)
        assert f"crossfade: error: {victim} was killed by SIGKILL before the job was done" in message
        assert message.endswith(f"(log: run/logs/{victim}.log)")
        assert (tmp_path / "run" / "logs" / f"{victim}.log").exists()
        assert command.mark.processes() == []
    assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("shape", "times"), [((), 5), (ON_SERVERS, 1)], ids=["in process", "on servers"])
def test_a_signal_stops_a_run_with_one_line(
    job: Path, tmp_path: Path, shape: tuple[object, ...], times: int, number: signal.Signals, exit_code: int
) -> None:
    # It comes in the middle of anything, so one run in process, which is short, says little.
    for run in map(str, range(times)):
        with started("train", job, "--run-dir", run, *shape, cwd=tmp_path) as command:
            wait_for_steps(command, tmp_path / run)
            sent = time.monotonic()
            command.process.send_signal(number)
            result = command.finish()
            assert time.monotonic() - sent < END_SECONDS
            assert result.returncode == exit_code, result.stderr
            assert messages(result.stderr) == [f"crossfade: stopped by {number.name}"]
            assert "Traceback" not in result.stderr
            assert result.stdout == ""
            assert command.mark.processes() == []


def test_the_roles_of_a_killed_command_die_with_it(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        assert len(command.mark.processes()) == 1 + len(ROLES)
        command.process.kill()
        wait_until(lambda: not command.mark.processes(), END_SECONDS, "the end of all roles")


def test_roles_that_have_not_joined_yet_die_with_a_killed_command_too(job: Path, tmp_path: Path) -> None:
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_until(lambda: len(command.mark.processes()) == 1 + len(ROLES), 30, "the start of all roles")
        command.process.kill()
        wait_until(lambda: not command.mark.processes(), END_SECONDS, "the end of all roles")


def test_an_error_in_a_worker_ends_the_job_with_its_message_and_exit_code(job: Path, tmp_path: Path) -> None:
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


def test_a_damaged_shard_ends_a_job_in_the_middle_with_its_name(job: Path, tmp_path: Path) -> None:
    shard = tmp_path / "data" / "train" / "part-00001.parquet"
    with started("train", job, "--run-dir", "run", *ON_SERVERS, cwd=tmp_path) as command:
        wait_for_steps(command, tmp_path / "run")
        with shard.open("r+b") as file:
            file.write(b"\0" * (shard.stat().st_size // 2))
        result = command.finish()
        assert result.returncode == 2
        [message] = messages(result.stderr)
        assert f"{shard}, row group 0: cannot be read" in message
        assert command.mark.processes() == []


def listening_ports(processes: list[psutil.Process]) -> set[int]:
    """The ports on which they listen."""
    connections = [connection for process in processes for connection in process.net_connections("inet")]
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def files_below(folder: Path) -> set[Path]:
    """Everything in ``folder`` but the run's own folder."""
    return {path for path in folder.rglob("*") if not path.is_relative_to(folder / "work" / "run")}


def test_a_finished_job_leaves_its_run_folder_and_nothing_else(job: Path, tmp_path: Path) -> None:
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    variables = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    before = files_below(tmp_path)
    steps = ("--set", "train.epochs=16", "--set", "train.evaluate_every=8")
    with started(
        "train", job, "--run-dir", "run", *ON_SERVERS, *steps, cwd=tmp_path / "work", variables=variables
    ) as command:
        wait_for_steps(command, tmp_path / "work" / "run")
        roles = command.roles()
        ports = listening_ports(list(roles.values()))
        assert len(ports) == len(ROLES)
        succeeded(command.finish())
        assert command.mark.processes() == []
    assert max(record["step"] for record in records(tmp_path / "work" / "run")) >= 100
    assert files_below(tmp_path) == before
    still = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.laddr.port in ports]
    assert [
        connection for connection in still if connection.pid in (None, *(role.pid for role in roles.values()))
    ] == []
    assert sorted(path.stem for path in (tmp_path / "work" / "run" / "logs").iterdir()) == ROLES


def test_roles_import_nothing_from_the_current_folder_and_take_a_host_by_name(job: Path, tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").write_text("raise SystemExit('this is not the trainer that was installed')")
    options = ["--servers", "1", "--workers", "1", "--set", "cluster.host=localhost", "--set", "train.max_steps=3"]
    # The installed command, since `python -m` would itself look into the current folder.
    command = [str(Path(sys.executable).with_name("crossfade")), "train", str(job), "--run-dir", "run", *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.json").exists()
