"""How the coordinator gives way when a host will soon be gone, on a clock of the test's own."""

import pytest
from scripted_agents import GRACE, KILLED, Cluster, Host, saved, step

from deploy.aws.spot import NOTICE_SECONDS
from deploy.cluster.job_state import State
from trainer.runs.events import StoppedEvent

NOTICE = "EC2 terminates this spot instance at noon"
CAUSE = f"the host host 10.0.0.2 (10.0.0.2) got an interruption notice: {NOTICE}"
SAVED = saved(8)
STOPPED = StoppedEvent(step=8, checkpoint="checkpoints/step-000000008")


@pytest.fixture
def pair() -> tuple[Cluster, Host]:
    """Two hosts, whose generation 1 runs and has trained a step; the second one is given too."""
    cluster = Cluster(hosts=2)
    other = cluster.join("10.0.0.2")
    cluster.start()
    cluster.local.report_events(step(1))
    return cluster, other


def test_a_notice_has_a_checkpoint_written_before_the_host_leaves(pair: tuple[Cluster, Host]) -> None:
    cluster, taken = pair
    assert taken.heartbeat(interruption_notice=NOTICE).action == "stop"
    assert cluster.state is State.DRAINING
    assert cluster.local.heartbeat().action == "stop"
    cluster.local.report_events(SAVED, STOPPED)
    cluster.local.finish_roles()
    taken.roles = dict.fromkeys(taken.roles, "done")
    assert taken.heartbeat(interruption_notice=NOTICE).action == "wait"
    cluster.local.heartbeat()
    cluster.local.heartbeat()
    desired = taken.heartbeat(interruption_notice=NOTICE)
    assert (desired.action, desired.exit_code) == ("leave", 75)
    assert desired.message == f"the job continues without this host: {NOTICE}"
    taken.heartbeat(interruption_notice=NOTICE, leaving=True)
    cluster.hosts.remove(taken)
    cluster.local.heartbeat()
    assert cluster.state is State.WAITING
    assert cluster.events("waiting") == [{"event": "waiting", "hosts": 1}]
    cluster.join("10.0.0.3")
    cluster.start(STOPPED.checkpoint, at_step=8)
    [restart] = cluster.coordinator.restarts
    assert (restart.cause, restart.generation) == (CAUSE, 2)


def test_a_host_that_is_to_go_gets_no_roles_again_though_it_stays_a_while(pair: tuple[Cluster, Host]) -> None:
    cluster, taken = pair
    spare = cluster.join("10.0.0.3")
    taken.heartbeat(interruption_notice=NOTICE)
    cluster.local.report_events(SAVED, STOPPED)
    cluster.local.finish_roles()
    taken.roles = dict.fromkeys(taken.roles, "done")
    for _ in range(2):  # they obey, and say so
        taken.heartbeat(interruption_notice=NOTICE)
        cluster.local.heartbeat()
        spare.heartbeat()
    assert cluster.state is State.PREPARING
    cluster.start(STOPPED.checkpoint, at_step=8)
    assert taken.generation is None
    assert spare.generation == 2


def test_a_host_is_not_waited_for_once_its_time_is_over(pair: tuple[Cluster, Host]) -> None:
    cluster, taken = pair
    taken.heartbeat(interruption_notice=NOTICE)
    cluster.wait(NOTICE_SECONDS)
    assert cluster.state is State.DRAINING
    cluster.wait(1)
    assert cluster.state is State.WAITING
    assert taken.generation is None
    cluster.join("10.0.0.3")
    cluster.start()
    assert cluster.coordinator.restarts[0].cause == f"{CAUSE}; then its checkpoint took more than 110 s to write"


def test_a_host_that_goes_before_its_checkpoint_is_written_costs_an_ordinary_restart(
    pair: tuple[Cluster, Host],
) -> None:
    cluster, taken = pair
    taken.heartbeat(interruption_notice=NOTICE)
    cluster.hosts.remove(taken)
    cluster.wait(20)
    assert cluster.state is State.WAITING
    cluster.join("10.0.0.3")
    cluster.start()
    cause = cluster.coordinator.restarts[0].cause
    assert cause == f"{CAUSE}; then the agent on host 10.0.0.2 (10.0.0.2) was not heard of for 15 s"


