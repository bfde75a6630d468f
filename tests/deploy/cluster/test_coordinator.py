"""The coordinator's state machine, on a clock of the test's own."""

import pytest
from scripted_agents import GRACE, KILLED, RESTARTS, STALL, Host, Place, saved, step

from deploy.cluster.coordinator import EXIT_TIMEOUT_SECONDS, LEASE_SECONDS, GenerationSpec, State
from deploy.cluster.messages import Failure, NumberedEvent
from deploy.topology import Address
from kvstore.errors import ClusterError, InputError
from trainer.runs.events import CheckpointFailed, EpochEvent, Event, PhaseEvent, StoppedEvent


@pytest.fixture
def alone() -> Place:
    """One host, whose generation 1 runs and has trained a step."""
    place = Place()
    place.begin()
    place.home.tell(step(1))
    return place


@pytest.fixture
def pair() -> tuple[Place, Host]:
    """Two hosts, whose generation 1 runs and has trained a step; the second one is given too."""
    place = Place(hosts=2)
    other = place.join("10.0.0.2")
    place.begin()
    place.home.tell(step(1))
    return place, other


# ---- start


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_a_job_starts_when_all_its_hosts_have_joined_and_not_before(hosts: int) -> None:
    place = Place(hosts=hosts)
    for number in range(2, hosts + 1):
        assert place.state is State.WAITING
        assert place.home.report().do == "wait"
        place.join(f"10.0.0.{number}")
    assert place.state is State.PREPARING
    place.begin()
    assert place.state is State.RUNNING
    assert [host.generation for host in place.hosts] == [1] * hosts


@pytest.mark.parametrize(
    ("hosts", "dealt"),
    [
        (1, [["scheduler", "server-0", "server-1", "server-2", "worker-0", "worker-1"]]),
        (2, [["scheduler", "server-0", "server-2", "worker-0"], ["server-1", "worker-1"]]),
        (3, [["scheduler", "server-0", "worker-0"], ["server-1", "worker-1"], ["server-2"]]),
    ],
)
def test_roles_are_dealt_in_turn_over_the_hosts(hosts: int, dealt: list[list[str]]) -> None:
    place = Place(hosts=hosts, servers=3, workers=2)
    for number in range(2, hosts + 1):
        place.join(f"10.0.0.{number}")
    place.begin("folder/step-7", 7)
    assert [host.order.roles for host in place.hosts] == dealt
    order = place.hosts[-1].order
    assert (order.servers, order.workers, order.checkpoint, order.job) == (3, 2, "folder/step-7", "digest")
    assert order.scheduler is not None
    assert (order.scheduler.host, order.scheduler.port) == ("10.0.0.1", 5001)


def test_an_agent_more_than_needed_is_a_spare_that_takes_a_lost_ones_place() -> None:
    place = Place(hosts=2)
    lost = place.join("10.0.0.2")
    spare = place.join("10.0.0.3")
    place.begin()
    assert (lost.order.do, spare.order.do) == ("run", "wait")
    place.hosts.remove(lost)
    place.wait(LEASE_SECONDS + 1)
    assert place.state is State.PREPARING
    place.begin()
    assert spare.order.roles == lost.order.roles


def test_an_agent_that_has_heard_of_another_coordinator_joins_once_it_has_ended_its_roles() -> None:
    place = Place(hosts=2)
    returning = Host(place, "10.0.0.2")
    order = place.coordinator.report(
        returning.make(coordinator="an earlier one", generation=7, roles={"server-1": "running"}, ended=6)
    )
    assert (order.do, order.coordinator) == ("wait", place.coordinator.id)
    assert place.state is State.WAITING
    returning.report()
    assert place.state is State.PREPARING
    place.hosts.append(returning)
    place.begin()
    assert returning.generation == 1


def test_a_host_that_is_lost_while_a_start_is_looked_for_is_waited_for() -> None:
    place = Place(hosts=2)
    place.join("10.0.0.2").report(leaving=True)
    assert place.state is State.PREPARING
    place.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    assert (place.state, place.coordinator.generation) == (State.WAITING, 0)


