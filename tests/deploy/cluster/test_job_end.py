"""End of a job: done, failed or stopped, on a clock that the test moves."""

import pytest
from scripted_agents import GRACE, KILLED, STALL, Cluster, Host, saved, step

from crossfade.deploy.cluster.coordinator import EXIT_TIMEOUT_SECONDS
from crossfade.deploy.cluster.job_state import GenerationSpec, State
from crossfade.deploy.cluster.membership import LEASE_SECONDS
from crossfade.deploy.cluster.messages import Failure
from crossfade.deploy.topology import Address
from crossfade.trainer.runs.events import PhaseEvent, StoppedEvent


def test_job_is_done_when_all_roles_are(cluster: Cluster, other: Host) -> None:
    cluster.local.finish_roles()
    assert cluster.state is State.RUNNING
    desired = other.finish_roles()
    assert cluster.state is State.DONE
    assert (desired.action, desired.exit_code) == ("leave", 0)
    assert cluster.coordinator.remote_hosts() == ["host 10.0.0.2"]
    other.heartbeat(leaving=True)
    assert cluster.coordinator.remote_hosts() == []


def test_agent_without_final_answer_is_waited_for_until_its_lease_expires(cluster: Cluster, other: Host) -> None:
    cluster.coordinator.handle_heartbeat(other.make_heartbeat(roles=dict.fromkeys(other.roles, "done")))
    cluster.local.finish_roles()
    assert cluster.state is State.DONE
    cluster.wait_silently(LEASE_SECONDS)
    assert cluster.coordinator.remote_hosts()
    cluster.wait_silently(1)
    assert cluster.coordinator.remote_hosts() == []
    assert cluster.state is State.DONE


ABORTED = Failure(message="worker-0 was killed by SIGABRT", role="worker-0", cause="was killed by SIGABRT")
SERVER_ABORTED = Failure(message="server-1 was killed by SIGABRT", role="server-1", cause="was killed by SIGABRT")


@pytest.mark.parametrize("failure", [ABORTED, SERVER_ABORTED], ids=lambda failure: failure.role)
def test_role_that_dies_once_all_results_are_written_leaves_the_job_done(alone: Cluster, failure: Failure) -> None:
    alone.local.leave("worker-0", "worker-1")
    alone.fail(failure)
    assert alone.state is State.DONE
    assert alone.local.desired.action == "leave"
    assert alone.local.desired.exit_code == 0
    [event] = alone.events("failure")
    assert (event["role"], event["cause"], event["ends_run"]) == (failure.role, "was killed by SIGABRT", False)
    assert (event["after_results"], event["lost_steps"]) == (True, 0)
    assert alone.coordinator.restarts == []


def test_role_that_dies_after_leaving_waits_for_the_results_of_the_other_workers(cluster: Cluster, other: Host) -> None:
    cluster.local.leave("worker-0")
    cluster.local.heartbeat(failure=ABORTED)
    assert cluster.state is State.RUNNING
    other.leave("worker-1")
    cluster.local.heartbeat(failure=ABORTED)
    cluster.heartbeat_all()
    cluster.heartbeat_all()
    assert cluster.state is State.DONE


def test_worker_that_never_leaves_after_another_died_causes_a_restart(alone: Cluster) -> None:
    alone.local.leave("worker-0")
    alone.local.heartbeat(failure=ABORTED)
    alone.wait(EXIT_TIMEOUT_SECONDS + 2)
    assert EXIT_TIMEOUT_SECONDS < STALL
    assert alone.state is State.PREPARING
    [failure] = alone.events("failure")
    assert "after_results" not in failure
    assert failure["cause"].startswith("the others are done, but ")


def test_worker_that_dies_before_it_leaves_causes_a_restart(alone: Cluster) -> None:
    alone.local.leave("worker-1")
    alone.fail(ABORTED)
    assert alone.state is State.PREPARING


def test_servers_that_do_not_end_once_all_results_are_written_leave_the_job_done(alone: Cluster) -> None:
    alone.local.leave("worker-0", "worker-1")
    alone.local.roles = {name: "done" if name.startswith("worker") else "running" for name in alone.local.roles}
    alone.wait(EXIT_TIMEOUT_SECONDS + 2)
    assert alone.state is State.DONE
    [failure] = alone.events("failure")
    assert failure["cause"] == "the others are done, but scheduler, server-0, server-1 did not end in 30 s"


def test_host_that_is_lost_once_all_results_are_written_leaves_the_job_done(cluster: Cluster, other: Host) -> None:
    cluster.local.leave("worker-0")
    other.leave("worker-1")
    cluster.now += LEASE_SECONDS + 1
    cluster.local.heartbeat()
    cluster.coordinator.tick()
    cluster.local.heartbeat()
    cluster.local.heartbeat()
    assert cluster.state is State.DONE
    [failure] = cluster.events("failure")
    assert (failure["host"], failure["after_results"]) == ("host 10.0.0.2", True)


def test_stop_within_the_grace_period_ends_with_a_checkpoint(cluster: Cluster, other: Host) -> None:
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


def test_stop_beyond_the_grace_period_terminates_all_roles(cluster: Cluster, other: Host) -> None:
    cluster.coordinator.stop()
    cluster.wait(GRACE)
    cluster.coordinator.stop()  # a second request does not extend the grace period
    assert cluster.state is State.STOPPING
    cluster.wait(1)
    assert other.generation is None
    assert cluster.state is State.STOPPED
    assert cluster.coordinator.message == f"without a checkpoint, which took more than {GRACE:g} s to write"


def test_failure_while_stopping_causes_no_restart(alone: Cluster) -> None:
    alone.coordinator.stop()
    alone.fail()
    assert alone.state is State.STOPPED
    assert alone.coordinator.message == f"without a checkpoint: {KILLED.message}"
    assert alone.coordinator.restarts == []


def test_job_that_finishes_while_stopping_is_done(alone: Cluster) -> None:
    alone.coordinator.stop()
    alone.local.heartbeat()
    alone.local.finish_roles()
    assert alone.state is State.DONE


def test_untrained_generation_is_stopped_at_once() -> None:
    cluster = Cluster()
    cluster.start()
    cluster.local.report_events(PhaseEvent(name="tables"))
    cluster.coordinator.stop()
    assert cluster.state is State.TERMINATING
    cluster.heartbeat_all()
    cluster.heartbeat_all()
    assert cluster.state is State.STOPPED


@pytest.mark.parametrize("state", [State.WAITING, State.PREPARING, State.BACKOFF, State.TERMINATING])
def test_job_without_roles_is_stopped_at_once(state: State) -> None:
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
def test_checkpoint_of_a_stop_is_reported_despite_later_failures(alone: Cluster, late: bool) -> None:
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


def test_stop_does_not_hide_an_earlier_error(alone: Cluster) -> None:
    alone.local.heartbeat(failure=Failure(message="wrong", exit_code=2, restart=False))
    alone.coordinator.stop()
    alone.heartbeat_all()
    assert alone.state is State.FAILED


def test_unrequested_stop_of_workers_causes_a_restart(alone: Cluster) -> None:
    alone.local.report_events(saved(8), StoppedEvent(step=8, checkpoint="checkpoints/step-000000008"))
    alone.local.finish_roles()
    alone.heartbeat_all()
    assert alone.state is State.PREPARING
    alone.start("folder/step-8", 8)
    assert "asked to stop" in alone.coordinator.restarts[0].cause
