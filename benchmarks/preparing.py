"""Measure how fast raw events are generated and prepared, and in how much memory.

    .venv/bin/python benchmarks/preparing.py                          # 10 million events, about a minute
    .venv/bin/python benchmarks/preparing.py --events 20e6 100e6      # how both grow with the events
    .venv/bin/python benchmarks/preparing.py --at s3://BUCKET/PREFIX  # from and to S3

``crossfade synthesize --raw-events`` writes the events, with text IDs: one customer per hundred events (or another
number), half as many tracks. The last event of each customer is held out. Memory excludes the page cache (RssAnon of
/proc). Processor seconds are the cost of the work on a machine that runs other work too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from crossfade.base.io.folder import Folder
from crossfade.trainer.prepare.options import PrepareOptions, SyntheticSpec
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.prepare.synthetic_events import EVENT, EVENTS_FOLDER, TIMESTAMP, write_raw_events

_WEIGHTS = {"play": 1.0, "like": 3.0, "library_add": 5.0, "skip": -1.0}
_POLL_SECONDS = 0.1
_BLOCK_BYTES = 512


def main() -> None:
    """Generate and prepare, print the results, and delete the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--events", type=float, nargs="+", default=[10e6], metavar="N", help="generate N raw events (default: 10e6)"
    )
    parser.add_argument(
        "--events-per-customer",
        type=int,
        default=100,
        metavar="N",
        help="events of a customer on average (default: 100)",
    )
    parser.add_argument(
        "--at", metavar="DIR", help="keep the data in this folder or s3:// URI (default: a temporary folder)"
    )
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="keep temporary files of 'crossfade prepare' here")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of 'crossfade prepare' (default: its own)")
    arguments = parser.parse_args()
    for events in map(int, arguments.events):
        _run(events, arguments)


def _run(events: int, arguments: argparse.Namespace) -> None:
    """Generate and prepare ``events``, print the results, and delete the data."""
    queries = max(1, events // arguments.events_per_customer)
    spec = SyntheticSpec(queries=queries, items=max(50, queries // 2), interactions=events, genres=50)
    with tempfile.TemporaryDirectory() as folder:
        at = (arguments.at or folder).rstrip("/")
        _print(
            f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores; {events:,} events of {spec.queries:,} "
            f"{spec.query}s x {spec.items:,} {spec.item}s, {'on S3' if at.startswith('s3://') else 'in files'}"
        )
        try:
            with tempfile.TemporaryDirectory(dir=arguments.work_dir) as work:
                _print(f"generated {_measured(_generate, Path(work), at, spec).describe(events)}")
                measured = _measured(_prepare, Path(work), at, spec, Path(work), arguments.memory)
                _print(f"prepared  {measured.describe(events)}, {measured.spilled / 2**30:.2f} GiB spilled")
            _print(f"raw {_size(f'{at}/raw')}, prepared {_size(f'{at}/prepared')}")
        finally:
            for name in ("raw", "prepared"):
                Folder(f"{at}/{name}").delete()
            if arguments.at and not at.startswith("s3://") and not any(Path(at).iterdir()):
                shutil.rmtree(at)


@dataclass(frozen=True)
class Measured:
    """Seconds by the clock and of processors, and the largest memory and temporary files, in bytes."""

    seconds: float
    processors: float
    memory: int
    spilled: int

    def describe(self, events: int) -> str:
        """Describe all but the temporary files."""
        return (
            f"{self.seconds:7.1f} s, {events / self.seconds:11,.0f} events/s; {self.processors:7.1f} CPU s, "
            f"{1e6 * self.processors / events:.2f} µs an event; {self.memory / 2**30:.2f} GiB"
        )


def _print(line: str) -> None:
    print(line, flush=True)


def _measured(run: Callable[..., None], work: Path, *arguments: Any) -> Measured:
    """Call ``run`` in a separate process, whose temporary files are in ``work``."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=arguments)
    begin, used, peak, spilled = time.perf_counter(), _processor_seconds(), 0, 0
    process.start()
    while process.is_alive():
        peak = max(peak, _anonymous_bytes(process.pid or 0))
        spilled = max(spilled, _bytes_below(work))
        process.join(_POLL_SECONDS)
    if process.exitcode:
        raise SystemExit(f"{run.__name__} failed with exit code {process.exitcode}")
    return Measured(time.perf_counter() - begin, _processor_seconds() - used, peak, spilled)


def _processor_seconds() -> float:
    """Return the processor seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _bytes_below(folder: Path) -> int:
    """Return the disk space of the files below ``folder``, some of which may be deleted meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * _BLOCK_BYTES
    return total


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def _generate(at: str, spec: SyntheticSpec) -> None:
    phases = Phases()
    write_raw_events(f"{at}/raw", spec, seed=1, progress=phases)
    phases.end()


def _prepare(at: str, spec: SyntheticSpec, work: Path, memory: float | None) -> None:
    phases = Phases()
    prepare(
        PrepareOptions.of(
            out=f"{at}/prepared",
            train=[f"{at}/raw/{EVENTS_FOLDER}/*.parquet"],
            query=spec.query,
            item=spec.item,
            event=EVENT,
            event_weights=_WEIGHTS,
            timestamp=TIMESTAMP,
            hold_out_valid="none",
            hold_out_test="last-1",
            work_dir=work,
            memory=memory,
        ),
        phases,
    )
    phases.end()


class Phases:
    """Progress reporter that prints the wall-clock and processor seconds of each phase."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._began = (0.0, 0.0)

    def phase(self, name: str, total: int | None, unit: str) -> None:
        self.end()
        self._name, self._began = name, (time.perf_counter(), time.process_time())

    def advance(self, amount: int) -> None:
        pass

    def end(self) -> None:
        if self._name is not None:
            clock, processors = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
            print(f"  {self._name:24} {clock:7.1f} s, {processors:6.1f} CPU s", flush=True)
        self._name = None


def _size(uri: str) -> str:
    return f"{sum(Folder(uri).sizes().values()) / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
