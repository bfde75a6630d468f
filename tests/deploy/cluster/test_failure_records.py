"""The coordinator's record of each failure: which role of which host, how it ended, and what was lost."""

import pytest
from scripted_agents import STALL, Cluster, Host, saved, step

from crossfade.deploy.cluster.messages import Failure
from crossfade.trainer.runs.events import LoadEvent, PhaseEvent

LOG = "run/logs/server-1.log"
NO_MEMORY = Failure(
    message="server-1 was killed for lack of memory",
    details=f"log: {LOG}",
    role="server-1",
    cause="was killed for lack of memory",
    error="RuntimeError: x",
    log=LOG,
)


def test_failure_has_the_role_its_host_its_error_and_what_was_lost(cluster: Cluster, other: Host) -> None:
    cluster.local.report_events(PhaseEvent(name="training", step=0), step(1))
    cluster.wait_silently(3.0)
    cluster.local.report_events(saved(10))  # which took one second to write
    cluster.wait_silently(4.0)
    cluster.local.report_events(step(25))
    cluster.fail(NO_MEMORY)
    assert cluster.events("failure") == [
        {
            "event": "failure",
            "generation": 1,
            "role": "server-1",
            "host": cluster.coordinator._generation.hosts["server-1"],
            "cause": "was killed for lack of memory",
            "error": "RuntimeError: x",
            "log": LOG,
            "ends_run": False,
            "step": 25,
            "lost_steps": 15,
            "lost_seconds": 5.0,
        }
    ]


def test_late_event_of_another_worker_changes_nothing(alone: Cluster) -> None:
    training = PhaseEvent(name="training", step=0)
    alone.local.report_events(training, step(1), saved(10), step(25), training)
    assert alone.coordinator.status()["checkpoint_step"] == 10
    alone.fail(NO_MEMORY)
    [event] = alone.events("failure")
    assert (event["step"], event["lost_steps"]) == (25, 15)


@pytest.mark.parametrize("silent", [["server-1"], ["server-1", "worker-0"], []])
def test_stall_is_of_the_only_role_that_sends_no_load(alone: Cluster, silent: list[str]) -> None:
    def report_loads(*roles: str) -> None:
        events = alone.local.number_events(*(LoadEvent(load={"pid": 1}) for _ in roles))
        named = [event.model_copy(update={"role": role}) for event, role in zip(events, roles, strict=True)]
        alone.local.heartbeat(events=named)

    report_loads("server-0", "server-1", "worker-0")
    alone.wait(STALL - 1)
    report_loads(*(role for role in ("server-0", "server-1", "worker-0") if role not in silent))
    alone.wait(2)
    [event] = alone.events("failure")
    stall = f"no sign of progress for {STALL:g} s"
    if len(silent) == 1:
        assert (event["role"], event["host"]) == ("server-1", "host 10.0.0.1")
        assert event["cause"] == f"sent nothing for 101 s; {stall}"
    else:
        assert (event.get("role"), event["cause"]) == (None, stall)
    alone.start()
    assert alone.coordinator.restarts[0].cause == stall
