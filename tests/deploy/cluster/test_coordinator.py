"""Scripts of the coordinator, on a clock that the test moves: what it counts, waits for, and reports.

That one generation runs at a time, and that the job gets on, whatever happens, is in ``test_coordinator_model.py``.
"""

import pytest
from scripted_agents import KILLED, RESTARTS, STALL, Cluster, Host, saved, step

from crossfade.base.errors import ClusterError
from crossfade.deploy.aws.spot import NOTICE_SECONDS
from crossfade.deploy.cluster.coordinator import EXIT_TIMEOUT_SECONDS
from crossfade.deploy.cluster.job_state import State
from crossfade.deploy.cluster.membership import LEASE_SECONDS
from crossfade.deploy.cluster.messages import Failure
from crossfade.trainer.runs.events import (
    CheckpointFailed,
    EpochEvent,
    Event,
    PhaseEvent,
    StoppedEvent,
    to_json,
)

ABORTED = Failure(message="worker-0 was killed by SIGABRT", role="worker-0", cause="was killed by SIGABRT")
SERVER_ABORTED = Failure(message="server-1 was killed by SIGABRT", role="server-1", cause="was killed by SIGABRT")
NOTICE = "EC2 terminates this spot instance at noon"
HOST_TIMEOUT = 30.0
SAVED, STOPPED = saved(8), StoppedEvent(step=8, checkpoint="checkpoints/step-000000008")


@pytest.mark.parametrize(
    ("how", "ends"),
    [("fails", True), ("saves where it started", True), ("saves", False), ("is found", False), ("cannot start", True)],
)
def test_restarts_back_off_until_the_limit_unless_there_is_a_new_checkpoint(how: str, ends: bool) -> None:
    cluster, delays = Cluster(), []
    for number in range(1, RESTARTS + 2):
        if how == "cannot start":
            cluster.coordinator.start_failed(OSError("the store is away"))
        else:
            found = {"saves where it started": 10, "is found": number, "saves": 10 * number}.get(how, 0)
            cluster.start("folder/step", found)
            cluster.local.report_events(*[saved(found + (how == "saves"))] * how.startswith("saves"))
            cluster.fail()
        delays.append(cluster.back_off())
    assert cluster.state is (State.FAILED if ends else State.PREPARING)
    if how == "saves":
        assert set(delays) == {0}
    if ends:
        assert delays == [0, 1, 2, 0]
        error = cluster.coordinator.error()
        assert isinstance(error, ClusterError)
        assert ("the store is away" if how == "cannot start" else "run/logs/server-0.log") in str(error)
        assert f"restarted {RESTARTS} times without a new checkpoint (cluster.max_restarts)" in str(error)
        assert (cluster.local.heartbeat().action, cluster.local.desired.exit_code) == ("leave", 1)


def test_restart_records_its_causes_and_what_is_trained_again(alone: Cluster) -> None:
    training = PhaseEvent(name="training", step=0)
    alone.local.report_events(training, step(1))
    alone.wait_silently(3.0)
    alone.local.report_events(step(40))
    alone.fail(Failure(message="server-1: bad CRC", checkpoint="folder/step-9"))
    assert alone.coordinator.rejected_checkpoints == {"folder/step-9"}
    alone.coordinator.start_failed(OSError("the store is away"))
    alone.wait_silently(4)
    alone.start(skipped=["folder/step-9: it was rejected"])
    alone.local.report_events(training, step(1))
    alone.wait_silently(5.0)
    alone.local.report_events(saved(50))  # which took one second to write
    alone.wait_silently(2.0)
    alone.local.report_events(step(110))
    alone.wait_silently(7.0)  # until the failure is noticed
    alone.fail()
    alone.start("checkpoints/step-50", 50)
    events = [to_json(event) for event in alone.coordinator.take_events()]
    first, second = (event for event in events if event["event"] == "restart")
    assert first["cause"] == "server-1: bad CRC; then OSError: the store is away"
    assert (first["step"], first["lost_steps"], first["lost_seconds"]) == (0, 40, 3.0)
    assert first["skipped"] == ["folder/step-9: it was rejected"]
    assert (second["cause"], second["step"]) == (KILLED.message, 50)
    assert (second["lost_steps"], second["lost_seconds"]) == (60, 3.0)
    *_, failure = (event for event in events if event["event"] == "failure")
    lost = {"step": 110, "lost_steps": 60, "lost_seconds": 3.0}
    assert failure == {"event": "failure", "generation": 2, "cause": KILLED.message, "ends_run": False, **lost}