def test_a_start_that_nobody_asked_for_any_more_is_dropped(alone: Place) -> None:
    alone.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    alone.coordinator.start_failed(OSError("late"))
    assert (alone.state, alone.coordinator.generation) == (State.RUNNING, 1)


def test_an_address_has_one_agent_and_the_coordinators_own_none_but_its_own() -> None:
    place = Place(hosts=2)
    order = Host(place, "10.0.0.1", "another").report()
    assert (order.do, order.exit_code) == ("leave", 1)
    assert "10.0.0.1 is the coordinator's own address" in order.message
    assert place.state is State.WAITING


# ---- restarts


def test_a_failure_ends_the_generation_everywhere_before_the_next_starts(pair: tuple[Place, Host]) -> None:
    place, other = pair
    assert place.home.report(failure=KILLED).do == "wait"
    place.home.report()
    assert place.state is State.TERMINATING  # the other host still runs
    assert other.report().do == "wait"
    assert place.state is State.TERMINATING  # it has its order, but has not said that it obeyed
    other.report()
    assert place.state is State.PREPARING
    place.begin("folder/step-5", 5)
    assert [host.generation for host in place.hosts] == [2, 2]
    assert other.order.checkpoint == "folder/step-5"
    assert other.order.scheduler is not None
    assert other.order.scheduler.port == 5002
    [event] = place.events("restart")
    assert (event["generation"], event["cause"], event["step"]) == (2, KILLED.message, 5)


def test_a_report_that_crosses_the_failure_does_not_count_as_ended(pair: tuple[Place, Host]) -> None:
    place, other = pair
    crossing = other.make()
    place.home.report(failure=KILLED)
    place.home.report()
    place.coordinator.report(crossing)
    assert place.state is State.TERMINATING


def test_restarts_come_at_once_and_then_later_and_later_until_there_are_too_many(alone: Place) -> None:
    delays = []
    for _ in range(RESTARTS):
        alone.fail()
        begin = alone.now
        while alone.state is State.BACKOFF:
            alone.pass_time(0.25)
        delays.append(alone.now - begin)
        alone.begin()
    assert delays == [0, 1, 2]
    alone.fail()
    assert alone.state is State.FAILED
    error = alone.coordinator.error()
    assert isinstance(error, ClusterError)
    assert KILLED.message in str(error)
    assert f"restarted {RESTARTS} times without a new checkpoint (cluster.max_restarts)" in str(error)
    assert "run/logs/server-0.log" in str(error)
    assert (alone.home.order.do, alone.home.order.exit_code) == ("leave", 1)
    assert [restart.generation for restart in alone.coordinator.restarts] == [2, 3, 4]


def test_the_back_off_ends_at_a_minute() -> None:
    place = Place()
    place.coordinator._cluster = place.coordinator._cluster.model_copy(update={"max_restarts": 20})
    for _ in range(10):
        place.begin()
        place.fail()
        begin = place.now
        while place.state is State.BACKOFF:
            place.pass_time(1)
    assert place.now - begin == 60


def test_a_new_checkpoint_lets_the_count_begin_anew(alone: Place) -> None:
    for saved_step in range(10, 10 * 3 * RESTARTS, 10):
        alone.home.tell(saved(saved_step))
        alone.fail()
        assert alone.state is State.PREPARING  # at once
        alone.begin(f"folder/step-{saved_step}", saved_step)
    assert len(alone.coordinator.restarts) > 2 * RESTARTS


def test_a_checkpoint_no_newer_than_the_one_it_started_from_is_not_a_new_one(alone: Place) -> None:
    for _ in range(RESTARTS):
        alone.fail()
        while alone.state is State.BACKOFF:
            alone.pass_time(1)
        alone.begin("folder/step-10", 10)
        alone.home.tell(saved(10))
    alone.fail()
    assert alone.state is State.FAILED


