"""Measure what people wait for besides training: preparing, a model from a frame, calls, commands, and compiling.

for name, run in waiting_runs(planner):
    run()       # figures of prepare/crossfade, fit/implicit, commands/help, …

As a script it fits a model, or calls one: the task has ``plays``, a folder of ``peers/plays.py``; or ``run``, a run
folder, and ``calls``, how many are made after the first.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers.plays import HELD_OUT, TRACK, TRAIN, USER, K, ndcg, read_plays
from raw_events import TIMESTAMP

import crossfade
from crossfade.trainer.training.phases import STEP_PHASES
from suite.processes import run_command
from suite.timing import Clock, median_call_ms
from suite.training import TIMEOUT_SECONDS, read_report, train_command
from suite.waiting_work import make_events, make_plays

if TYPE_CHECKING:
    from suite.plan import Planner

CROSSFADE = [sys.executable, "-m", "crossfade"]
COMMANDS = {
    "help": "crossfade --help",
    "status": "crossfade status RUN",
    "recommend": "crossfade recommend RUN --customer ID",
}
"""Commands whose start is measured, by name, as the page writes them."""
ALS = {"factors": 64, "iterations": 15}
TINY = ("--queries", "200", "--items", "300", "--interactions", "5000")
"""A dataset whose training takes little but compiling."""
WARM_UP_PLAYS = 10_000
SIDES = ("--query", USER, "--item", TRACK)
Figures = dict[str, Any]


def waiting_runs(planner: Planner) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Yield the measurements of the section."""
    waits = _Waits(planner)
    yield "prepare/crossfade", partial(waits.prepare, "parquet")
    yield "prepare/plain", waits.prepare_plain
    yield "prepare/csv", partial(waits.prepare, "csv")
    yield "fit/crossfade", waits.fit
    yield "fit/implicit", partial(waits.peer, "implicit_fit", **ALS)
    yield "calls/crossfade", waits.calls
    yield "calls/implicit", partial(waits.peer, "implicit_calls", factors=ALS["factors"], calls=waits.sizes.calls)
    for name in COMMANDS:
        yield f"commands/{name}", partial(waits.command, name)
    yield "compile", waits.compile
    yield "evaluation", waits.evaluation