@pytest.mark.parametrize(
    ("event", "is_progress"),
    [
        (step(2), True),
        (EpochEvent(epoch=1, step=2, loss=1.0), True),
        (PhaseEvent(name="tables"), True),
        (saved(2), True),
        (CheckpointFailed(step=2, message="disk full"), False),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_stalled_job_restarts(alone: Cluster, event: Event, is_progress: bool) -> None:
    alone.wait(STALL - 1)
    alone.local.report_events(event)
    alone.wait(2)
    assert (alone.state is State.RUNNING) == is_progress
    alone.wait((STALL - 1) * is_progress)
    assert alone.state is State.PREPARING
    alone.start()
    assert [event["cause"] for event in alone.events("restart")] == [f"no sign of progress for {STALL:g} s"]


@pytest.mark.parametrize(
    ("left", "failure", "lingers", "state", "cause"),
    [
        (["worker-0", "worker-1"], ABORTED, [], State.DONE, "was killed by SIGABRT"),
        (["worker-0", "worker-1"], SERVER_ABORTED, [], State.DONE, "was killed by SIGABRT"),
        (["worker-1"], ABORTED, [], State.PREPARING, "was killed by SIGABRT"),
        (["worker-0"], ABORTED, ["worker-1"], State.PREPARING, "the others are done, but "),
        (
            ["worker-0", "worker-1"],
            None,
            ["server-0"],
            State.DONE,
            "the others are done, but server-0 did not end in 30",
        ),
        ([], None, ["server-1"], State.PREPARING, "the others are done, but server-1 did not end in 30 s"),
        ([], None, [], State.DONE, None),
    ],
)
def test_job_is_done_once_all_results_are_written(
    alone: Cluster, left: list[str], failure: Failure | None, lingers: list[str], state: State, cause: str | None
) -> None:
    alone.local.leave(*left)
    if failure is not None:
        alone.local.heartbeat(failure=failure)
    else:
        alone.local.roles |= {name: "running" if name in lingers else "done" for name in alone.local.roles}
    alone.wait(EXIT_TIMEOUT_SECONDS + 2 if lingers else 0)
    alone.heartbeat_all()
    assert alone.state is state
    failures = alone.events("failure")
    assert len(failures) == (cause is not None)
    for found in failures:
        assert found["cause"].startswith(cause or "")
        assert found["ends_run"] is False
        assert (found.get("after_results"), len(left) == 2) in {(True, True), (None, False)}
    if state is State.DONE:
        assert (alone.local.desired.action, alone.local.desired.exit_code) == ("leave", 0)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("saves", ""),
        ("is untrained", ""),
        ("takes too long", f"; then its checkpoint took more than {NOTICE_SECONDS:.0f} s to write"),
        ("is lost", "; then the agent on host 10.0.0.2 (10.0.0.2) sent no heartbeat for 15 s"),
        ("fails", f"; then {KILLED.message}"),
    ],
)
def test_reclaimed_host_is_left_after_a_checkpoint(how: str, cause: str) -> None:
    cluster = Cluster(hosts=2)
    other = cluster.join("10.0.0.2")
    cluster.start()
    cluster.local.report_events(*[step(1)] * (how != "is untrained"))
    spare = cluster.join("10.0.0.3")
    told = other.heartbeat(interruption_notice=NOTICE)
    assert told.action == ("wait" if how == "is untrained" else "stop")
    if how == "saves":
        cluster.local.report_events(SAVED, STOPPED)
        cluster.local.finish_roles()
        other.roles = dict.fromkeys(other.roles, "done")
    elif how == "fails":
        cluster.local.heartbeat(failure=KILLED)
    if how == "is lost":
        cluster.hosts.remove(other)
    cluster.heartbeat_all()
    cluster.wait({"takes too long": NOTICE_SECONDS + 1, "is lost": LEASE_SECONDS + 1}.get(how, 0))
    assert cluster.state is State.PREPARING
    if how == "saves":
        left = other.heartbeat(interruption_notice=NOTICE)
        assert (left.action, left.exit_code) == ("leave", 75)
        assert left.message == f"the job continues without this host: {NOTICE}"
    cluster.start(STOPPED.checkpoint, at_step=8)
    assert (other in cluster.hosts, other.generation) in {(True, None), (False, 1)}
    assert spare.generation == 2
    [restart] = cluster.events("restart")
    assert restart["cause"] == f"the host host 10.0.0.2 (10.0.0.2) received an interruption notice: {NOTICE}{cause}"