def test_a_checkpoint_that_is_found_counts_though_nobody_told_of_it(alone: Place) -> None:
    for found in range(1, 3 * RESTARTS):
        alone.fail()
        while alone.state is State.BACKOFF:
            alone.pass_time(1)
        alone.begin(f"folder/step-{found}", found)
    assert alone.state is State.RUNNING


def test_a_damaged_checkpoint_is_refused_from_then_on(alone: Place) -> None:
    alone.fail(Failure(message="server-1: bad CRC", checkpoint="folder/step-9"))
    alone.begin("folder/step-5", 5, skipped=["folder/step-9: it was refused"])
    assert alone.coordinator.refused == {"folder/step-9"}
    [event] = alone.events("restart")
    assert event["skipped"] == ["folder/step-9: it was refused"]
    alone.fail(Failure(message="server-1: bad CRC", checkpoint="folder/step-5"))
    assert alone.coordinator.refused == {"folder/step-9", "folder/step-5"}


@pytest.mark.parametrize(("exit_code", "kind"), [(2, InputError), (1, ClusterError)])
def test_an_error_that_a_restart_cannot_mend_fails_the_job_at_once(
    pair: tuple[Place, Host], exit_code: int, kind: type[Exception]
) -> None:
    place, other = pair
    other.report(failure=Failure(message="worker-1: a wrong thing", exit_code=exit_code, restart=False))
    place.report_all()
    assert place.state is State.TERMINATING
    place.report_all()
    assert place.state is State.FAILED
    error = place.coordinator.error()
    assert type(error) is kind
    assert str(error) == "worker-1: a wrong thing"
    assert place.coordinator.restarts == []
    assert other.report().do == "leave"


def test_a_start_that_cannot_be_found_is_looked_for_again_until_there_were_too_many_attempts() -> None:
    place = Place()
    delays = []
    for _ in range(RESTARTS):
        place.coordinator.start_failed(OSError("the store is away"))
        begin = place.now
        while place.state is State.BACKOFF:
            place.pass_time(0.25)
        delays.append(place.now - begin)
    assert delays == [0, 1, 2]
    place.coordinator.start_failed(OSError("the store is away"))
    assert place.state is State.FAILED
    assert "the store is away" in str(place.coordinator.error())


def test_a_start_that_the_input_rules_out_fails_the_job_at_once() -> None:
    place = Place()
    place.coordinator.start_failed(InputError("no such scheme: gopher"))
    assert place.state is State.FAILED
    assert isinstance(place.coordinator.error(), InputError)


def test_a_restart_is_recorded_with_its_cause_the_step_before_it_and_the_time_without_training(alone: Place) -> None:
    alone.home.tell(step(41), step(42))
    alone.home.report(failure=KILLED)
    alone.pass_time(3)
    alone.report_all()
    alone.begin("folder/step-40", 40)
    alone.pass_time(4)
    alone.home.tell(step(41))
    alone.pass_time(5)
    alone.home.tell(step(42))
    [restart] = alone.coordinator.restarts
    assert vars(restart) == {"generation": 2, "cause": KILLED.message, "step": 42, "seconds": 7.0}


def test_a_start_that_cannot_be_found_at_first_does_not_hide_why_one_was_needed(alone: Place) -> None:
    alone.home.tell(step(42))
    alone.fail(KILLED)
    for _ in range(2):
        alone.coordinator.start_failed(OSError("the store is away"))
        alone.pass_time(60)
    alone.begin("folder/step-40", 40)
    [restart] = alone.coordinator.restarts
    assert restart.cause == f"{KILLED.message}; then the store is away"


# ---- agents that are lost


