"""Files of a run folder that others may have written are skipped, with a problem that names them."""

import json
import math
import os
from pathlib import Path

import pytest
from run_folders import BEGAN, epoch, load, sample, state, step, write_run

from crossfade.deploy.dashboard.run_reader import RunReader
from crossfade.deploy.dashboard.summary import summarize


def read(folder: Path) -> RunReader:
    reader = RunReader(folder, folder.name)
    reader.refresh()
    return reader


def test_fifo_in_place_of_a_log_or_file_does_not_block(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("events.jsonl", "state.json", "job.yaml"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    problems = read(run).problems()
    assert len(problems) == 3
    assert all("not a regular file" in problem for problem in problems)


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        json.dumps({**step(3, at=1), "step": 10**400}),
        json.dumps({**step(3, at=1), "time": 1e300}),
        json.dumps({**step(3, at=1), "time": math.nan}),
        json.dumps({**epoch(1, at=1, step=3, quality=0.5), "valid": {"ndcg@10": 10**400}}),
    ],
    ids=["nested", "huge step", "late", "no time", "huge metric"],
)
def test_hostile_event_is_skipped_and_counted(tmp_path: Path, line: str) -> None:
    run = write_run(tmp_path / "run", metrics=[step(1, at=0), step(2, at=1)])
    with (run / "events.jsonl").open("a") as file:
        file.write(line + "\n")
    reader = read(run)
    assert reader.training.step == 2
    assert any("skipped" in problem for problem in reader.problems())
    assert summarize(reader, BEGAN + 2).step == 2


def test_hostile_load_is_skipped(tmp_path: Path) -> None:
    bad = [load(pid="7"), load(cpu=math.inf), {**load(updated=3), "held_bytes": {"track": 3}}, {"pid": 3}]
    bad.append({**load(), "updates": {"track": {"updated": "3", "seconds": 0.1}}})  # type: ignore[arg-type]
    run = write_run(
        tmp_path / "run",
        processes=[sample(at=0, worker_0=load()), *(sample(at=1, worker_0=each) for each in bad)],
        state=state("running", at=1, worker_0=("running", bad[2])),
        restarts=[{"generation": [], "cause": {}}],
    )
    reader = read(run)
    assert reader.processes.invalid_records == len(bad)
    problems = reader.problems()
    assert any("state.json cannot be read: processes.worker-0.load" in problem for problem in problems)
    assert any("restarts.json cannot be read: 0.generation" in problem for problem in problems)


def test_job_with_aliases_that_multiply_is_not_expanded(tmp_path: Path) -> None:
    lists = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    [problem] = read(write_run(tmp_path / "run", job=f"a0: &a0 [x]\n{lists}")).problems()
    assert "more than 10,000 values, with aliases" in problem
