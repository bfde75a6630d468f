"""Measure Crossfade against its peers and the machine, and write docs/evidence.md.

    make bench                                  everything: several hours; it resumes where it was interrupted
    make bench ARGS=--quick                     all sections at small sizes, in minutes
    make bench ARGS='--only waiting'            what people wait for besides training, beside implicit and DuckDB
    make bench ARGS='--only single products --repeats 3'
    make bench ARGS='--only gpu'                steps on a GPU; only where named, since few machines have one
    .venv/bin/python benchmarks/bench.py --list

Peers are installed from the Python package index, each into its own virtual environment in build/peers/. The page lists
those that cannot be installed or run, with the reason. Each measurement runs in a separate process, and the
measurements of a section alternate within a repeat, so that other load affects all of them.

Results are appended to build/bench/ as they are made. Those of the same commit are used again by the next run; failed
ones are tried again. With --only, the page keeps the figures of other sections, if they are of the same scale and
machine; each section names its commit and date. --fresh measures everything again, and --render only writes the page,
from docs/performance.json. With --quick, the page goes to build/bench/quick/. The exit code is 1 if a measurement
failed, unless a peer is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite.environments import NOT_INSTALLED
from suite.machine import commit, describe_machine, describe_versions
from suite.page import PAGE, RECORD, fill, render
from suite.plan import ENVIRONMENTS, FULL, QUICK, SECTIONS, Measurement, measurements
from suite.processes import ROOT, MeasurementError
from suite.provenance import keep_other_sections
from suite.results import Result, Results

FOLDER = ROOT / "build" / "bench"
REPEATS = 5


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure(measurement: Measurement, repeat: int, revision: str) -> Result:
    """Run one measurement; a failure becomes a result with its reason."""
    load, begin = os.getloadavg()[0], time.monotonic()
    day = today()
    values: dict[str, Any] = {}
    error = ""
    try:
        values = measurement.run()
    except MeasurementError as failure:
        error = str(failure)
    seconds = round(time.monotonic() - begin, 1)
    return Result(measurement.key, repeat, revision, values, error, seconds, round(load, 2), day)


def today() -> str:
    """Return the day, as the page and its record write it."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def headline(result: Result) -> str:
    """Return the first figure of a result, or its error."""
    if result.error:
        return f"failed: {result.error}"
    name, value = next(iter(result.values.items()))
    return f"{name} {value:,.4g}"


def run_all(planned: list[Measurement], repeats: int, results: Results, revision: str) -> None:
    """Measure what is missing, section by section; within a section, all measurements once per repeat."""
    total, done = len(planned) * repeats, 0
    begin = time.monotonic()
    for section in dict.fromkeys(measurement.section for measurement in planned):
        failed: set[str] = set()
        for repeat in range(repeats):
            for measurement in (each for each in planned if each.section == section):
                done += 1
                if results.has(measurement.key, repeat) or measurement.key in failed:
                    continue
                result = measure(measurement, repeat, revision)
                results.add(result)
                if result.error:
                    failed.add(measurement.key)
                minutes = (time.monotonic() - begin) / 60
                say(f"{done}/{total} {minutes:5.1f} min  {result.key}: {headline(result)} ({result.seconds:.0f} s)")


def record_of(results: Results, revision: str, scale: str, command: str) -> dict[str, Any]:
    """Return everything that the page is written from."""
    return {
        "scale": scale,
        "commit": revision,
        "date": today(),
        "command": command,
        "machine": describe_machine(),
        "versions": describe_versions(ENVIRONMENTS),
        "measurements": [asdict(result) for result in results],
    }


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write the page and its record into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    (folder / PAGE).write_text(fill(text, render(record)), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat, only peers that are installed")
    parser.add_argument("--peers", action="store_true", help="with --quick: install missing peers, as without --quick")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"measure only: {', '.join(SECTIONS)}"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help=f"take medians of N (default: {REPEATS}; --quick: 1)")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured for this commit")
    parser.add_argument("--list", action="store_true", help="list all measurements; make none")
    parser.add_argument("--render", action="store_true", help="write the page again from its JSON; measure nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the page to DIR (default: docs)")
    return parser.parse_args()


def main() -> int:
    """Measure, and write the page."""
    arguments = _arguments()
    scale = QUICK if arguments.quick else FULL
    out = arguments.out or (FOLDER / "quick" if arguments.quick else ROOT / "docs")
    if arguments.render:
        write(out, json.loads((out / RECORD).read_text(encoding="utf-8")))
        return 0
    planned = [
        measurement
        for measurement in measurements(scale, FOLDER, install=arguments.peers or not arguments.quick)
        if measurement.section in (arguments.only or [name for name in SECTIONS if name != "gpu"])
    ]
    if arguments.list:
        print("\n".join(measurement.key for measurement in planned))
        return 0
    revision, file = commit(), FOLDER / f"{scale.name}.jsonl"
    if arguments.fresh:
        file.unlink(missing_ok=True)
    results = Results.open(file, revision)
    repeats = arguments.repeats or (1 if arguments.quick else REPEATS)
    say(f"{len(planned)} measurements, {repeats} repeats, commit {revision}; results in {file}")
    command = " ".join(["make bench", *([f"ARGS='{' '.join(sys.argv[1:])}'"] if sys.argv[1:] else [])])
    # Each measurement runs in a separate process group; an exception ends it too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_all(planned, repeats, results, revision)
    except KeyboardInterrupt:
        say("interrupted; the same command resumes")
        return 130
    record = record_of(results, revision, scale.name, command)
    if arguments.only and (out / RECORD).exists():
        previous = json.loads((out / RECORD).read_text(encoding="utf-8"))
        record = keep_other_sections(record, previous, arguments.only, say)
    write(out, record)
    print(out / PAGE)
    return 1 if any(result.error and not result.error.startswith(NOT_INSTALLED) for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
