"""Write docs/performance.md and its charts from the record of a run: tables, targets, and what could not be measured.

files = render(json.loads(Path("docs/performance.json").read_text()))       # text by file name
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from suite.charts import Points, line_chart
from suite.cluster_page import CHART, bandwidth_chart, cluster_section
from suite.gpu_page import gpu_section
from suite.markup import absence, cell, prose, table, thousands
from suite.plan import FULL, MXNET_MODES, PIPELINED, QUICK, TORCHREC_VARIANTS, Scale
from suite.provenance import origin, results_of
from suite.results import Result, Results
from suite.targets import RATE, ROW_RATE, all_targets
from suite.waiting_page import waiting_section

PAGE, RECORD = "performance.md", "performance.json"
PEERS = {
    "crossfade": "Crossfade",
    "implicit": "implicit, BPR",
    "buffalo": "Buffalo, BPR",
    "lightfm": "LightFM, BPR",
    "fbgemm": "FBGEMM, row-wise AdaGrad",
    "mxnet-dense": "MXNet dense, row-wise AdaGrad",
    "mxnet-dense-sgd": "MXNet dense, SGD",
    "mxnet-row-sparse": "MXNet row_sparse, row-wise AdaGrad",
    "mxnet-row-sparse-sgd": "MXNet row_sparse, lazy SGD",
}
DISTRIBUTED = {
    "sharded": "Crossfade, 2 workers that hold the tables",
    "crossfade": "Crossfade, 2 servers, 2 workers",
    "crossfade-1": "Crossfade, 1 server, 1 worker",
    **{
        key: f"TorchRec, 2 ranks, {variant['plan']}-wise{', pipelined' if variant[PIPELINED] else ''}"
        for key, variant in TORCHREC_VARIANTS.items()
    },
    "stock-groupadagrad": "stock MXNet, 2 servers, 2 workers, GroupAdaGrad",
    "stock-adagrad": "stock MXNet, 2 servers, 2 workers, AdaGrad",
    "stock-rows-only": "stock MXNet, moving rows only",
}
OVER_PEER = {"crossfade": "ratio"}
OVER_ROW = {"sharded": "sharded / row", "crossfade": "dist_sync / row"}
"""Columns of ratios over each row: by the key of the numerator, the head."""
PHASES = ("data", "sample", "pull", "gradients", "push")
LIMITS = {
    "triad_gbytes": ("memory, triad on all cores", "GB/s"),
    "copy_gbytes": ("memory, numpy's copy on one core", "GB/s"),
    "gather_gbytes": ("random rows of a table, read and written, on all cores", "GB/s"),
    "loopback_gbytes": ("loopback TCP, one connection", "GB/s"),
    "matmul_gflops": ("square matrix products, float32, on all cores", "GFLOP/s"),
    "thin_matmul_gflops": ("products over the columns of a vector, on all cores", "GFLOP/s"),
}


def render(record: dict[str, Any], gpus: dict[str, Any] | None = None) -> dict[str, str]:
    """Return the files of the page, by name; ``gpus`` is the record of ``benchmarks/gpu.py``, if there is one."""
    scale = QUICK if record["scale"] == QUICK.name else FULL
    results = Results(results_of(record))
    return {PAGE: "\n".join(_page(record, gpus, scale, results)), **_charts(scale, results)}


def _page(record: dict[str, Any], gpus: dict[str, Any] | None, scale: Scale, results: Results) -> Iterator[str]:
    yield from _head(record, scale, results)
    yield from _target_section(scale, results)
    for heading, (prefixes, section) in SECTIONS.items():
        yield f"## {heading}\n"
        if measured := _measured(results, *prefixes):
            yield prose(origin(measured))
            yield from section(scale, results)
        else:
            yield "Not measured.\n"
    yield from _phase_section(scale, results)
    yield from gpu_section(gpus)
    yield from _failures(results)


def _head(record: dict[str, Any], scale: Scale, results: Results) -> Iterator[str]:
    machine, versions = record["machine"], record["versions"]
    yield "# Performance\n"
    yield prose(
        f"""Written by `make bench` ([`benchmarks/bench.py`](../benchmarks/bench.py)) from the figures in
        [{RECORD}]({RECORD}). What was tried to get here, and what did not help:
        [performance-notes.md](performance-notes.md). Sections may be of different runs: each names its own."""
    )
    if scale is QUICK:
        yield "**Small sizes, to check the suite: these figures compare nothing.**\n"
    if busy := [heading for heading, load in _loads(results) if load > machine["cores"] + 1]:
        yield prose(
            f"""**Other processes were busy on this machine during the measurements of: {", ".join(busy)}. These figures
            are preliminary.** PyTorch's threads wait in loops, so FBGEMM and TorchRec lose most by that: ratios to them
            are too high."""
        )
    virtual = ", virtual" if machine["virtual"] else ""
    facts = [
        ["machine", f"{machine['processor']}, {machine['cores']} cores{virtual}"],
        ["memory, system", f"{machine['memory_gib']} GiB; {machine['system']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        ["last command", f"`{record['command']}`"],
    ]
    yield table(["", ""], facts) + "\n"
    yield prose(
        f"""The work, unless a section says otherwise: BPR triples (customer, positive, one negative) on
        {scale.customers:,} customers and {scale.tracks:,} tracks with {scale.dim} float32 columns, scored by dot
        product; a step has {scale.batch:,} triples. IDs are the same for all: uniform, or by Zipf's law with exponent
        1.1 in random order. Figures are medians over repeats in which all measurements of a section take turns; the
        range from the lowest to the highest is beside them. Rates are those of steps after a warm-up, without setup.
        Whatever is measured may use {machine["cores"]} cores."""
    )
    yield prose(
        """Crossfade's figures are of the command `crossfade train` on a Parquet dataset: reading, shuffling, and
        drawing negatives are part of them. Peers get arrays of IDs in memory."""
    )


def _target_section(scale: Scale, results: Results) -> Iterator[str]:
    yield "## Targets\n"
    rows = []
    for target in all_targets(scale):
        value = target.measure(results)
        bound = f"{'≥' if target.at_least else '≤'} {target.format(target.bound)}"
        rows.append([target.text, bound, "" if value is None else target.format(value), target.verdict(value)])
    yield table(["figure", "target", "measured", ""], rows) + "\n"
    if any(row[-1] == "missed" for row in rows):
        yield prose(
            """By how much a target is missed is in the table. What was tried, what it brought, and which limit stands
            in the way: [in process](performance-notes.md#in-process-negatives-per-example), [on
            servers](performance-notes.md#servers-and-workers)."""
        )


