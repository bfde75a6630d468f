"""Reading run folders that grow, are corrupt, resumed or replaced, and summarizing them."""

import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from run_folders import (
    BEGAN,
    epoch,
    load,
    state,
    step,
    totals,
    training_from,
    write_run,
)

from crossfade.base.processes import started_at
from crossfade.deploy.dashboard.figures import Summary
from crossfade.deploy.dashboard.run_reader import RunReader, Runs, Tail
from crossfade.deploy.dashboard.summary import summarize


def read(folder: Path) -> RunReader:
    reader = RunReader(folder, folder.name)
    reader.refresh()
    return reader


def look(folder: Path, *, at: float = 0.0) -> Summary:
    return summarize(read(folder), BEGAN + at)


def warned(summary: Summary, *words: str) -> bool:
    """Return whether an alert has all of these words."""
    return any(all(word in alert.text for word in words) for alert in summary.alerts)


# ---- a file that grows


def events_of(tail: Tail, until: float = math.inf) -> list[int]:
    """Return the numbers of the steps that are new."""
    found: list[int] = []
    tail.is_replaced()
    tail.read(lambda timed: found.append(timed.event.step), until)  # type: ignore[union-attr]
    return found


def line(number: int) -> bytes:
    return json.dumps(step(number, at=number)).encode() + b"\n"


def broken(event: dict[str, Any], **values: Any) -> bytes:
    return json.dumps({**event, **values}).encode() + b"\n"


@pytest.mark.parametrize(
    ("middle", "problem"),
    [
        (b"\xff\xfe\n[1, 2]\nnull\n", "3 lines"),
        (b'{"event": "without a time"}\n\n', "a line"),
        (b"\0" * 5000 + b"\n", "a line"),  # blocks that a crash has left without content
        (b'{"time": 1, "event": "st\n', "a line"),
        (b"[" * 100_000 + b"\n", "a line"),
        (broken(step(3, at=1), step=10**400) + broken(step(3, at=1), time=1e300), "2 lines"),
        (broken(step(3, at=1), time=math.nan) + broken(step(3, at=1), loss="a lot"), "2 lines"),
        (broken(epoch(1, at=1, step=3), valid={"ndcg@10": 10**400}), "a line"),
    ],
)
def test_each_line_is_read_once_when_complete_and_invalid_ones_are_counted(
    tmp_path: Path, middle: bytes, problem: str
) -> None:
    path, tail = tmp_path / "log", Tail(tmp_path / "log")
    assert events_of(tail) == []
    path.write_bytes(line(1) + middle + line(2) + line(3)[:20])
    assert events_of(tail) == [1, 2]
    assert events_of(tail) == []
    with path.open("ab") as file:
        file.write(line(3)[20:])
    assert events_of(tail) == [3]
    assert tail.problem() == f"log: {problem} cannot be read, skipped (first: line 2)"


# ---- a run


def test_resumed_run_has_progress_rates_and_best_value_without_the_steps_that_it_repeats(tmp_path: Path) -> None:
    saved = {"step": 40, "checkpoint": "c", "bytes": 77, "pause_seconds": 0.5, "seconds": 1.0}
    folder = write_run(
        tmp_path / "run",
        metrics=[
            *(training_from(0, at=0), step(24, at=1), step(27, at=3), epoch(1, at=2, step=25, quality=0.31)),
            *(epoch(2, at=4, step=28, quality=0.9), training_from(25, at=100)),
            *(step(number, at=100 + number / 2) for number in range(26, 41)),
            epoch(2, at=120, step=40, quality=0.29),
            totals(40, at=120, pushed=1000, dense=37000),
            {"time": BEGAN + 120, "event": "checkpoint_saved", **saved},
        ],
        state=state("running", at=120, in_process=("running", load())),
        report={"examples_per_second": 9999.0},  # of an earlier start
    )
    summary = look(folder, at=121)
    assert (summary.state, summary.live, summary.step, summary.planned_steps) == ("running", True, 40, 100)
    assert summary.progress == pytest.approx(0.4)
    assert summary.remaining_seconds == pytest.approx(30.0, rel=0.01)
    assert summary.examples_per_second == pytest.approx(20.0)
    assert (summary.eval_metric, summary.best_value, summary.best_epoch, summary.loss) == (0.29, 0.31, 1, 0.4)
    assert summary.dense_ratio == 37.0
    assert summary.checkpoints["last_step"] == 40
    assert summary.alerts == []
    json.dumps(summary.to_json())
    steps, rates = read(folder).training.throughput(100)
    assert steps.tolist() == list(range(26, 41))
    assert rates[0] == pytest.approx(20 / 112)  # with the time without training
    assert rates[1:].round(6).tolist() == [20.0] * 14


