"""The coordinator's state machine, on a clock of the test's own."""

import pytest
from scripted_agents import GRACE, KILLED, RESTARTS, STALL, Cluster, Host, saved, step

from deploy.cluster.coordinator import EXIT_TIMEOUT_SECONDS
from deploy.cluster.job_state import GenerationSpec, State
from deploy.cluster.membership import LEASE_SECONDS
from deploy.cluster.messages import Failure, NumberedEvent
from deploy.cluster.restart_policy import RestartPolicy
from deploy.topology import Address
from kvstore.errors import ClusterError, InputError
from trainer.runs.events import CheckpointFailed, EpochEvent, Event, PhaseEvent, StoppedEvent


@pytest.fixture
def alone() -> Cluster:
    """One host, whose generation 1 runs and has trained a step."""
    cluster = Cluster()
    cluster.start()
    cluster.local.report_events(step(1))
    return cluster


@pytest.fixture
def pair() -> tuple[Cluster, Host]:
    """Two hosts, whose generation 1 runs and has trained a step; the second one is given too."""
    cluster = Cluster(hosts=2)
    other = cluster.join("10.0.0.2")
    cluster.start()
    cluster.local.report_events(step(1))
    return cluster, other


# ---- start


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_a_job_starts_when_all_its_hosts_have_joined_and_not_before(hosts: int) -> None:
    cluster = Cluster(hosts=hosts)
    for number in range(2, hosts + 1):
        assert cluster.state is State.WAITING
        assert cluster.local.heartbeat().action == "wait"
        cluster.join(f"10.0.0.{number}")
    assert cluster.state is State.PREPARING
    cluster.start()
    assert cluster.state is State.RUNNING
    assert [host.generation for host in cluster.hosts] == [1] * hosts


@pytest.mark.parametrize(
    ("hosts", "dealt"),
    [
        (1, [["scheduler", "server-0", "server-1", "server-2", "worker-0", "worker-1"]]),
        (2, [["scheduler", "server-0", "server-2", "worker-0"], ["server-1", "worker-1"]]),
        (3, [["scheduler", "server-0", "worker-0"], ["server-1", "worker-1"], ["server-2"]]),
    ],
)
def test_roles_are_dealt_in_turn_over_the_hosts(hosts: int, dealt: list[list[str]]) -> None:
    cluster = Cluster(hosts=hosts, servers=3, workers=2)
    for number in range(2, hosts + 1):
        cluster.join(f"10.0.0.{number}")
    cluster.start("folder/step-7", 7)
    assert [host.desired.roles for host in cluster.hosts] == dealt
    desired = cluster.hosts[-1].desired
    assert (desired.servers, desired.workers, desired.checkpoint, desired.job_digest) == (
        3,
        2,
        "folder/step-7",
        "digest",
    )
    assert desired.scheduler is not None
    assert (desired.scheduler.host, desired.scheduler.port) == ("10.0.0.1", 5001)


def test_an_agent_more_than_needed_is_a_spare_that_takes_a_lost_ones_place() -> None:
    cluster = Cluster(hosts=2)
    lost = cluster.join("10.0.0.2")
    spare = cluster.join("10.0.0.3")
    cluster.start()
    assert (lost.desired.action, spare.desired.action) == ("run", "wait")
    cluster.hosts.remove(lost)
    cluster.wait(LEASE_SECONDS + 1)
    assert cluster.state is State.PREPARING
    cluster.start()
    assert spare.desired.roles == lost.desired.roles


def test_an_agent_that_has_heard_of_another_coordinator_joins_once_it_has_ended_its_roles() -> None:
    cluster = Cluster(hosts=2)
    returning = Host(cluster, "10.0.0.2")
    desired = cluster.coordinator.handle_heartbeat(
        returning.make_heartbeat(
            coordinator="an earlier one", generation=7, roles={"server-1": "running"}, ended_generation=6
        )
    )
    assert (desired.action, desired.coordinator) == ("wait", cluster.coordinator.id)
    assert cluster.state is State.WAITING
    returning.heartbeat()
    assert cluster.state is State.PREPARING
    cluster.hosts.append(returning)
    cluster.start()
    assert returning.generation == 1


def test_a_host_that_is_lost_while_a_start_is_looked_for_is_waited_for() -> None:
    cluster = Cluster(hosts=2)
    cluster.join("10.0.0.2").heartbeat(leaving=True)
    assert cluster.state is State.PREPARING
    cluster.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    assert (cluster.state, cluster.coordinator.generation) == (State.WAITING, 0)