def _dense_section(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        """Milliseconds of a step, by rows of the table of customers. Dense gradients and updates are as large as
        the table; MXNet's row_sparse updates are lazy, but its embedding's backward pass still visits a flag for
        every row. Crossfade uses row-wise AdaGrad; MXNet has it too (GroupAdaGrad), and SGD, its cheapest update."""
    )
    modes = (*MXNET_MODES, "crossfade")
    rows = []
    for count in scale.dense_rows:
        cells = [cell(results, f"dense/{mode}/{count}", "step_ms") for mode in modes]
        ratio = results.ratio(f"dense/mxnet-dense/{count}", f"dense/crossfade/{count}", "step_ms")
        rows.append([f"{count:,}", *cells, f"{ratio:.0f} x" if ratio else ""])
    yield table(["rows", *(PEERS[mode] for mode in modes), "first / Crossfade"], rows)
    yield "\n![Time of a step against table rows](performance-rows.svg)\n"


def _single_section(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        """Thousand triples per second of one process on all cores, and the ratio of Crossfade over the peer.
        implicit, Buffalo, and LightFM update rows without locks in random order (hogwild) and draw negatives by
        their own rules; the others apply exact steps of the batch."""
    )
    yield from _rates(scale, results, "single", PEERS, RATE, OVER_PEER)


