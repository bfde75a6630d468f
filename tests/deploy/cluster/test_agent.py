"""An agent on its own: it starts real roles and obeys orders that the test gives it; nobody trains."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import wait_until

import deploy
from deploy.cluster.agent import Agent, CoordinatorUnreachable, job_digest
from deploy.cluster.coordinator import LEASE_SECONDS
from deploy.cluster.messages import DesiredState, Endpoint, Heartbeat
from deploy.topology import TOKEN_VARIABLE, Address, Role, local_address
from kvstore.errors import ClusterError, InputError
from trainer.runs.folder import JOB_FILE, RunFolder

pytestmark = pytest.mark.slow

NOTICE_SECONDS = 0.5


class Boss:
    """Whom the agent reports to: it keeps the reports, and answers the order that the test has set."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = RunFolder(run_dir)
        self.reports: list[Heartbeat] = []
        self.away = False
        self.said: list[str] = []
        self.order = DesiredState(coordinator="c1", do="wait")

    def send(self, report: Heartbeat) -> DesiredState:
        self.reports.append(report)
        if self.away:
            raise CoordinatorUnreachable("nobody there")
        return self.order

    def let(self, do: Any = "run", generation: int = 1, roles: tuple[str, ...] = ("scheduler",), **more: Any) -> None:
        """Order the agent to do that."""
        place = Endpoint(host="127.0.0.1", port=9)
        values = {"coordinator": "c1", "do": do, "generation": generation, "roles": list(roles), "scheduler": place}
        self.order = DesiredState(**values | {"servers": 1, "workers": 1, "job": job_digest(self.folder)} | more)

    @property
    def last(self) -> Heartbeat:
        return self.reports[-1]


@pytest.fixture
def boss(tmp_path: Path) -> Boss:
    (tmp_path / JOB_FILE).write_text("{name: nothing, data: {path: nowhere}}\n")
    return Boss(tmp_path)


@pytest.fixture
def agent(boss: Boss) -> Iterator[Agent]:
    """An agent that has joined."""
    agent = Agent(
        boss.folder, boss.send, "127.0.0.2", heartbeat_seconds=0.1, lease_seconds=1.0, notify=boss.said.append
    )
    agent.run_once()
    yield agent
    boss.away = False
    agent.close()
    assert children() == []


def children() -> list[psutil.Process]:
    """The living roles."""
    return [child for child in psutil.Process().children() if "crossfade" in child.cmdline()]


