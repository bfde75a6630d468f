"""Restarts by the coordinator after failures and stalls, on a clock that the test moves."""

import pytest
from scripted_agents import KILLED, RESTARTS, STALL, Cluster, Host, saved, step

from crossfade.base.errors import ClusterError, InputError
from crossfade.deploy.cluster.coordinator import EXIT_TIMEOUT_SECONDS
from crossfade.deploy.cluster.job_state import GenerationSpec, State
from crossfade.deploy.cluster.messages import Failure
from crossfade.deploy.cluster.restart_policy import NETWORK_FAILURE_SECONDS, RestartPolicy
from crossfade.deploy.topology import Address
from crossfade.trainer.runs.events import CheckpointFailed, EpochEvent, Event, PhaseEvent


def test_failure_ends_the_generation_on_all_hosts_before_the_next_starts(cluster: Cluster, other: Host) -> None:
    assert cluster.local.heartbeat(failure=KILLED).action == "wait"
    cluster.local.heartbeat()
    assert cluster.state is State.TERMINATING  # the other host still runs
    assert other.heartbeat().action == "wait"
    assert cluster.state is State.TERMINATING  # it has the desired state, but has not reported that its roles ended
    other.heartbeat()
    assert cluster.state is State.PREPARING
    cluster.start("folder/step-5", 5)
    assert [host.generation for host in cluster.hosts] == [2, 2]
    assert other.desired.checkpoint == "folder/step-5"
    assert other.desired.scheduler is not None
    assert other.desired.scheduler.port == 5002
    [event] = cluster.events("restart")
    assert (event["generation"], event["cause"], event["step"]) == (2, KILLED.message, 5)


def test_restart_reports_the_steps_that_are_taken_again(alone: Cluster) -> None:
    training = PhaseEvent(name="training", step=0)
    alone.local.report_events(training, step(1))
    alone.wait_silently(3.0)
    alone.local.report_events(step(40))
    alone.fail()
    alone.start()
    alone.local.report_events(training, step(1))
    alone.wait_silently(5.0)
    alone.local.report_events(saved(50))  # which took one second to write
    alone.wait_silently(2.0)
    alone.local.report_events(step(110))
    alone.wait_silently(7.0)  # until the failure is noticed
    alone.fail()
    alone.start("checkpoints/step-50", 50)
    alone.fail()
    alone.wait(2.0)  # the pause of the second failure in a row
    alone.start("checkpoints/step-20", 20)  # that of 50 has become unusable
    lost = [(event["lost_steps"], event.get("lost_seconds")) for event in alone.events("restart")]
    assert lost == [(40, 3.0), (60, 3.0), (30, None)]
    assert [(restart.lost_steps, restart.lost_seconds) for restart in alone.coordinator.restarts] == lost


def test_heartbeat_sent_before_the_failure_does_not_clear_the_agent(cluster: Cluster, other: Host) -> None:
    crossing = other.make_heartbeat()
    cluster.local.heartbeat(failure=KILLED)
    cluster.local.heartbeat()
    cluster.coordinator.handle_heartbeat(crossing)
    assert cluster.state is State.TERMINATING


def test_restarts_back_off_until_the_limit(alone: Cluster) -> None:
    delays = []
    for _ in range(RESTARTS):
        alone.fail()
        delays.append(alone.back_off())
        alone.start()
    assert delays == [0, 1, 2]
    alone.fail()
    assert alone.state is State.FAILED
    error = alone.coordinator.error()
    assert isinstance(error, ClusterError)
    assert KILLED.message in str(error)
    assert f"restarted {RESTARTS} times without a new checkpoint (cluster.max_restarts)" in str(error)
    assert "run/logs/server-0.log" in str(error)
    assert (alone.local.desired.action, alone.local.desired.exit_code) == ("leave", 1)
    assert [restart.generation for restart in alone.coordinator.restarts] == [2, 3, 4]


def test_backoff_is_limited_to_a_minute() -> None:
    cluster = Cluster()
    cluster.coordinator._restart_policy = RestartPolicy(max_restarts=20)
    for _ in range(10):
        cluster.start()
        cluster.fail()
        begin = cluster.now
        cluster.back_off()
    assert cluster.now - begin == 60


