"""Measure `crossfade serve` with wrk on loopback: latency at a fixed rate, the highest rate, and swaps under load.

    .venv/bin/python benchmarks/serving.py                              # a million items of 64 columns, one core
    .venv/bin/python benchmarks/serving.py --seconds 720 --swaps 3      # twelve minutes, with three newer models

The model is trained on synthetic data, which is kept in build/serving/ for the next time. The server with all that it
starts runs on the first core, wrk on the second. Each of 64 connections sends a request for ten recommendations to a
random customer after a random pause; wrk's latency is the time from the request to its response. It needs wrk (on
Debian and Ubuntu: apt-get install wrk).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
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

_FOLDER = Path("build/serving")
_CONNECTIONS = 64
_SCRIPT = """\
local rate, connections, customers = {rate}, {connections}, {customers}
function setup(thread) thread:set("seed", 1) end
function init() math.randomseed(seed) end
function delay() return rate > 0 and math.random() * 1930 * connections / rate or 0 end
function request()
  return wrk.format("GET", "/recommend?k=10&id=" .. 1000000 + math.random(1, customers))
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{{"requests": %d, "seconds": %.3f, "p50": %.2f, "p99": %.2f, "max": %.2f, "status": %d, "socket": %d}}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=float, default=1e6, metavar="N", help="serve N items (default: 1e6)")
    parser.add_argument("--customers", type=float, default=1e5, metavar="N", help="and N customers (default: 1e5)")
    parser.add_argument("--rate", type=int, default=500, metavar="N", help="requests per second (default: 500)")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="measure for N seconds (default: 60)")
    parser.add_argument("--swaps", type=int, default=0, metavar="N", help="replace the model N times meanwhile")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("serving: wrk is missing (on Debian and Ubuntu: apt-get install wrk)")
    items, customers = int(arguments.items), int(arguments.customers)
    runs = [trained(items, customers, seed) for seed in (1, 2)]
    with tempfile.TemporaryDirectory(prefix="serving-", dir=_FOLDER) as work:
        run = Path(work) / "run"
        use(run, runs[0])
        start = time.monotonic()
        with served(run) as url:
            print(
                f"{items:,} items, {customers:,} customers: serving after {time.monotonic() - start:.0f} s", flush=True
            )
            measure(url, arguments.rate, 10, customers)  # warm up
            if not arguments.swaps:
                report("highest rate", measure(url, 0, arguments.seconds, customers))
            with swapping(run, runs, arguments.swaps, arguments.seconds):
                found = measure(url, arguments.rate, arguments.seconds, customers)
            report(f"{arguments.rate} requests/s, {arguments.swaps} swaps", found)
            print(f"version: {json.load(urllib.request.urlopen(f'{url}healthz'))['version']}")


def trained(items: int, customers: int, seed: int) -> Path:
    """Return a run on synthetic data, which is trained unless an earlier call has done so."""
    name = f"{items}-{customers}"
    data, run = _FOLDER / f"data-{name}", _FOLDER / f"run-{name}-{seed}"
    if not data.exists():
        sizes = ("--queries", customers, "--items", items, "--interactions", 20 * items)
        crossfade("synthesize", *sizes, "--genres", 100, "--valid", 0, "--test", 0, "--out", data)
    if not (run / "report.json").exists():
        job = _FOLDER / f"job-{name}.yaml"
        job.write_text(
            json.dumps(
                {
                    "name": "serving",
                    "data": {"path": str(data)},
                    "model": {"dim": 64, "score": "dot", "temperature": 1.0},
                    "loss": "bpr",
                    "negatives": {"kind": "per_example", "count": 1},
                    "train": {"epochs": 3, "batch_size": 16384},
                }
            )
        )
        crossfade("train", job, "--run-dir", run, "--set", f"train.seed={seed}", "--overwrite")
    return run


def use(run: Path, source: Path) -> None:
    """Make ``run`` have the embeddings of ``source``, at once."""
    run.mkdir(exist_ok=True)
    shutil.copy(source / "job.yaml", run / "job.yaml")
    copy, old = run / "embeddings.copy", run / "embeddings.old"
    shutil.copytree(source / "embeddings", copy, copy_function=shutil.copy)
    if (run / "embeddings").exists():
        (run / "embeddings").rename(old)
    copy.rename(run / "embeddings")
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def swapping(run: Path, runs: list[Path], swaps: int, seconds: int) -> Iterator[None]:
    """Replace the embeddings of ``run`` ``swaps`` times within ``seconds``."""

    def swap() -> None:
        for number in range(swaps):
            if ended.wait(seconds / (swaps + 2)):
                return
            use(run, runs[(number + 1) % 2])

    ended = threading.Event()
    thread = threading.Thread(target=swap)
    thread.start()
    yield
    ended.set()
    thread.join()


@contextmanager
def served(run: Path) -> Iterator[str]:
    """Serve ``run`` on the first core."""
    words = [
        "taskset",
        "-c",
        "0",
        sys.executable,
        "-m",
        "crossfade",
        "serve",
        str(run),
        "--port",
        "0",
        "--refresh",
        "5",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        while True:
            try:
                urllib.request.urlopen(f"{found[0]}healthz").close()
            except OSError:
                time.sleep(0.1)
            else:
                break
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def measure(url: str, rate: int, seconds: int, customers: int) -> dict[str, Any]:
    """Return what wrk measures; ``rate`` 0: as fast as possible, by a quarter of the connections."""
    connections = _CONNECTIONS if rate else _CONNECTIONS // 4
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT.format(rate=rate, connections=connections, customers=customers))
        script.flush()
        options = ("-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", "10s", "-s", script.name)
        printed = subprocess.run(
            ["taskset", "-c", "1", "wrk", *options, url], check=True, capture_output=True, text=True
        ).stdout
    found: dict[str, Any] = json.loads(printed[printed.index('{"requests"') :])
    return found


def report(name: str, found: dict[str, Any]) -> None:
    """Print a measurement."""
    errors = found["status"] + found["socket"]
    print(
        f"{name}: {found['requests'] / found['seconds']:,.0f} requests/s, p50 {found['p50']} ms, "
        f"p99 {found['p99']} ms, max {found['max']} ms, {found['requests']:,} requests, {errors} errors",
        flush=True,
    )


def crossfade(*words: object) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "crossfade", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