def test_a_failure_while_the_job_gives_way_is_an_ordinary_restart(pair: tuple[Cluster, Host]) -> None:
    cluster, taken = pair
    taken.heartbeat(interruption_notice=NOTICE)
    cluster.local.heartbeat(failure=KILLED)
    assert cluster.state is State.TERMINATING
    assert taken.heartbeat(interruption_notice=NOTICE).action == "wait"


def test_a_generation_that_has_not_trained_a_step_gives_way_at_once() -> None:
    cluster = Cluster(hosts=2)
    taken = cluster.join("10.0.0.2")
    cluster.start()
    assert taken.heartbeat(interruption_notice=NOTICE).action == "wait"
    assert cluster.state is State.TERMINATING


def test_a_job_that_gets_done_while_it_gives_way_is_done(pair: tuple[Cluster, Host]) -> None:
    cluster, taken = pair
    taken.heartbeat(interruption_notice=NOTICE)
    cluster.local.heartbeat()
    taken.roles = dict.fromkeys(taken.roles, "done")
    taken.heartbeat(interruption_notice=NOTICE)
    cluster.local.finish_roles()
    assert cluster.state is State.DONE


def test_a_stop_while_the_job_gives_way_stops_it(pair: tuple[Cluster, Host]) -> None:
    cluster, taken = pair
    taken.heartbeat(interruption_notice=NOTICE)
    cluster.coordinator.stop()
    assert cluster.state is State.STOPPING
    cluster.wait_silently(GRACE - 1)
    cluster.local.report_events(SAVED, STOPPED)
    cluster.local.finish_roles()
    taken.roles = dict.fromkeys(taken.roles, "done")
    assert taken.heartbeat(interruption_notice=NOTICE).exit_code == 143
    assert cluster.state is State.STOPPED


def test_giving_way_again_and_again_is_no_failure(pair: tuple[Cluster, Host]) -> None:
    cluster, taken = pair
    for number in range(3, 20):
        taken.heartbeat(interruption_notice=NOTICE)
        cluster.local.report_events(SAVED, STOPPED)
        cluster.local.finish_roles()
        taken.roles = dict.fromkeys(taken.roles, "done")
        for _ in range(2):
            cluster.local.heartbeat()
            taken.heartbeat(interruption_notice=NOTICE)
        taken.heartbeat(leaving=True)
        cluster.local.heartbeat()
        cluster.hosts.remove(taken)
        taken = cluster.join(f"10.0.0.{number}")
        cluster.start(STOPPED.checkpoint, at_step=8)
        cluster.local.report_events(step(9))
    assert cluster.state is State.RUNNING


def test_the_coordinators_own_host_stops_the_job_with_more_time_and_sends_agents_to_the_next(
    pair: tuple[Cluster, Host],
) -> None:
    cluster, other = pair
    cluster.local.heartbeat(interruption_notice=NOTICE)
    assert cluster.state is State.RUNNING  # its owner stops it
    assert cluster.coordinator.interruption_notice() == NOTICE
    cluster.coordinator.stop()
    cluster.wait(GRACE + 1)
    assert cluster.state is State.STOPPING
    cluster.local.report_events(SAVED, STOPPED, interruption_notice=NOTICE)
    cluster.local.finish_roles()
    other.heartbeat()
    desired = other.finish_roles()
    assert (desired.action, desired.exit_code) == ("leave", 75)
    assert NOTICE in desired.message


def test_a_checkpoint_is_asked_for_once_whenever_an_agent_wants_one(pair: tuple[Cluster, Host]) -> None:
    cluster, other = pair
    assert other.heartbeat().checkpoints_requested == 0
    assert other.heartbeat(checkpoints_requested=1).checkpoints_requested == 1
    assert other.heartbeat(checkpoints_requested=1).checkpoints_requested == 1
    assert cluster.local.heartbeat(checkpoints_requested=1).checkpoints_requested == 2
    assert cluster.state is State.RUNNING
