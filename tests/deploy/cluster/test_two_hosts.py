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

    def agent(self, address: str = "127.0.0.2", token: str = TOKEN) -> AbstractContextManager[RunningCommand]:
        join = ("agent", "--join", f"127.0.0.1:{self.port}", "--run-dir", self.run_dir, "--advertise-address", address)
        variables = pace(self.cwd, self.cwd / "run.release", {"CROSSFADE_TOKEN": token})
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


def test_agents_rejoin_a_restarted_coordinator(two_hosts: TwoHosts) -> None:
    with two_hosts.agent() as agent:
        with two_hosts.train(*FOR_240_STEPS) as training:
            training.wait_for("step")
            roles = list(agent.roles().values())
            training.command.process.kill()
            training.command.process.wait()
        wait_until(lambda: not any(role.is_running() for role in roles), "the end of the agent's roles")
        assert agent.process.poll() is None
        with two_hosts.train(*FOR_240_STEPS, "--resume") as training:
            succeeded(training.finish())
            lines = messages(succeeded(agent.finish()).stderr)
    # The agent may have started before or after the first coordinator.
    first = next(workspace for workspace, line in enumerate(lines) if "joined the coordinator" in line)
    assert sum("cannot be reached" in line for line in lines[first:]) == 1
    assert sum("joined the coordinator" in line for line in lines) == 2
    assert read_report(two_hosts.run_dir)["steps"] == STEPS


def test_agent_with_wrong_token_is_rejected_and_the_job_continues(two_hosts: TwoHosts) -> None:
    with two_hosts.train() as training:
        command = training.command
        wait_until(lambda: command.process.poll() is not None or listens(two_hosts.port), "the listener")
        with two_hosts.agent(token="another-token-altogether") as stranger:
            result = stranger.finish()
        assert result.returncode == 2
        assert messages(result.stderr)[-1] == (
            f"crossfade: error: the coordinator at 127.0.0.1:{two_hosts.port} rejects the token in CROSSFADE_TOKEN"
        )
        assert two_hosts.status()["state"] == "waiting"
        command.process.terminate()
        assert command.finish().returncode == 143


def listens(port: int) -> bool:
    return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in psutil.net_connections("tcp"))


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