def test_a_silent_agent_ends_the_generation_when_its_lease_is_over_and_the_job_waits_for_another(
    pair: tuple[Place, Host],
) -> None:
    place, other = pair
    place.hosts.remove(other)
    place.wait(LEASE_SECONDS)
    assert place.state is State.RUNNING
    place.wait(1)
    assert place.state is State.WAITING
    assert place.events("waiting") == [{"event": "waiting", "hosts": 1}]
    place.wait(1000)
    assert place.state is State.WAITING
    new = place.join("10.0.0.9")
    place.begin()
    assert new.generation == 2
    assert place.coordinator.restarts[0].cause == "the agent on host 10.0.0.2 (10.0.0.2) was not heard of for 15 s"


def test_an_agent_that_comes_back_after_its_lease_joins_again(pair: tuple[Place, Host]) -> None:
    place, other = pair
    place.hosts.remove(other)
    place.wait(LEASE_SECONDS + 1)
    assert place.state is State.WAITING
    assert other.report().do == "wait"
    assert other.generation is None
    place.hosts.append(other)
    place.begin()
    assert [host.generation for host in place.hosts] == [2, 2]


def test_a_silent_agent_is_not_waited_for_at_the_end_of_a_generation(pair: tuple[Place, Host]) -> None:
    place, other = pair
    place.hosts.remove(other)
    place.fail()
    place.wait(LEASE_SECONDS - 1)
    assert place.state is State.TERMINATING
    place.wait(2)
    assert place.state is State.WAITING


def test_the_agent_in_the_coordinators_own_process_has_no_lease(alone: Place) -> None:
    alone.pass_time(STALL - 1)
    assert alone.state is State.RUNNING


def test_a_new_agent_from_the_same_address_replaces_the_old_one_which_may_not_come_back(
    pair: tuple[Place, Host],
) -> None:
    place, other = pair
    new = Host(place, other.address, "the new one")
    new.report()
    place.report_all()
    place.home.report()
    assert other.order.do == "leave"
    assert "replaces it" in other.order.message
    assert place.state is State.PREPARING
    place.hosts = [place.home, new]
    place.begin()
    assert new.generation == 2
    assert other.report().do == "leave"
    assert place.state is State.RUNNING
    assert "was replaced by a new agent" in place.coordinator.restarts[0].cause


def test_an_agent_that_leaves_ends_the_generation_at_once_and_a_late_report_of_it_is_nothing(
    pair: tuple[Place, Host],
) -> None:
    place, other = pair
    late = other.make()
    place.hosts.remove(other)
    place.coordinator.report(other.make(generation=None, ended=1, roles={}, leaving=True))
    place.home.report()
    place.home.report()
    assert place.state is State.WAITING
    place.coordinator.report(late)
    assert place.coordinator.remote_hosts() == []
    assert place.state is State.WAITING


def test_an_agent_that_ended_its_roles_by_itself_makes_the_job_start_again(pair: tuple[Place, Host]) -> None:
    place, other = pair
    other.generation, other.ended, other.roles = None, 1, {}
    assert other.report().do == "wait"
    place.report_all()
    place.report_all()
    place.begin()
    assert "ended its roles" in place.coordinator.restarts[0].cause


# ---- lost, repeated and late messages


def test_repeated_reports_and_events_count_once(alone: Place) -> None:
    alone.coordinator.take_events()
    report = alone.home.make(events=alone.home.number_events(step(2), step(3)))
    first, second = alone.coordinator.report(report), alone.coordinator.report(report)
    assert first == second
    assert [event["step"] for event in alone.events("step")] == [2, 3]
    # Its answer was lost, so the agent sends them again, with what came since.
    again = alone.home.make(events=[*report.events, *alone.home.number_events(step(4))])
    assert alone.coordinator.report(again).acknowledged == again.events[-1].number
    assert [event["step"] for event in alone.events("step")] == [4]


def test_a_late_report_changes_nothing(pair: tuple[Place, Host]) -> None:
    place, other = pair
    late = other.make(failure=KILLED)
    other.report()
    assert place.coordinator.report(late).do == "run"
    assert place.state is State.RUNNING


