"""Measure how long events take from their file to a served vector, and by stage.

    .venv/bin/python benchmarks/refresh.py [--customers 1e6] [--tracks 2e5] [--events 20e6] [--new 1e5] [--files 3]

A service takes its first version from the events; `crossfade serve` serves it, and `crossfade refresh --every 1s` looks
for more. Then files of new events arrive, one after the other has been served: the time from when a file is complete to
when the server answers from the version that has it, which is the seconds of its stages, and of copying it to the
server. The memory is that of each command with its processes once the version is served.

    .venv/bin/python benchmarks/refresh.py --events 40e6 --new 3e5 --files 60 --interval 60 --replay 4 --epochs 2

With --interval, a file arrives every so many seconds, whether those before are served or not. --replay and
--epochs are those of the service, by default 30 and 4.
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
import pyarrow as pa
import pyarrow.parquet as pq
from raw_events import EventGenerator, write_raw_events

from crossfade.trainer.prepare.options import SyntheticSpec

SERVICE = """\
name: bench
events: [events/*.parquet]
prepare: {query: customer, item: track, event: event, event_weights: "play=1,like=3,library_add=5,skip=-1",
          timestamp: timestamp}
job: {train: {epochs: 1}}
publish_if: null
settle_seconds: 0
"""
CROSSFADE = [sys.executable, "-m", "crossfade"]
POLL_SECONDS = 0.1
GIB = 2**30


def synthesize(folder: Path, customers: int, tracks: int, events: int) -> list[Path]:
    """Generate raw events, in the order of their times, and return their files."""
    spec = SyntheticSpec(queries=customers, items=tracks, interactions=events)
    write_raw_events(folder / "raw", EventGenerator(spec, seed=0))
    return sorted((folder / "raw" / "events").glob("*.parquet"))


def divide(files: list[Path], folder: Path, new: int, count: int) -> tuple[list[Path], list[Path]]:
    """Cut the last ``count`` times ``new`` events off the files; return earlier files, and those of new events."""
    earlier = list(files)
    table = pq.read_table(earlier.pop())
    while table.num_rows <= new * count:
        if not earlier:
            raise SystemExit(f"there are only {table.num_rows:,} events: give fewer new ones")
        table = pa.concat_tables([pq.read_table(earlier.pop()), table])
    first = table.num_rows - new * count
    pq.write_table(table.slice(0, first), folder / "last.parquet")
    parts = []
    for number in range(count):
        parts.append(folder / f"new-{number:02}.parquet")
        pq.write_table(table.slice(first + number * new, new), parts[-1])
    return [*earlier, folder / "last.parquet"], parts


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
    """Return the version of the service that the server answers from; 0 before it answers."""
    with suppress(urllib.error.URLError), urllib.request.urlopen(f"{address}healthz") as answer:
        return int(json.load(answer)["version"])
    return 0


def tree_gib(process: subprocess.Popen[str]) -> float:
    """Return the memory of a process and its children."""
    root = psutil.Process(process.pid)
    return sum(each.memory_info().rss for each in (root, *root.children(recursive=True))) / GIB


def measure(folder: Path, new: list[Path], interval: float | None) -> list[dict[str, Any]]:
    """Let the files arrive, and return the record of each version with its seconds until it was served.

    A file arrives every ``interval`` seconds or, without, once the one before is served.
    """
    versions, found, arrived = folder / "services" / "bench", list[dict[str, Any]](), dict[str, float]()
    serve = ["serve", "services/bench", "--refresh", "0.5", "--port", "0", "--work-dir", "copies"]
    with (
        running(serve, folder) as server,
        running(["refresh", "service.yaml", "--every", "1s", "--json"], folder) as service,
    ):
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        while not served_version(address):
            time.sleep(POLL_SECONDS)
        begin = time.monotonic()
        while sum(len(record["files"]) for record in found) < len(new):
            served = sum(len(record["files"]) for record in found)
            is_due = served == len(arrived) if interval is None else time.monotonic() > begin + interval * len(arrived)
            if is_due and len(arrived) < len(new):
                path = new[len(arrived)]
                shutil.copy(path, partial := folder / "events" / f".{path.name}")
                partial.rename(folder / "events" / path.name)
                arrived[path.name] = time.monotonic()
            current = served_version(address)
            for number in range(2 + len(found), current + 1):
                record = json.loads((versions / f"version-{number:06}.json").read_text())
                first = min(arrived[Path(file["uri"]).name] for file in record["files"])
                seconds = {**record["seconds"], "served": time.monotonic() - first}
                found.append(
                    {**record, "seconds": seconds, "gib": [round(tree_gib(each), 2) for each in (service, server)]}
                )
                print(line_of(found[-1]), flush=True)
            time.sleep(POLL_SECONDS)
    return found


def line_of(record: dict[str, Any]) -> str:
    """Format the line of a version."""
    seconds = "".join(f"{stage} {value:.1f} s, " for stage, value in record["seconds"].items())
    start = f"version {record['number']}: {record['events']:,} interactions of {len(record['files'])} files"
    return f"{start}, {seconds}GiB of refresh, of serve: {record['gib']}"


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("customers", 1e6), ("tracks", 2e5), ("events", 20e6), ("new", 1e5), ("files", 3)):
        parser.add_argument(f"--{name}", type=float, default=default, metavar="N", help=f"(default: {default:g})")
    parser.add_argument("--interval", type=float, metavar="SECONDS", help="let a file arrive every so many seconds")
    parser.add_argument("--replay", type=float, default=30, metavar="N", help="replay of the service (default: 30)")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="epochs of an increment (default: 4)")
    arguments = parser.parse_args()
    sizes = {name: int(getattr(arguments, name)) for name in ("customers", "tracks", "events", "new", "files")}
    with tempfile.TemporaryDirectory(prefix="refresh-") as temporary:
        folder = Path(temporary)
        files = synthesize(folder, sizes["customers"], sizes["tracks"], sizes["events"])
        earlier, new = divide(files, folder, sizes["new"], sizes["files"])
        keys = f"replay: {arguments.replay}\nincrement_job: {{train: {{epochs: {arguments.epochs}}}}}\n"
        measure_service(folder, earlier, new, arguments.interval, SERVICE + keys)


def measure_service(folder: Path, earlier: list[Path], new: list[Path], interval: float | None, service: str) -> None:
    """Train and serve a version of the earlier files, and print the stages of each further one."""
    (folder / "events").mkdir()
    for path in earlier:
        path.rename(folder / "events" / path.name)
    (folder / "service.yaml").write_text(service)
    subprocess.run([*CROSSFADE, "refresh", "service.yaml"], cwd=folder, check=True)
    found = measure(folder, new, interval)
    seconds = [each["seconds"]["served"] for each in found]
    print(f"from file to served vector: median {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s")


if __name__ == "__main__":
    main()