def turn_until(agent: Agent, condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Let the agent live until the condition holds."""

    def turned() -> object:
        agent.run_once()
        return condition()

    wait_until(turned, seconds, "what the agent was to do")


def command(name: str) -> list[str]:
    """The words of the command of the one role there is, from its name on."""
    [child] = children()
    words = child.cmdline()
    return words[words.index(name) :]


def test_an_agent_has_the_roles_that_it_is_ordered_to_have(agent: Agent, boss: Boss) -> None:
    boss.let(roles=("worker-3",), checkpoint="folder/step-7")
    turn_until(agent, lambda: boss.last.generation == 1)
    assert boss.last.roles == {"worker-3": "running"}
    assert command("worker") == ["worker", "--run-dir", str(boss.folder.path), "--checkpoint", "folder/step-7"]
    boss.let(generation=2, roles=("server-1",))
    turn_until(agent, lambda: boss.last.generation == 2)
    assert command("server") == ["server", "--run-dir", str(boss.folder.path)]
    assert boss.last.ended == 1
    boss.let("wait")
    turn_until(agent, lambda: boss.last.generation is None)
    assert (boss.last.ended, boss.last.roles, children()) == (2, {}, [])


def test_a_generation_that_has_ended_is_not_started_again(agent: Agent, boss: Boss) -> None:
    boss.let(generation=3)
    turn_until(agent, lambda: boss.last.generation == 3)
    boss.let("wait")
    turn_until(agent, lambda: boss.last.generation is None)
    boss.let(generation=3)
    told = len(boss.reports)
    turn_until(agent, lambda: len(boss.reports) > told + 2)
    assert children() == []


def test_another_coordinator_is_not_obeyed_before_the_roles_of_the_earlier_one_have_ended(
    agent: Agent, boss: Boss
) -> None:
    boss.let(generation=5)
    turn_until(agent, lambda: boss.last.generation == 5)
    earlier = children()
    boss.let(coordinator="c2", generation=5)
    turn_until(agent, lambda: boss.last.coordinator == "c2")
    assert (boss.last.generation, boss.last.ended) == (None, 0)
    assert not any(child.is_running() for child in earlier)
    turn_until(agent, lambda: boss.last.generation == 5)
    assert len(children()) == 1


def test_a_killed_role_is_reported_at_once_with_its_log(agent: Agent, boss: Boss) -> None:
    boss.let(roles=("server-0", "server-1"))
    turn_until(agent, lambda: boss.last.generation == 1 and len(children()) == 2)
    first, second = sorted(children(), key=lambda child: (child.create_time(), child.pid))
    second.kill()
    killed = time.monotonic()
    turn_until(agent, lambda: boss.last.failure)
    assert time.monotonic() - killed < NOTICE_SECONDS
    assert boss.last.failure is not None
    assert boss.last.failure.message == "server-1 was killed by SIGKILL"
    assert boss.last.failure.details.endswith(f"log: {boss.folder.logs}/server-1.log")
    assert (boss.last.failure.restart, boss.last.failure.checkpoint) == (True, None)
    assert first.is_running()


def test_an_error_of_a_role_is_reported_as_it_says(agent: Agent, boss: Boss) -> None:
    boss.let(roles=("worker-0",))  # whose job file lacks nearly everything
    (boss.folder.path / JOB_FILE).write_text("- no job\n")
    boss.let(roles=("worker-0",))
    turn_until(agent, lambda: boss.last.failure, seconds=30.0)
    assert boss.last.failure is not None
    assert boss.last.failure.message.startswith(f"worker-0: {boss.folder.path}/{JOB_FILE}: not a job file")
    assert (boss.last.failure.exit_code, boss.last.failure.restart) == (2, False)


def test_roles_end_when_the_coordinator_cannot_be_reached_for_a_while(agent: Agent, boss: Boss) -> None:
    boss.let()
    turn_until(agent, lambda: boss.last.generation == 1)
    boss.away = True
    away = time.monotonic()
    turn_until(agent, lambda: not children())
    assert 0.5 < time.monotonic() - away < 3.0
    assert sum("nobody there" in line for line in boss.said) == 1
    boss.away = False
    turn_until(agent, lambda: boss.last.ended == 1)
    assert children() == []  # its order is still to run generation 1


def test_an_agent_gives_up_well_before_the_coordinator_gives_it_up() -> None:
    from deploy.cluster.agent import AGENT_LEASE_SECONDS, POLL_SECONDS
    from deploy.cluster.coordinator_http import REQUEST_SECONDS

    # Connecting, sending and receiving may each take as long as a request may wait.
    assert AGENT_LEASE_SECONDS + 2 * REQUEST_SECONDS + POLL_SECONDS < LEASE_SECONDS


def test_workers_and_no_others_are_asked_to_stop_and_only_once(
    agent: Agent, boss: Boss, monkeypatch: pytest.MonkeyPatch
) -> None:
    boss.let(roles=("server-0", "worker-0"))
    turn_until(agent, lambda: boss.last.generation == 1)
    asked = []
    for process in agent._processes:
        monkeypatch.setattr(process.process, "send_signal", lambda number, name=process.role.name: asked.append(name))
    boss.let("stop", roles=("server-0", "worker-0"))
    told = len(boss.reports)
    turn_until(agent, lambda: len(boss.reports) > told + 3)
    assert asked == ["worker-0"]
    assert boss.last.roles["server-0"] == "running"


def test_an_agent_that_is_told_to_leave_ends_its_roles_first(agent: Agent, boss: Boss) -> None:
    boss.let()
    turn_until(agent, lambda: boss.last.generation == 1)
    boss.order = DesiredState(coordinator="c1", do="leave", exit_code=1, message="the job is failed")
    turn_until(agent, lambda: agent.left)
    assert agent.left is boss.order
    assert children() == []
    agent.close()
    assert boss.last.leaving


def test_another_job_in_the_run_folder_is_not_run(agent: Agent, boss: Boss) -> None:
    boss.let(job="0" * 64)
    turn_until(agent, lambda: boss.last.failure)
    assert boss.last.failure is not None
    assert f"{boss.folder.path}/{JOB_FILE} is not the job that the coordinator runs" in boss.last.failure.message
    assert children() == []


def test_roles_that_cannot_be_started_are_a_failure(agent: Agent, boss: Boss) -> None:
    boss.folder.logs.write_text("a file where the folder should be")
    boss.let()
    turn_until(agent, lambda: boss.last.failure)
    assert boss.last.failure is not None
    assert "could not be started: " in boss.last.failure.message


def test_roles_do_not_get_the_token(agent: Agent, boss: Boss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "0123456789abcdef")
    monkeypatch.setenv("CROSSFADE_OTHER", "kept")
    boss.let(checkpoint="folder/step-7", roles=("worker-0",))
    turn_until(agent, lambda: boss.last.generation == 1)
    [child] = children()
    assert child.environ()["CROSSFADE_OTHER"] == "kept"
    assert "0123456789abcdef" not in {*child.environ().values(), *child.cmdline()}


def test_logs_go_on_from_generation_to_generation(agent: Agent, boss: Boss) -> None:
    for generation in (1, 2):
        boss.let(generation=generation)
        turn_until(agent, lambda expected=generation: boss.last.generation == expected)  # type: ignore[misc]
    log = (boss.folder.logs / "scheduler.log").read_text().splitlines()
    assert [line for line in log if line.startswith("---")] == [
        "--- scheduler of generation 1",
        "--- scheduler of generation 2",
    ]


def test_what_a_role_has_started_ends_with_it(agent: Agent, boss: Boss, monkeypatch: pytest.MonkeyPatch) -> None:
    # A server's save has processes of its own; here each role starts one through the interpreter's start-up hook.
    hook = boss.folder.path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import os, subprocess, sys\n"
        "if os.environ.pop('START_ONE', None):\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', 'grandchild'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook))
    monkeypatch.setenv("START_ONE", "yes")
    boss.let()

    def grandchildren() -> list[psutil.Process]:
        return [each for child in children() for each in child.children() if "grandchild" in each.cmdline()]

    turn_until(agent, grandchildren)
    [started] = grandchildren()
    boss.let("wait")
    turn_until(agent, lambda: boss.last.generation is None)

    def has_ended() -> bool:
        return not started.is_running() or started.status() == psutil.STATUS_ZOMBIE

    wait_until(has_ended, 5, "the end of what the role had started")


@pytest.mark.parametrize("name", ["scheduler", "server-0", "worker-12"])
def test_roles_are_known_by_their_names(name: str) -> None:
    assert Role.from_name(name).name == name


@pytest.mark.parametrize("name", ["", "server", "worker-", "worker-x", "boss-1", "worker-1-2"])
def test_other_names_are_no_roles(name: str) -> None:
    with pytest.raises(ClusterError, match="not the name of a role"):
        Role.from_name(name)


@pytest.mark.parametrize("text", ["", "7070", ":7070", "host:", "host:port", "host:70700", "host:-1"])
def test_what_is_not_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--join: expected HOST:PORT, as in"):
        Address.parse(text, "--join")


def test_nothing_that_decides_looks_at_the_wall_clock() -> None:
    folder = Path(deploy.__file__).parent
    # run_state.py writes down, for people, when something happened.
    sources = {path.name: path.read_text() for path in folder.glob("*.py") if path.name != "run_state.py"}
    assert [name for name, source in sources.items() if "time.time(" in source or "datetime" in source] == []


def test_an_agents_address_is_the_one_towards_the_coordinator() -> None:
    assert local_address(Address("127.0.0.1", 7070)) == "127.0.0.1"


def test_an_agent_is_not_ended_by_what_ends_its_roles(agent: Agent, boss: Boss) -> None:
    boss.let()
    turn_until(agent, lambda: boss.last.generation == 1)
    [child] = children()
    assert os.getpgid(child.pid) != os.getpgid(0)
    os.killpg(child.pid, signal.SIGTERM)
    turn_until(agent, lambda: boss.last.failure)
