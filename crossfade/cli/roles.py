"""``crossfade scheduler | server | worker``: run one role of a distributed job in this process."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from crossfade.cli.command import Command
from crossfade.deploy.cluster.options import SchedulerOptions, ServerOptions, WorkerOptions

if TYPE_CHECKING:
    from crossfade.deploy.topology import RoleKind

_ROLES: dict[RoleKind, tuple[type[SchedulerOptions], str]] = {
    "scheduler": (
        SchedulerOptions,
        "Run the scheduler of a distributed job, which introduces its servers and workers to each other.",
    ),
    "server": (
        ServerOptions,
        "Run one server of a distributed job, which holds table shards and applies row-sparse updates.",
    ),
    "worker": (
        WorkerOptions,
        "Run one worker of a distributed job, which reads its partitions and computes gradients.",
    ),
}
_DETAILS = """

'crossfade train --servers N --workers N' starts and restarts all roles of a job; 'crossfade agent' does so on further
hosts. Run by hand, a role is not supervised: when one dies, the others wait for it.
"""
_NOTES = """\
Without servers (cluster.servers 0), the workers hold the tables, and only an agent starts them. For other jobs, the
environment locates the roles:
  DMLC_PS_ROOT_URI, DMLC_PS_ROOT_PORT   address and port of the scheduler
  DMLC_NODE_HOST                        address that this process listens on
  DMLC_NUM_SERVER, DMLC_NUM_WORKER      number of servers and workers of the job

Servers execute only commands that are signed with the secret in --secret-file: 16 or more characters, the same for all
servers and workers, new for each start, so that nobody can replay the commands of an earlier one:
  (umask 077; openssl rand -hex 32 > FILE)

Several workers that train dense layers need HOROVOD_GLOO_RENDEZVOUS_ADDR, HOROVOD_GLOO_RENDEZVOUS_PORT, and
HOROVOD_GLOO_IFACE. Each role serves /metrics and /healthz at DMLC_NODE_HOST and the job's metrics.port.
"""


def _run(role: RoleKind, options: SchedulerOptions) -> int:
    from crossfade.deploy.cluster.run_role import run_role

    return run_role(role, options)


def _role(role: RoleKind) -> Command[SchedulerOptions]:
    """Return the command of ``role``, which is not in the list of commands: 'crossfade train' runs it."""
    options, sentence = _ROLES[role]
    typed = f"crossfade {role} --run-dir /shared/plays{' --secret-file secret' * (role != 'scheduler')}"
    examples = (
        (typed, f"Run a {role} of a job where the environment says."),
        (f"{typed} --log-format json", "Write log lines as JSON objects."),
    )
    return Command(role, sentence + _DETAILS, examples, _NOTES, options, partial(_run, role))


scheduler, server, worker = map(_role, _ROLES)
