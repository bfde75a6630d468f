"""Measure reading throughput, from a local disk and from S3, against what the fastest engine consumes.

    .venv/bin/python benchmarks/reading.py [--repeats 3] [--interactions 16000000]

The data: synthetic listening of 1,000,000 customers and 100,000 tracks, as 'crossfade synthesize' writes it. Reading
is what a worker does before it samples: rows are fetched, decoded, checked, shuffled within blocks, and assigned to
steps of 16,384. The S3 server is SeaweedFS, which the script starts on this machine, on the same cores. The engine's
rate is that of training in process on BPR triples of the same tables, as benchmarks/bench.py measures it. The
three take turns within each repeat; medians are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from crossfade.base.io.folder import Folder
from crossfade.base.stopwatch import Stopwatch
from crossfade.trainer.data.manifest import read_manifest
from crossfade.trainer.data.reader import DEFAULT_READER_THREADS, InteractionReader, row_groups
from crossfade.trainer.data.schedule import BatchSchedule
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.synthetic import write_synthetic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from object_store import running_object_store
from suite.training import BATCH, bpr_job, train

TARGETS = {"local Parquet": 5.0, "SeaweedFS": 3.0}
PARTITIONS, SHUFFLE_BLOCK_ROWS = 16, 131_072
"""The defaults of a job."""


def read_epoch(uri: str, epoch: int) -> tuple[float, float]:
    """Return the interactions per second of one epoch, and the fraction of time spent waiting for a shuffle block."""
    folder = Folder(uri)
    manifest = read_manifest(folder)
    waiting = Stopwatch()
    with closing(InteractionReader(folder, manifest, DEFAULT_READER_THREADS)) as reader:
        groups = row_groups(manifest.splits["train"])
        schedule = BatchSchedule(
            reader, groups, batch_size=BATCH, partitions=PARTITIONS, shuffle_block_rows=SHUFFLE_BLOCK_ROWS, seed=1
        )
        begin = time.perf_counter()
        rows = sum(len(share.interactions) for share in schedule.slices(epoch, 0, 0, 1, wait_timer=waiting))
        seconds = time.perf_counter() - begin
    assert rows == schedule.rows
    return rows / seconds, waiting.seconds / seconds


def measure(folder: Path, arguments: argparse.Namespace) -> tuple[list[float], dict[str, list[tuple[float, float]]]]:
    """Return the engine's rates and, by storage, the rates of reading with the fraction of time spent waiting."""
    data = folder / "data"
    spec = SyntheticSpec(queries=1_000_000, items=100_000, interactions=arguments.interactions, valid=0, test=0)
    write_synthetic(data, spec, seed=1)
    job = bpr_job(data, steps=arguments.steps)
    (folder / "store").mkdir()
    engine: list[float] = []
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in TARGETS}
    with running_object_store(folder / "store") as server:
        os.environ.update(server.variables)
        places = dict(zip(TARGETS, (str(data), server.upload(data, "data")), strict=True))
        for repeat in range(arguments.repeats):
            engine.append(train(job, folder / "run")["triples_per_second"])
            for name, uri in places.items():
                rates[name].append(read_epoch(uri, repeat))
    return engine, rates


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="time N steps of training")
    parser.add_argument("--interactions", type=int, default=16_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine, rates = measure(Path(folder), arguments)
    consumed = statistics.median(engine)
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores; {arguments.interactions:,} interactions; medians of {arguments.repeats}")
    print(f"{'engine, in process':<22} {consumed:>12,.0f} triples/s")
    for name, measured in rates.items():
        rate, waited = (statistics.median(values) for values in zip(*measured, strict=True))
        print(
            f"{'read, ' + name:<22} {rate:>12,.0f} interactions/s   {rate / consumed:5.1f} x what the engine consumes "
            f"(target: {TARGETS[name]:.0f} x)   {100 * waited:.0f} % of it waiting for a shuffle block"
        )


if __name__ == "__main__":
    main()