def test_new_checkpoint_resets_the_failure_count(alone: Cluster) -> None:
    for saved_step in range(10, 10 * 3 * RESTARTS, 10):
        alone.local.report_events(saved(saved_step))
        alone.fail()
        assert alone.state is State.PREPARING  # at once
        alone.start(f"folder/step-{saved_step}", saved_step)
    assert len(alone.coordinator.restarts) > 2 * RESTARTS


def test_checkpoint_at_the_starting_step_does_not_reset_the_count(alone: Cluster) -> None:
    for _ in range(RESTARTS):
        alone.fail()
        alone.back_off()
        alone.start("folder/step-10", 10)
        alone.local.report_events(saved(10))
    alone.fail()
    assert alone.state is State.FAILED


def test_unreported_checkpoint_counts_when_found(alone: Cluster) -> None:
    for found in range(1, 3 * RESTARTS):
        alone.fail()
        alone.back_off()
        alone.start(f"folder/step-{found}", found)
    assert alone.state is State.RUNNING


def test_corrupt_checkpoint_is_rejected_from_then_on(alone: Cluster) -> None:
    alone.fail(Failure(message="server-1: bad CRC", checkpoint="folder/step-9"))
    alone.start("folder/step-5", 5, skipped=["folder/step-9: it was rejected"])
    assert alone.coordinator.rejected_checkpoints == {"folder/step-9"}
    [event] = alone.events("restart")
    assert event["skipped"] == ["folder/step-9: it was rejected"]
    alone.fail(Failure(message="server-1: bad CRC", checkpoint="folder/step-5"))
    assert alone.coordinator.rejected_checkpoints == {"folder/step-9", "folder/step-5"}


@pytest.mark.parametrize(("exit_code", "kind"), [(2, InputError), (1, ClusterError)])
def test_permanent_error_fails_the_job_at_once(
    cluster: Cluster, other: Host, exit_code: int, kind: type[Exception]
) -> None:
    other.heartbeat(failure=Failure(message="worker-1: a wrong thing", exit_code=exit_code, restart=False))
    cluster.heartbeat_all()
    assert cluster.state is State.TERMINATING
    cluster.heartbeat_all()
    assert cluster.state is State.FAILED
    error = cluster.coordinator.error()
    assert type(error) is kind
    assert str(error) == "worker-1: a wrong thing"
    assert cluster.coordinator.restarts == []
    assert other.heartbeat().action == "leave"


def test_failed_start_is_retried_until_the_limit() -> None:
    cluster = Cluster()
    delays = []
    for _ in range(RESTARTS):
        cluster.coordinator.start_failed(OSError("the store is away"))
        delays.append(cluster.back_off())
    assert delays == [0, 1, 2]
    cluster.coordinator.start_failed(OSError("the store is away"))
    assert cluster.state is State.FAILED
    assert "the store is away" in str(cluster.coordinator.error())


def test_start_rejected_by_input_fails_the_job_at_once() -> None:
    cluster = Cluster()
    cluster.coordinator.start_failed(InputError("no such scheme: gopher"))
    assert cluster.state is State.FAILED
    assert isinstance(cluster.coordinator.error(), InputError)


def test_restart_records_cause_step_and_downtime(alone: Cluster) -> None:
    alone.local.report_events(step(41), step(42))
    alone.local.heartbeat(failure=KILLED)
    alone.wait_silently(3)
    alone.heartbeat_all()
    alone.start("folder/step-40", 40)
    alone.wait_silently(4)
    alone.local.report_events(step(41))
    alone.wait_silently(5)
    alone.local.report_events(step(42))
    [restart] = alone.coordinator.restarts
    expected = {"generation": 2, "cause": KILLED.message, "step": 42, "seconds": 7.0}
    assert vars(restart) == expected | {"lost_steps": 2, "lost_seconds": None}


def test_failed_start_is_added_to_the_cause_of_the_outage(alone: Cluster) -> None:
    alone.local.report_events(step(42))
    alone.fail(KILLED)
    for _ in range(2):
        alone.coordinator.start_failed(OSError("the store is away"))
        alone.wait_silently(60)
    alone.start("folder/step-40", 40)
    [restart] = alone.coordinator.restarts
    assert restart.cause == f"{KILLED.message}; then the store is away"


