"""``crossfade agent``: run this host's roles of a distributed job that another host coordinates."""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade import logs
from crossfade.base.errors import ClusterError, InputError
from crossfade.cli.command import add_command
from crossfade.cli.options.parsing import port_or_none

if TYPE_CHECKING:
    from collections.abc import Callable

    from crossfade.deploy.cluster.agent import Agent
    from crossfade.deploy.cluster.messages import DesiredState
    from crossfade.deploy.topology import Address
    from crossfade.trainer.runs.folder import RunFolder

_logger = logging.getLogger(__name__)

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


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "agent",
        "run roles of a job that another host coordinates",
        "Run the servers and workers that a distributed job's coordinator assigns to this host.",
        examples=_EXAMPLES,
        notes=_NOTES,
    )
    _add_job_options(parser)
    _add_host_options(parser)
    _add_timeout_options(parser)
    logs.add_log_options(parser)
    parser.set_defaults(run=run)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    job = parser.add_argument_group("job")
    job.add_argument(
        "--join",
        required=True,
        metavar="HOST:PORT",
        help="join the coordinator at the job's cluster.coordinator_address",
    )
    job.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="use DIR as the folder of the run")
    job.add_argument(
        "--roles",
        choices=["all", "server", "worker", "none"],
        default="all",
        help="accept these roles (default: all); none: only wait for the end of the job",
    )


def _add_host_options(parser: argparse.ArgumentParser) -> None:
    host = parser.add_argument_group("host")
    host.add_argument(
        "--advertise-address",
        metavar="A",
        help="announce this numeric address of the host to the others (default: the one that routes to HOST)",
    )
    host.add_argument(
        "--metrics-port",
        type=port_or_none,
        default=0,
        metavar="N",
        help="serve the agent's /metrics and /healthz on this port; 0 (default): a free one; none: do not serve",
    )
    host.add_argument("--spot", action="store_true", help="drain when EC2 announces an interruption of this instance")


def _add_timeout_options(parser: argparse.ArgumentParser) -> None:
    timeouts = parser.add_argument_group("timeouts")
    timeouts.add_argument(
        "--grace-period",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="follow the coordinator for this long after SIGTERM before roles end, so that hosts stopped together can "
        "write a checkpoint (default: 0)",
    )
    timeouts.add_argument(
        "--coordinator-timeout",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="fail when the coordinator has not answered for this long (default: never)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run this host's agent until the job ends or a signal arrives; return the exit code of the job."""
    from crossfade.deploy.cluster.agent import Agent
    from crossfade.deploy.cluster.coordinator_http import RemoteCoordinator, read_token
    from crossfade.deploy.cluster.metrics import HostMetrics
    from crossfade.deploy.cluster.process_metrics import process_metrics
    from crossfade.deploy.cluster.supervision import spot_callbacks
    from crossfade.deploy.topology import Address, check_local_address, local_address
    from crossfade.kvstore.mxnet.imports import require_mxnet
    from crossfade.spot import spot_monitor
    from crossfade.trainer.monitoring.http import serve_metrics
    from crossfade.trainer.runs.folder import RunFolder

    logs.configure("agent", arguments.log_format, arguments.log_level)
    require_mxnet()
    coordinator = Address.parse(arguments.join, "--join")
    remote = RemoteCoordinator(coordinator, read_token("crossfade agent"))
    address = arguments.advertise_address or local_address(coordinator)
    check_local_address(address)
    folder = RunFolder(arguments.run_dir)
    metrics = process_metrics("", "agent")

    def identify() -> None:
        # The job, which names the run, reaches the folder when the agent has joined.
        if agent.has_joined and not metrics.labels["run"]:
            metrics.set_identity(run=_run_name(folder))

    with (
        serve_metrics(metrics, arguments.metrics_port, None, address, source="--metrics-port") as listener,
        spot_monitor(arguments.spot) as spot,
    ):
        agent = Agent(
            folder,
            remote.send_heartbeat,
            address,
            accepted_roles=arguments.roles,
            heartbeat_seconds=1.0,
            notify=_logger.info,
            metrics_address=listener.address,
            **spot_callbacks(spot),
        )
        metrics.register("host", HostMetrics(agent))
        metrics.state = lambda: "taking part" if agent.has_joined else "waiting for the coordinator"
        _logger.info(f"joining the coordinator at {coordinator} as {address}")
        final_state = _run_until_left(agent, coordinator, arguments, identify)
    _logger.info(final_state.message)
    return final_state.exit_code


def _run_until_left(
    agent: Agent, coordinator: Address, arguments: argparse.Namespace, after_turn: Callable[[], None]
) -> DesiredState:
    """Run ``agent`` until it has left the job, or the grace period after a signal is over; return the final state."""
    from crossfade.signals import stopper

    with stopper.deferred(), closing(agent):
        stop_at = float("inf")
        while agent.final_state is None and time.monotonic() < stop_at:
            agent.run_once()
            if agent.silent_seconds > arguments.coordinator_timeout:
                raise ClusterError(
                    f"the coordinator at {coordinator} has not answered for {arguments.coordinator_timeout:g} s "
                    "(--coordinator-timeout)"
                )
            if stopper.number is not None:
                stop_at = min(stop_at, time.monotonic() + arguments.grace_period)
            after_turn()
    if agent.final_state is None:
        stopper.check("and has left the job")
    assert agent.final_state is not None
    return agent.final_state


def _run_name(folder: RunFolder) -> str:
    """Return the name of the run in ``folder``; '?' if its job cannot be read, which the agent reports itself."""
    try:
        return folder.job().name
    except InputError:
        return "?"
