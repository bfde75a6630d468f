"""What an agent hands to the roles that it starts: environment variables and a signal."""

from __future__ import annotations

import os
import signal

from crossfade.kvstore.processes import die_with_parent

AGENT_VARIABLE = "CROSSFADE_AGENT_PID"
ROLE_VARIABLE, GENERATION_VARIABLE = "CROSSFADE_ROLE", "CROSSFADE_GENERATION"
"""Name and generation of a role, for its log lines, and for users who inspect its process."""
COMMAND_VARIABLE = "CROSSFADE_COMMAND"
"""ID of the command that coordinates the job: its roles commit no checkpoint once another has taken the run over."""
CHECKPOINT_SIGNAL = signal.SIGURG
"""Asks a worker for a checkpoint. A process that does not handle it yet ignores it."""


def die_with_agent() -> bool:
    """In a role, arrange that this process dies with the agent that started it, however that dies.

    Returns whether an agent started it.
    """
    agent = os.environ.get(AGENT_VARIABLE)
    if agent is not None:
        die_with_parent(int(agent))
    return agent is not None
