"""Write the section of docs/performance.md on GPUs, from the record of ``benchmarks/gpu.py`` or without one.

lines = gpu_section(read_gpus(docs))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from suite.gpu_plan import FULL
from suite.markup import absence, cell, prose, table, thousands
from suite.provenance import origin, results_of
from suite.results import Results
from suite.targets import RATE, Target, median_of, ratio_of

RECORD = "gpus.json"
BPR = {
    "crossfade": "Crossfade, row-wise AdaGrad",
    "fbgemm": "FBGEMM, row-wise AdaGrad",
    "crossfade-adam": "Crossfade, Adam",
    "torch-sparse": "PyTorch, Embedding(sparse=True) and SparseAdam",
    "implicit": "implicit, BPR in CUDA, SGD",
}
SOFTMAX = {
    "crossfade": "Crossfade, Adam",
    "torch-sparse": "PyTorch, Embedding(sparse=True) and SparseAdam",
}
TABLES = {"resident": "all rows on the GPU", "spilled": "half of the bytes on the GPU"}
TRAININGS = {"bpr": "BPR", "softmax": "softmax, batch negatives"}
PHASES = ("data", "sample", "gradients")


def read_gpus(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run on a GPU in ``folder``, None if there is none."""
    file = folder / RECORD
    if not file.exists():
        return None
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def gpu_targets() -> list[Target]:
    """Return the targets in the order of the page."""
    ratio = partial(ratio_of, "bpr/crossfade", "bpr/fbgemm", RATE)
    softmax = partial(ratio_of, "softmax/crossfade", "softmax/torch-sparse", RATE)
    share = partial(median_of, "bandwidth/update", "share")
    return [
        Target("BPR, tables in GPU memory, over FBGEMM", 1.2, True, ratio),
        Target("softmax, batch negatives, over PyTorch's sparse embeddings", 5.0, True, softmax),
        Target("update of rows: share of a copy's bandwidth", 0.6, True, share, percent=True),
    ]


def gpu_section(record: dict[str, Any] | None) -> Iterator[str]:
    """Yield the section, with a table for each group of measurements if there is a record."""
    yield "## GPUs\n"
    results = Results(results_of(record) if record else ())
    if record is None:
        yield prose(
            """No GPU was available: these have not run; `make bench-gpu` measures them, and writes this section. What
            can be used on a GPU, and what was tried, is in [gpus.md](gpus.md)."""
        )
    else:
        yield prose(f"{origin(results)} Written by `{record['command']}` from [{RECORD}]({RECORD}).")
        yield table(["", ""], _facts(record)) + "\n"
    rows = []
    for target in gpu_targets():
        value = target.measure(results)
        bound = f"≥ {target.format(target.bound)}"
        rows.append([target.text, bound, "" if value is None else target.format(value), target.verdict(value)])
    yield table(["ratio", "target", "measured", ""], rows) + "\n"
    yield prose(_METHOD)
    if record is not None:
        yield from _tables(results)


_METHOD = f"""The work: {FULL.customers:,} customers and {FULL.tracks:,} tracks with {FULL.dim} float32 columns, IDs by
Zipf's law with exponent 1.1. A step of BPR has {FULL.batch:,} triples, one of softmax {FULL.softmax_batch:,} examples
whose items are one another's negatives. Crossfade's batches are made beforehand, by the code with which a training
makes them in a background thread; a step copies their indexes to the GPU and waits for its result. Peers get arrays of
IDs in page-locked memory, and wait only after the last step. Measurements of a section take turns, each in its own
process; figures are medians, and ratios are medians of those of one turn. An update reads the number and the gradient
of {FULL.active_rows:,} random rows of {FULL.table_rows:,}, and reads and writes their weights and state."""


def _facts(record: dict[str, Any]) -> list[list[str]]:
    gpu, machine = record["gpu"], record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    card = f"{gpu['name']}, {gpu['memory_gib']} GiB, compute capability {gpu['capability']}"
    return [
        ["GPU", f"{card}; its driver supports CUDA up to {gpu['cuda_version']}"],
        ["host", f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['system']}"],
        ["versions", versions],
    ]


def _tables(results: Results) -> Iterator[str]:
    figures = ("copy_gbytes", "update_gbytes", "share")
    yield table(
        ["copy, GB/s", "update of rows, GB/s", "share"],
        [[cell(results, "bandwidth/update", figure) for figure in figures]],
    )
    yield "\n" + prose("BPR, and making a batch of it on one core of the host, which happens while a step runs:")
    yield from _rates(results, "bpr", BPR)
    yield prose("Softmax over batch negatives:")
    yield from _rates(results, "softmax", SOFTMAX)
    yield prose("BPR on tables that fill most of the GPU's memory, where the first rows are the most popular:")
    names = ("device_gib", "host_gib", "step_ms")
    rows = []
    for key, text in TABLES.items():
        cells = [cell(results, f"tables/{key}", name) for name in names]
        rows.append([text, *cells, thousands(results.median(f"tables/{key}", "rows_per_second"))])
    yield table(["", "GiB on the GPU", "GiB on the host", "step, ms", "thousand rows/s"], rows) + "\n"
    yield prose("The command `crossfade train`, with reading and sampling; milliseconds of a step by phase:")
    rows = [[text, *_training(results, f"train/{key}")] for key, text in TRAININGS.items()]
    yield table(["", "thousand examples/s", "step, ms", *PHASES], rows) + "\n"
    failed = {result.key: results.error(result.key) for result in results}
    rows = [[f"`{key}`", error.replace("|", "/")] for key, error in failed.items() if error]
    if rows:
        yield table(["not measured", "reason"], rows) + "\n"


def _rates(results: Results, section: str, names: Mapping[str, str]) -> Iterator[str]:
    rows = []
    for key, text in names.items():
        full = f"{section}/{key}"
        rate, ratio = results.median(full, RATE), results.ratio(f"{section}/crossfade", full, RATE)
        cells = [thousands(rate) or absence(results, full), f"{ratio:.2f}" if ratio else ""]
        prepare = cell(results, full, "prepare_ms") if results.values(full, "prepare_ms") else ""
        rows.append([text, *cells, cell(results, full, "step_ms") if key != "implicit" else "", prepare])
    yield table(["", "thousand examples/s", "first / this", "step, ms", "making a batch, ms"], rows) + "\n"


def _training(results: Results, key: str) -> list[str]:
    phases = [result.values["phases_ms"] for result in results if result.key == key and not result.error]
    medians = [sorted(each.get(name, 0.0) for each in phases)[len(phases) // 2] if phases else None for name in PHASES]
    cells = ["" if value is None else f"{value:.1f}" for value in medians]
    return [thousands(results.median(key, RATE)) or absence(results, key), cell(results, key, "step_ms"), *cells]
