"""What an agent hands to the roles that it starts: environment variables, and credentials through standard input.

An environment or a command line could be read by others, and would be inherited; a pipe ends with its two processes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import IO

from crossfade.base.environment import environment_integer
from crossfade.base.processes import die_with_parent

AGENT_VARIABLE = "CROSSFADE_AGENT_PID"
ROLE_VARIABLE, GENERATION_VARIABLE = "CROSSFADE_ROLE", "CROSSFADE_GENERATION"
"""Name and generation of a role, for its log lines, and for users who inspect its process."""
EVENTS_VARIABLE = "CROSSFADE_EVENTS_FD"
"""Descriptor of the pipe through which a role sends its events."""
ADDRESS_VARIABLE = "CROSSFADE_ADDRESS"
"""Address of its host, numeric, on which a role listens."""
RANK_VARIABLE, RANKS_VARIABLE = "CROSSFADE_RANK", "CROSSFADE_RANKS"
"""Rank of a worker that holds a part of the tables, and the number of ranks."""
COMMAND_VARIABLE = "CROSSFADE_COMMAND"
"""ID of the command that coordinates the job: its roles commit no checkpoint once another has taken the run over."""
_MAX_PID = 1 << 22
"""Linux has no higher process IDs."""


def die_with_agent() -> bool:
    """In a role, arrange that this process dies with the agent that started it, however that dies.

    Returns whether an agent started it.

    Raises:
        InputError: the variable that the agent sets is not a process ID.
    """
    agent = environment_integer(AGENT_VARIABLE, 0, 1, _MAX_PID)
    if agent:
        die_with_parent(agent)
    return agent > 0


@dataclass(frozen=True)
class RoleCredentials:
    """The secret of a generation, with which commands are signed, who may connect to its roles, and where they meet."""

    secret: str = field(repr=False)
    hosts: list[str] = field(default_factory=list)
    """Addresses from which others connect; empty if no filter is needed, as on one host, or wanted."""
    rendezvous: str | None = field(default=None, repr=False)
    """HOST:PORT/SECRET where workers that hold the tables meet; None: MXNet's servers hold them."""

    def send(self, pipe: IO[bytes]) -> None:
        """Write them to the standard input of a role, and close it."""
        with pipe:
            pipe.write(json.dumps(asdict(self)).encode())

    @staticmethod
    def receive(pipe: IO[bytes]) -> RoleCredentials:
        """Read what ``send`` has written."""
        return RoleCredentials(**json.loads(pipe.read()))