class _Waits:
    """The measurements, on work that is made when one first needs it."""

    def __init__(self, planner: Planner) -> None:
        """Keep work, datasets, and runs below the planner's folder."""
        self.sizes = planner.scale.waiting
        self._planner = planner
        self._work = planner.folder / "work"
        self._made = planner.folder / "waiting"

    def prepare(self, kind: str) -> Figures:
        """Prepare the events of a Parquet or CSV file with ``crossfade prepare``."""
        file = make_events(self._work, self.sizes) / f"events.{kind}"
        columns = (*SIDES, "--timestamp", TIMESTAMP, "--hold-out", "last-1")
        out = ("--out", str(self._made / "prepared"), "--overwrite")
        figures = self._timed([*CROSSFADE, "prepare", "--events", str(file), *columns, *out])
        return _with_rate(figures, self.sizes.events)

    def prepare_plain(self) -> Figures:
        """Prepare the events of the Parquet file by plain DuckDB statements."""
        self._made.mkdir(parents=True, exist_ok=True)
        events = make_events(self._work, self.sizes) / "events.parquet"
        out = self._made / "plain.parquet"
        out.unlink(missing_ok=True)
        task = json.dumps({"events": str(events), "out": str(out)})
        figures = self._timed([sys.executable, "-m", "suite.plain_prepare", task])
        return _with_rate(figures, self.sizes.events)

    def fit(self) -> Figures:
        """Fit plays with ``crossfade.fit``."""
        return self._planner.script("waiting", plays=self._plays)

    def peer(self, script: str, **task: Any) -> Figures:
        """Run a script of implicit on the plays."""
        return self._planner.peer_script(script, "implicit", plays=self._plays, **task)

    def calls(self) -> Figures:
        """Call a model that stays open."""
        return self._planner.script("waiting", run=str(self._run), calls=self.sizes.calls)

    def command(self, name: str) -> Figures:
        """Start one of ``COMMANDS``, a few times after a first one."""
        run, customer = str(self._run), read_plays(Path(self._plays), TRAIN)[USER][0]
        arguments = {
            "help": ["--help"],
            "status": ["status", run],
            "recommend": ["recommend", run, "--customer", customer],
        }
        return self._timed([*CROSSFADE, *arguments[name]], runs=self.sizes.starts, warm_up=1)

    def compile(self) -> Figures:
        """Train on a tiny dataset in an empty kernel cache, and again: what the first run takes beyond the second."""
        job = {"name": "tiny", "data": {"path": str(self._synthetic("tiny", *TINY))}}
        command = train_command(job, self._made / "runs" / "tiny")
        with tempfile.TemporaryDirectory(dir=self._made) as cache:
            there = ["env", f"NUMBA_CACHE_DIR={cache}"]
            first, second = (self._timed([*there, *command]) for _ in range(2))
        return {
            "cpu_seconds": first["cpu_seconds"] - second["cpu_seconds"],
            "seconds": first["seconds"] - second["seconds"],
            "second_cpu_seconds": second["cpu_seconds"],
            "second_seconds": second["seconds"],
        }

    def evaluation(self) -> Figures:
        """Train with the defaults, and compare the time of evaluations with that of steps."""
        customers, items, interactions = map(str, self.sizes.trained)
        size = ("--queries", customers, "--items", items, "--interactions", interactions)
        job = {"name": "evaluated", "data": {"path": str(self._synthetic("evaluated", *size))}}
        run = self._made / "runs" / "evaluated"
        run_command(train_command(job, run), TIMEOUT_SECONDS)
        report = read_report(run)
        phases = report["seconds_by_phase"]
        steps = sum(phases[name] for name in STEP_PHASES)
        return {
            "share": phases["evaluate"] / steps,
            "evaluate_seconds": phases["evaluate"],
            "step_seconds": steps,
            "epochs": report["epochs"],
        }

    @property
    def _plays(self) -> str:
        return str(make_plays(self._work, self.sizes))

    @cached_property
    def _run(self) -> Path:
        """A run on the plays, made once per process, since an earlier one may be of other code."""
        data, run = self._made / "plays", self._made / "runs" / "plays"
        events = ("--events", f"{self._plays}/{TRAIN}.csv", "--hold-out", "random:0.1")
        run_command([*CROSSFADE, "prepare", *events, *SIDES, "--out", str(data), "--overwrite"], TIMEOUT_SECONDS)
        job = {"name": "plays", "data": {"path": str(data)}, "train": {"epochs": 1}}
        run_command(train_command(job, run), TIMEOUT_SECONDS)
        return run

    def _synthetic(self, name: str, *size: str) -> Path:
        """Return a dataset of ``crossfade synthesize``, which is made again for each measurement."""
        data = self._made / name
        run_command([*CROSSFADE, "synthesize", *size, "--out", str(data), "--overwrite"], TIMEOUT_SECONDS)
        return data

    def _timed(self, command: list[str], **task: int) -> Figures:
        return self._planner.script("timed_command", command=command, **task)


def _with_rate(figures: Figures, events: int) -> Figures:
    return {**figures, "events_per_second": events / figures["seconds"]}


def fit(folder: Path) -> Figures:
    """Measure ``crossfade.fit``: from plays in a pandas frame to a model, and its ndcg@10 on held-out plays.

    A fit of a few plays comes first, which is not counted: it imports what is needed and compiles, or loads, the
    kernels.
    """
    frame = read_plays(folder, TRAIN)
    sides = {"query": USER, "item": TRACK}
    crossfade.fit(frame.head(WARM_UP_PLAYS), **sides, settings={"train.epochs": 2}, progress=False)
    clock = Clock()
    model = crossfade.fit(frame, **sides, progress=False)
    taken = clock.taken()
    return {**taken, "ndcg@10": ndcg(model.recommend("all", k=K), read_plays(folder, HELD_OUT))}


def call(run: str, calls: int) -> Figures:
    """Measure ``recommend`` of one customer and ``similar`` of one item, of a model that stays open."""
    model = crossfade.load(run)
    return {
        "recommend_ms": median_call_ms(model.recommend, model.ids(USER)[:calls]),
        "similar_ms": median_call_ms(model.similar, model.ids(TRACK)[:calls]),
    }


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(json.dumps(call(task["run"], task["calls"]) if "run" in task else fit(Path(task["plays"]))))
