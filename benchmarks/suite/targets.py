"""The targets of the suite, and whether the figures meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from suite.plan import STOCK_MODES, TORCHREC_VARIANTS, Scale
from suite.results import Results
from suite.waiting import COMMANDS

STOCK_TRAINING = tuple(mode for mode, options in STOCK_MODES.items() if options["train"])
RATE, ROW_RATE = "triples_per_second", "rows_per_second"


@dataclass(frozen=True)
class Target:
    """A bound for a figure. ``measure`` returns None where the figure is not known."""

    text: str
    bound: float
    at_least: bool
    measure: Callable[[Results], float | None]
    percent: bool = False

    def format(self, value: float) -> str:
        """Write a value of this figure."""
        return f"{100 * value:.0f} %" if self.percent else f"{value:.2f}"

    def verdict(self, value: float | None) -> str:
        """Return ``met``, ``missed``, or ``not measured``."""
        if value is None:
            return "not measured"
        return "met" if (value >= self.bound) == self.at_least or value == self.bound else "missed"


def best_key(results: Results, prefix: str, names: tuple[str, ...], figure: str) -> str | None:
    """Return the key ``prefix`` + name whose median is the highest; None if none has one."""
    medians = {prefix + name: results.median(prefix + name, figure) for name in names}
    known = {key: value for key, value in medians.items() if value is not None}
    return max(known, key=lambda key: known[key]) if known else None


def all_targets(scale: Scale) -> list[Target]:
    """Return the targets in the order of the page."""
    targets = []
    for ids in scale.distributions:
        for peer, name, bound in (("implicit", "implicit", 1.3), ("fbgemm", "FBGEMM", 6.0)):
            measure = partial(ratio_of, f"single/{ids}/crossfade", f"single/{ids}/{peer}", RATE)
            targets.append(Target(f"in process over {name}, {ids}", bound, True, measure))
    for ids in scale.distributions:
        targets += _distributed_targets(ids)
    for kind, name in (("in_batch", "batch negatives"), ("all", "all items")):
        measure = partial(median_of, f"products/{kind}", "share")
        targets.append(Target(f"softmax, {name}: share of bare products", 0.6, True, measure, percent=True))
    measure = partial(median_of, "products/evaluation", "ratio")
    targets.append(Target("evaluation: time over bare products", 2.0, False, measure))
    rows, most = scale.customers, max(scale.dense_rows)
    if rows in scale.dense_rows:
        key = f"dense/crossfade/{rows}"
        measure = partial(ratio_of, f"dense/mxnet-dense/{rows}", key, "step_ms")
        targets.append(Target(f"MXNet dense over in process, time of a step at {rows:,} rows", 50.0, True, measure))
        measure = partial(ratio_of, f"dense/crossfade/{most}", key, "step_ms")
        targets.append(Target(f"time of a step, {most:,} rows over {rows:,}", 1.25, False, measure))
    least, most = min(scale.server_rows), max(scale.server_rows)
    for kind, name in (("sharded", "on 2 workers that hold the tables"), ("servers", "on 2 servers with 2 workers")):
        measure = partial(ratio_of, f"growth/{kind}/{most}", f"growth/{kind}/{least}", "step_ms")
        targets.append(Target(f"time of a step {name}, {most:,} rows over {least:,}", 1.25, False, measure))
    return [*targets, *_waiting_targets(), *_gpu_targets()]


def _distributed_targets(ids: str) -> Iterator[Target]:
    key, variants = f"distributed/{ids}/", tuple(TORCHREC_VARIANTS)
    measure = partial(_ratio_to_best, ids, "sharded", variants, RATE)
    yield Target(f"sharded over TorchRec's best plan, {ids}", 2.0, True, measure)
    measure = partial(ratio_of, f"{key}sharded", f"{key}crossfade", RATE)
    yield Target(f"sharded over dist_sync, {ids}", 1.8, True, measure)
    measure = partial(_ratio_to_best, ids, "crossfade", variants, RATE)
    yield Target(f"dist_sync over TorchRec's best plan, {ids}", 2.0, True, measure)
    measure = partial(_ratio_to_best, ids, "crossfade", STOCK_TRAINING, ROW_RATE)
    yield Target(f"dist_sync over training on stock MXNet, rows, {ids}", 2.0, True, measure)


def _waiting_targets() -> Iterator[Target]:
    measure = partial(ratio_of, "waiting/prepare/crossfade", "waiting/prepare/plain", "seconds")
    yield Target("prepare over plain DuckDB statements, time", 1.6, False, measure)
    measure = partial(_millions, "waiting/prepare/csv", "events_per_second")
    yield Target("prepare from CSV, million events per second", 1.0, True, measure)
    measure = partial(ratio_of, "waiting/fit/crossfade", "waiting/fit/implicit", "seconds")
    yield Target("fit over implicit's ALS, time", 5.0, False, measure)
    for call in ("recommend", "similar"):
        measure = partial(median_of, "waiting/calls/crossfade", f"{call}_ms")
        yield Target(f"{call} of one ID, milliseconds", 1.0, False, measure)
    for name, command in COMMANDS.items():
        measure = partial(median_of, f"waiting/commands/{name}", "seconds")
        yield Target(f"{command}, seconds", 0.25, False, measure)
    measure = partial(median_of, "waiting/compile", "cpu_seconds")
    yield Target("compiling kernels, processor seconds", 5.0, False, measure)
    measure = partial(median_of, "waiting/evaluation", "share")
    yield Target("evaluation, of the time of training", 0.1, False, measure, percent=True)


def _gpu_targets() -> Iterator[Target]:
    measure = partial(ratio_of, "gpu/bpr/crossfade", "gpu/bpr/fbgemm", RATE)
    yield Target("GPU: BPR over FBGEMM", 1.2, True, measure)
    measure = partial(ratio_of, "gpu/softmax/crossfade", "gpu/softmax/torch-sparse", RATE)
    yield Target("GPU: softmax, batch negatives, over PyTorch's sparse embeddings", 5.0, True, measure)
    measure = partial(median_of, "gpu/bandwidth/update", "share")
    yield Target("GPU: update of rows, share of a copy's bandwidth", 0.6, True, measure, percent=True)


def median_of(key: str, figure: str, results: Results) -> float | None:
    """Return the median of a figure."""
    return results.median(key, figure)


def ratio_of(key: str, other: str, figure: str, results: Results) -> float | None:
    """Return the ratio of the figure of ``key`` over that of ``other``."""
    return results.ratio(key, other, figure)


def _millions(key: str, figure: str, results: Results) -> float | None:
    """Return the median of a figure in millions."""
    median = results.median(key, figure)
    return None if median is None else median / 1e6


def _ratio_to_best(ids: str, name: str, peers: tuple[str, ...], figure: str, results: Results) -> float | None:
    """Return the ratio of the measurement ``name`` over the best of several variants of a peer."""
    best = best_key(results, f"distributed/{ids}/", peers, figure)
    return results.ratio(f"distributed/{ids}/{name}", best, figure) if best else None