def test_what_is_said_of_an_earlier_generation_is_ignored(pair: tuple[Place, Host]) -> None:
    place, other = pair
    place.fail()
    place.begin()
    place.coordinator.take_events()
    old = [NumberedEvent(number=99, generation=1, role="worker-0", event=step(77))]
    order = place.coordinator.report(
        other.make(generation=1, failure=KILLED, roles={"server-1": "done"}, events=old, ended=0)
    )
    assert (order.do, order.generation, order.acknowledged) == ("run", 2, 99)
    assert place.state is State.RUNNING
    assert place.coordinator.take_events() == []
    assert place.coordinator.status()["step"] == 0


def test_a_lost_order_is_given_again(pair: tuple[Place, Host]) -> None:
    place, other = pair
    place.home.report(failure=KILLED)
    for _ in range(3):
        assert place.coordinator.report(other.make()).do == "wait"
    place.report_all()
    place.report_all()
    place.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    for _ in range(3):
        order = place.coordinator.report(other.make())
        assert (order.do, order.generation) == ("run", 2)


# ---- stalls


@pytest.mark.parametrize(
    "event",
    [step(2), EpochEvent(epoch=1, step=2, loss=1.0), PhaseEvent(name="tables"), saved(2)],
    ids=lambda event: event.kind,
)
def test_a_job_without_a_sign_of_progress_starts_again(alone: Place, event: Event) -> None:
    alone.wait(STALL - 1)
    alone.home.tell(event)
    alone.wait(STALL - 1)
    assert alone.state is State.RUNNING
    alone.wait(2)
    assert alone.state is State.PREPARING
    alone.begin()
    assert alone.coordinator.restarts[0].cause == f"no sign of progress for {STALL:g} s"
    alone.wait(STALL - 1)
    assert alone.state is State.RUNNING
    alone.wait(3)
    assert alone.state is not State.RUNNING


def test_a_failed_save_is_no_progress(alone: Place) -> None:
    alone.wait(STALL - 1)
    alone.home.tell(CheckpointFailed(step=2, message="disk full"))
    alone.wait(2)
    assert alone.state is State.PREPARING


def test_roles_that_linger_when_others_are_done_are_ended(alone: Place) -> None:
    alone.home.roles |= dict.fromkeys(["worker-0", "worker-1", "server-0"], "done")
    alone.report_all()
    alone.pass_time(EXIT_TIMEOUT_SECONDS - 1)
    alone.home.report()
    assert alone.state is State.RUNNING
    alone.pass_time(2)
    alone.report_all()
    alone.report_all()
    assert alone.state is State.PREPARING
    alone.begin()
    assert "scheduler, server-1 did not end in 30 s" in alone.coordinator.restarts[0].cause


# ---- ends


def test_a_job_is_done_when_all_roles_of_all_hosts_are(pair: tuple[Place, Host]) -> None:
    place, other = pair
    place.home.end_well()
    assert place.state is State.RUNNING
    order = other.end_well()
    assert place.state is State.DONE
    assert (order.do, order.exit_code) == ("leave", 0)
    assert place.coordinator.remote_hosts() == ["host 10.0.0.2"]
    other.report(leaving=True)
    assert place.coordinator.remote_hosts() == []


def test_an_agent_that_does_not_hear_of_the_end_is_waited_for_while_its_lease_lasts(pair: tuple[Place, Host]) -> None:
    place, other = pair
    place.coordinator.report(other.make(roles=dict.fromkeys(other.roles, "done")))
    place.home.end_well()
    assert place.state is State.DONE
    place.pass_time(LEASE_SECONDS)
    assert place.coordinator.remote_hosts()
    place.pass_time(1)
    assert place.coordinator.remote_hosts() == []
    assert place.state is State.DONE


