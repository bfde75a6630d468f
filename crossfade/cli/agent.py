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

The job starts when cluster.hosts agents, that of 'crossfade train' included, have joined; further agents wait as
spares. An agent without a coordinator retries until one answers, and ends its roles after 10 seconds without an answer.
'crossfade train --resume', or a waiting 'crossfade train --standby', replaces a lost coordinator. When a host is lost,
the job waits for another to join, from any address, and resumes from its newest checkpoint.

Hosts must share DIR and the dataset, at the same paths, and run the same version of crossfade. Without a shared folder,
set cluster.shared_run_dir=false in the job: DIR is then any folder of this host, the job comes from the coordinator,
and data.path and checkpoint.path must be on S3. Roles listen on ports of --advertise-address that the kernel picks, and
drop packets from other hosts than those of the job. The token is sent in plain text; CROSSFADE_TOKEN_FILE may name a
file that holds it.

With cluster.one_role_per_host each server and worker has its own host. The roles of a host that is lost and not
replaced within cluster.host_timeout_seconds move to remaining hosts that accept them, or to the coordinator's host.

Exit codes: 0 the job is done; 1 it failed; 2 invalid input; 75 this host or the coordinator's was interrupted by EC2:
the job saves a checkpoint and resumes when another host joins; 130 and 143 stopped by SIGINT or SIGTERM: the roles end
at once, and the job resumes when another host has joined.
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
