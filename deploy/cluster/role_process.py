"""A running role: its process, its log, its events, and why it failed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress

from crossfade.base.errors import command
from crossfade.base.processes import describe_exit
from crossfade.base.text import error_line
from crossfade.deploy.cluster.messages import MAX_MESSAGE, DesiredState, Failure
from crossfade.deploy.cluster.role_environment import socket_path
from crossfade.deploy.cluster.role_variables import (
    AGENT_VARIABLE,
    COMMAND_VARIABLE,
    EVENTS_VARIABLE,
    GENERATION_VARIABLE,
    ROLE_VARIABLE,
    RoleCredentials,
)
from crossfade.deploy.topology import Role
from crossfade.trainer.runs.events import Event, RoleError, parse_event
from crossfade.trainer.runs.run_folder import RunFolder

_LOG_TAIL_BYTES, _LOG_TAIL_LINES = 4096, 20
_NETWORK_ABORT = re.compile(r"(ps-lite/|kvstore_dist_server\.h|libzmq)(?!.*bind failed)")
"""What the log of a role names that MXNet or ZeroMQ aborts because of a message: the source file of the check."""
_LOG_HEAD = re.compile(r"^\S+Z [A-Z]+ \S+ (?:generation=\d+ )?(?:step=\d+ )?")
_ERROR = re.compile(r"(?:[\w.]*(?:Error|Exception)\b.*|Fatal Python error: .*|terminate called .*|what\(\): .*)")
"""What Python and C++ write before they end: the line of a traceback with the exception, or an abort's reason."""


class RoleProcess:
    """One running role, which the agent that started it watches."""

    def __init__(
        self,
        role: Role,
        folder: RunFolder,
        desired: DesiredState,
        variables: dict[str, str],
        credentials: RoleCredentials,
    ) -> None:
        """Start ``role`` in its own session, so that a terminal's Ctrl-C reaches only the agent."""
        self.role = role
        self.log = folder.logs / f"{role.name}.log"
        self.error: RoleError | None = None
        """The first error event."""
        self._partial_event = b""
        self._socket = socket_path(role, variables)
        self.pipe, role_end = os.pipe()
        os.set_blocking(self.pipe, False)
        arguments = [role.kind, str(folder.path)]
        if role.kind == "worker" and desired.checkpoint is not None:
            arguments.append(desired.checkpoint)
        try:
            with self.log.open("ab") as log:
                self._log_begin = log.tell()
                self.process = subprocess.Popen(  # noqa: S603 - our own command
                    # -P: import nothing from the current folder, which may contain another crossfade/.
                    [sys.executable, "-P", "-m", "crossfade.deploy.cluster.run_role", *arguments],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={
                        **variables,
                        EVENTS_VARIABLE: str(role_end),
                        AGENT_VARIABLE: str(os.getpid()),
                        ROLE_VARIABLE: role.name,
                        GENERATION_VARIABLE: str(desired.generation),
                        COMMAND_VARIABLE: desired.coordinator,
                    },
                    pass_fds=[role_end],
                    start_new_session=True,
                )
        except BaseException:
            os.close(self.pipe)
            raise
        finally:
            os.close(role_end)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the end of the role is noticed by its exit code
            credentials.send(self.process.stdin)

    def read_events(self) -> list[Event]:
        """Return the events since the last call, but errors: the first of these is kept in ``error``."""
        events: list[Event] = []
        while True:
            try:
                data = os.read(self.pipe, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            *lines, self._partial_event = (self._partial_event + data).split(b"\n")
            events += [parse_event(json.loads(line)) for line in lines]
        for event in events:
            if isinstance(event, RoleError):
                self.error = self.error or event
        return [event for event in events if not isinstance(event, RoleError)]

    def failure(self) -> Failure | None:
        """Return why the role failed, by its error event or else by its exit code and log; None if it did not."""
        code = self.process.poll()
        if self.error is None and code in {None, 0}:
            return None
        if self.error is not None:
            return Failure(
                message=f"{self.role.name}: {self.error.message}"[:MAX_MESSAGE],
                details=f"log: {self.log}",
                exit_code=self.error.exit_code,
                restart=self.error.restart,
                checkpoint=self.error.checkpoint,
                role=self.role.name,
                cause=f"ended with exit code {self.error.exit_code}",
                error=error_line(self.error.message),
                log=str(self.log),
            )
        assert code is not None
        return self._unreported_failure(code)

    def _unreported_failure(self, code: int) -> Failure:
        """Return why the role ended with ``code`` without an error event."""
        log = self._log_end()
        tail = f"its log ends: {' | '.join(log.splitlines()[-_LOG_TAIL_LINES:])}; " if log else ""
        if code == -signal.SIGABRT and _NETWORK_ABORT.search(tail):
            return Failure(
                message=f"{self.role.name} was aborted by data at its port that MXNet cannot read, as scanners and "
                "other programs send it",
                details=f"{tail}log: {self.log}; let only the job's hosts reach the port, by a firewall",
                role=self.role.name,
                cause="was aborted by data at its port",
                error=last_error(log),
                log=str(self.log),
            )
        how = describe_exit(code)
        details = f"{tail}log: {self.log}"
        if code == -signal.SIGKILL:
            details += f"; if that was for lack of memory, {command('plan')} has what each process needs"
        return Failure(
            message=f"{self.role.name} {how}",
            details=details,
            role=self.role.name,
            cause=how,
            error=last_error(log),
            log=str(self.log),
        )

    def _log_end(self) -> str:
        """Return the last lines of what the process has logged, without empty ones."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_begin, self.log.stat().st_size - _LOG_TAIL_BYTES))
            lines = [line.strip() for line in log.read().decode("utf-8", errors="replace").splitlines()]
        return "\n".join(line for line in lines if line)

    def remove_socket(self) -> None:
        """Remove the Unix socket on which the process listens, if it has one: nobody else can connect to it then."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.unlink()

    def kill(self) -> None:
        """Kill the process and all that it started, which are in its session. Call ``wait`` next."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until the process has ended."""
        self.process.wait()
        self.remove_socket()
        os.close(self.pipe)


def last_error(log: str) -> str | None:
    """Return the last line of ``log`` that names an exception or an abort; None if none does."""
    lines = (_LOG_HEAD.sub("", line).strip() for line in reversed(log.splitlines()))
    return next((error_line(line) for line in lines if _ERROR.match(line)), None)
