"""Measure how fast raw events are generated and prepared, and in how much memory.

    .venv/bin/python benchmarks/preparing.py                          # 10 million events, about a minute
    .venv/bin/python benchmarks/preparing.py --events 20e6 100e6      # how both grow with the events
    .venv/bin/python benchmarks/preparing.py --at s3://BUCKET/PREFIX  # from and to S3
    .venv/bin/python benchmarks/preparing.py --events 1e6 --engine spark     # on Spark, and that it writes the same
    .venv/bin/python benchmarks/preparing.py --events 1e8 --engine spark --master 'local-cluster[2,1,1024]'
    .venv/bin/python benchmarks/preparing.py --increment 100e3 --onto 1e6 100e6 --events-per-customer 10
                                                                      # new events onto small and large datasets

``raw_events.py`` writes the events, with text IDs: one customer per hundred events (or another
number), half as many tracks. The last event of each customer is held out. Memory excludes the page cache (RssAnon of
/proc). Processor seconds are the cost of the work on a machine that runs other work too.

``--engine spark`` prepares the events and a file with faults on ``--master``, after DuckDB, and compares all files. Its
processor seconds and memory are those of Java and of tasks, too; the largest executor of ``local-cluster[2,1,1024]``, a
process of 1 GiB of Java with one task at a time and what that starts, is printed beside them.

The datasets that ``--increment`` extends are prepared from events in the same way. A hundredth of the customers and
tracks of the new events are new. Datasets take turns, with and without ``--replay 1``; of three rounds, the one with
the median of processor seconds is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from raw_events import EVENT, EVENTS_FOLDER, TIMESTAMP, EventGenerator, write_raw_events

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.prepare.options import PrepareOptions, SyntheticSpec
from crossfade.trainer.prepare.pipeline import prepare

_WEIGHTS = {"play": 1.0, "like": 3.0, "library_add": 5.0, "skip": -1.0}
_GROWTH, _ROUNDS = 1.01, 3
_POLL_SECONDS = 0.1
_EXECUTOR = "org.apache.spark.executor.CoarseGrainedExecutorBackend"
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
    parser.add_argument("--engine", choices=["duckdb", "spark"], default="duckdb", help="compare with this engine")
    parser.add_argument("--master", default="local[2]", help="of Spark (default: %(default)s)")
    parser.add_argument("--increment", type=float, metavar="N", help="prepare N new events onto datasets instead")
    parser.add_argument(
        "--onto", type=float, nargs="+", default=[1e6], metavar="N", help="events of these datasets (default: 1e6)"
    )
    arguments = parser.parse_args()
    if arguments.increment is not None:
        _run_increments(int(arguments.increment), [int(events) for events in arguments.onto], arguments)
        return
    for events in map(int, arguments.events):
        _run(events, arguments)


def _run(events: int, arguments: argparse.Namespace) -> None:
    """Generate and prepare ``events``, print the results, and delete the data."""
    spec = _spec(events, events // arguments.events_per_customer)
    with tempfile.TemporaryDirectory() as folder:
        at = (arguments.at or folder).rstrip("/")
        _print(
            f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores; {events:,} events of {spec.queries:,} "
            f"{spec.query}s x {spec.items:,} {spec.item}s, {'on S3' if at.startswith('s3://') else 'in files'}"
        )
        try:
            with tempfile.TemporaryDirectory(dir=arguments.work_dir) as work:
                _print(f"generated {_measured(_generate, Path(work), at, spec).describe(events)}")
                if arguments.engine == "spark":
                    _write_faults(f"{at}/raw", spec)
                measured = _measured(_prepare, Path(work), at, spec, Path(work), arguments.memory)
                _print(f"prepared  {measured.describe(events)}, {measured.spilled / 2**30:.2f} GiB spilled")
                if arguments.engine == "spark":
                    options = {"engine": "spark", "out": f"{at}/spark"}
                    on_spark = at, spec, Path(work), arguments.memory, options, arguments.master
                    other = _measured(_prepare, Path(work), *on_spark)
                    ratio = other.seconds / measured.seconds
                    executor = f", {other.executor / 2**30:.2f} in an executor" if other.executor else ""
                    _print(f"on Spark  {other.describe(events)}{executor}")
                    _print(f"{ratio:.2f} times the seconds of DuckDB")
                    _compare(f"{at}/prepared", f"{at}/spark")
            _print(f"raw {_size(f'{at}/raw')}, prepared {_size(f'{at}/prepared')}")
        finally:
            for name in ("raw", "prepared", "spark"):
                Folder(f"{at}/{name}").delete()
            if arguments.at and not at.startswith("s3://") and not any(Path(at).iterdir()):
                shutil.rmtree(at)


def _write_faults(raw: str, spec: SyntheticSpec) -> None:
    """Write a file with a row of each fault that a column can have, and with other rows."""
    lines = [f"{spec.query},{spec.item},{EVENT},{TIMESTAMP}"]
    times = [f"2024-05-{number % 28 + 1:02}T10:00:00" for number in range(1_000)]
    lines += [f"customer{number % 7},track{number},play,{time}" for number, time in enumerate(times)]
    lines += [f",track1,play,{times[0]}", f"customer1,,play,{times[0]}", "customer1,track1,play,soon", "customer1"]
    Folder(f"{raw}/{EVENTS_FOLDER}").write("with-faults.csv", "\n".join(lines).encode())


def _compare(one: str, other: str) -> None:
    """Print whether two datasets are of the same files with the same bytes.

    Raises:
        SystemExit: they are not.
    """
    folders = Folder(one), Folder(other)
    names = [sorted(folder.sizes()) for folder in folders]
    differing = [name for name in names[0] if names[0] != names[1] or folders[0].read(name) != folders[1].read(name)]
    if differing:
        raise SystemExit(f"these files differ: {', '.join(differing)}")
    _print(f"all {len(names[0])} files are the same")


def _spec(events: int, queries: int) -> SyntheticSpec:
    queries = max(1, queries)
    return SyntheticSpec(queries=queries, items=max(50, queries // 2), interactions=events, genres=50, valid=0, test=0)


def _run_increments(new: int, onto: Sequence[int], arguments: argparse.Namespace) -> None:
    """Write datasets of as many events as in ``onto``, prepare ``new`` events onto each, and delete the data."""
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as work, tempfile.TemporaryDirectory() as folder:
        at = (arguments.at or folder).rstrip("/")
        _print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores; {new:,} events onto a dataset")
        try:
            for events in onto:
                customers, to = events // arguments.events_per_customer, f"{at}/{events}"
                spec = _spec(events, customers)
                _measured(_generate, Path(work), to, spec)
                _measured(_prepare, Path(work), to, spec, Path(work), arguments.memory, {"out": f"{to}/base"})
                Folder(f"{to}/raw").delete()
                _measured(_generate, Path(work), to, _spec(new, round(customers * _GROWTH)))
            kinds = [(events, replay) for events in onto for replay in (None, 1.0)]
            measured: dict[tuple[int, float | None], list[Measured]] = {kind: [] for kind in kinds}
            for events, replay in kinds * _ROUNDS:
                to = f"{at}/{events}"
                options = {"base": f"{to}/base", "replay": replay, "out": f"{to}/prepared", "overwrite": True}
                given = Path(work), to, _spec(new, 1), Path(work), arguments.memory, options
                measured[events, replay].append(_measured(_prepare, *given))
            for (events, replay), rounds in measured.items():
                median = sorted(rounds, key=lambda one: one.processors)[_ROUNDS // 2]
                _print(f"of {events:11,}{', replay 1' if replay else '          '} {median.describe(new)}")
        finally:
            for events in onto:
                Folder(f"{at}/{events}").delete()


@dataclass(frozen=True)
class Measured:
    """Seconds by the clock and of processors; the largest memory, temporary files, and executor of Spark, in bytes."""

    seconds: float
    processors: float
    memory: int
    spilled: int
    executor: int

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
    begin, used, peak, spilled, executor = time.perf_counter(), _processor_seconds(), 0, 0, 0
    sampled: dict[tuple[int, float], float] = {}
    process.start()
    while process.is_alive():
        started = _processes_of(process.pid or 0)
        peak = max(peak, sum(_anonymous_bytes_of(each.pid) for each in started))
        for each in started:
            with suppress(psutil.Error):
                times = each.cpu_times()
                sampled[each.pid, each.create_time()] = times.user + times.system
                if _EXECUTOR in each.cmdline():
                    executor = max(executor, sum(_anonymous_bytes_of(own.pid) for own in _processes_of(each.pid)))
        spilled = max(spilled, _bytes_below(work))
        process.join(_POLL_SECONDS)
    if process.exitcode:
        raise SystemExit(f"{run.__name__} failed with exit code {process.exitcode}")
    # Nothing waits for Java's end, so that its seconds are only sampled.
    processors = max(_processor_seconds() - used, sum(sampled.values()))
    return Measured(time.perf_counter() - begin, processors, peak, spilled, executor)


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


def _processes_of(pid: int) -> list[psutil.Process]:
    """Return a process and those that it has started, which may end meanwhile."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _anonymous_bytes_of(pid: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return 0


