"""Runs a job on servers to its end: the coordinator and this host's agent in one process, and what they need.

Other hosts take part if the job says where the coordinator listens: ``crossfade agent --join HOST:PORT`` on each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from deploy.aws.spot import SpotMonitor
from deploy.cluster.agent import POLL_SECONDS, Agent, job_digest
from deploy.cluster.coordinator import FINISHED, Coordinator, GenerationSpec, State
from deploy.cluster.coordinator_http import read_token, serving
from deploy.cluster.metrics import HostMetrics, JobMetrics, target
from deploy.cluster.rendezvous import Rendezvous, serve_rendezvous
from deploy.cluster.state_writer import StateWriter
from deploy.topology import Address, scheduler_address
from kvstore.errors import ClusterError, CrossfadeError, InputError
from trainer.config.run_sections import ClusterConfig
from trainer.config.schema import JobConfig
from trainer.monitoring.http import MetricsEndpoint
from trainer.runs.event_log import event_recorder
from trainer.runs.events import Event, EventSink, ListeningEvent, MetricsAddress, ReportEvent
from trainer.runs.folder import REPORT_FILE, RunFolder

REPORT_SECONDS = 10.0
"""How long it may take until a file that another host wrote is seen on this one."""


class JobStopped(Exception):  # noqa: N818 - as asked, so not an error
    """The job has stopped because that was asked for; the message says how."""


class JobInterrupted(JobStopped):
    """The job has stopped because this host will soon be gone; the message says how."""


def check_hosts(cluster: ClusterConfig) -> None:
    """Refuse what the job says of hosts, before anything is touched.

    Raises:
        InputError: hosts have no way to join, or there is no token.
    """
    if cluster.coordinator_address is not None:
        listen = Address.parse(cluster.coordinator_address, "cluster.coordinator_address")
        read_token("cluster.coordinator_address")
        if cluster.host_count > 1 and is_loopback(cluster.host) and not is_loopback(listen.host):
            raise InputError(
                f"cluster.host is {cluster.host}, where the roles of other hosts cannot reach this one's: set it to "
                "this host's address, as in --set cluster.host=10.0.0.1"
            )
    elif cluster.host_count > 1:
        raise InputError(
            f"the job has {cluster.host_count} hosts, but the other hosts' agents have nowhere to join: set "
            "cluster.coordinator_address, as in --set cluster.coordinator_address=10.0.0.1:7070"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``."""
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
    """Run a distributed job until it is done, through as many generations as that takes; gives its report.

    ``emit`` gets the events of the first worker and, those of the job. With ``resume`` it goes on from the newest checkpoint, where there is one. ``asked_to_stop`` is asked many
    times a second. ``listener`` shows the job to whoever watches it, and ``state`` tells of it in the run folder.
    ``spot`` knows when this host will soon be gone.

    Raises:
        InputError: a role found the input wrong.
        ClusterError: restarts did not help.
        Stopped: it was asked to stop, or (Interrupted) this host will soon be gone. Whatever is raised, all processes
            of this host have ended by then.
    """
    files = folder.files_for_roles() if job.no_shared_run_dir else None
    begun = resume and folder.logs.exists()
    coordinator = Coordinator(job.cluster, job=job_digest(folder), files=files, started_before=begun)
    with ExitStack() as stack:
        if job.no_shared_run_dir:
            emit = _event_writer(folder, emit, stack)
        agent = stack.enter_context(closing(_agent(job, folder, coordinator, spot)))
        _show(job, coordinator, agent, listener)
        state.watch(lambda: _job_status(coordinator))
        agent.run_once()  # joins before others can
        _listen(job, coordinator, emit, stack)
        rendezvous = None
        if job.all_reduces_dense:
            rendezvous = stack.enter_context(serve_rendezvous(scheduler_address(job.cluster).host, job.cluster.workers))
        search = _StartFinder(job, folder, resume, rendezvous)
        restarts = _Restarts(folder)
        while coordinator.state not in FINISHED or agent.left is None or coordinator.remote_hosts():
            agent.run_once()
            if stop_requested() or coordinator.interruption():
                coordinator.stop()
            coordinator.tick()
            search.turn(coordinator)
            restarts.turn(coordinator)
            for event in coordinator.take_events():
                state.take(event)
                emit(event)
    if coordinator.state is not State.DONE:
        raise _end(coordinator, stop_requested())
    return _amended_report(folder, restarts.of(coordinator))


def _agent(job: JobConfig, folder: RunFolder, coordinator: Coordinator, spot: SpotMonitor | None) -> Agent:
    """This host's agent, which calls ``coordinator`` without a network between."""
    return Agent(
        folder,
        coordinator.report,
        scheduler_address(job.cluster).host,
        identity=coordinator.local_agent,
        heartbeat_seconds=0.0,  # a call costs nothing, so at every turn
        lease_seconds=float("inf"),
        **spot_callbacks(spot),
    )


def _listen(job: JobConfig, coordinator: Coordinator, emit: EventSink, opened: ExitStack) -> None:
    """Have agents of other hosts reach ``coordinator``, where the job says so; ``opened`` ends that."""
    if job.cluster.coordinator_address is not None:
        listen = Address.parse(job.cluster.coordinator_address, "cluster.coordinator_address")
        at = opened.enter_context(serving(coordinator, listen, read_token("cluster.coordinator_address")))
        emit(ListeningEvent(address=str(at)))


