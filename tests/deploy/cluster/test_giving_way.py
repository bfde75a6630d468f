"""How the coordinator gives way when a host will soon be gone, on a clock of the test's own."""

import pytest
from scripted_agents import GRACE, KILLED, Host, Place, saved, step

from deploy.aws.spot import NOTICE_SECONDS
from deploy.cluster.coordinator import State
from trainer.runs.events import StoppedEvent

NOTICE = "EC2 terminates this spot instance at noon"
CAUSE = f"the host host 10.0.0.2 (10.0.0.2) is taken away: {NOTICE}"
SAVED = saved(8)
STOPPED = StoppedEvent(step=8, checkpoint="checkpoints/step-000000008")


@pytest.fixture
def pair() -> tuple[Place, Host]:
    """Two hosts, whose generation 1 runs and has trained a step; the second one is given too."""
    place = Place(hosts=2)
    other = place.join("10.0.0.2")
    place.begin()
    place.home.tell(step(1))
    return place, other


def test_a_notice_has_a_checkpoint_written_before_the_host_leaves(pair: tuple[Place, Host]) -> None:
    place, taken = pair
    assert taken.report(notice=NOTICE).do == "stop"
    assert place.state is State.DRAINING
    assert place.home.report().do == "stop"
    place.home.tell(SAVED, STOPPED)
    place.home.end_well()
    taken.roles = dict.fromkeys(taken.roles, "done")
    assert taken.report(notice=NOTICE).do == "wait"
    place.home.report()
    place.home.report()
    order = taken.report(notice=NOTICE)
    assert (order.do, order.exit_code) == ("leave", 75)
    assert order.message == f"the job goes on without this host: {NOTICE}"
    taken.report(notice=NOTICE, leaving=True)
    place.hosts.remove(taken)
    place.home.report()
    assert place.state is State.WAITING
    assert place.events("waiting") == [{"event": "waiting", "hosts": 1}]
    place.join("10.0.0.3")
    place.begin(STOPPED.checkpoint, at_step=8)
    [restart] = place.coordinator.restarts
    assert (restart.cause, restart.generation) == (CAUSE, 2)


def test_a_host_that_is_to_go_gets_no_roles_again_though_it_stays_a_while(pair: tuple[Place, Host]) -> None:
    place, taken = pair
    spare = place.join("10.0.0.3")
    taken.report(notice=NOTICE)
    place.home.tell(SAVED, STOPPED)
    place.home.end_well()
    taken.roles = dict.fromkeys(taken.roles, "done")
    for _ in range(2):  # they obey, and say so
        taken.report(notice=NOTICE)
        place.home.report()
        spare.report()
    assert place.state is State.PREPARING
    place.begin(STOPPED.checkpoint, at_step=8)
    assert taken.generation is None
    assert spare.generation == 2


def test_a_host_is_not_waited_for_once_its_time_is_over(pair: tuple[Place, Host]) -> None:
    place, taken = pair
    taken.report(notice=NOTICE)
    place.wait(NOTICE_SECONDS)
    assert place.state is State.DRAINING
    place.wait(1)
    assert place.state is State.WAITING
    assert taken.generation is None
    place.join("10.0.0.3")
    place.begin()
    assert place.coordinator.restarts[0].cause == f"{CAUSE}; then its checkpoint took more than 110 s to write"


def test_a_host_that_goes_before_its_checkpoint_is_written_costs_an_ordinary_restart(pair: tuple[Place, Host]) -> None:
    place, taken = pair
    taken.report(notice=NOTICE)
    place.hosts.remove(taken)
    place.wait(20)
    assert place.state is State.WAITING
    place.join("10.0.0.3")
    place.begin()
    cause = place.coordinator.restarts[0].cause
    assert cause == f"{CAUSE}; then the agent on host 10.0.0.2 (10.0.0.2) was not heard of for 15 s"


def test_a_failure_while_the_job_gives_way_is_an_ordinary_restart(pair: tuple[Place, Host]) -> None:
    place, taken = pair
    taken.report(notice=NOTICE)
    place.home.report(failure=KILLED)
    assert place.state is State.TERMINATING
    assert taken.report(notice=NOTICE).do == "wait"


def test_a_generation_that_has_not_trained_a_step_gives_way_at_once() -> None:
    place = Place(hosts=2)
    taken = place.join("10.0.0.2")
    place.begin()
    assert taken.report(notice=NOTICE).do == "wait"
    assert place.state is State.TERMINATING


def test_a_job_that_gets_done_while_it_gives_way_is_done(pair: tuple[Place, Host]) -> None:
    place, taken = pair
    taken.report(notice=NOTICE)
    place.home.report()
    taken.roles = dict.fromkeys(taken.roles, "done")
    taken.report(notice=NOTICE)
    place.home.end_well()
    assert place.state is State.DONE


def test_a_stop_while_the_job_gives_way_stops_it(pair: tuple[Place, Host]) -> None:
    place, taken = pair
    taken.report(notice=NOTICE)
    place.coordinator.stop()
    assert place.state is State.STOPPING
    place.pass_time(GRACE - 1)
    place.home.tell(SAVED, STOPPED)
    place.home.end_well()
    taken.roles = dict.fromkeys(taken.roles, "done")
    assert taken.report(notice=NOTICE).exit_code == 143
    assert place.state is State.STOPPED


def test_giving_way_again_and_again_is_no_failure(pair: tuple[Place, Host]) -> None:
    place, taken = pair
    for number in range(3, 20):
        taken.report(notice=NOTICE)
        place.home.tell(SAVED, STOPPED)
        place.home.end_well()
        taken.roles = dict.fromkeys(taken.roles, "done")
        for _ in range(2):
            place.home.report()
            taken.report(notice=NOTICE)
        taken.report(leaving=True)
        place.home.report()
        place.hosts.remove(taken)
        taken = place.join(f"10.0.0.{number}")
        place.begin(STOPPED.checkpoint, at_step=8)
        place.home.tell(step(9))
    assert place.state is State.RUNNING


def test_the_coordinators_own_host_stops_the_job_with_more_time_and_sends_agents_to_the_next(
    pair: tuple[Place, Host],
) -> None:
    place, other = pair
    place.home.report(notice=NOTICE)
    assert place.state is State.RUNNING  # its owner stops it
    assert place.coordinator.interruption() == NOTICE
    place.coordinator.stop()
    place.wait(GRACE + 1)
    assert place.state is State.STOPPING
    place.home.tell(SAVED, STOPPED, notice=NOTICE)
    place.home.end_well()
    other.report()
    order = other.end_well()
    assert (order.do, order.exit_code) == ("leave", 75)
    assert NOTICE in order.message


def test_a_checkpoint_is_asked_for_once_whenever_an_agent_wants_one(pair: tuple[Place, Host]) -> None:
    place, other = pair
    assert other.report().checkpoints_requested == 0
    assert other.report(checkpoints_requested=1).checkpoints_requested == 1
    assert other.report(checkpoints_requested=1).checkpoints_requested == 1
    assert place.home.report(checkpoints_requested=1).checkpoints_requested == 2
    assert place.state is State.RUNNING
