"""Corrupt files of a run folder are shown as far as they can be read, or named: never anything else.

Cases are deterministic; CONTRIBUTING.md has how to run more. ``tests/kvstore/test_fuzz.py`` corrupts checkpoints.
"""

import json
import random
from pathlib import Path

import pytest
from fuzzed_json import corrupt_json, fuzz, fuzz_range, judge
from mutations import corrupt_text
from page_text import text_of
from run_folders import BEGAN, epoch, load, state, step, totals, training_from, write_run

from crossfade.cli.status import _screen, _table
from crossfade.deploy.dashboard import charts, page
from crossfade.deploy.dashboard.charts import RunView
from crossfade.deploy.dashboard.run_reader import RunReader
from crossfade.deploy.dashboard.summary import summarize

CASES, FIRST = fuzz_range(200)


def show(run: Path) -> None:
    """Show the run in the terminal and on the page, which report what they cannot read."""
    reader = RunReader(run, "run")
    reader.refresh()
    summary = summarize(reader)
    assert "run" in "\n".join([*_screen(summary), *_table([summary, summary]), json.dumps(summary.to_json())])
    shown = [RunView(reader, summary, "red")]
    assert "run" in text_of([getattr(page, part)(shown) for part in page.PARTS])
    assert json.dumps([getattr(charts, name)(shown) for name in page.GRAPHS])


@pytest.mark.slow
def test_corrupt_run_file_is_shown_or_named(tmp_path: Path) -> None:
    events = [training_from(0, at=0), step(1, at=1), step(2, at=2), epoch(1, at=2, step=2, quality=0.2)]
    saved = {"checkpoint": "c", "pause_seconds": 0.1, "seconds": 1.0, "bytes": 9}
    events += [totals(2, at=3, pushed=5, dense=9), {"time": BEGAN, "event": "checkpoint_saved", "step": 2, **saved}]
    restart = {"generation": 2, "cause": "x", "step": 3, "lost_steps": 1, "lost_seconds": 0.5}
    failure = {"generation": 1, "role": "worker-0", "host": "here", "cause": "x", "error": "y", "log": "z"}
    lost = {"ends_run": True, "step": 3, "lost_steps": 1, "lost_seconds": 0.5}
    processes = [
        {"time": 1.0, "event": "failure", **failure, **lost},
        {"time": 2.0, "event": "restart", **restart},
        {"time": 3.0, "event": "end", "state": "failed", "message": "x"},
    ]
    report = {
        "metrics": {"test": {"ndcg@10": 0.2, "ndcg@10_se": 0.1, "queries": 9}},
        "baselines": {"metrics": {"test": {"als": {"ndcg@10": 0.1}}}, "notes": ["a limit"]},
        "seconds_by_phase": {"pull": 1.0},
        "examples_per_second": 3.0,
    }
    loads = {"worker_0": load(phase_seconds={"pull": 1.0}), "server_0": load(updated=3)}
    states = state("done", at=4, **{name: ("running", each) for name, each in loads.items()})
    run = write_run(tmp_path / "run", metrics=events, processes=processes, report=report, state=states)
    show(run)
    logs = ("events.jsonl", "processes.jsonl")
    contents = {
        name: (run / name).read_bytes() for name in ("run.json", "report.json", "state.json", "job.yaml", *logs)
    }

    def run_files(draw: random.Random) -> str | None:
        name = draw.choice((*contents, *logs, *logs))
        content = contents[name]
        if name in logs:
            lines = content.splitlines()
            number = draw.randrange(len(lines))
            lines[number] = corrupt_json(draw, lines[number])
            content = b"\n".join(lines) + b"\n"
        else:
            content = corrupt_json(draw, content) if name.endswith("json") else corrupt_text(draw, content, b"{}")
        (run / name).write_bytes(content)
        try:
            return judge(tmp_path, lambda: show(run), ())
        finally:
            (run / name).write_bytes(contents[name])

    fuzz(CASES, FIRST, run_files)
