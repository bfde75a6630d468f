"""``crossfade agent``: run this host's roles of a distributed job that another host coordinates."""

from __future__ import annotations

from crossfade.cli.command import as_command
from crossfade.deploy.cluster.options import AgentOptions

_EXAMPLES = (
    (
        "crossfade agent --join 10.0.0.1:7070 --run-dir /shared/plays",
        "Join the job of 'crossfade train' on 10.0.0.1, with the same CROSSFADE_TOKEN in the environment.",
    ),
    (
        "crossfade agent --join 10.0.0.1:7070 --run-dir /shared/plays --roles worker --spot",
        "Run only workers on a spot instance, and leave the job when EC2 interrupts it.",
    ),
)
_NOTES = """\
On the first host, before or after this command:
  export CROSSFADE_TOKEN=$(openssl rand -hex 32)
  crossfade train jobs/plays.yaml --servers 2 --workers 4 --run-dir /shared/plays \\
      --set cluster.hosts=2 --set cluster.host=10.0.0.1 --set cluster.coordinator_address=10.0.0.1:7070

Hosts share DIR and the dataset, at the same paths, and run the same version of crossfade. The token is sent in plain
text.

Exit codes: 0 the job is done; 1 it failed; 2 invalid input; 75 this host or the coordinator's was interrupted by EC2;
130 and 143 stopped by SIGINT or SIGTERM. After these, the job resumes when another host joins.
"""


@as_command(
    "agent",
    "Run the servers and workers that a distributed job's coordinator assigns to this host.",
    _EXAMPLES,
    _NOTES,
)
def run(options: AgentOptions) -> int:
    """Run this host's agent until the job ends or a signal arrives; return the exit code of the job."""
    from crossfade.deploy.cluster.run_agent import run_agent

    return run_agent(options)