def test_finished_run_shows_its_report(tmp_path: Path) -> None:
    report = {"examples_per_second": 123.0, "seconds_by_phase": {"pull": 2.0}, "metrics": {"test": {"ndcg@10": 0.2}}}
    moved = {"bytes_pulled": 5, "bytes_pushed": 10, "dense_equivalent_bytes_pushed": 30}
    events = [step(60, at=60), epoch(4, at=60, step=100)]  # the log has a sample of steps
    folder = write_run(tmp_path / "run", metrics=events, state=state("done", at=61), report=report | moved)
    summary = look(folder, at=10_000)
    assert (summary.state, summary.live, summary.progress, summary.epoch) == ("done", False, 1.0, 4)
    assert summary.examples_per_second == 123.0
    assert summary.metrics == {"test": {"ndcg@10": 0.2}}
    assert summary.dense_ratio == 3.0
    assert summary.elapsed_seconds == pytest.approx(61.0)  # from its start to its last state
    assert summary.alerts == []


def test_silent_command_is_lost(tmp_path: Path) -> None:
    written = state("running", at=0)
    folder = write_run(tmp_path / "run", state=written)
    assert look(folder, at=5).state == "running"
    assert look(folder, at=60).state == "lost"
    assert warned(look(folder, at=60), "has not updated the state", "1 min")
    alive = {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": started_at(os.getpid())}
    (folder / "state.json").write_text(json.dumps({**written, "command": alive}))
    assert look(folder, at=5).state == "running"
    # The process of this number is not the command: it started at another time.
    (folder / "state.json").write_text(json.dumps({**written, "command": {**alive, "pid_started": 1.0}}))
    assert look(folder, at=5).state == "lost"
    # A fresh state counts for more: the command may run in a container with this host's name.
    assert look(folder, at=1).state == "running"


# ---- alerts


def event(kind: str, *, at: float, **values: Any) -> dict[str, Any]:
    return {"time": BEGAN + at, "event": kind, **values}


def failed(role: str, cause: str, error: str | None, alert: str) -> tuple[dict[str, Any], float, list[str]]:
    """Return a run that ended by a failure, which its alert has without the end of the log."""
    values = {"generation": 1, "role": role, "host": "b2", "cause": cause, "error": error, "log": "logs/x.log"}
    record = event("failure", at=1, **values, ends_run=True, step=333, lost_steps=33, lost_seconds=5.6)
    message = f"{role} {cause} (its log ends: {' | '.join(map(str, range(10)))}; log: logs/x.log)"
    return {"state": state("failed", at=3, message=message), "processes": [record]}, 9.0, [alert]


UNSAVED = event("checkpoint_failed", at=1999, step=8, message="disk full")
RESTART = event("restart", at=10, generation=2, cause="x", step=5, lost_steps=4, lost_seconds=2.5)
MISSING = state("running", at=12, server_0=("missing", {}), worker_0=("running", load()))


@pytest.mark.parametrize(
    ("written", "at", "expected"),
    [
        ({"metrics": [step(1, at=1, loss=math.nan)], "state": state("running", at=2)}, 3, ["the loss is not finite"]),
        ({"metrics": [step(1, at=1, loss=math.inf)], "state": state("running", at=2)}, 3, ["the loss is not finite"]),
        (
            {"state": state("running", at=2, worker_0=("running", load(memory_available_bytes=50)))},
            3,
            ["worker-0: only 50 B of 1 kB memory are free"],
        ),
        ({"state": state("failed", at=2, message="restarted 3 times")}, 3, ["restarted 3 times"]),
        failed("server-0", "was killed by SIGKILL", None, "server-0 on b2 was killed by SIGKILL"),
        failed(
            "worker-1", "ended with exit code 1", "ValueError: x", "worker-1 on b2 ended with exit code 1: ValueErr"
        ),
        failed("in-process", "ended with exit code 1", "training diverged", "training diverged"),
        (
            {"processes": [RESTART], "state": MISSING},
            13,
            ["server-0 is missing", "restarted 3.0 s ago: x; lost 4 steps since the last checkpoint, 2.5 s"],
        ),
        (
            {"metrics": [step(1, at=0)], "state": state("running", at=2000)},
            2000,
            ["no step, evaluation or checkpoint for 33 min", "the last checkpoint is 33 min 20 s old"],
        ),
        (
            {"metrics": [step(1, at=1900), UNSAVED], "state": state("running", at=2000)},
            2000,
            ["the checkpoint of step 8 was not written: disk full"],
        ),
    ],
)
def test_alerts_say_what_is_wrong(tmp_path: Path, written: dict[str, Any], at: float, expected: list[str]) -> None:
    found = [alert.text for alert in look(write_run(tmp_path / "run", **written), at=at).alerts]
    assert len(found) == len(expected)
    assert all(text.startswith(each) for text, each in zip(found, expected, strict=True))


# ---- corrupt files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("state.json", content) for content in ("", "{", "[1]", '{"time": "soon", "state": 3}', "\0\0\0")),
        *((name, "[1]") for name in ("report.json", "run.json", "job.yaml")),
    ],
)
def test_corrupt_file_is_named_until_it_is_valid_and_the_rest_is_shown(tmp_path: Path, name: str, content: str) -> None:
    folder = write_run(tmp_path / "run", metrics=[step(1, at=1), step(2, at=2)])
    valid = (folder / name).read_text() if (folder / name).exists() else json.dumps(state("done", at=3))
    (folder / name).write_text(content)
    run = read(folder)
    summary = summarize(run, BEGAN + 3)
    assert (summary.step, warned(summary, name, "cannot be read")) == (2, True)
    (folder / name).write_text(valid)
    run.refresh()
    assert run.problems() == []


