"""An agent alone: it starts real roles for the desired states that a test sets. Nothing is trained."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from running_command import has_ended
from waiting import wait_until

from crossfade.deploy.cluster.agent import Agent, CoordinatorUnreachable, job_digest
from crossfade.deploy.cluster.membership import LEASE_SECONDS
from crossfade.deploy.cluster.messages import DesiredState, Endpoint, Heartbeat
from crossfade.deploy.topology import TOKEN_VARIABLE
from crossfade.trainer.runs.run_folder import JOB_FILE, RunFolder

pytestmark = pytest.mark.slow


class ScriptedCoordinator:
    """Records heartbeats, and answers each with the desired state that the test has set."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = RunFolder(run_dir)
        self.heartbeats: list[Heartbeat] = []
        self.unreachable = False
        self.notified: list[str] = []
        self.desired = DesiredState(coordinator="c1", action="wait")

    def send(self, heartbeat: Heartbeat) -> DesiredState:
        self.heartbeats.append(heartbeat)
        if self.unreachable:
            raise CoordinatorUnreachable("connection refused")
        return self.desired

    def set(
        self, action: Any = "run", generation: int = 1, roles: tuple[str, ...] = ("scheduler",), **more: Any
    ) -> None:
        """Set the desired state."""
        scheduler = Endpoint(host="127.0.0.1", port=9)
        values = {"coordinator": "c1", "action": action, "generation": generation, "roles": list(roles)}
        values |= {"scheduler": scheduler, "servers": 1, "workers": 1, "job_digest": job_digest(self.folder)}
        values |= {"secret": "0" * 64}
        self.desired = DesiredState(**values | more)

    @property
    def last(self) -> Heartbeat:
        return self.heartbeats[-1]


@pytest.fixture
def coordinator(tmp_path: Path) -> ScriptedCoordinator:
    (tmp_path / JOB_FILE).write_text("{name: nothing, data: {path: nowhere}}\n")
    return ScriptedCoordinator(tmp_path)


@pytest.fixture
def agent(coordinator: ScriptedCoordinator) -> Iterator[Agent]:
    """Start an agent that has joined."""
    agent = Agent(
        coordinator.folder,
        coordinator.send,
        "127.0.0.2",
        heartbeat_seconds=0.1,
        lease_seconds=1.0,
        notify=coordinator.notified.append,
    )
    agent.run_once()
    yield agent
    coordinator.unreachable = False
    agent.close()
    assert children() == []


def children() -> list[psutil.Process]:
    """Return the running roles."""
    return [child for child in psutil.Process().children() if "crossfade.deploy.cluster.run_role" in child.cmdline()]


def run_until(agent: Agent, condition: Callable[[], object]) -> None:
    """Run the agent until the condition holds."""

    def holds() -> object:
        agent.run_once()
        return condition()

    wait_until(holds, "the agent's reaction")


def test_new_coordinator_is_joined_without_roles_and_the_earlier_one_is_ignored(
    agent: Agent, coordinator: ScriptedCoordinator
) -> None:
    coordinator.set(generation=5)
    run_until(agent, lambda: coordinator.last.generation == 5)
    earlier = children()
    coordinator.set(coordinator="c2", action="wait")
    run_until(agent, lambda: coordinator.last.coordinator == "c2")
    assert (coordinator.last.generation, coordinator.last.ended_generation) == (None, 0)
    assert not any(child.is_running() for child in earlier)
    coordinator.set(coordinator="c2")
    run_until(agent, lambda: coordinator.last.generation == 1)
    for action in ("wait", "run", "leave"):
        coordinator.set(coordinator="c1", action=action, generation=2)
        sent = coordinator.last.number
        run_until(agent, lambda sent=sent: coordinator.last.number > sent + 1)
        assert (coordinator.last.coordinator, agent.final_state) == ("c2", None)
    # It does not renew the lease either.
    run_until(agent, lambda: coordinator.last.ended_generation == 1)
    coordinator.set(coordinator="c2", generation=2)
    run_until(agent, lambda: coordinator.last.generation == 2)


