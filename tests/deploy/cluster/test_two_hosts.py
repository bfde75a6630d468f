"""Jobs on two hosts, which are two addresses of this machine."""

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from fault_runs import ON_SERVERS, TOKEN, assert_undisturbed, train
from metric_groups import FIRST, JOB, PROCESS, ROWS, SERVER, TRAINING
from object_store import free_ports
from paced_training import Training, metrics_address, pace
from port_strangers import listening
from run_results import report_of
from running_command import RunningCommand, started, succeeded
from scraping import ask, families, scrape, targets, value

pytestmark = pytest.mark.cluster

SCRAPED = {
    "scheduler": ("127.0.0.1", PROCESS),
    "server-0": ("127.0.0.1", PROCESS | ROWS | SERVER),
    "server-1": ("127.0.0.2", PROCESS | ROWS | SERVER),
    "worker-0": ("127.0.0.1", PROCESS | TRAINING | FIRST),
    "coordinator": ("127.0.0.1", PROCESS | JOB),
    "agent": ("127.0.0.2", PROCESS),
}


class TwoHosts:
    """A job on 127.0.0.1 and, by agents, on 127.0.0.2 and other addresses."""

    def __init__(self, workspace: Path, port: int) -> None:
        self.cwd, self.coordinator, self.run_dir = workspace, f"127.0.0.1:{port}", workspace / "two-hosts"
        self._variables = {"CROSSFADE_TOKEN": TOKEN}

    def train(self) -> AbstractContextManager[Training]:
        """Start the command, with slow steps."""
        listen = ("--set", f"cluster.coordinator_address={self.coordinator}", "--set", "cluster.hosts=2")
        return train(self.run_dir, *ON_SERVERS, *listen, variables=self._variables)

    def agent(self, address: str = "127.0.0.2") -> AbstractContextManager[RunningCommand]:
        join = ("agent", "--join", self.coordinator, "--run-dir", self.run_dir, "--advertise-address", address)
        release = self.cwd / f"{self.run_dir.name}.release"
        variables = pace(self.cwd, release, self._variables)
        return started(*join, "--log-format", "json", cwd=self.cwd, variables=variables)


def test_job_is_monitored_survives_the_loss_of_a_host_and_waits_for_one_that_leaves(
    workspace: Path, undisturbed: Path
) -> None:
    two_hosts = TwoHosts(workspace, *free_ports(1))
    with two_hosts.train() as training, two_hosts.agent() as lost:
        command = training.command
        address = metrics_address(training)
        training.wait_for("checkpoint_saved")
        assert sorted(command.roles()) == ["scheduler", "server-0", "worker-0"]
        assert sorted(lost.roles()) == ["server-1"]
        assert {address.partition(":")[0] for address in listening(lost.roles()["server-1"].pid)} == {"127.0.0.2"}
        assert_token_is_not_leaked(two_hosts, command, lost)
        assert_every_process_is_scraped(address)
        lost.process.kill()
        lost.process.wait()
        with two_hosts.agent() as left:  # replaces it at once, without a wait for the lease
            training.wait(left.roles, "roles on the new host")
            training.wait_for("checkpoint_saved")
            left.process.terminate()
            result = left.finish()
            assert (result.returncode, "stopped by SIGTERM and has left the job" in result.stderr) == (143, True)
        training.wait(lambda: targets(address).keys() == {"coordinator"}, "the job waiting")
        assert command.roles() == {}
        with two_hosts.agent("127.0.0.3") as new:
            training.wait(new.roles, "roles on the new host")
            result = succeeded(training.finish())
            agent = succeeded(new.finish())
        assert "the job is done" in agent.stderr.splitlines()[-1]
        assert TOKEN not in result.stderr + result.stdout + agent.stderr
        assert command.mark.processes() + new.mark.processes() == []
    replaced, has_left = (restart["cause"] for restart in report_of(two_hosts.run_dir)["restart_causes"])
    assert "was replaced by a new agent at its address" in replaced
    assert "has left" in has_left
    assert_undisturbed(two_hosts.run_dir, undisturbed)
    log = (two_hosts.run_dir / "logs" / "server-1.log").read_text().splitlines()
    lines = [json.loads(line) for line in log if line.startswith("{")]  # native libraries may add others
    assert {(line["role"], line["level"]) for line in lines} == {("server-1", "INFO")}
    assert (lines[0]["message"], lines[-1]["message"]) == ("phase name=starting", "ended")


def assert_every_process_is_scraped(address: str) -> None:
    """Assert that all processes of the job can be discovered at ``address``, and have the metrics of their kind."""
    discovered = targets(address)
    assert {name: where.partition(":")[0] for name, where in discovered.items()} == {
        name: host for name, (host, _) in SCRAPED.items()
    }
    for name, where in discovered.items():
        text = scrape(where)
        assert families(text) == SCRAPED[name][1], name
        assert ask(where, "/healthz")[0] == 200
        assert value(text, "crossfade_build_info", run="planted", role=name.partition("-")[0]) == 1
    assert value(scrape(address), "crossfade_role_up") == 4


def assert_token_is_not_leaked(two_hosts: TwoHosts, *commands: RunningCommand) -> None:
    """Assert that no file of the run, command line or environment of a role holds the token."""
    for command in commands:
        for role in command.roles().values():
            assert TOKEN not in " ".join([*role.cmdline(), *role.environ().values()])
    for path in two_hosts.run_dir.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