def test_a_stop_within_grace_ends_with_the_checkpoint_that_the_workers_write(pair: tuple[Place, Host]) -> None:
    place, other = pair
    place.coordinator.stop()
    place.report_all()
    assert {host.order.do for host in place.hosts} == {"stop"}
    place.wait(GRACE - 1)
    place.home.tell(saved(8), StoppedEvent(step=8, checkpoint="checkpoints/step-000000008"))
    place.home.end_well()
    assert place.state is State.STOPPING
    order = other.end_well()
    assert place.state is State.STOPPED
    assert place.coordinator.message == "after step 8, which a checkpoint holds"
    assert (order.do, order.exit_code) == ("leave", 143)
    assert place.coordinator.restarts == []


def test_a_stop_that_takes_longer_than_its_grace_ends_all_roles(pair: tuple[Place, Host]) -> None:
    place, other = pair
    place.coordinator.stop()
    place.wait(GRACE)
    place.coordinator.stop()  # asking again gives no more time
    assert place.state is State.STOPPING
    place.wait(1)
    assert other.generation is None
    assert place.state is State.STOPPED
    assert "without a checkpoint" in place.coordinator.message


def test_a_failure_while_stopping_is_not_mended(alone: Place) -> None:
    alone.coordinator.stop()
    alone.fail()
    assert alone.state is State.STOPPED
    assert alone.coordinator.message == f"without a checkpoint: {KILLED.message}"
    assert alone.coordinator.restarts == []


def test_a_job_that_gets_done_while_it_is_asked_to_stop_is_done(alone: Place) -> None:
    alone.coordinator.stop()
    alone.home.report()
    alone.home.end_well()
    assert alone.state is State.DONE


def test_a_generation_that_has_not_trained_a_step_is_stopped_at_once() -> None:
    place = Place()
    place.begin()
    place.home.tell(PhaseEvent(name="tables"))
    place.coordinator.stop()
    assert place.state is State.TERMINATING
    place.report_all()
    place.report_all()
    assert place.state is State.STOPPED


@pytest.mark.parametrize("state", [State.WAITING, State.PREPARING, State.BACKOFF, State.TERMINATING])
def test_a_job_that_runs_nothing_is_stopped_at_once(state: State) -> None:
    place = Place(hosts=2 if state is State.WAITING else 1)
    if state in {State.BACKOFF, State.TERMINATING}:
        place.begin()
        place.fail()
        place.begin()
        place.home.report(failure=KILLED)
    if state is State.BACKOFF:
        place.home.report()
    assert place.state is state
    place.coordinator.stop()
    place.report_all()
    assert place.state is State.STOPPED
    place.coordinator.start_generation(GenerationSpec(Address("10.0.0.1", 1)))
    place.pass_time(100)
    assert place.state is State.STOPPED
    assert place.home.report().do == "leave"


@pytest.mark.parametrize("late", [True, False], ids=["lingers", "fails"])
def test_a_checkpoint_that_a_stop_has_written_is_told_whatever_a_role_does_then(alone: Place, late: bool) -> None:
    alone.home.tell(step(42))
    alone.coordinator.stop()
    alone.home.tell(StoppedEvent(step=43, checkpoint="folder/step-43"))
    if late:
        alone.pass_time(GRACE + 1)
    else:
        alone.home.report(failure=KILLED)
    for _ in range(2):
        alone.report_all()
    assert alone.state is State.STOPPED
    assert alone.coordinator.message == "after step 43, which a checkpoint holds"


def test_a_stop_does_not_hide_an_error_that_is_already_known(alone: Place) -> None:
    alone.home.report(failure=Failure(message="wrong", exit_code=2, restart=False))
    alone.coordinator.stop()
    alone.report_all()
    assert alone.state is State.FAILED


def test_workers_that_stop_though_the_job_was_not_asked_to_start_again(alone: Place) -> None:
    alone.home.tell(saved(8), StoppedEvent(step=8, checkpoint="checkpoints/step-000000008"))
    alone.home.end_well()
    alone.report_all()
    assert alone.state is State.PREPARING
    alone.begin("folder/step-8", 8)
    assert "asked to stop" in alone.coordinator.restarts[0].cause
