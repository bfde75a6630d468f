"""Coordinates a job: which generation of roles runs, where, and what follows when it ends.

    coordinator = Coordinator(job.cluster)
    answer = coordinator.handle_heartbeat(heartbeat)      # for every heartbeat of every agent
    coordinator.tick()                                    # periodically
    coordinator.start_generation(GenerationSpec(...))     # while coordinator.state is PREPARING

A state machine without input and output (``job_state`` has its states) that reads a monotonic clock and nothing else.
No store has failover, so any failed or silent process ends the generation on all hosts, and the next one starts from
the newest complete checkpoint.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from crossfade.base.errors import ClusterError, CrossfadeError, InputError, as_typed
from crossfade.base.exit_codes import INTERRUPTED_EXIT_CODE
from crossfade.deploy.aws.spot import NOTICE_SECONDS
from crossfade.deploy.cluster.generation import Generation, final_failure
from crossfade.deploy.cluster.job_state import FINISHED, LIVE, GenerationSpec, RestartPolicy, State, outcome
from crossfade.deploy.cluster.membership import LEASE_SECONDS, Member, Membership
from crossfade.deploy.cluster.messages import Action, DesiredState, Failure, Heartbeat, RoleState
from crossfade.deploy.topology import Address, assign_roles, roles
from crossfade.trainer.config.sections import ClusterConfig
from crossfade.trainer.runs import events

EXIT_TIMEOUT_SECONDS = 30.0
"""Time that the other roles have to end once one has ended without an error."""
_NEVER = float("inf")


class Coordinator:
    """The state machine of one job. Its methods may be called from several threads."""

    def __init__(
        self,
        cluster: ClusterConfig,
        *,
        identity: str | None = None,
        job_digest: str = "",
        files: dict[str, str] | None = None,
        started_before: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Coordinate a job on ``cluster``.

        Args:
            cluster: sizes and timeouts of the job.
            identity: the ID of the command; by default a new random one.
            job_digest: SHA-256 of the job file, by which agents check that they share it.
            files: the text of each file of the run folder, by name, for hosts that do not share the folder.
            started_before: whether roles ran under an earlier coordinator, so that missing hosts may be lost.
            clock: seconds, monotonic.
        """
        self.id = identity or secrets.token_hex(8)
        self.local_agent = secrets.token_hex(8)
        """The ID for the agent in this process, which gets the scheduler and has no lease."""
        self.state = State.WAITING
        self.rejected_checkpoints: frozenset[str] = frozenset()
        self.message = ""
        """How the job was stopped."""
        self.restarts = 0
        self._cluster, self._job_digest, self._files, self._clock = cluster, job_digest, files or {}, clock
        self._lock = threading.RLock()
        self._members = Membership(cluster, self.local_agent, clock)
        self._restart_policy = RestartPolicy(cluster.max_restarts)
        self._events: list[events.Event] = []
        self._generation = Generation(0, GenerationSpec(Address("", 0)), {}, {}, clock())
        self._started_before, self._after_terminating = started_before, State.BACKOFF
        self._error: Failure | None = None
        self._interruption_notice: str | None = None
        self._deadline, self._drain_seconds = _NEVER, NOTICE_SECONDS

    def handle_heartbeat(self, heartbeat: Heartbeat, source: str | None = None) -> DesiredState:
        """Apply a heartbeat, which came from the address ``source``; return the agent's desired state."""
        with self._lock:
            if rejection := self._members.rejection(heartbeat):
                return DesiredState(coordinator=self.id, action="leave", exit_code=1, message=rejection)
            if heartbeat.coordinator != self.id:
                # The agent last heard from another coordinator, or from none: it ends what it runs before it joins.
                files = {} if heartbeat.agent == self.local_agent else self._files
                return DesiredState(coordinator=self.id, action="wait", files=files)
            member = self._members.get(heartbeat.agent) or self._join(heartbeat)
            member.source = source
            if heartbeat.number > member.heartbeat_number:
                self._apply(member, heartbeat)
            self._advance()
            return self._desired_state(member)

    def tick(self) -> None:
        """Act on leases, timeouts and pauses that have expired."""
        with self._lock:
            for member in self._members.expired():
                self._remove_member(member, f"sent no heartbeat for {LEASE_SECONDS:.0f} s")
            stall_timeout, now = self._cluster.stall_timeout_seconds, self._clock()
            if self.state is State.RUNNING and now - self._generation.progress_at > stall_timeout:
                self._fail(Failure(message=f"no sign of progress for {stall_timeout:g} s"))
            if self.state in LIVE and now > self._deadline:
                self._pass_deadline()
            self._advance()

    def start_generation(self, spec: GenerationSpec) -> None:
        """Start the next generation from ``spec``, unless the job no longer needs one."""
        with self._lock:
            if self.state is not State.PREPARING:
                return
            if not self._members.can_start(started_before=self._started_before):
                self.state = State.WAITING
                return
            if spec.step > self._generation.spec.step:
                self._restart_policy.note_checkpoint_found()
            self._emit_start(spec)
            assigned = assign_roles(self._cluster, self._members.accepted_roles())
            hosts = {role.name: member.host for member in self._members for role in assigned.get(member.id, [])}
            addresses = self._members.addresses(agent for agent, local in assigned.items() if local)
            self._generation = Generation(self.generation + 1, spec, assigned, hosts, self._clock(), addresses)
            self.state, self._deadline, self._started_before = State.RUNNING, _NEVER, True
            for member in self._members:
                member.roles = {}

    def start_failed(self, error: Exception) -> None:
        """Restart later because no start was found; fail the job if its input is wrong."""
        with self._lock:
            if self.state is State.PREPARING:
                permanent = isinstance(error, InputError)
                code = InputError.exit_code if permanent else 1
                message = f"{type(error).__name__}: {error}"
                if isinstance(error, CrossfadeError):
                    message = error.worded(as_typed)
                self._fail(Failure(message=message, exit_code=code, restart=not permanent))
                self._advance()

    def stop(self) -> None:
        """Let the workers write a checkpoint and end; end all roles if the grace period expires first."""
        with self._lock:
            if self.state is State.DRAINING or (self.state is State.RUNNING and self._generation.has_trained):
                self.state = State.STOPPING
                self._deadline = self._clock() + self._grace_seconds()
            elif self.state is State.RUNNING:
                self._terminate(State.STOPPED, "before it took a step, so without a new checkpoint")
            elif self.state is State.TERMINATING and self._after_terminating is State.BACKOFF:
                self._after_terminating, self.message = State.STOPPED, f"after {self._restart_policy.cause}"
            elif self.state in {State.WAITING, State.PREPARING, State.BACKOFF}:
                self.state, self.message = State.STOPPED, "while nothing ran"
            self._advance()

    def take_events(self) -> list[events.Event]:
        """Return the events since the last call, in order: those of the roles, and those of the job itself."""
        with self._lock:
            taken, self._events[:] = self._events.copy(), []
            return taken

    @property
    def generation(self) -> int:
        """The number of the newest generation; 0 before the first."""
        return self._generation.number

    def interruption_notice(self) -> str | None:
        """Return why this host is about to be reclaimed; None if there is no interruption notice."""
        with self._lock:
            return self._interruption_notice

    def remote_hosts(self) -> list[str]:
        """Return the other hosts whose agents have not left."""
        with self._lock:
            return [member.host for member in self._members if member.id != self.local_agent]

    def error(self) -> CrossfadeError:
        """Return why the job failed."""
        assert self._error is not None
        kind = InputError if self._error.exit_code == InputError.exit_code else ClusterError
        return kind(self._error.explain())

    def scrape_targets(self) -> list[tuple[str, str, str]]:
        """Return where agents of other hosts, and roles, can be scraped: process, host and HOST:PORT."""
        with self._lock:
            return [*self._members.scrape_targets(), *self._generation.scrape_targets()]

    def role_states(self) -> dict[str, RoleState]:
        """Return the state of each role that an agent reports."""
        with self._lock:
            return self._members.role_states()

    def processes(self) -> dict[str, dict[str, Any]]:
        """Return, by role: its state, host, metrics address and newest load."""
        with self._lock:
            states = self._members.role_states()
            return {role.name: self._generation.describe(role, states) for role in roles(self._cluster)}

    # ---- members

    def _join(self, heartbeat: Heartbeat) -> Member:
        for other in self._members.at_address(heartbeat.address):
            self._remove_member(other, "was replaced by a new agent at its address", for_good=True)
        return self._members.join(heartbeat)

    def _remove_member(self, member: Member, how: str, *, for_good: bool = False) -> None:
        self._members.remove(member, for_good=for_good)
        if member.id in self._generation.assigned:
            self._fail(Failure(message=f"the agent on {member.host} ({member.address}) {how}", host=member.host))

    def _apply(self, member: Member, heartbeat: Heartbeat) -> None:
        member.update(heartbeat, self._clock(), self.generation)
        for event in member.acknowledge(heartbeat.events):
            is_current = self.state in LIVE and event.generation == self.generation
            if is_current and self._generation.record(event, self._clock()):
                self._events.append(event.event)
        if heartbeat.interruption_notice and not member.interruption_notice:
            self._note_interruption(member, heartbeat.interruption_notice)
        if heartbeat.leaving:
            self._remove_member(member, "has left", for_good=True)
        elif self.state in LIVE and member.id in self._generation.assigned:
            self._apply_roles(member, heartbeat)

    def _note_interruption(self, member: Member, notice: str) -> None:
        self._members.note_interruption(member, notice)
        if member.id == self.local_agent:
            self._interruption_notice = notice
        self._events.append(events.InterruptionNotice(host=member.host, address=member.address, reason=notice))

    def _apply_roles(self, member: Member, heartbeat: Heartbeat) -> None:
        """Act on the reported states of ``member``'s roles."""
        if heartbeat.ended_generation >= self.generation:
            how = "ended its roles: it could not reach the coordinator"
            self._fail(Failure(message=f"the agent on {member.host} {how}", host=member.host))
        elif heartbeat.generation == self.generation and (failure := heartbeat.failure):
            if failure.role in self._generation.left and not self._generation.has_results:
                self._await_end()  # of the other workers, which have written their results too
            else:
                self._fail(failure)
        elif "done" in heartbeat.roles.values():
            self._note_done_roles()
        elif member.interruption_notice and self.state is State.RUNNING and member.id != self.local_agent:
            notice = f"interruption notice: {member.interruption_notice}"
            self._drain(f"the host {member.host} ({member.address}) received an {notice}", NOTICE_SECONDS)

    # ---- desired states

    def _desired_state(self, member: Member) -> DesiredState:
        assigned = self._generation.assigned
        if self.state in FINISHED:
            error = self._error.message if self._error else ""
            code, how = outcome(self.state, self.message, error, self._interruption_notice)
            return DesiredState(coordinator=self.id, action="leave", exit_code=code, message=f"the job {how}")
        if member.interruption_notice and member.id != self.local_agent and member.id not in assigned:
            how = f"the job continues without this host: {member.interruption_notice}"
            return DesiredState(coordinator=self.id, action="leave", exit_code=INTERRUPTED_EXIT_CODE, message=how)
        action: Action = "wait"
        if self.state in LIVE and member.id in assigned:
            action = "run" if self.state is State.RUNNING else "stop"
        return self._generation.desired_state(
            member.id,
            action,
            coordinator=self.id,
            acknowledged_event=member.acknowledged_event,
            servers=self._cluster.servers,
            workers=self._cluster.workers,
            job_digest=self._job_digest,
        )

    # ---- transitions

    def _emit_start(self, spec: GenerationSpec) -> None:
        origin: dict[str, Any] = {"step": spec.step, "checkpoint": spec.checkpoint, "skipped": list(spec.skipped)}
        work, policy = self._generation.work, self._restart_policy
        if policy.cause is not None:
            steps, seconds = work.since(spec.step)
            lost: dict[str, Any] = {"lost_steps": steps, "lost_seconds": seconds}
            event = events.RestartEvent(generation=self.generation + 1, cause=policy.cause, **origin, **lost)
            self._events.append(event)
            self.restarts, policy.cause = self.restarts + 1, None
        elif spec.checkpoint or spec.skipped:
            self._events.append(events.ResumeEvent(**origin))
        if missing := self._members.missing_hosts():
            self._events.append(events.HostsMissing(hosts=missing))

    def _note_done_roles(self) -> None:
        """Finish the generation if all roles are done, and limit how long the others may take if some are."""
        done = {name for name, state in self._members.role_states().items() if state == "done"}
        stop_result = self._generation.stop_result
        if done != self._generation.role_names():
            self._await_end()
        elif stop_result is None:
            self.state = State.DONE
        elif self.state is State.STOPPING:
            self.state, self.message = State.STOPPED, stop_result.explain()
        elif self.state is State.DRAINING:
            if stop_result.checkpoint:
                self._restart_policy.note_checkpoint_written()
            self._terminate(State.BACKOFF)
        else:
            self._fail(Failure(message="a worker was asked to stop by another process"))

    def _await_end(self) -> None:
        """Limit how long roles may take to end: none leaves its store before all workers are at their last barrier."""
        self._deadline = min(self._deadline, self._clock() + EXIT_TIMEOUT_SECONDS)

    def _drain(self, cause: str, seconds: float) -> None:
        """Write a checkpoint, in ``seconds`` at most, and start again without a host, because of ``cause``."""
        self._restart_policy.cause = cause
        if self._generation.has_trained:
            self.state, self._drain_seconds, self._deadline = State.DRAINING, seconds, self._clock() + seconds
        else:
            self._terminate(State.BACKOFF)  # there is nothing yet that a checkpoint could hold

    def _grace_seconds(self) -> float:
        return NOTICE_SECONDS if self._interruption_notice else self._cluster.grace_period_seconds

    def _pass_deadline(self) -> None:
        if self.state is State.STOPPING:
            self._terminate_stopped(f", which took more than {self._grace_seconds():g} s to write")
        elif self.state is State.DRAINING and self._generation.stop_result is None:
            self._fail(Failure(message=f"its checkpoint took more than {self._drain_seconds:g} s to write"))
        else:
            states = self._members.role_states()
            lingering = ", ".join(sorted(name for name, state in states.items() if state != "done"))
            how = f"did not end in {EXIT_TIMEOUT_SECONDS:.0f} s"
            self._fail(Failure(message=f"the others are done, but {lingering} {how}"))

    def _fail(self, failure: Failure) -> None:
        """End the generation because of ``failure``, and restart the job if that may help."""
        if self.state is State.STOPPING:
            self._events.append(self._generation.failure_event(failure, ends_run=True))
            self._terminate_stopped(f": {failure.message}")
        elif self.state is State.RUNNING and self._generation.has_results:
            self._events.append(self._generation.failure_event(failure, ends_run=False))
            self._terminate(State.DONE)
        elif self.state in {State.RUNNING, State.DRAINING, State.PREPARING}:
            if failure.checkpoint is not None:
                self.rejected_checkpoints |= {failure.checkpoint}
            if self._generation.wrote_checkpoint:
                self._restart_policy.note_checkpoint_written()
            # A generation that could not start does not replace the cause of the outage: it adds one.
            self._restart_policy.add_cause(failure.message)
            limit = self._restart_policy.try_restart() if failure.restart else None
            ends_run = limit is not None or not failure.restart
            self._events.append(event := self._generation.failure_event(failure, ends_run=ends_run))
            if ends_run:
                self._error = final_failure(failure, event, limit)
            self._terminate(State.FAILED if ends_run else State.BACKOFF)

    def _terminate_stopped(self, why: str) -> None:
        """Stop at once; ``why`` there is no checkpoint, unless the workers have reported one."""
        result = self._generation.stop_result
        self._terminate(State.STOPPED, result.explain() if result else f"without a checkpoint{why}")

    def _terminate(self, following: State, message: str = "") -> None:
        """End all roles; ``following`` is the state after that."""
        self.state, self._after_terminating, self.message = State.TERMINATING, following, message
        self._deadline = _NEVER
        self._members.require_clear()

    def _advance(self) -> None:
        """Enter each state whose conditions are already met."""
        if self.state is State.TERMINATING and self._members.are_clear(self._generation.assigned):
            self._generation.assigned = {}
            self.state = self._after_terminating
            if self.state is State.BACKOFF:
                self._back_off()
        if self.state is State.BACKOFF and self._clock() >= self._deadline:
            self.state, self._deadline = State.WAITING, _NEVER
            if missing := self._members.missing_hosts():
                self._events.append(events.WaitingForHosts(hosts=missing))
        if self.state is State.WAITING and self._members.can_start(started_before=self._started_before):
            self.state = State.PREPARING

    def _back_off(self) -> None:
        seconds = self._restart_policy.backoff_seconds()
        self._deadline = self._clock() + seconds
        if seconds:
            self._events.append(events.BackoffEvent(cause=self._restart_policy.cause or "", seconds=seconds))
