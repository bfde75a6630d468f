"""Measure the cost of metrics per step, and how soon a busy process answers a scrape.

    .venv/bin/python benchmarks/metrics.py [--steps 1200]

The first part trains in process on the work of bench.py (BPR triples on 1,000,000 customers and 100,000 tracks x
64), with a batch of 16,384 and with one of 1,024. Within the run, pairs of steps alternate: with metrics, without
counting them, and again without, which shows how much of a difference is noise. The median seconds per step are
compared: pairs that alternate so fast see the same load from other processes. All are scraped every 5 seconds. The
second part trains on 2 servers and 2 workers, and scrapes every process repeatedly.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from suite.training import bpr_job

from crossfade.kvstore.stats import UpdateStats
from crossfade.trainer.config.loading import check_job
from crossfade.trainer.monitoring.http import serve_metrics
from crossfade.trainer.monitoring.registry import ProcessMetrics
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.synthetic import write_synthetic
from crossfade.trainer.runs.events import Event, StepEvent
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.training.hooks import TrainingHooks
from crossfade.trainer.training.run import run_in_process
from crossfade.trainer.training.worker_metrics import TrainingMetrics

TURN_STEPS = 2
WARM_UP_STEPS = 40
SCRAPE_SECONDS = 5.0


class Turns:
    """Switches metrics on and off every few steps, and collects the seconds per step of each turn."""

    def __init__(self) -> None:
        self.turn = 0
        self.steps: list[list[float]] = [[], [], []]
        self.counting: list[float] = []
        self._count, self._since = 0, time.perf_counter()

    @property
    def on(self) -> bool:
        """Whether metrics are on in this turn."""
        return self.turn == 0

    def step(self) -> None:
        """Record the end of a step."""
        now = time.perf_counter()
        if self._count >= WARM_UP_STEPS:
            self.steps[self.turn].append(now - self._since)
        self._count, self._since = self._count + 1, now
        if self._count % TURN_STEPS == 0:
            self.turn = (self.turn + 1) % len(self.steps)


@contextmanager
def alternating(turns: Turns) -> Iterator[None]:
    """Count steps and updates only while it is the turn of metrics."""
    observe, timed_update = TrainingMetrics.observe, UpdateStats.timed_update

    @contextmanager
    def timed_update_in_turn(self: UpdateStats, table: str, rows: int) -> Iterator[None]:
        if turns.on:
            with timed_update(self, table, rows):
                yield
        else:
            yield

    def observe_in_turn(self: TrainingMetrics, event: Event) -> None:
        if turns.on or not isinstance(event, StepEvent):
            begin = time.perf_counter()
            observe(self, event)
            if isinstance(event, StepEvent):
                turns.counting.append(time.perf_counter() - begin)

    TrainingMetrics.observe, UpdateStats.timed_update = observe_in_turn, timed_update_in_turn  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainingMetrics.observe, UpdateStats.timed_update = observe, timed_update  # type: ignore[method-assign]


def side_by_side(values: dict[str, Any], folder: Path) -> tuple[Turns, list[float]]:
    """Train the job ``values``, with metrics on and off in turn; return the turns and the seconds of each scrape."""
    job = check_job(values, "benchmark")
    turns, scrapes, over = Turns(), [], threading.Event()
    metrics = ProcessMetrics(job.name, "in-process")

    def scrape(address: str) -> None:
        while not over.wait(SCRAPE_SECONDS):
            scrapes.append(seconds_to_scrape(address))

    def emit(event: Event) -> None:
        if isinstance(event, StepEvent):
            turns.step()

    run = RunFolder(folder)
    with (
        serve_metrics(metrics, 0, None, "127.0.0.1") as listener,
        alternating(turns),
        run.open_run(job, overwrite=True),
    ):
        thread = threading.Thread(target=scrape, args=(listener.address,), daemon=True)
        thread.start()
        run_in_process(job, run, TrainingHooks(on_event=emit, metrics=metrics))
        over.set()
        thread.join()
    return turns, scrapes


def seconds_to_scrape(address: str) -> float:
    """Return the seconds that /metrics takes to answer."""
    begin = time.perf_counter()
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        answer.read()
    return time.perf_counter() - begin


def scrape_roles(job: Path, run_dir: Path, seconds: float) -> dict[str, list[float]]:
    """Train on 2 servers and 2 workers; return the seconds of each scrape, by process, over ``seconds`` of training."""
    command = [sys.executable, "-m", "crossfade", "train", str(job), "--run-dir", str(run_dir)]
    process = subprocess.Popen(
        [*command, "--servers", "2", "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if line.startswith("metrics: "))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        targets = line.split()[1].replace("/metrics", "/targets")
        log = run_dir / "events.jsonl"
        while not (log.exists() and '"event": "step"' in log.read_text()):
            time.sleep(0.1)
        with urllib.request.urlopen(targets, timeout=60) as answer:
            found = {each["labels"]["process"]: each["targets"][0] for each in json.load(answer)}
        scrapes: dict[str, list[float]] = {process: [] for process in found}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, address in found.items():
                scrapes[name].append(seconds_to_scrape(address))
        return scrapes
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=1200, help="steps of each batch size, a third of them with metrics"
    )
    arguments = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores; {arguments.steps} steps, a third of them each way")
    with tempfile.TemporaryDirectory() as folder:
        data, job = Path(folder) / "data", Path(folder) / "job.yaml"
        spec = SyntheticSpec(queries=1_000_000, items=100_000, interactions=4_000_000, valid=0, test=0)
        write_synthetic(data, spec, seed=1)
        for batch in (16_384, 1_024):
            values = bpr_job(data, steps=arguments.steps + WARM_UP_STEPS)
            values["train"]["batch_size"] = batch
            turns, scrapes = side_by_side(values, Path(folder) / "run")
            on, off, again = (1e3 * statistics.median(steps) for steps in turns.steps)
            counting = statistics.median(turns.counting)
            scrape = f"; a scrape {1e3 * statistics.median(scrapes):.1f} ms" if scrapes else ""
            print(f"a batch of {batch:>6,}: {on:.3f} ms a step with, {off:.3f} without: {on / off:.4f} x", end="; ")
            print(f"without again: {again / off:.4f} x")
            print(f"    counting a step {1e6 * counting:.0f} µs, {1e5 * counting / off:.2f} %{scrape}")
        values = bpr_job(data, steps=1_000_000)
        job.write_text(yaml.safe_dump(values))
        for name, seconds in scrape_roles(job, Path(folder) / "dist", seconds=10).items():
            middle, most = 1e3 * statistics.median(seconds), 1e3 * max(seconds)
            print(f"a scrape of {name:<12} {middle:6.1f} ms median, {most:6.1f} ms max, n = {len(seconds)}")


if __name__ == "__main__":
    main()
