"""Run a distributed job to its end: the coordinator and this host's agent in one process, and what they need.

Other hosts take part if the job sets cluster.coordinator_address: ``crossfade agent`` joins it on each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from crossfade.base.errors import ClusterError, InputError, Option
from crossfade.deploy.aws.spot import SpotMonitor
from crossfade.deploy.cluster.agent import POLL_SECONDS, Agent, job_digest
from crossfade.deploy.cluster.coordinator import Coordinator
from crossfade.deploy.cluster.coordinator_http import read_token, serve_coordinator
from crossfade.deploy.cluster.job_state import FINISHED, GenerationSpec, State
from crossfade.deploy.cluster.process_metrics import JobMetrics, target
from crossfade.deploy.cluster.rendezvous import Rendezvous, serve_rendezvous
from crossfade.deploy.cluster.state_writer import StateWriter
from crossfade.deploy.topology import Address, free_address
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import ClusterConfig
from crossfade.trainer.monitoring.http import MetricsEndpoint
from crossfade.trainer.runs.events import (
    Event,
    EventSink,
    ListeningEvent,
    MetricsAddress,
    ReportEvent,
    RestartEvent,
    event_recorder,
)
from crossfade.trainer.runs.resumption import find_start, last_saved_step
from crossfade.trainer.runs.run_folder import REPORT_FILE, RunFolder

REPORT_TIMEOUT_SECONDS = 10.0
"""Maximum delay until a file that another host wrote is visible on this one."""


class JobStopped(Exception):  # noqa: N818 - as requested, so not an error
    """The job has stopped as requested; the message describes how."""


def check_hosts(cluster: ClusterConfig) -> None:
    """Check that the hosts of a job can join and reach one another, before anything is touched.

    Raises:
        InputError: hosts have no way to join, there is no token, or roles cannot listen on this host.
    """
    if cluster.coordinator_address is not None:
        listen = Address.parse(cluster.coordinator_address, "cluster.coordinator_address")
        read_token("cluster.coordinator_address")
        if cluster.host_count > 1 and is_loopback(cluster.host) and not is_loopback(listen.host):
            raise InputError(
                f"cluster.host is {cluster.host}, where the roles of other hosts cannot reach this one's: set it to "
                "this host's address, as in ",
                Option("set", "cluster.host=10.0.0.1"),
            )
    elif cluster.host_count > 1:
        raise InputError(
            f"the job has {cluster.host_count} hosts, but the other hosts' agents have nowhere to join: set "
            "cluster.coordinator_address, as in ",
            Option("set", "cluster.coordinator_address=10.0.0.1:7070"),
        )
    free_address(cluster)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach what listens on ``host``."""
    return host == "localhost" or host.startswith("127.")


def run_job(
    job: JobConfig,
    folder: RunFolder,
    emit: EventSink,
    listener: MetricsEndpoint,
    state: StateWriter,
    *,
    resume: bool,
    stop_requested: Callable[[], bool],
    spot: SpotMonitor | None = None,
) -> dict[str, Any]:
    """Run a distributed job until it is done, through as many generations as that takes, and return its report.

    All processes of this host have ended when it returns or raises.

    Args:
        job: the resolved job.
        folder: its run folder.
        emit: receives the events of the first worker and those of the job.
        listener: exposes the job's metrics and scrape targets.
        state: writes the job's state to the run folder.
        resume: start from the newest checkpoint, where there is one.
        stop_requested: whether to stop the job; called many times a second.
        spot: reports when this host is about to be reclaimed.

    Raises:
        InputError: a role found the input wrong, or another command has taken the run over.
        ClusterError: restarts did not help.
        JobStopped: a stop was requested, or this host is about to be reclaimed.
    """
    coordinator = _make_coordinator(job, folder, resume)
    with ExitStack() as stack:
        emit = _event_writer(folder, emit, stack) if job.no_shared_run_dir else emit
        agent = stack.enter_context(closing(_local_agent(job, folder, coordinator, spot)))
        _expose(job, coordinator, agent, listener, state)
        agent.run_once()  # joins before others can
        _listen(job, coordinator, emit, stack)
        rendezvous, restarts = _serve_rendezvous(job, stack), folder.restarts()
        start_finder = StartFinder(job, folder, resume, rendezvous)
        while coordinator.state not in FINISHED or agent.final_state is None or coordinator.remote_hosts():
            agent.run_once()
            folder.lock.check_owned()  # since this process may have been frozen
            _advance(coordinator, stop_requested)
            start_finder.run_once(coordinator)
            _publish_events(coordinator, folder, state, emit, restarts)
    _raise_unless_done(coordinator, stop_requested())
    return _complete_report(folder, restarts)


