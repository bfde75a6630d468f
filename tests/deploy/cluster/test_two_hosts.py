"""A job on two hosts, which are two addresses of this machine."""

import json
from contextlib import AbstractContextManager, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from paced_training import Training, pace, paced
from running_command import RunningCommand, messages, started, succeeded
from supervised_runs import FOR_240_STEPS, ON_SERVERS, STEPS, TOKEN, read_report
from waiting import wait_until

pytestmark = pytest.mark.cluster


class TwoHosts:
    """A job on 127.0.0.1 and, by agents, on 127.0.0.2 and other addresses."""

    def __init__(self, job: Path, tmp_path: Path, port: int) -> None:
        self.cwd, self.port, self.run_dir = tmp_path, port, tmp_path / "run"
        listen = ("--set", f"cluster.coordinator_address=127.0.0.1:{port}", "--set", "cluster.hosts=2")
        self._train = ("train", job, *ON_SERVERS, *listen)

    def train(self, *options: object) -> AbstractContextManager[Training]:
        """Start the command, with slow steps."""
        return paced(*self._train, *options, run_dir=self.run_dir, variables={"CROSSFADE_TOKEN": TOKEN})

    def agent(self, address: str = "127.0.0.2") -> AbstractContextManager[RunningCommand]:
        join = ("agent", "--join", f"127.0.0.1:{self.port}", "--run-dir", self.run_dir, "--advertise-address", address)
        variables = pace(self.cwd, self.cwd / "run.release", {"CROSSFADE_TOKEN": TOKEN})
        return started(*join, cwd=self.cwd, variables=variables)

    def status(self) -> dict[str, Any]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", "/v1/status", headers={"Authorization": f"Bearer {TOKEN}"})
            status: dict[str, Any] = json.loads(connection.getresponse().read())
            return status


@pytest.fixture
def two_hosts(job: Path, tmp_path: Path, free_port: int) -> TwoHosts:
    return TwoHosts(job, tmp_path, free_port)


def test_job_on_two_hosts_survives_the_loss_of_one(two_hosts: TwoHosts) -> None:
    with two_hosts.train(*FOR_240_STEPS) as training, two_hosts.agent() as lost:
        command = training.command
        training.wait_for("checkpoint_saved")
        assert sorted(command.roles()) == ["scheduler", "server-0", "worker-0"]
        assert sorted(lost.roles()) == ["server-1", "worker-1"]
        assert listening_addresses(list(lost.roles().values())) == {"127.0.0.2"}
        assert_token_is_not_leaked(two_hosts, command, lost)
        lost.process.kill()
        lost.process.wait()
        with two_hosts.agent("127.0.0.2") as new:  # replaces it at once, without a wait for the lease
            wait_until(lambda: sorted(new.roles()) == ["server-1", "worker-1"], "roles on the new host")
            result = succeeded(training.finish())
            agent = succeeded(new.finish())
        assert messages(agent.stderr)[-1] == "crossfade: the job is done"
        assert TOKEN not in result.stderr + result.stdout + agent.stderr
        assert command.mark.processes() + new.mark.processes() == []
    report = read_report(two_hosts.run_dir)
    assert (report["steps"], report["restarts"]) == (STEPS, 1)
    assert "was replaced by a new agent at its address" in report["restart_causes"][0]["cause"]


def test_job_waits_for_a_host_that_has_left(two_hosts: TwoHosts) -> None:
    with two_hosts.train(*FOR_240_STEPS) as training, two_hosts.agent() as left:
        command = training.command
        training.wait_for("checkpoint_saved")
        left.process.terminate()
        result = left.finish()
        assert result.returncode == 143
        assert messages(result.stderr)[-1] == "crossfade: stopped by SIGTERM and has left the job"
        wait_until(lambda: two_hosts.status()["state"] == "waiting", "the job waiting")
        assert command.roles() == {}
        with two_hosts.agent("127.0.0.3") as new:
            wait_until(lambda: sorted(new.roles()) == ["server-1", "worker-1"], "roles on the new host")
            command.process.terminate()
            assert command.finish().returncode == 143
            assert new.finish().returncode == 143


def listening_addresses(processes: list[psutil.Process]) -> set[str]:
    """Return the addresses on which ``processes`` listen."""
    connections = [connection for process in processes for connection in process.net_connections("inet")]
    return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}


def assert_token_is_not_leaked(two_hosts: TwoHosts, *commands: RunningCommand) -> None:
    """Assert that no file of the run, command line or environment of a role holds the token."""
    for command in commands:
        for role in command.roles().values():
            assert TOKEN not in " ".join([*role.cmdline(), *role.environ().values()])
    for path in two_hosts.run_dir.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
