"""Measure how long events take from their file to a served vector, and by stage.

    .venv/bin/python benchmarks/refresh.py [--customers 1e6] [--tracks 2e5] [--events 20e6] [--new 1e5] [--files 3]

A service takes its first version from the events; `crossfade serve` serves it, and `crossfade refresh --every 1s` looks
for more. Then files of new events arrive, one after the other has been served: the time from when a file is complete to
when the server answers from the version that has it, which is the seconds of its stages, and of copying it to the
server. The memory is that of each command with its processes once the version is served.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

SERVICE = """\
name: bench
events: [events/*.parquet]
prepare: {query: customer, item: track, event: event, event_weights: "play=1,like=3,library_add=5,skip=-1",
          timestamp: timestamp}
job: {train: {epochs: 1}}
settle_seconds: 0
"""
CROSSFADE = [sys.executable, "-m", "crossfade"]
POLL_SECONDS = 0.1
GIB = 2**30


def synthesize(folder: Path, customers: int, tracks: int, events: int) -> list[Path]:
    """Generate raw events, in the order of their times, and return their files."""
    sizes = ["--queries", str(customers), "--items", str(tracks), "--interactions", str(events)]
    subprocess.run([*CROSSFADE, "synthesize", *sizes, "--raw-events", "--out", str(folder / "raw")], check=True)
    return sorted((folder / "raw" / "events").glob("*.parquet"))


def divide(files: list[Path], folder: Path, new: int, count: int) -> tuple[list[Path], list[Path]]:
    """Cut the last ``count`` times ``new`` events off the last file; return earlier files, and those of new events."""
    table = pq.read_table(files[-1])
    first = table.num_rows - new * count
    if first <= 0:
        raise SystemExit(f"the last file has {table.num_rows:,} events: give fewer new ones")
    pq.write_table(table.slice(0, first), folder / "last.parquet")
    parts = []
    for number in range(count):
        parts.append(folder / f"new-{number:02}.parquet")
        pq.write_table(table.slice(first + number * new, new), parts[-1])
    return [*files[:-1], folder / "last.parquet"], parts


@contextmanager
def running(words: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command of crossfade while the context lasts."""
    process = subprocess.Popen([*CROSSFADE, *words], cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def served_version(address: str) -> int:
    """Return the number of the version that the server has copied last; 0 before it answers."""
    with suppress(urllib.error.URLError), urllib.request.urlopen(f"{address}healthz") as answer:
        return int(json.load(answer)["version"])
    return 0


def measure(folder: Path, new: list[Path]) -> list[dict[str, Any]]:
    """Let the files arrive, and return the record of each version with its seconds until it was served."""
    found = []
    with running(["serve", "services/bench", "--refresh", "0.5", "--port", "0"], folder) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with running(["refresh", "service.yaml", "--every", "1s", "--json"], folder) as service:
            assert service.stdout is not None
            while not served_version(address):
                time.sleep(POLL_SECONDS)
            for path in new:
                before = served_version(address)
                partial = folder / "events" / f".{path.name}"
                shutil.copy(path, partial)
                partial.rename(folder / "events" / path.name)
                began = time.monotonic()
                record = json.loads(service.stdout.readline())
                decided = time.monotonic() - began
                while served_version(address) == before:
                    time.sleep(POLL_SECONDS)
                seconds = {**record["seconds"], "decided": decided, "served": time.monotonic() - began}
                tree = [psutil.Process(pid) for pid in (service.pid, server.pid)]
                memory = [sum(each.memory_info().rss for each in (one, *one.children(recursive=True))) for one in tree]
                found.append({**record, "seconds": seconds, "gib": [round(size / GIB, 2) for size in memory]})
    return found


def main() -> None:
    """Measure, and print the stages of each version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("customers", 1e6), ("tracks", 2e5), ("events", 20e6), ("new", 1e5), ("files", 3)):
        parser.add_argument(f"--{name}", type=float, default=default, metavar="N", help=f"(default: {default:g})")
    arguments = parser.parse_args()
    sizes = {name: int(value) for name, value in vars(arguments).items()}
    with tempfile.TemporaryDirectory(prefix="refresh-") as temporary:
        folder = Path(temporary)
        files = synthesize(folder, sizes["customers"], sizes["tracks"], sizes["events"])
        earlier, new = divide(files, folder, sizes["new"], sizes["files"])
        (folder / "events").mkdir()
        for path in earlier:
            path.rename(folder / "events" / path.name)
        (folder / "service.yaml").write_text(SERVICE)
        subprocess.run([*CROSSFADE, "refresh", "service.yaml"], cwd=folder, check=True)
        found = measure(folder, new)
    stages = list(found[0]["seconds"])
    print(
        f"{'version':<10}{'events':>10}" + "".join(f"{stage:>10}" for stage in stages) + "   GiB of refresh, of serve"
    )
    for each in found:
        seconds = "".join(f"{each['seconds'][stage]:>10.1f}" for stage in stages)
        print(f"{each['number']:<10}{each['events']:>10,}{seconds}   {each['gib']}")
    print(f"median from file to served vector: {statistics.median(each['seconds']['served'] for each in found):.1f} s")


if __name__ == "__main__":
    main()