def _advance(coordinator: Coordinator, stop_requested: Callable[[], bool]) -> None:
    """Stop the job if that is requested or this host is about to be reclaimed, and act on what is due."""
    if stop_requested() or coordinator.interruption_notice():
        coordinator.stop()
    coordinator.tick()


def _make_coordinator(job: JobConfig, folder: RunFolder, resume: bool) -> Coordinator:
    return Coordinator(
        job.cluster,
        identity=folder.lock.command,
        job_digest=job_digest(folder),
        files=folder.files_for_roles() if job.no_shared_run_dir else None,
        started_before=resume and folder.logs.exists(),
    )


def _local_agent(job: JobConfig, folder: RunFolder, coordinator: Coordinator, spot: SpotMonitor | None) -> Agent:
    """Return this host's agent, which calls ``coordinator`` without a network in between."""
    return Agent(
        folder,
        coordinator.handle_heartbeat,
        free_address(job.cluster).host,
        identity=coordinator.local_agent,
        heartbeat_seconds=0.0,  # a call costs nothing, so each run_once makes one
        lease_seconds=float("inf"),
        **spot_callbacks(spot),
    )


def spot_callbacks(spot: SpotMonitor | None) -> dict[str, Any]:
    """Return the arguments by which an ``Agent`` learns of spot notices."""
    return {} if spot is None else {"interruption_notice": spot.notice}


def _listen(job: JobConfig, coordinator: Coordinator, emit: EventSink, stack: ExitStack) -> None:
    """Serve ``coordinator`` to agents of other hosts, if the job names an address, until ``stack`` closes."""
    if job.cluster.coordinator_address is not None:
        listen = Address.parse(job.cluster.coordinator_address, "cluster.coordinator_address")
        token = read_token("cluster.coordinator_address")
        address = stack.enter_context(serve_coordinator(coordinator, listen, token))
        emit(ListeningEvent(address=str(address)))


def _serve_rendezvous(job: JobConfig, stack: ExitStack) -> Rendezvous | None:
    """Serve a rendezvous until ``stack`` closes, if the workers connect to each other."""
    if not (job.cluster.workers_hold_tables or job.needs_horovod):
        return None
    return stack.enter_context(serve_rendezvous(free_address(job.cluster).host))


def _event_writer(folder: RunFolder, emit: EventSink, stack: ExitStack) -> EventSink:
    """Return a sink that writes the first worker's events and report to ``folder``, which its host does not share."""
    record = event_recorder(folder, emit, stack)

    def take(event: Event) -> None:
        if isinstance(event, ReportEvent):
            folder.write_report(event.report)
        elif isinstance(event, MetricsAddress):
            emit(event)
        else:
            record(event)

    return take


def _expose(
    job: JobConfig, coordinator: Coordinator, agent: Agent, listener: MetricsEndpoint, state: StateWriter
) -> None:
    """Expose the job's metrics, scrape targets and state."""

    def targets() -> list[dict[str, Any]]:
        here = [("coordinator", agent.host, listener.address)] if listener.address else []
        return [target(job.name, *found) for found in [*here, *coordinator.scrape_targets()]]

    def status() -> dict[str, Any]:
        processes = coordinator.processes()
        return {"state": coordinator.state.value, "generation": coordinator.generation, "processes": processes}

    state.watch(status)
    listener.metrics.register("job", JobMetrics(coordinator, job.cluster))
    listener.metrics.state = lambda: coordinator.state.value
    listener.metrics.set_identity()
    listener.targets = targets


