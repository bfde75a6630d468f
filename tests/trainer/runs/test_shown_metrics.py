"""Metrics that rest on a few queries are not shown."""

import pytest

from crossfade.trainer.runs.shown_metrics import MIN_COLD_QUERIES, shown_metrics

FEW = {"recall@10": 0.2, "recall_warm@10": 0.2, "recall_cold@10": 0.0, "ndcg_among_cold@10": 1.0}


@pytest.mark.parametrize("queries", [1, MIN_COLD_QUERIES - 1])
def test_metrics_of_few_cold_queries_are_left_out(queries: int) -> None:
    assert shown_metrics(FEW | {"queries": 900, "queries_cold": queries}) == ["recall@10"]


def test_metrics_of_many_cold_queries_are_shown() -> None:
    assert shown_metrics(FEW | {"queries": 900, "queries_cold": MIN_COLD_QUERIES}) == list(FEW)