def test_host_that_does_not_share_the_folder_logs_why_it_starts_no_role(
    agent: Agent, coordinator: ScriptedCoordinator
) -> None:
    coordinator.set(job_digest="another")
    for _ in range(3):
        agent.run_once()
    assert "is not the job that the coordinator runs" in coordinator.notified[-1]
    assert coordinator.last.failure is not None
    assert coordinator.last.failure.message == coordinator.notified[-1]


def test_roles_end_when_the_lease_is_over(agent: Agent, coordinator: ScriptedCoordinator) -> None:
    coordinator.set()
    run_until(agent, lambda: coordinator.last.generation == 1)
    coordinator.unreachable = True
    lost_at = time.monotonic()
    run_until(agent, lambda: not children())
    assert time.monotonic() - lost_at > 0.5  # not as soon as a request fails
    assert sum("connection refused" in line for line in coordinator.notified) == 1
    coordinator.unreachable = False
    run_until(agent, lambda: coordinator.last.ended_generation == 1)
    assert children() == []  # the desired state is still to run generation 1


def test_agent_lease_is_shorter_than_the_coordinators() -> None:
    from crossfade.deploy.cluster.agent import AGENT_LEASE_SECONDS, POLL_SECONDS
    from crossfade.deploy.cluster.coordinator_http import REQUEST_TIMEOUT_SECONDS

    # Connecting, sending and receiving may each take as long as a request may wait.
    assert AGENT_LEASE_SECONDS + 2 * REQUEST_TIMEOUT_SECONDS + POLL_SECONDS < LEASE_SECONDS


def test_roles_get_numbers_for_gpus_and_neither_token_nor_secret_where_others_can_read(
    agent: Agent, coordinator: ScriptedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, secret = "0123456789abcdef", "fedcba9876543210" * 4
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    monkeypatch.setenv("CROSSFADE_OTHER", "kept")
    coordinator.set(
        roles=("scheduler", "server-0", "worker-1", "worker-5"), workers=6, secret=secret, hosts=["127.0.0.2"]
    )
    run_until(agent, lambda: len(coordinator.last.roles) == 4)
    environments = [child.environ() for child in children()]
    for child, environment in zip(children(), environments, strict=True):
        assert environment["CROSSFADE_OTHER"] == "kept"
        readable = " ".join([*child.cmdline(), *environment.values()])
        assert token not in readable
        assert secret not in readable
    ranks = {found["CROSSFADE_ROLE"]: found.get("CROSSFADE_LOCAL_RANK") for found in environments}
    assert ranks == {"scheduler": None, "server-0": None, "worker-1": "0", "worker-5": "1"}
    run_until(agent, lambda: len(sockets_of(agent)) == 1)
    [path] = sockets_of(agent)
    assert path.stat().st_mode & 0o077 == 0
    coordinator.set("wait")
    run_until(agent, lambda: coordinator.last.generation is None)
    assert not path.exists()
    for file in coordinator.folder.path.rglob("*"):
        assert not file.is_file() or secret not in file.read_text()


def sockets_of(agent: Agent) -> list[Path]:
    """Return the Unix socket of the scheduler, if it is there."""
    paths = [process._socket for process in agent._processes if process.role.kind == "scheduler"]
    return [path for path in paths if path is not None and path.exists()]


def test_processes_that_a_role_started_end_with_it(
    agent: Agent, coordinator: ScriptedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server's save has processes of its own; here each role starts one through the interpreter's start-up hook.
    hook = coordinator.folder.path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import os, subprocess, sys\n"
        "if os.environ.pop('START_ONE', None):\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', 'grandchild'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook))
    monkeypatch.setenv("START_ONE", "yes")
    coordinator.set()

    def grandchildren() -> list[psutil.Process]:
        return [each for child in children() for each in child.children() if "grandchild" in each.cmdline()]

    run_until(agent, grandchildren)
    [started] = grandchildren()
    coordinator.set("wait")
    run_until(agent, lambda: coordinator.last.generation is None)
    wait_until(lambda: has_ended(started), "the end of what the role had started")
