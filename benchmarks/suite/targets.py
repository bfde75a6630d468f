"""The targets of the suite, and whether the figures meet them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from suite.plan import DISTRIBUTIONS, STOCK_MODES, TORCHREC_PLANS, Scale
from suite.results import Results

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


def over_best(results: Results, ids: str, names: tuple[str, ...], figure: str) -> float | None:
    """Return the ratio of Crossfade on servers over the best of several variants of a peer."""
    best = best_key(results, f"distributed/{ids}/", names, figure)
    return results.ratio(f"distributed/{ids}/crossfade", best, figure) if best else None


def all_targets(scale: Scale) -> list[Target]:
    """Return the targets in the order of the page."""
    targets = []
    for ids in DISTRIBUTIONS:
        for peer, bound in (("implicit", 1.3), ("fbgemm", 6.0)):
            keys = f"single/{ids}/crossfade", f"single/{ids}/{peer}"
            text = f"in process over {'FBGEMM' if peer == 'fbgemm' else peer}, {ids}"
            targets.append(Target(text, bound, True, lambda results, keys=keys: results.ratio(*keys, RATE)))
    for ids in DISTRIBUTIONS:
        plans = tuple(f"torchrec-{plan}" for plan in TORCHREC_PLANS)
        for names, figure, text in (
            (plans, RATE, "dist_sync over TorchRec's best plan"),
            (STOCK_TRAINING, ROW_RATE, "dist_sync over training on stock MXNet, rows"),
        ):
            arguments = ids, names, figure
            targets.append(
                Target(f"{text}, {ids}", 2.0, True, lambda results, arguments=arguments: over_best(results, *arguments))
            )
    for kind, text in (("in_batch", "batch negatives"), ("all", "all items")):
        key = f"products/{kind}"
        measure = lambda results, key=key: results.median(key, "share")  # noqa: E731
        targets.append(Target(f"softmax, {text}: share of bare products", 0.6, True, measure, percent=True))
    evaluation = "evaluation: time over bare products"
    targets.append(Target(evaluation, 2.0, False, lambda results: results.median("products/evaluation", "ratio")))
    rows, most = scale.customers, max(scale.dense_rows)
    if rows in scale.dense_rows:
        pair = f"dense/mxnet-dense/{rows}", f"dense/crossfade/{rows}"
        text = f"MXNet dense over in process, time of a step at {rows:,} rows"
        targets.append(Target(text, 50.0, True, lambda results: results.ratio(*pair, "step_ms")))
        growth = f"dense/crossfade/{most}", f"dense/crossfade/{rows}"
        text = f"time of a step, {most:,} rows over {rows:,}"
        targets.append(Target(text, 1.25, False, lambda results: results.ratio(*growth, "step_ms")))
    return targets