def _raise_unless_done(coordinator: Coordinator, stop_requested: bool) -> None:
    """Raise the error of a job that failed or was stopped."""
    if coordinator.state is State.FAILED:
        raise coordinator.error()
    if coordinator.state is State.STOPPED:
        notice = None if stop_requested else coordinator.interruption_notice()
        raise JobStopped(f"{coordinator.message}: {notice}" if notice else coordinator.message)


def _publish_events(
    coordinator: Coordinator, folder: RunFolder, state: StateWriter, emit: EventSink, restarts: list[dict[str, Any]]
) -> None:
    """Pass on the events since the last call, and record each restart; ``step`` is the step that had been reached."""
    for event in coordinator.take_events():
        state.take(event)
        emit(event)
        if isinstance(event, RestartEvent):
            record = event.model_dump(include={"generation", "cause", "lost_steps", "lost_seconds"})
            restarts.append({**record, "step": event.step + (event.lost_steps or 0)})
            with suppress(OSError):  # a full disk costs only this record
                folder.write_restarts(restarts)


def _complete_report(folder: RunFolder, restarts: list[dict[str, Any]]) -> dict[str, Any]:
    """Add ``restarts`` to the report that the first worker wrote, and return it."""
    deadline = time.monotonic() + REPORT_TIMEOUT_SECONDS
    while not (folder.path / REPORT_FILE).exists():
        if time.monotonic() > deadline:
            raise ClusterError(f"all roles are done, but wrote no report (logs: {folder.logs})")
        time.sleep(POLL_SECONDS)
    report = folder.report()
    report |= {"restarts": len(restarts), "restart_causes": restarts}
    folder.write_report(report)
    return report


class StartFinder:
    """Gives the coordinator a start whenever it is preparing a generation."""

    def __init__(self, job: JobConfig, folder: RunFolder, resume: bool, rendezvous: Rendezvous | None = None) -> None:
        """Search the checkpoints of ``job``; without ``resume`` the first generation starts from none."""
        self._job, self._resume, self._rendezvous = job, resume, rendezvous
        self._run_dir = folder.path
        self._checkpoints = RunFolder(Path(folder.path).absolute()).checkpoints(job)
        self._search: Future[GenerationSpec] | None = None

    def run_once(self, coordinator: Coordinator) -> None:
        """Start a search if ``coordinator`` is preparing, and hand over the result of one that has finished."""
        if coordinator.state is State.PREPARING and self._search is None:
            self._search = Future()
            fresh = coordinator.generation == 0 and not self._resume
            # A daemon: a job that is stopped does not wait for it.
            arguments = (self._search, coordinator.rejected_checkpoints, fresh)
            threading.Thread(target=self._run_search, args=arguments, daemon=True).start()
        if self._search is not None and self._search.done():
            error, search, self._search = self._search.exception(), self._search, None
            if isinstance(error, Exception):
                coordinator.start_failed(error)
            else:
                coordinator.start_generation(search.result())

    def _run_search(self, search: Future[GenerationSpec], rejected: frozenset[str], fresh: bool) -> None:
        try:
            search.set_result(self._find_start(rejected, fresh))
        except Exception as error:  # an internal error, too, must not leave the job waiting forever
            search.set_exception(error)

    def _find_start(self, rejected: frozenset[str], fresh: bool) -> GenerationSpec:
        checkpoint, skipped = None, list[str]()
        if not fresh:
            checkpoint, skipped = find_start(self._checkpoints, rejected, saved_step=last_saved_step(self._run_dir))
        uri, step = (checkpoint.uri, checkpoint.manifest.step) if checkpoint else (None, 0)
        rendezvous = self._rendezvous.new_generation() if self._rendezvous else None
        return GenerationSpec(self._scheduler(), uri, step, skipped, rendezvous)

    def _scheduler(self) -> Address | None:
        if self._job.cluster.workers_hold_tables:
            return None
        try:
            return free_address(self._job.cluster)
        except InputError as error:
            # The address was usable when the job started, so it may be again.
            raise ClusterError(str(error)) from error
