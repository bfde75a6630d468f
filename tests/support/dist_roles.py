"""Start the roles of a distributed job whose workers run a script of a test instead of a training.

The test calls ``running_roles``, which starts the script once for each role. The script calls ``play_role`` with the
function of a worker; the scheduler and the servers are those of the product. A worker and its test exchange JSON lines
through the worker's standard input and output.
"""

import ctypes
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from running_command import Mark

from crossfade.deploy.cluster.messages import DesiredState, Endpoint
from crossfade.deploy.cluster.role_environment import role_environment
from crossfade.deploy.topology import free_address, roles
from crossfade.kvstore.mxnet.client import MXNetStore
from crossfade.kvstore.mxnet.row_server import run_server
from crossfade.kvstore.mxnet.scheduler import run_scheduler
from crossfade.trainer.config.sections import ClusterConfig

END_SECONDS = 180.0
SECRET = "the-secret-of-these-roles"


def play_role(work: Callable[[MXNetStore], None], key_bytes: int) -> None:
    """Run the role that the environment names, in the script. An error ends the process at once."""
    try:
        role = os.environ["DMLC_ROLE"]
        if role == "worker":
            store = MXNetStore(SECRET, [], key_bytes)
            work(store)
            store.close()
            # As if something referred to it while the interpreter ends: then Python never deletes it.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(store._keys))
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(store))
        elif role == "server":
            run_server(SECRET, [], "/", _fail, lambda _: None)
        else:
            run_scheduler([])
    except Exception as error:
        _fail(error)


def _fail(error: BaseException) -> NoReturn:
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(1)


def send(**values: Any) -> None:
    """Send a line from a worker to the test."""
    print(json.dumps(values), flush=True)


def send_and_wait(**values: Any) -> None:
    """Send a line from a worker, and return when the test calls ``proceed``."""
    send(**values)
    if not sys.stdin.readline():
        raise EOFError("the test has ended")


class RunningRole:
    """A running role of a script."""

    def __init__(self, name: str, process: "subprocess.Popen[str]", log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self.log = log
        self._process = process

    def receive(self) -> dict[str, Any]:
        """Return the next line of a worker; fail with its log if it ends instead."""
        line = self._process.stdout.readline()
        assert line, f"{self.name} ended: {self.log.read_text()}"
        values: dict[str, Any] = json.loads(line)
        return values

    def proceed(self) -> None:
        """Let a waiting worker proceed."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def exit_code(self) -> int:
        """Wait for the process to end and return its exit code."""
        return self._process.wait(END_SECONDS)

    def release(self) -> None:
        """Close the pipes once the process has ended."""
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()


class RunningRoles:
    """All running roles of a script."""

    def __init__(self, mark: Mark, all_roles: list[RunningRole]) -> None:
        self.mark = mark
        self.all = all_roles

    @property
    def workers(self) -> list[RunningRole]:
        """Return the workers in the order in which they were started, which is not that of their ranks."""
        return [role for role in self.all if role.name.startswith("worker")]

    def exit_codes(self) -> dict[str, int]:
        """Wait for all processes to end and return their exit codes by role."""
        return {role.name: role.exit_code() for role in self.all}

    def logs(self) -> str:
        """Return the standard error of all roles."""
        return "\n".join(f"{role.name}: {role.log.read_text()}" for role in self.all)


@contextmanager
def running_roles(
    script: str,
    *arguments: object,
    servers: int,
    workers: int,
    folder: Path,
    variables: Mapping[str, str] | None = None,
    seconds: float = 180.0,
) -> Iterator[RunningRoles]:
    """Run ``tests/support/SCRIPT`` in every role; kill what still runs at the end or after ``seconds``."""
    cluster = ClusterConfig(servers=servers, workers=workers)
    scheduler = free_address(cluster)
    desired = DesiredState(
        coordinator="",
        action="run",
        roles=[role.name for role in roles(cluster)],
        scheduler=Endpoint(host=scheduler.host, port=scheduler.port),
        servers=servers,
        workers=workers,
    )
    cores = len(os.sched_getaffinity(0))
    mark = Mark()
    running: list[RunningRole] = []
    guard = threading.Timer(seconds, mark.kill)
    guard.start()
    try:
        for role in roles(cluster):
            log = folder / f"{role.name}.log"
            environment = role_environment(role, desired, scheduler.host, cores)
            with log.open("w") as stderr:
                process = subprocess.Popen(
                    [sys.executable, Path(__file__).with_name(script), *map(str, arguments)],
                    cwd=folder,
                    env=mark.environment(environment | dict(variables or {})),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                )
            running.append(RunningRole(role.name, process, log))
        yield RunningRoles(mark, running)
    finally:
        guard.cancel()
        mark.kill()
        for role in running:
            role.release()
