"""``crossfade agent``: what a host runs to take part in a distributed job that was started on another one."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from kvstore.errors import ClusterError, InputError

if TYPE_CHECKING:
    from trainer.runs.folder import RunFolder

_DESCRIPTION = """\
Take part in a distributed job: run on this host the roles (servers and workers) that the job's coordinator deals to it.
The coordinator is part of 'crossfade train' on another host, which says in its job where it listens.
"""
_EPILOG = """\
On the first host:
  export CROSSFADE_TOKEN=$(openssl rand -hex 32)
  crossfade train jobs/plays.yaml --servers 2 --workers 4 --run-dir /shared/plays \\
      --set cluster.hosts=2 --set cluster.host=10.0.0.1 --set cluster.coordinator_address=10.0.0.1:7070
On each other host, with the same CROSSFADE_TOKEN in its environment:
  crossfade agent --join 10.0.0.1:7070 --run-dir /shared/plays

The job starts when cluster.hosts agents, that of 'crossfade train' included, have joined; further ones wait as spares.
Start agents in any order: one whose coordinator is not there yet, or has gone, tries again until it answers. After 10
seconds without an answer it ends its roles; 'crossfade train --resume' brings a lost coordinator back, as does
'crossfade train --standby', which waits until it is needed. If this host is lost, the job waits for another to join,
from the same address or another, and goes on from its newest checkpoint.

Hosts must share DIR and the data, at the same paths, and have the same version of crossfade. Where they share no
folder, set cluster.shared_run_dir=false in the job: DIR is then any folder of this host, the job comes from the
coordinator, and data.path and checkpoint.path must be on S3. Roles listen on ports of
--advertise-address that the kernel picks, open to whoever can reach them: keep that network closed. The token is sent as it is;
CROSSFADE_TOKEN_FILE may name a file that has it.

A host that can take one kind of role says so with --roles, as containers do. With cluster.one_role_per_host each server and
worker has a host of its own; where one is lost and not replaced within cluster.host_timeout_seconds, its roles go to hosts
that are left and take such, or else to the coordinator's.

The agent ends with the job: exit code 0 if it is done, 1 if it failed, 143 if it was stopped. SIGINT and SIGTERM end
its roles at once, and the job goes on without this host as soon as another has joined.

With --spot the job gives way when EC2 announces that it takes this host back: it writes a checkpoint, this agent ends
with exit code 75, and the job goes on as soon as another host has joined. 75 also says that the coordinator's own host
goes: join the next one then.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "agent",
        help="take part in a distributed job of another host",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--join",
        required=True,
        metavar="HOST:PORT",
        help="where the coordinator listens: cluster.coordinator_address of the job",
    )
    parser.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--roles",
        choices=["all", "server", "worker", "none"],
        default="all",
        help="roles that this host takes (default all); none: it only waits for the end of the job",
    )
    parser.add_argument(
        "--advertise-address",
        metavar="A",
        help="numeric address of this host at which the others reach its roles (default: the one it has towards HOST)",
    )
    parser.add_argument(
        "--metrics-port",
        type=_port,
        default=0,
        metavar="N",
        help="port of the agent's own /metrics and /healthz at A; 0: a free one (default); none: none",
    )
    parser.add_argument(
        "--grace-period",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="after SIGTERM, do what the coordinator says for so long, before the roles end: for hosts that are all "
        "stopped together, so that the job can write a checkpoint (default: 0)",
    )
    parser.add_argument(
        "--coordinator-timeout",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="fail when the coordinator has not answered for so long (default: wait for ever)",
    )
    parser.add_argument(
        "--spot", action="store_true", help="heed EC2's notices that it takes this host back (a spot instance)"
    )
    parser.set_defaults(run=run)


def _port(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port or 'none', but found '{text}'")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Be this host's agent until told to leave."""
    from crossfade.signals import stopper
    from crossfade.spot import spot_monitor
    from deploy.cluster.agent import Agent
    from deploy.cluster.coordinator_http import RemoteCoordinator, read_token
    from deploy.cluster.metrics import HostMetrics, process_metrics
    from deploy.cluster.supervision import spot_callbacks
    from deploy.topology import Address, check_local_address, local_address
    from kvstore.mxnet.imports import require_mxnet
    from trainer.monitoring.http import serve_metrics
    from trainer.runs.folder import RunFolder

    require_mxnet()
    coordinator = Address.parse(arguments.join, "--join")
    remote = RemoteCoordinator(coordinator, read_token("crossfade agent"))
    address = arguments.advertise_address or local_address(coordinator)
    check_local_address(address)
    folder = RunFolder(arguments.run_dir)
    metrics = process_metrics("", "agent")
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
            notify=_say,
            metrics_address=listener.address,
            **spot_callbacks(spot),
        )
        metrics.register("host", HostMetrics(agent))
        metrics.state = lambda: "taking part" if agent.has_joined else "waiting for the coordinator"
        _say(f"joining the coordinator at {coordinator} as {address}")
        with stopper.deferred(), closing(agent):
            stop_at = float("inf")
            while agent.final_state is None and time.monotonic() < stop_at:
                agent.run_once()
                if agent.silent_seconds > arguments.coordinator_timeout:
                    raise ClusterError(
                        f"the coordinator at {coordinator} has not answered for {arguments.coordinator_timeout:g} s (--coordinator-timeout)"
                    )
                if stopper.number is not None:
                    stop_at = min(stop_at, time.monotonic() + arguments.grace_period)
                if agent.has_joined and not metrics.labels["run"]:
                    metrics.set_identity(run=_run_name(folder))
    if agent.final_state is None:
        stopper.check("and has left the job")
    assert agent.final_state is not None
    _say(agent.final_state.message)
    return agent.final_state.exit_code


def _run_name(folder: RunFolder) -> str:
    """The name of the run in ``folder``, or '?' where none can be read, which the agent will report."""
    try:
        return folder.job().name
    except InputError:
        return "?"


def _say(line: str) -> None:
    print(f"crossfade: {line}", file=sys.stderr, flush=True)
