"""Run the agent of a host that another host's coordinator gives roles: what ``crossfade agent`` does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing

from crossfade.base.errors import ClusterError, InputError, Option
from crossfade.base.signals import stopper
from crossfade.deploy.aws.spot import monitor_spot
from crossfade.deploy.cluster.agent import Agent
from crossfade.deploy.cluster.coordinator_http import RemoteCoordinator, read_token
from crossfade.deploy.cluster.messages import DesiredState
from crossfade.deploy.cluster.options import AgentOptions
from crossfade.deploy.cluster.process_metrics import process_metrics
from crossfade.deploy.cluster.store_choice import require_store
from crossfade.deploy.cluster.supervision import spot_callbacks
from crossfade.deploy.topology import Address, check_local_address, local_address
from crossfade.trainer.monitoring.http import serve_metrics
from crossfade.trainer.runs.run_folder import RunFolder

_logger = logging.getLogger(__name__)


def run_agent(options: AgentOptions) -> int:
    """Run this host's agent until the job ends or a signal arrives; return the exit code of the job.

    Raises:
        InputError: an option is wrong, or the job is.
        ClusterError: the coordinator has not answered for long.
        StopSignal: the agent was stopped.
    """
    options.configure("agent")
    coordinator = Address.parse(options.join, Option("join"))
    remote = RemoteCoordinator(coordinator, read_token("crossfade agent"))
    address = options.advertise_address or local_address(coordinator)
    check_local_address(address)
    folder = RunFolder(options.run_dir)
    metrics = process_metrics("", "agent")

    def identify() -> None:
        # The job, which names the run, reaches the folder when the agent has joined.
        if agent.has_joined and not metrics.labels["run"]:
            metrics.set_identity(run=_check_job(folder))

    with (
        serve_metrics(metrics, options.metrics_port, None, address, source=Option("metrics_port")) as listener,
        monitor_spot(_logger.info, enabled=options.spot) as spot,
    ):
        agent = Agent(
            folder,
            remote.send_heartbeat,
            address,
            accepted_roles=options.roles,
            heartbeat_seconds=1.0,
            notify=_logger.info,
            metrics_address=listener.address,
            **spot_callbacks(spot),
        )
        metrics.state = lambda: "taking part" if agent.has_joined else "waiting for the coordinator"
        _logger.info(f"joining the coordinator at {coordinator} as {address}")
        final_state = _run_until_left(agent, options, identify)
    _logger.info(final_state.message)
    return final_state.exit_code


def _run_until_left(agent: Agent, options: AgentOptions, after_turn: Callable[[], None]) -> DesiredState:
    """Run ``agent`` until it has left the job, or the grace period after a signal is over; return the final state."""
    limit = options.coordinator_timeout
    with stopper.deferred(), closing(agent):
        stop_at = float("inf")
        while agent.final_state is None and time.monotonic() < stop_at:
            agent.run_once()
            if limit is not None and agent.silent_seconds > limit:
                raise ClusterError(
                    f"the coordinator at {options.join} has not answered for {limit:g} s (",
                    Option("coordinator_timeout"),
                    ")",
                )
            if stopper.number is not None:
                stop_at = min(stop_at, time.monotonic() + options.grace_period)
            after_turn()
    if agent.final_state is None:
        stopper.check("and has left the job")
    assert agent.final_state is not None
    return agent.final_state


def _check_job(folder: RunFolder) -> str:
    """Return the name of the run in ``folder``; '?' if its job cannot be read, which the agent reports itself.

    Raises:
        MissingExtraError: the job's roles need a package that is not installed here. None has been started yet.
    """
    try:
        job = folder.job()
    except InputError:
        return "?"
    require_store(job)
    return job.name