# ---- one role per host


class Roles(Cluster):
    """A coordinator with a host for each of two servers and two workers."""

    def __init__(self) -> None:
        super().__init__(one_role_per_host=True, host_timeout_seconds=HOST_TIMEOUT)
        self.servers = [self.join(f"10.0.1.{number}", "server") for number in range(2)]
        self.workers = [self.join(f"10.0.2.{number}", "worker") for number in range(2)]
        self.start()
        self.local.report_events(step(1))

    def lose(self, *hosts: Host) -> None:
        """Silence hosts until their leases expire."""
        for host in hosts:
            self.hosts.remove(host)
        self.wait(LEASE_SECONDS + 1)
        assert self.state is State.WAITING


def test_job_continues_without_a_host_after_the_host_timeout() -> None:
    roles = Roles()
    roles.lose(roles.workers[0], *roles.servers)
    roles.wait(HOST_TIMEOUT)
    roles.start("folder/step-1", 1)
    assert roles.local.desired.roles == ["scheduler", "server-0", "server-1"]
    assert roles.workers[1].desired.roles == ["worker-0", "worker-1"]
    assert roles.events("hosts_missing") == [{"event": "hosts_missing", "hosts": 3}]
    spare = roles.join("10.0.1.9", "server")  # the running generation is not disturbed
    assert spare.desired.action == "wait"
    roles.wait(HOST_TIMEOUT)
    roles.fail(KILLED)
    roles.wait(2)  # the second failure in a row causes a pause
    roles.start("folder/step-1", 1)
    assert (spare.desired.roles, roles.local.desired.roles) == (["server-0", "server-1"], ["scheduler"])


@pytest.mark.parametrize(("begun", "state"), [(False, State.WAITING), (True, State.PREPARING)])
def test_new_job_does_not_start_on_the_coordinators_host_alone(begun: bool, state: State) -> None:
    cluster = Cluster(
        servers=1, workers=1, one_role_per_host=True, host_timeout_seconds=HOST_TIMEOUT, started_before=begun
    )
    cluster.join("10.0.1.1", "server")
    cluster.wait(HOST_TIMEOUT + 1)
    assert cluster.state is state
    watcher = cluster.join("10.0.3.1", "none")
    cluster.join("10.0.2.1", "worker")
    cluster.start()
    assert watcher.desired.action == "wait"
    watcher.heartbeat(leaving=True)  # it has no role to lose
    assert cluster.state is State.RUNNING
    late = cluster.join("10.0.3.2", "none")
    for host in cluster.hosts:
        if host.roles:
            host.finish_roles()
    desired = late.heartbeat()
    assert (desired.action, desired.exit_code, desired.message) == ("leave", 0, "the job is done")