def _end(coordinator: Coordinator, as_asked: bool) -> Exception:
    """What to raise for a job that failed or was stopped."""
    if coordinator.state is State.FAILED:
        return coordinator.error()
    notice = None if as_asked else coordinator.interruption()
    return JobInterrupted(f"{coordinator.message}: {notice}") if notice else JobStopped(coordinator.message)


def _event_writer(folder: RunFolder, emit: EventSink, opened: ExitStack) -> EventSink:
    """What keeps in ``folder`` what the first worker tells and, on another host, cannot write there."""
    record = event_recorder(folder, emit, opened)

    def take(event: Event) -> None:
        if isinstance(event, ReportEvent):
            folder.write_report(event.report)
        elif isinstance(event, MetricsAddress):
            emit(event)
        else:
            record(event)

    return take


def spot_callbacks(spot: SpotMonitor | None) -> dict[str, Any]:
    """What an agent's constructor is told of spot notices."""
    return {} if spot is None else {"interruption_notice": spot.notice, "checkpoints_requested": spot.recommendations}


def _show(job: JobConfig, coordinator: Coordinator, agent: Agent, listener: MetricsEndpoint) -> None:
    """Have ``listener`` show the job, and where its processes can be scraped."""

    def targets() -> list[dict[str, Any]]:
        here = [("coordinator", agent.host, listener.address)] if listener.address else []
        return [target(job.name, *found) for found in [*here, *coordinator.scrape_targets()]]

    listener.metrics.register("job", JobMetrics(coordinator, job.cluster))
    listener.metrics.register("host", HostMetrics(agent))
    listener.metrics.state = lambda: coordinator.state.value
    listener.metrics.set_identity()
    listener.targets = targets


def _job_status(coordinator: Coordinator) -> dict[str, Any]:
    """What the run folder says of the job."""
    generation, processes = coordinator.generation, coordinator.processes()
    return {"state": coordinator.state.value, "generation": generation, "processes": processes}


class _Restarts:
    """Keeps a run's restarts in its folder, since whoever takes the run up reports them too."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._earlier = folder.restarts()
        self._kept = self._earlier

    def of(self, coordinator: Coordinator) -> list[dict[str, Any]]:
        """All of them."""
        return [*self._earlier, *(dict(vars(restart)) for restart in coordinator.restarts)]

    def turn(self, coordinator: Coordinator) -> None:
        """Write them down if there is something new."""
        restarts = self.of(coordinator)
        if restarts != self._kept:
            self._kept = restarts
            with suppress(OSError):  # a full disk costs this record alone
                self._folder.write_restarts(restarts)


def _amended_report(folder: RunFolder, restarts: list[dict[str, Any]]) -> dict[str, Any]:
    """The report that the first worker wrote, with what it cannot know."""
    deadline = time.monotonic() + REPORT_SECONDS
    while not (folder.path / REPORT_FILE).exists():
        if time.monotonic() > deadline:
            raise ClusterError(f"all roles ended well, but left no report (logs: {folder.logs})")
        time.sleep(POLL_SECONDS)
    report = folder.report()
    report |= {"restarts": len(restarts), "restart_causes": restarts}
    folder.write_report(report)
    return report


class _StartFinder:
    """Finds what a generation starts from, in a thread: where checkpoints are may be slow, and agents must not wait."""

    def __init__(self, job: JobConfig, folder: RunFolder, resume: bool, rendezvous: Rendezvous | None = None) -> None:
        self._job, self._resume, self._rendezvous = job, resume, rendezvous
        self._checkpoints = RunFolder(Path(folder.path).absolute()).checkpoints(job)
        self._under_way = False
        self._found: GenerationSpec | Exception | None = None

    def turn(self, coordinator: Coordinator) -> None:
        """Begin to look if the coordinator wants a start, and hand it over once it is found."""
        if coordinator.state is State.PREPARING and not self._under_way:
            self._under_way, self._found = True, None
            fresh = coordinator.generation == 0 and not self._resume
            # A daemon: whoever stops the job does not wait for it.
            threading.Thread(target=self._look, args=(coordinator.refused, fresh), daemon=True).start()
        if isinstance(self._found, Exception):
            self._under_way, found, self._found = False, self._found, None
            coordinator.start_failed(found)
        elif self._found is not None:
            self._under_way, found_start, self._found = False, self._found, None
            coordinator.start_generation(found_start)

    def _look(self, refused: frozenset[str], fresh: bool) -> None:
        try:
            checkpoint, step, skipped = (None, 0, []) if fresh else find_start_checkpoint(self._checkpoints, refused)
            meet = self._rendezvous.new_generation() if self._rendezvous else None
            self._found = GenerationSpec(self._scheduler(), checkpoint, step, skipped, meet)
        except (CrossfadeError, OSError) as error:
            self._found = error
        except Exception as error:  # a fault of ours, which must not leave the job waiting for ever
            self._found = ClusterError(f"{type(error).__name__}: {error}")

    def _scheduler(self) -> Address:
        try:
            return scheduler_address(self._job.cluster)
        except InputError as error:
            # It could be had when the job started: so it may be had again.
            raise ClusterError(str(error)) from error


def find_start_checkpoint(checkpoints: str, refused: frozenset[str]) -> tuple[str | None, int, list[str]]:
    """The newest whole checkpoint that is not ``refused``, its step, and why newer ones were passed over.

    Raises:
        InputError: ``checkpoints`` is not the name of a folder.
        OSError: it cannot be read.
    """
    from kvstore.checkpoint.lifecycle import latest_checkpoint

    checkpoint, skipped = latest_checkpoint(checkpoints, refused)
    return (checkpoint.uri, checkpoint.manifest.step, skipped) if checkpoint else (None, 0, skipped)
