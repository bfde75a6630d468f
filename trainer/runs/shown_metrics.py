"""Choose the metrics that are shown, not those that rest on a few queries, and show them with their standard errors.

shown_metrics({"recall@10": 0.2, "recall_cold@10": 1.0, "queries_cold": 3})     # ["recall@10"]
show_metric({"recall@10": 0.2, "recall@10_se": 0.004}, "recall@10")              # "0.2000 ± 0.0040"
count_queries({"queries": 1_990, "queries_in_split": 91_234})                   # "1,990 of 91,234"
"""

from __future__ import annotations

from collections.abc import Mapping

from crossfade.base.formatting import with_error

MIN_COLD_QUERIES = 100
"""Queries with a cold held-out item from which on metrics of warm and cold items are shown."""
_ERROR = "_se"


def error_of(metric: str) -> str:
    """Return the name of the standard error of ``metric``."""
    return f"{metric}{_ERROR}"


def is_metric(name: str) -> bool:
    """Return whether ``name`` is of a metric at a depth: neither a count nor a standard error."""
    return "@" in name and not name.endswith(_ERROR)


def show_metric(metrics: Mapping[str, float], name: str) -> str:
    """Return the metric ``name`` with its standard error, if it has one; a dash if there is no such metric."""
    return with_error(metrics.get(name), metrics.get(error_of(name)))


def count_queries(metrics: Mapping[str, float]) -> str:
    """Return how many queries were evaluated and, of a sample, how many there are."""
    total = metrics.get("queries_in_split")
    return f"{metrics['queries']:,.0f}" + ("" if total is None else f" of {total:,.0f}")


def shown_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics at depths that are shown: of warm and cold items only with enough cold queries.

    With fewer, those of cold items are chance, and those of warm items are those of all.
    """
    has_cold = metrics.get("queries_cold", MIN_COLD_QUERIES) >= MIN_COLD_QUERIES
    names = [name for name in metrics if is_metric(name)]
    return [name for name in names if has_cold or not name.partition("@")[0].endswith(("_warm", "_cold"))]
