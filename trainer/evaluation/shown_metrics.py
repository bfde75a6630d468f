"""Choose the metrics that are shown: not those that rest on a few queries.

shown_metrics({"recall@10": 0.2, "recall_cold@10": 1.0, "queries_cold": 3})     # ["recall@10"]
"""

from __future__ import annotations

from collections.abc import Mapping

MIN_COLD_QUERIES = 100
"""Queries with a cold held-out item from which on metrics of warm and cold items are shown."""


def shown_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics at depths that are shown: of warm and cold items only with enough cold queries.

    With fewer, those of cold items are chance, and those of warm items are those of all.
    """
    has_cold = metrics.get("queries_cold", MIN_COLD_QUERIES) >= MIN_COLD_QUERIES
    names = [name for name in metrics if "@" in name]
    return [name for name in names if has_cold or not name.partition("@")[0].endswith(("_warm", "_cold"))]