def _distributed_section(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        """Thousand triples per second of all workers, on the same machine, and the ratios of Crossfade over each row:
        two workers that hold the tables themselves (`cluster.store: sharded`), and two servers and two workers on
        MXNet's `dist_sync` store. TorchRec's ranks have one thread each and exchange rows with Gloo; its kernels are
        fused, and "pipelined" is its TrainPipelineSparseDist. Stock MXNet is Gluon's SparseEmbedding and Trainer on
        that store with its own server and optimizer."""
    )
    training = {key: name for key, name in DISTRIBUTED.items() if key != "stock-rows-only"}
    yield from _rates(scale, results, "distributed", training, RATE, OVER_ROW)
    yield prose(
        """Thousand rows per second that are pulled and pushed. The last row computes neither loss nor gradients, so it
        is an upper bound for any training on the stock store, not a training."""
    )
    without_ranks = {key: name for key, name in DISTRIBUTED.items() if not key.startswith("torchrec")}
    yield from _rates(scale, results, "distributed", without_ranks, ROW_RATE, OVER_ROW)


def _product_section(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        f"""Softmax gradients against bare matrix products of the same shapes in as many threads, measured in turn,
        the best of several tilings. Batch negatives: {scale.batch:,} examples in 16 partitions with logQ
        correction; all items: {scale.softmax_tracks:,}. The evaluation ranks {scale.items:,} items for
        {scale.queries:,} queries, top 40."""
    )
    rows = []
    for key, name in (("in_batch", "softmax, batch negatives"), ("all", "softmax, all items")):
        figures = ("engine_ms", "products_ms", "share")
        rows.append([name, *(cell(results, f"products/{key}", figure) for figure in figures)])
    key = "products/evaluation"
    inverse = results.median(key, "ratio")
    cells = [cell(results, key, figure) for figure in ("rank_ms", "products_ms")]
    rows.append(["evaluation", *cells, f"{1 / inverse:.2f}" if inverse else ""])
    yield table(["", "ms", "bare products, ms", "share"], rows) + "\n"


def _growth_section(scale: Scale, results: Results) -> Iterator[str]:
    yield prose(
        """Milliseconds of a step of Crossfade as one size grows, and the rate in thousand triples per second; in
        process, except where workers are named."""
    )
    rows = [
        [axis, f"{size:,}", cell(results, key, "step_ms"), thousands(results.median(key, RATE))]
        for axis, sizes in _growth_keys(scale).items()
        for size, key in sizes
    ]
    yield table(["size", "", "ms", "thousand triples/s"], rows)
    yield "\n![Time of a step against batch, columns, and negatives](performance-growth.svg)\n"


def _growth_keys(scale: Scale) -> dict[str, list[tuple[int, str]]]:
    rows = [(size, f"dense/crossfade/{size}") for size in scale.dense_rows]
    rows += [(size, f"growth/rows/{size}") for size in scale.growth_rows]
    axes = {"batch": scale.batches, "dim": scale.dims, "negatives": scale.negatives}
    names = {"batch": "triples of a step", "dim": "columns", "negatives": "negatives of an example"}
    return {
        "rows of the table": sorted(rows),
        "rows, 2 workers that hold the tables": [(size, f"growth/sharded/{size}") for size in scale.server_rows],
        "rows, 2 servers, 2 workers": [(size, f"growth/servers/{size}") for size in scale.server_rows],
        **{names[axis]: [(size, f"growth/{axis}/{size}") for size in sizes] for axis, sizes in axes.items()},
    }


def _phase_section(scale: Scale, results: Results) -> Iterator[str]:
    yield "## Where the time goes\n"
    yield prose(
        """Milliseconds of a step by phase, of the first worker, from the measurements of "One machine" and "Servers and
        workers"; `data` and `sample` are waits for the background thread that reads and draws negatives."""
    )
    rows = []
    for section, key, name in (
        ("single", "crossfade", "in process"),
        ("distributed", "sharded", "2 workers that hold the tables"),
        ("distributed", "crossfade-1", "1 server, 1 worker"),
        ("distributed", "crossfade", "2 servers, 2 workers"),
    ):
        for ids in scale.distributions:
            found = [
                result.values
                for result in results
                if result.key == f"{section}/{ids}/{key}" and "phases_ms" in result.values
            ]
            if found:
                medians = [
                    statistics.median(values["phases_ms"].get(phase, 0.0) for values in found) for phase in PHASES
                ]
                step = statistics.median(values["step_ms"] for values in found)
                rows.append([f"{name}, {ids}", f"{step:.1f}", *(f"{value:.1f}" for value in medians)])
    yield table(["", "step", *PHASES], rows)
    yield ""
    if measured := _measured(results, "limits/"):
        yield prose(f"Limits of the machine. {origin(measured)}")
        limits = [[text, f"{cell(results, 'limits/machine', name)} {unit}"] for name, (text, unit) in LIMITS.items()]
        yield table(["limit", ""], limits) + "\n"


