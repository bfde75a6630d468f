"""A job on two hosts, which are two addresses of this machine."""

import json
from contextlib import AbstractContextManager, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_runs import ON_SERVERS, TOKEN, assert_undisturbed, train
from paced_training import Training, pace
from run_results import report_of
from running_command import RunningCommand, messages, started, succeeded

pytestmark = pytest.mark.cluster


class TwoHosts:
    """A job on 127.0.0.1 and, by agents, on 127.0.0.2 and other addresses."""

    def __init__(self, workspace: Path, port: int) -> None:
        self.cwd, self.port, self.run_dir = workspace, port, workspace / "two-hosts"
        self._variables = {"CROSSFADE_TOKEN": TOKEN}

    def train(self) -> AbstractContextManager[Training]:
        """Start the command, with slow steps."""
        listen = ("--set", f"cluster.coordinator_address=127.0.0.1:{self.port}", "--set", "cluster.hosts=2")
        return train(self.run_dir, *ON_SERVERS, *listen, variables=self._variables)

    def agent(self, address: str = "127.0.0.2") -> AbstractContextManager[RunningCommand]:
        join = ("agent", "--join", f"127.0.0.1:{self.port}", "--run-dir", self.run_dir, "--advertise-address", address)
        release = self.cwd / f"{self.run_dir.name}.release"
        return started(*join, cwd=self.cwd, variables=pace(self.cwd, release, self._variables))

    def status(self) -> dict[str, Any]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", "/v1/status", headers={"Authorization": f"Bearer {TOKEN}"})
            status: dict[str, Any] = json.loads(connection.getresponse().read())
            return status


def test_job_survives_the_loss_of_a_host_and_waits_for_one_that_leaves(
    workspace: Path, undisturbed: Path, free_port: int
) -> None:
    two_hosts = TwoHosts(workspace, free_port)
    with two_hosts.train() as training, two_hosts.agent() as lost:
        command = training.command
        training.wait_for("checkpoint_saved")
        assert sorted(command.roles()) == ["scheduler", "server-0", "worker-0"]
        assert sorted(lost.roles()) == ["server-1"]
        assert listening_addresses(list(lost.roles().values())) == {"127.0.0.2"}
        assert_token_is_not_leaked(two_hosts, command, lost)
        lost.process.kill()
        lost.process.wait()
        with two_hosts.agent() as left:  # replaces it at once, without a wait for the lease
            training.wait(left.roles, "roles on the new host")
            training.wait_for("checkpoint_saved")
            left.process.terminate()
            result = left.finish()
            assert result.returncode == 143
            assert messages(result.stderr)[-1] == "crossfade: stopped by SIGTERM and has left the job"
        training.wait(lambda: two_hosts.status()["state"] == "waiting", "the job waiting")
        assert command.roles() == {}
        with two_hosts.agent("127.0.0.3") as new:
            training.wait(new.roles, "roles on the new host")
            result = succeeded(training.finish())
            agent = succeeded(new.finish())
        assert messages(agent.stderr)[-1] == "crossfade: the job is done"
        assert TOKEN not in result.stderr + result.stdout + agent.stderr
        assert command.mark.processes() + new.mark.processes() == []
    replaced, has_left = (restart["cause"] for restart in report_of(two_hosts.run_dir)["restart_causes"])
    assert "was replaced by a new agent at its address" in replaced
    assert "has left" in has_left
    assert_undisturbed(two_hosts.run_dir, undisturbed)


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