# ---- finding runs


def test_runs_are_found_two_levels_deep_and_new_ones_appear(tmp_path: Path) -> None:
    runs = Runs([tmp_path])
    assert runs.readers() == []
    write_run(tmp_path / "plays")
    write_run(tmp_path / "search" / "trial-0000")
    write_run(tmp_path / "a" / "b" / "too-deep")
    (tmp_path / "search" / "job.yaml").write_text("name: search\n")  # as 'crossfade tune' has it
    (tmp_path / "notes.txt").write_text("")
    assert [run.name for run in runs.readers()] == ["plays", "search/trial-0000"]
    first = runs.readers()[0]
    write_run(tmp_path / "day2")
    assert [run.name for run in runs.readers()] == ["day2", "plays", "search/trial-0000"]
    assert runs.readers()[1] is first
    (tmp_path / "day2").rename(tmp_path / "day3")
    assert [run.name for run in runs.readers()] == ["day3", "plays", "search/trial-0000"]


# ---- files that others may have written


@pytest.mark.parametrize(
    "name",
    ["job.yaml", "run.json", "state.json", "report.json", "events.jsonl", "processes.jsonl"],
)
def test_file_behind_a_link_that_leads_out_of_the_run_is_not_read(tmp_path: Path, name: str) -> None:
    files: dict[str, Any] = {"report": {"metrics": {}}, "state": state("done", at=1)}
    folder = write_run(tmp_path / "run", metrics=[step(1, at=1)], processes=[RESTART], **files)
    within = folder / "within"
    (folder / name).rename(within)
    (folder / name).symlink_to("within")
    assert read(folder).problems() == []
    within.rename(tmp_path / "outside")
    (folder / name).unlink()
    (folder / name).symlink_to("../outside")
    reader = read(folder)
    assert reader.problems() == [f"{name} cannot be read: a link leads out of the folder; copy the file into it"]
    (tmp_path / "link").symlink_to(folder)
    assert read(tmp_path / "link").problems() == reader.problems()


def test_fifo_in_place_of_a_log_or_file_does_not_block(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("events.jsonl", "state.json", "job.yaml"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    problems = read(run).problems()
    assert len(problems) == 3
    assert all("not a regular file" in problem for problem in problems)


@pytest.mark.parametrize(
    "figures",
    [
        {"resident_bytes": 10**400},
        {"held_bytes": {"track": 3}},
        {"updates": {"track": {"updated": []}}},
        {"phase_seconds": {"pull": math.inf}},
    ],
)
def test_hostile_load_is_an_error_of_the_state_file(tmp_path: Path, figures: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", state=state("running", at=1, worker_0=("running", figures)))
    [problem] = read(run).problems()
    assert "state.json cannot be read: processes.worker-0.load" in problem
