"""The state of a run in its folder, and the coordinator's view of processes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from scripted_agents import saved, step
from waiting import wait_until

from crossfade.base.errors import ClusterError
from crossfade.deploy.cluster import state_writer as run_state
from crossfade.deploy.cluster.state_writer import StateWriter
from crossfade.trainer.runs.events import FailureEvent, PhaseEvent, RestartEvent
from crossfade.trainer.runs.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _write_at_every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "STATE_SECONDS", 0.01)


def source() -> dict[str, Any]:
    process = {"state": "running", "host": "here", "metrics": None, "load": {"pid": 1, "cpu_seconds": 2.0}}
    return {"state": "running", "generation": 1, "processes": {"in-process": process}}


def read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "processes.jsonl").read_text().splitlines()]


def test_state_is_rewritten_and_finally_holds_the_outcome(tmp_path: Path) -> None:
    with StateWriter(RunFolder(tmp_path)) as state:
        assert read_state(tmp_path)["state"] == "starting"
        assert read_state(tmp_path)["command"]["pid"] == os.getpid()
        state.watch(source)
        wait_until(lambda: read_state(tmp_path)["state"] == "running", "the state of the source")
        before = read_state(tmp_path)["time"]
        wait_until(lambda: read_state(tmp_path)["time"] > before, "a newer state")
        state.take(RestartEvent(generation=2, cause="server-0 was killed", step=4))
        state.take(step(5))
        state.end("failed", "no more")
    assert (read_state(tmp_path)["state"], read_state(tmp_path)["message"]) == ("failed", "no more")
    assert read_state(tmp_path)["processes"]["in-process"]["state"] == "ended"
    events = read_log(tmp_path)
    assert [event["event"] for event in events] == ["begin", "restart", "end"]


def test_error_of_the_run_itself_is_recorded_with_what_was_lost(tmp_path: Path) -> None:
    with StateWriter(RunFolder(tmp_path)) as state:
        state.watch(source)
        state.take(PhaseEvent(name="training", step=0))
        for event in (step(4), saved(4), step(9)):
            state.take(event)
        state.take(FailureEvent(generation=1, cause="x", ends_run=False, step=4, lost_steps=0))
        wait_until(lambda: read_state(tmp_path)["failure"], "the failure in the state")
        state.fail(MemoryError("no \x1b more\nat all"))
    *_, failure, end = read_log(tmp_path)
    assert (end["event"], end["state"]) == ("end", "failed")
    assert failure.pop("lost_seconds") >= 0
    assert failure.pop("host") == os.uname().nodename
    expected = {"event": "failure", "generation": 1, "role": "in-process", "cause": "ended with exit code 1"}
    lost = {"error": r"MemoryError: no \x1b more", "ends_run": True, "step": 9, "lost_steps": 5}
    assert {name: value for name, value in failure.items() if name != "time"} == expected | lost
    assert read_state(tmp_path)["failure"]["role"] == "in-process"
    with StateWriter(RunFolder(tmp_path)) as state:  # an error that the coordinator has recorded
        state.take(FailureEvent(generation=1, cause="y", ends_run=True, step=4, lost_steps=0))
        state.fail(ClusterError("y"))
    causes = [event["cause"] for event in read_log(tmp_path) if event["event"] == "failure"]
    assert causes == ["x", "ended with exit code 1", "y"]