SECTIONS = {
    "Dense against sparse": (("dense/",), _dense_section),
    "One machine": (("single/",), _single_section),
    "Servers and workers": (("distributed/",), _distributed_section),
    "Softmax and evaluation": (("products/",), _product_section),
    "Growth": (("growth/", "dense/crossfade/"), _growth_section),
    "Growth over servers and workers": (("cluster/",), cluster_section),
    "Waiting": (("waiting/",), waiting_section),
}
"""Sections by heading: the keys of their measurements begin with one of the prefixes."""


def _measured(results: Results, *prefixes: str) -> list[Result]:
    """Return the results, and failures, of measurements whose keys begin with one of ``prefixes``."""
    return [result for result in results if result.key.startswith(prefixes)]


def _loads(results: Results) -> Iterator[tuple[str, float]]:
    """Yield the median load before the measurements of each section that has some, by heading."""
    for heading, (prefixes, _) in SECTIONS.items():
        if measured := _measured(results, *prefixes):
            yield heading, statistics.median(result.load for result in measured)


def _failures(results: Results) -> Iterator[str]:
    errors = {result.key: results.error(result.key) for result in results}
    rows = [[f"`{key}`", error.replace("|", "/")] for key, error in errors.items() if error]
    if rows:
        yield "## Not measured\n"
        yield table(["measurement", "reason"], rows) + "\n"


def _rates(
    scale: Scale, results: Results, section: str, names: dict[str, str], figure: str, over: dict[str, str]
) -> Iterator[str]:
    """Yield a table of rates: for each distribution the median, the range, and the ratios of ``over`` over the row."""
    rows = []
    for key, name in names.items():
        row = [name]
        for ids in scale.distributions:
            full = f"{section}/{ids}/{key}"
            ratios = [results.ratio(f"{section}/{ids}/{numerator}", full, figure) for numerator in over]
            values = results.values(full, figure)
            spread = f"{thousands(min(values))} to {thousands(max(values))}" if values else ""
            row += [_rate(results, full, figure), spread, *(f"{ratio:.2f}" if ratio else "" for ratio in ratios)]
        rows.append(row)
    columns = [column for ids in scale.distributions for column in (ids, "range", *over.values())]
    yield table(["", *columns], rows) + "\n"


def _rate(results: Results, key: str, figure: str) -> str:
    value = results.median(key, figure)
    if value is not None:
        return thousands(value)
    return absence(results, key)


def _charts(scale: Scale, results: Results) -> dict[str, str]:
    def points(keys: Sequence[tuple[int, str]], relative: bool = False) -> Points:
        found = [(size, results.median(key, "step_ms")) for size, key in keys]
        known = [(float(size), value) for size, value in found if value is not None]
        if not relative or not known:
            return known
        return [(size / known[0][0], value / known[0][1]) for size, value in known]

    growth = _growth_keys(scale)
    dense = {
        PEERS[mode].replace("row-wise ", ""): points([(rows, f"dense/{mode}/{rows}") for rows in scale.dense_rows])
        for mode in MXNET_MODES
    }
    relative = {name: points(keys, relative=True) for name, keys in growth.items()}
    charts = {
        "performance-rows.svg": (
            "Time of a step against table rows",
            "rows",
            "ms",
            {**dense, "Crossfade": points(growth["rows of the table"])},
        ),
        "performance-growth.svg": (
            "Time of a step as one size grows",
            "size, relative to the smallest",
            "time, relative",
            relative,
        ),
        CHART: ("Time of a step against bandwidth", "Gbit/s", "ms", bandwidth_chart(scale, results)),
    }
    return {name: line_chart(*chart) for name, chart in charts.items() if any(chart[-1].values())}