def _generate(at: str, spec: SyntheticSpec) -> None:
    phases = Phases()
    write_raw_events(f"{at}/raw", EventGenerator(spec, seed=1), progress=phases)
    phases.end()


def _prepare(
    at: str,
    spec: SyntheticSpec,
    work: Path,
    memory: float | None,
    options: Mapping[str, Any] | None = None,
    master: str | None = None,
) -> None:
    """Prepare the raw events, as the dataset ``prepared`` if ``options`` say nothing else."""
    if master is not None:
        from pyspark.sql import SparkSession

        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.master(master).config("spark.ui.showConsoleProgress", "false")
        session = builder.config("spark.executor.memory", "1g").getOrCreate()
    phases = Phases() if master or not options else NullReporter()
    prepare(
        PrepareOptions.of(
            **{"out": f"{at}/prepared", "hold_out_test": "last-1", **(options or {})},
            train=[f"{at}/raw/{EVENTS_FOLDER}/*"],
            on_bad_line="skip",
            query=spec.query,
            item=spec.item,
            event=EVENT,
            event_weights=_WEIGHTS,
            timestamp=TIMESTAMP,
            hold_out_valid="none",
            work_dir=work,
            memory=memory,
        ),
        phases,
    )
    if isinstance(phases, Phases):
        phases.end()
    if master is not None:
        session.stop()


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