@pytest.mark.parametrize(
    "event",
    [step(2), EpochEvent(epoch=1, step=2, loss=1.0), PhaseEvent(name="tables"), saved(2)],
    ids=lambda event: event.kind,
)
def test_stalled_job_restarts(alone: Cluster, event: Event) -> None:
    alone.wait(STALL - 1)
    alone.local.report_events(event)
    alone.wait(STALL - 1)
    assert alone.state is State.RUNNING
    alone.wait(2)
    assert alone.state is State.PREPARING
    alone.start()
    assert alone.coordinator.restarts[0].cause == f"no sign of progress for {STALL:g} s"
    alone.wait(STALL - 1)
    assert alone.state is State.RUNNING
    alone.wait(3)
    assert alone.state is not State.RUNNING


def test_failed_checkpoint_is_no_progress(alone: Cluster) -> None:
    alone.wait(STALL - 1)
    alone.local.report_events(CheckpointFailed(step=2, message="disk full"))
    alone.wait(2)
    assert alone.state is State.PREPARING


def test_roles_that_do_not_end_with_the_others_are_terminated(alone: Cluster) -> None:
    alone.local.roles |= dict.fromkeys(["worker-0", "worker-1", "server-0"], "done")
    alone.heartbeat_all()
    alone.wait_silently(EXIT_TIMEOUT_SECONDS - 1)
    alone.local.heartbeat()
    assert alone.state is State.RUNNING
    alone.wait_silently(2)
    alone.heartbeat_all()
    alone.heartbeat_all()
    assert alone.state is State.PREPARING
    alone.start()
    assert "scheduler, server-1 did not end in 30 s" in alone.coordinator.restarts[0].cause


SCANNED = Failure(message="server-0 was aborted by data at its port", from_network=True)


def test_failures_from_the_network_delay_the_job_but_do_not_use_up_its_restarts(alone: Cluster) -> None:
    delays = []
    for _ in range(10 * RESTARTS):
        alone.fail(SCANNED)
        delays.append(alone.back_off())
        alone.start()
    assert delays[:8] == [0, 1, 2, 4, 8, 16, 32, 60]
    assert set(delays[8:]) == {60}
    assert {restart.cause for restart in alone.coordinator.restarts} == {SCANNED.message}
    backoffs = alone.events("backoff")
    assert {event["cause"] for event in backoffs} == {SCANNED.message}
    for _ in range(RESTARTS - 1):  # the first one has counted
        alone.fail()
        alone.wait_silently(60)
        alone.start()
    alone.fail()
    assert alone.state is State.FAILED


def test_failures_from_the_network_end_a_job_that_makes_no_progress_for_hours(alone: Cluster) -> None:
    begin = alone.now
    while alone.state is not State.FAILED:
        alone.fail(SCANNED)
        alone.back_off(5)
        if alone.state is State.PREPARING:
            alone.start()
    assert RESTARTS * NETWORK_FAILURE_SECONDS <= alone.now - begin < (RESTARTS + 1) * NETWORK_FAILURE_SECONDS


def test_checkpoint_resets_the_delay_of_failures_from_the_network(alone: Cluster) -> None:
    for found in range(1, 5):
        alone.fail(SCANNED)
        alone.wait_silently(0)
        assert alone.state is State.PREPARING
        alone.start(f"folder/step-{found}", found)
        alone.local.report_events(saved(found + 1))


def test_each_generation_has_a_secret_of_its_own_that_only_hosts_with_roles_get(cluster: Cluster, other: Host) -> None:
    watcher = cluster.join("10.0.0.9", "none")
    first = cluster.local.desired.secret
    assert len(first) == 64
    assert other.desired.secret == first
    assert (watcher.desired.secret, watcher.desired.hosts) == ("", ["10.0.0.1", "10.0.0.2"])
    assert first not in repr(other.desired)
    assert first not in str(cluster.coordinator.status())
    cluster.fail()
    cluster.heartbeat_all()
    cluster.start()
    assert cluster.local.desired.secret not in {"", first}


def test_roles_admit_the_addresses_from_which_agents_connect(cluster: Cluster, other: Host) -> None:
    cluster.coordinator.handle_heartbeat(other.make_heartbeat(), "192.0.2.7")
    cluster.fail()
    cluster.heartbeat_all()
    cluster.coordinator.handle_heartbeat(other.make_heartbeat(), "192.0.2.7")
    assert cluster.state is State.PREPARING
    cluster.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    desired = cluster.coordinator.handle_heartbeat(other.make_heartbeat(), "192.0.2.7")
    assert desired.hosts == ["10.0.0.1", "10.0.0.2", "192.0.2.7"]
