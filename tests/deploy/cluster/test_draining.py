"""Draining: how the coordinator reacts to interruption notices, on a clock that the test moves."""

from scripted_agents import GRACE, KILLED, Cluster, Host, saved, step

from crossfade.deploy.aws.spot import NOTICE_SECONDS
from crossfade.deploy.cluster.job_state import State
from crossfade.trainer.runs.events import StoppedEvent

NOTICE = "EC2 terminates this spot instance at noon"
CAUSE = f"the host host 10.0.0.2 (10.0.0.2) received an interruption notice: {NOTICE}"
SAVED = saved(8)
STOPPED = StoppedEvent(step=8, checkpoint="checkpoints/step-000000008")


def test_interruption_notice_drains_the_job_before_the_host_leaves(cluster: Cluster, other: Host) -> None:
    assert other.heartbeat(interruption_notice=NOTICE).action == "stop"
    assert cluster.state is State.DRAINING
    assert cluster.local.heartbeat().action == "stop"
    cluster.local.report_events(SAVED, STOPPED)
    cluster.local.finish_roles()
    other.roles = dict.fromkeys(other.roles, "done")
    assert other.heartbeat(interruption_notice=NOTICE).action == "wait"
    cluster.local.heartbeat()
    cluster.local.heartbeat()
    desired = other.heartbeat(interruption_notice=NOTICE)
    assert (desired.action, desired.exit_code) == ("leave", 75)
    assert desired.message == f"the job continues without this host: {NOTICE}"
    other.heartbeat(interruption_notice=NOTICE, leaving=True)
    cluster.hosts.remove(other)
    cluster.local.heartbeat()
    assert cluster.state is State.WAITING
    assert cluster.events("waiting") == [{"event": "waiting", "hosts": 1}]
    cluster.join("10.0.0.3")
    cluster.start(STOPPED.checkpoint, at_step=8)
    [restart] = cluster.coordinator.restarts
    assert (restart.cause, restart.generation) == (CAUSE, 2)


def test_host_with_notice_gets_no_more_roles(cluster: Cluster, other: Host) -> None:
    spare = cluster.join("10.0.0.3")
    other.heartbeat(interruption_notice=NOTICE)
    cluster.local.report_events(SAVED, STOPPED)
    cluster.local.finish_roles()
    other.roles = dict.fromkeys(other.roles, "done")
    for _ in range(2):  # they end their roles, and report it
        other.heartbeat(interruption_notice=NOTICE)
        cluster.local.heartbeat()
        spare.heartbeat()
    assert cluster.state is State.PREPARING
    cluster.start(STOPPED.checkpoint, at_step=8)
    assert other.generation is None
    assert spare.generation == 2


def test_draining_ends_when_the_notice_time_is_over(cluster: Cluster, other: Host) -> None:
    other.heartbeat(interruption_notice=NOTICE)
    cluster.wait(NOTICE_SECONDS)
    assert cluster.state is State.DRAINING
    cluster.wait(1)
    assert cluster.state is State.WAITING
    assert other.generation is None
    cluster.join("10.0.0.3")
    cluster.start()
    assert cluster.coordinator.restarts[0].cause == f"{CAUSE}; then its checkpoint took more than 110 s to write"


def test_host_lost_while_draining_causes_a_restart(cluster: Cluster, other: Host) -> None:
    other.heartbeat(interruption_notice=NOTICE)
    cluster.hosts.remove(other)
    cluster.wait(20)
    assert cluster.state is State.WAITING
    cluster.join("10.0.0.3")
    cluster.start()
    cause = cluster.coordinator.restarts[0].cause
    assert cause == f"{CAUSE}; then the agent on host 10.0.0.2 (10.0.0.2) sent no heartbeat for 15 s"


def test_failure_while_draining_causes_a_restart(cluster: Cluster, other: Host) -> None:
    other.heartbeat(interruption_notice=NOTICE)
    cluster.local.heartbeat(failure=KILLED)
    assert cluster.state is State.TERMINATING
    assert other.heartbeat(interruption_notice=NOTICE).action == "wait"


def test_untrained_generation_is_terminated_without_draining() -> None:
    cluster = Cluster(hosts=2)
    other = cluster.join("10.0.0.2")
    cluster.start()
    assert other.heartbeat(interruption_notice=NOTICE).action == "wait"
    assert cluster.state is State.TERMINATING


def test_job_that_finishes_while_draining_is_done(cluster: Cluster, other: Host) -> None:
    other.heartbeat(interruption_notice=NOTICE)
    cluster.local.heartbeat()
    other.roles = dict.fromkeys(other.roles, "done")
    other.heartbeat(interruption_notice=NOTICE)
    cluster.local.finish_roles()
    assert cluster.state is State.DONE


def test_stop_while_draining_stops_the_job(cluster: Cluster, other: Host) -> None:
    other.heartbeat(interruption_notice=NOTICE)
    cluster.coordinator.stop()
    assert cluster.state is State.STOPPING
    cluster.wait_silently(GRACE - 1)
    cluster.local.report_events(SAVED, STOPPED)
    cluster.local.finish_roles()
    other.roles = dict.fromkeys(other.roles, "done")
    assert other.heartbeat(interruption_notice=NOTICE).exit_code == 143
    assert cluster.state is State.STOPPED


def test_repeated_draining_does_not_count_as_failure(cluster: Cluster, other: Host) -> None:
    for number in range(3, 20):
        other.heartbeat(interruption_notice=NOTICE)
        cluster.local.report_events(SAVED, STOPPED)
        cluster.local.finish_roles()
        other.roles = dict.fromkeys(other.roles, "done")
        for _ in range(2):
            cluster.local.heartbeat()
            other.heartbeat(interruption_notice=NOTICE)
        other.heartbeat(leaving=True)
        cluster.local.heartbeat()
        cluster.hosts.remove(other)
        other = cluster.join(f"10.0.0.{number}")
        cluster.start(STOPPED.checkpoint, at_step=8)
        cluster.local.report_events(step(9))
    assert cluster.state is State.RUNNING


def test_notice_to_the_coordinators_host_stops_the_job_and_agents_exit_75(cluster: Cluster, other: Host) -> None:
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


def test_each_checkpoint_request_of_an_agent_counts_once(cluster: Cluster, other: Host) -> None:
    assert other.heartbeat().checkpoints_requested == 0
    assert other.heartbeat(checkpoints_requested=1).checkpoints_requested == 1
    assert other.heartbeat(checkpoints_requested=1).checkpoints_requested == 1
    assert cluster.local.heartbeat(checkpoints_requested=1).checkpoints_requested == 2
    assert cluster.state is State.RUNNING
