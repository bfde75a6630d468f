"""The last failure of a run, from its folder: as it was recorded, or as far as the rest of the folder shows it."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import BEGAN, JOB, add, state, step, training_from, write_run

from crossfade.deploy.dashboard import run_reader
from crossfade.deploy.dashboard.run_reader import RunReader
from crossfade.deploy.dashboard.run_state import LastFailure
from crossfade.deploy.dashboard.summary import summarize

KILLED = {"role": "server-0", "host": "b2", "cause": "was killed for lack of memory", "log": "run/logs/server-0.log"}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_reader, "REFRESH_SECONDS", 0.0)


def failure(*, at: float, **more: Any) -> dict[str, Any]:
    values = {"generation": 1, "ends_run": False, "step": 333, "lost_steps": 33, "lost_seconds": 5.6, **KILLED}
    return {"time": BEGAN + at, "event": "failure", **values, **more}


def restart(*, at: float, **more: Any) -> dict[str, Any]:
    return {"time": BEGAN + at, "event": "restart", "generation": 2, "cause": "x", "step": 300, **more}


def last_failure(folder: Path, *, at: float) -> LastFailure:
    run = RunReader(folder, folder.name)
    run.refresh()
    found = summarize(run, BEGAN + at).failure
    assert found is not None
    assert run.problems() == []
    return found


def test_last_record_is_shown_with_what_its_restart_lost(tmp_path: Path) -> None:
    events = [failure(at=1, role="worker-0", error="ValueError: no"), failure(at=2)]
    folder = write_run(tmp_path / "run", processes=events, state=state("running", at=9))
    found = last_failure(folder, at=9)
    assert (found.text, found.time) == ("server-0 on b2 was killed for lack of memory", BEGAN + 2)
    assert (found.error, found.log, found.ends_run) == (None, KILLED["log"], False)
    assert found.work() == "33 steps since the last checkpoint, 5.6 s"
    # The newest checkpoint cannot be read, so the restart begins at an earlier one.
    add(folder / "processes.jsonl", restart(at=3, lost_steps=333))
    assert last_failure(folder, at=9).work() == "333 steps since the beginning"
    add(folder / "processes.jsonl", failure(at=5, role=None, cause="the agent on b2 sent no heartbeat for 15 s"))
    assert last_failure(folder, at=9).text == "the agent on b2 sent no heartbeat for 15 s"


def test_failure_stays_visible_after_the_run_is_done(tmp_path: Path) -> None:
    events = [failure(at=2), restart(at=3)]
    folder = write_run(tmp_path / "run", processes=events, state=state("done", at=9), report={})
    assert last_failure(folder, at=99).lost_steps == 33


def test_run_whose_command_was_killed_has_lost_what_no_checkpoint_has(tmp_path: Path) -> None:
    saved = {"event": "checkpoint_saved", "step": 4, "checkpoint": "c", "pause_seconds": 0.0, "seconds": 1.0}
    events = [training_from(0, at=0), step(4, at=4), {"time": BEGAN + 5, **saved, "bytes": 9}, step(9, at=9)]
    folder = write_run(tmp_path / "run", metrics=events, state=state("starting", at=10))
    found = last_failure(folder, at=60)
    assert (found.role, found.host, found.time) == ("in-process", "another host", BEGAN + 10)
    assert found.text.startswith("its command has not updated the state for")
    assert found.work() == "5 steps since the last checkpoint, 5.0 s"
    assert found.ends_run
    # It was resumed from that checkpoint, and killed again.
    add(folder / "events.jsonl", training_from(4, at=500), step(6, at=502))
    (folder / "state.json").write_text(json.dumps(state("running", at=503)))
    (folder / "job.yaml").write_text(f"{JOB}cluster: {{servers: 2}}\n")
    found = last_failure(folder, at=600)
    assert (found.role, found.work()) == ("coordinator", "2 steps since the last checkpoint, 2.0 s")


def test_run_that_has_not_failed_has_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics=[step(1, at=1)], state=state("stopped", at=2))
    run = RunReader(folder, "run")
    run.refresh()
    assert summarize(run, BEGAN + 3).failure is None
    assert summarize(run, BEGAN + 3).to_json()["failure"] is None


@pytest.mark.parametrize(
    ("role", "cause", "error", "alert"),
    [
        ("server-0", "was killed by SIGKILL", None, "server-0 on b2 was killed by SIGKILL"),
        ("worker-1", "ended with exit code 1", "ValueError: x", "worker-1 on b2 ended with exit code 1: ValueError: x"),
        ("in-process", "ended with exit code 1", "training diverged", "training diverged"),
    ],
)
def test_critical_alert_is_the_cause_without_the_end_of_the_log(
    tmp_path: Path, role: str, cause: str, error: str | None, alert: str
) -> None:
    record = {"time": BEGAN, "event": "failure", "role": role, "host": "b2", "cause": cause, "error": error}
    record |= {"generation": 1, "ends_run": True, "step": 40, "lost_steps": 0}
    message = f"{role} {cause} (its log ends: {' | '.join(map(str, range(10)))}; log: logs/{role}.log)"
    folder = write_run(tmp_path / "run", state=state("failed", at=3, message=message), processes=[record])
    reader = RunReader(folder, folder.name)
    reader.refresh()
    summary = summarize(reader, BEGAN + 9)
    assert [each.text for each in summary.alerts] == [alert]