def test_a_start_that_nobody_asked_for_any_more_is_dropped(alone: Cluster) -> None:
    alone.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    alone.coordinator.start_failed(OSError("late"))
    assert (alone.state, alone.coordinator.generation) == (State.RUNNING, 1)


def test_an_address_has_one_agent_and_the_coordinators_own_none_but_its_own() -> None:
    cluster = Cluster(hosts=2)
    desired = Host(cluster, "10.0.0.1", "another").heartbeat()
    assert (desired.action, desired.exit_code) == ("leave", 1)
    assert "10.0.0.1 is the coordinator's own address" in desired.message
    assert cluster.state is State.WAITING


# ---- restarts


def test_a_failure_ends_the_generation_everywhere_before_the_next_starts(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    assert cluster.local.heartbeat(failure=KILLED).action == "wait"
    cluster.local.heartbeat()
    assert cluster.state is State.TERMINATING  # the other host still runs
    assert other.heartbeat().action == "wait"
    assert cluster.state is State.TERMINATING  # it has its desired, but has not said that it obeyed
    other.heartbeat()
    assert cluster.state is State.PREPARING
    cluster.start("folder/step-5", 5)
    assert [host.generation for host in cluster.hosts] == [2, 2]
    assert other.desired.checkpoint == "folder/step-5"
    assert other.desired.scheduler is not None
    assert other.desired.scheduler.port == 5002
    [event] = cluster.events("restart")
    assert (event["generation"], event["cause"], event["step"]) == (2, KILLED.message, 5)


def test_a_report_that_crosses_the_failure_does_not_count_as_ended(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    crossing = other.make_heartbeat()
    cluster.local.heartbeat(failure=KILLED)
    cluster.local.heartbeat()
    cluster.coordinator.handle_heartbeat(crossing)
    assert cluster.state is State.TERMINATING


def test_restarts_come_at_once_and_then_later_and_later_until_there_are_too_many(alone: Cluster) -> None:
    delays = []
    for _ in range(RESTARTS):
        alone.fail()
        begin = alone.now
        while alone.state is State.BACKOFF:
            alone.wait_silently(0.25)
        delays.append(alone.now - begin)
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


def test_the_back_off_ends_at_a_minute() -> None:
    cluster = Cluster()
    cluster.coordinator._restart_policy = RestartPolicy(max_restarts=20)
    for _ in range(10):
        cluster.start()
        cluster.fail()
        begin = cluster.now
        while cluster.state is State.BACKOFF:
            cluster.wait_silently(1)
    assert cluster.now - begin == 60


def test_a_new_checkpoint_lets_the_count_begin_anew(alone: Cluster) -> None:
    for saved_step in range(10, 10 * 3 * RESTARTS, 10):
        alone.local.report_events(saved(saved_step))
        alone.fail()
        assert alone.state is State.PREPARING  # at once
        alone.start(f"folder/step-{saved_step}", saved_step)
    assert len(alone.coordinator.restarts) > 2 * RESTARTS


def test_a_checkpoint_no_newer_than_the_one_it_started_from_is_not_a_new_one(alone: Cluster) -> None:
    for _ in range(RESTARTS):
        alone.fail()
        while alone.state is State.BACKOFF:
            alone.wait_silently(1)
        alone.start("folder/step-10", 10)
        alone.local.report_events(saved(10))
    alone.fail()
    assert alone.state is State.FAILED


def test_a_checkpoint_that_is_found_counts_though_nobody_told_of_it(alone: Cluster) -> None:
    for found in range(1, 3 * RESTARTS):
        alone.fail()
        while alone.state is State.BACKOFF:
            alone.wait_silently(1)
        alone.start(f"folder/step-{found}", found)
    assert alone.state is State.RUNNING


def test_a_damaged_checkpoint_is_refused_from_then_on(alone: Cluster) -> None:
    alone.fail(Failure(message="server-1: bad CRC", checkpoint="folder/step-9"))
    alone.start("folder/step-5", 5, skipped=["folder/step-9: it was refused"])
    assert alone.coordinator.rejected_checkpoints == {"folder/step-9"}
    [event] = alone.events("restart")
    assert event["skipped"] == ["folder/step-9: it was refused"]
    alone.fail(Failure(message="server-1: bad CRC", checkpoint="folder/step-5"))
    assert alone.coordinator.rejected_checkpoints == {"folder/step-9", "folder/step-5"}


@pytest.mark.parametrize(("exit_code", "kind"), [(2, InputError), (1, ClusterError)])
def test_an_error_that_a_restart_cannot_mend_fails_the_job_at_once(
    pair: tuple[Cluster, Host], exit_code: int, kind: type[Exception]
) -> None:
    cluster, other = pair
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


def test_a_start_that_cannot_be_found_is_looked_for_again_until_there_were_too_many_attempts() -> None:
    cluster = Cluster()
    delays = []
    for _ in range(RESTARTS):
        cluster.coordinator.start_failed(OSError("the store is away"))
        begin = cluster.now
        while cluster.state is State.BACKOFF:
            cluster.wait_silently(0.25)
        delays.append(cluster.now - begin)
    assert delays == [0, 1, 2]
    cluster.coordinator.start_failed(OSError("the store is away"))
    assert cluster.state is State.FAILED
    assert "the store is away" in str(cluster.coordinator.error())


def test_a_start_that_the_input_rules_out_fails_the_job_at_once() -> None:
    cluster = Cluster()
    cluster.coordinator.start_failed(InputError("no such scheme: gopher"))
    assert cluster.state is State.FAILED
    assert isinstance(cluster.coordinator.error(), InputError)


def test_a_restart_is_recorded_with_its_cause_the_step_before_it_and_the_time_without_training(alone: Cluster) -> None:
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
    assert vars(restart) == {"generation": 2, "cause": KILLED.message, "step": 42, "seconds": 7.0}


def test_a_start_that_cannot_be_found_at_first_does_not_hide_why_one_was_needed(alone: Cluster) -> None:
    alone.local.report_events(step(42))
    alone.fail(KILLED)
    for _ in range(2):
        alone.coordinator.start_failed(OSError("the store is away"))
        alone.wait_silently(60)
    alone.start("folder/step-40", 40)
    [restart] = alone.coordinator.restarts
    assert restart.cause == f"{KILLED.message}; then the store is away"


# ---- agents that are lost


def test_a_silent_agent_ends_the_generation_when_its_lease_is_over_and_the_job_waits_for_another(
    pair: tuple[Cluster, Host],
) -> None:
    cluster, other = pair
    cluster.hosts.remove(other)
    cluster.wait(LEASE_SECONDS)
    assert cluster.state is State.RUNNING
    cluster.wait(1)
    assert cluster.state is State.WAITING
    assert cluster.events("waiting") == [{"event": "waiting", "hosts": 1}]
    cluster.wait(1000)
    assert cluster.state is State.WAITING
    new = cluster.join("10.0.0.9")
    cluster.start()
    assert new.generation == 2
    assert cluster.coordinator.restarts[0].cause == "the agent on host 10.0.0.2 (10.0.0.2) was not heard of for 15 s"


def test_an_agent_that_comes_back_after_its_lease_joins_again(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    cluster.hosts.remove(other)
    cluster.wait(LEASE_SECONDS + 1)
    assert cluster.state is State.WAITING
    assert other.heartbeat().action == "wait"
    assert other.generation is None
    cluster.hosts.append(other)
    cluster.start()
    assert [host.generation for host in cluster.hosts] == [2, 2]


def test_a_silent_agent_is_not_waited_for_at_the_end_of_a_generation(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    cluster.hosts.remove(other)
    cluster.fail()
    cluster.wait(LEASE_SECONDS - 1)
    assert cluster.state is State.TERMINATING
    cluster.wait(2)
    assert cluster.state is State.WAITING


def test_the_agent_in_the_coordinators_own_process_has_no_lease(alone: Cluster) -> None:
    alone.wait_silently(STALL - 1)
    assert alone.state is State.RUNNING


def test_a_new_agent_from_the_same_address_replaces_the_old_one_which_may_not_come_back(
    pair: tuple[Cluster, Host],
) -> None:
    cluster, other = pair
    new = Host(cluster, other.address, "the new one")
    new.heartbeat()
    cluster.heartbeat_all()
    cluster.local.heartbeat()
    assert other.desired.action == "leave"
    assert "replaces it" in other.desired.message
    assert cluster.state is State.PREPARING
    cluster.hosts = [cluster.local, new]
    cluster.start()
    assert new.generation == 2
    assert other.heartbeat().action == "leave"
    assert cluster.state is State.RUNNING
    assert "was replaced by a new agent" in cluster.coordinator.restarts[0].cause


def test_an_agent_that_leaves_ends_the_generation_at_once_and_a_late_report_of_it_is_nothing(
    pair: tuple[Cluster, Host],
) -> None:
    cluster, other = pair
    late = other.make_heartbeat()
    cluster.hosts.remove(other)
    cluster.coordinator.handle_heartbeat(
        other.make_heartbeat(generation=None, ended_generation=1, roles={}, leaving=True)
    )
    cluster.local.heartbeat()
    cluster.local.heartbeat()
    assert cluster.state is State.WAITING
    cluster.coordinator.handle_heartbeat(late)
    assert cluster.coordinator.remote_hosts() == []
    assert cluster.state is State.WAITING


def test_an_agent_that_ended_its_roles_by_itself_makes_the_job_start_again(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    other.generation, other.ended_generation, other.roles = None, 1, {}
    assert other.heartbeat().action == "wait"
    cluster.heartbeat_all()
    cluster.heartbeat_all()
    cluster.start()
    assert "ended its roles" in cluster.coordinator.restarts[0].cause


# ---- lost, repeated and late messages


def test_repeated_reports_and_events_count_once(alone: Cluster) -> None:
    alone.coordinator.take_events()
    report = alone.local.make_heartbeat(events=alone.local.number_events(step(2), step(3)))
    first, second = alone.coordinator.handle_heartbeat(report), alone.coordinator.handle_heartbeat(report)
    assert first == second
    assert [event["step"] for event in alone.events("step")] == [2, 3]
    # Its answer was lost, so the agent sends them again, with what came since.
    again = alone.local.make_heartbeat(events=[*report.events, *alone.local.number_events(step(4))])
    assert alone.coordinator.handle_heartbeat(again).acknowledged_event == again.events[-1].number
    assert [event["step"] for event in alone.events("step")] == [4]


def test_a_late_report_changes_nothing(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    late = other.make_heartbeat(failure=KILLED)
    other.heartbeat()
    assert cluster.coordinator.handle_heartbeat(late).action == "run"
    assert cluster.state is State.RUNNING


def test_what_is_said_of_an_earlier_generation_is_ignored(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    cluster.fail()
    cluster.start()
    cluster.coordinator.take_events()
    old = [NumberedEvent(number=99, generation=1, role="worker-0", event=step(77))]
    desired = cluster.coordinator.handle_heartbeat(
        other.make_heartbeat(generation=1, failure=KILLED, roles={"server-1": "done"}, events=old, ended_generation=0)
    )
    assert (desired.action, desired.generation, desired.acknowledged_event) == ("run", 2, 99)
    assert cluster.state is State.RUNNING
    assert cluster.coordinator.take_events() == []
    assert cluster.coordinator.status()["step"] == 0


def test_a_lost_order_is_given_again(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    cluster.local.heartbeat(failure=KILLED)
    for _ in range(3):
        assert cluster.coordinator.handle_heartbeat(other.make_heartbeat()).action == "wait"
    cluster.heartbeat_all()
    cluster.heartbeat_all()
    cluster.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    for _ in range(3):
        desired = cluster.coordinator.handle_heartbeat(other.make_heartbeat())
        assert (desired.action, desired.generation) == ("run", 2)


# ---- stalls


@pytest.mark.parametrize(
    "event",
    [step(2), EpochEvent(epoch=1, step=2, loss=1.0), PhaseEvent(name="tables"), saved(2)],
    ids=lambda event: event.kind,
)
def test_a_job_without_a_sign_of_progress_starts_again(alone: Cluster, event: Event) -> None:
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


def test_a_failed_save_is_no_progress(alone: Cluster) -> None:
    alone.wait(STALL - 1)
    alone.local.report_events(CheckpointFailed(step=2, message="disk full"))
    alone.wait(2)
    assert alone.state is State.PREPARING


def test_roles_that_linger_when_others_are_done_are_ended(alone: Cluster) -> None:
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


# ---- ends


def test_a_job_is_done_when_all_roles_of_all_hosts_are(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    cluster.local.finish_roles()
    assert cluster.state is State.RUNNING
    desired = other.finish_roles()
    assert cluster.state is State.DONE
    assert (desired.action, desired.exit_code) == ("leave", 0)
    assert cluster.coordinator.remote_hosts() == ["host 10.0.0.2"]
    other.heartbeat(leaving=True)
    assert cluster.coordinator.remote_hosts() == []


def test_an_agent_that_does_not_hear_of_the_end_is_waited_for_while_its_lease_lasts(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    cluster.coordinator.handle_heartbeat(other.make_heartbeat(roles=dict.fromkeys(other.roles, "done")))
    cluster.local.finish_roles()
    assert cluster.state is State.DONE
    cluster.wait_silently(LEASE_SECONDS)
    assert cluster.coordinator.remote_hosts()
    cluster.wait_silently(1)
    assert cluster.coordinator.remote_hosts() == []
    assert cluster.state is State.DONE


def test_a_stop_within_grace_ends_with_the_checkpoint_that_the_workers_write(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    cluster.coordinator.stop()
    cluster.heartbeat_all()
    assert {host.desired.action for host in cluster.hosts} == {"stop"}
    cluster.wait(GRACE - 1)
    cluster.local.report_events(saved(8), StoppedEvent(step=8, checkpoint="checkpoints/step-000000008"))
    cluster.local.finish_roles()
    assert cluster.state is State.STOPPING
    desired = other.finish_roles()
    assert cluster.state is State.STOPPED
    assert cluster.coordinator.message == "after step 8, of which there is a checkpoint"
    assert (desired.action, desired.exit_code) == ("leave", 143)
    assert cluster.coordinator.restarts == []


def test_a_stop_that_takes_longer_than_its_grace_ends_all_roles(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    cluster.coordinator.stop()
    cluster.wait(GRACE)
    cluster.coordinator.stop()  # asking again gives no more time
    assert cluster.state is State.STOPPING
    cluster.wait(1)
    assert other.generation is None
    assert cluster.state is State.STOPPED
    assert "without a checkpoint" in cluster.coordinator.message


def test_a_failure_while_stopping_is_not_mended(alone: Cluster) -> None:
    alone.coordinator.stop()
    alone.fail()
    assert alone.state is State.STOPPED
    assert alone.coordinator.message == f"without a checkpoint: {KILLED.message}"
    assert alone.coordinator.restarts == []


def test_a_job_that_gets_done_while_it_is_asked_to_stop_is_done(alone: Cluster) -> None:
    alone.coordinator.stop()
    alone.local.heartbeat()
    alone.local.finish_roles()
    assert alone.state is State.DONE


def test_a_generation_that_has_not_trained_a_step_is_stopped_at_once() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.local.report_events(PhaseEvent(name="tables"))
    cluster.coordinator.stop()
    assert cluster.state is State.TERMINATING
    cluster.heartbeat_all()
    cluster.heartbeat_all()
    assert cluster.state is State.STOPPED


@pytest.mark.parametrize("state", [State.WAITING, State.PREPARING, State.BACKOFF, State.TERMINATING])
def test_a_job_that_runs_nothing_is_stopped_at_once(state: State) -> None:
    cluster = Cluster(hosts=2 if state is State.WAITING else 1)
    if state in {State.BACKOFF, State.TERMINATING}:
        cluster.start()
        cluster.fail()
        cluster.start()
        cluster.local.heartbeat(failure=KILLED)
    if state is State.BACKOFF:
        cluster.local.heartbeat()
    assert cluster.state is state
    cluster.coordinator.stop()
    cluster.heartbeat_all()
    assert cluster.state is State.STOPPED
    cluster.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    cluster.wait_silently(100)
    assert cluster.state is State.STOPPED
    assert cluster.local.heartbeat().action == "leave"


@pytest.mark.parametrize("late", [True, False], ids=["lingers", "fails"])
def test_a_checkpoint_that_a_stop_has_written_is_told_whatever_a_role_does_then(alone: Cluster, late: bool) -> None:
    alone.local.report_events(step(42))
    alone.coordinator.stop()
    alone.local.report_events(StoppedEvent(step=43, checkpoint="folder/step-43"))
    if late:
        alone.wait_silently(GRACE + 1)
    else:
        alone.local.heartbeat(failure=KILLED)
    for _ in range(2):
        alone.heartbeat_all()
    assert alone.state is State.STOPPED
    assert alone.coordinator.message == "after step 43, of which there is a checkpoint"


def test_a_stop_does_not_hide_an_error_that_is_already_known(alone: Cluster) -> None:
    alone.local.heartbeat(failure=Failure(message="wrong", exit_code=2, restart=False))
    alone.coordinator.stop()
    alone.heartbeat_all()
    assert alone.state is State.FAILED


def test_workers_that_stop_though_the_job_was_not_asked_to_start_again(alone: Cluster) -> None:
    alone.local.report_events(saved(8), StoppedEvent(step=8, checkpoint="checkpoints/step-000000008"))
    alone.local.finish_roles()
    alone.heartbeat_all()
    assert alone.state is State.PREPARING
    alone.start("folder/step-8", 8)
    assert "asked to stop" in alone.coordinator.restarts[0].cause
