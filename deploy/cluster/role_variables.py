"""The environment variables that an agent sets for the roles that it starts."""

from __future__ import annotations

from crossfade.base.environment import environment_integer
from crossfade.base.processes import die_with_parent

AGENT_VARIABLE = "CROSSFADE_AGENT_PID"
ROLE_VARIABLE, GENERATION_VARIABLE = "CROSSFADE_ROLE", "CROSSFADE_GENERATION"
"""Name and generation of a role, for its log lines, and for users who inspect its process."""
ADDRESS_VARIABLE = "CROSSFADE_ADDRESS"
"""Address of its host, numeric, on which a role listens."""
RANK_VARIABLE, RANKS_VARIABLE = "CROSSFADE_RANK", "CROSSFADE_RANKS"
"""Rank of a worker that holds a part of the tables, and the number of ranks."""
COMMAND_VARIABLE = "CROSSFADE_COMMAND"
"""ID of the command that coordinates the job: its roles commit no checkpoint once another has taken the run over."""
_MAX_PID = 1 << 22
"""Linux has no higher process IDs."""
_MAX_GENERATION = 10**9


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


def role_generation() -> int | None:
    """Return the generation of a role; None if no agent started it.

    Raises:
        InputError: the variable that the agent sets is not a number.
    """
    generation = environment_integer(GENERATION_VARIABLE, -1, 0, _MAX_GENERATION)
    return None if generation < 0 else generation
