"""Metrics that rest on a few queries are not shown; others have their standard errors."""

import pytest

from crossfade.trainer.runs.shown_metrics import MIN_COLD_QUERIES, count_queries, show_metric, shown_metrics

FEW = {"recall@10": 0.2, "recall_warm@10": 0.2, "recall_cold@10": 0.0, "ndcg_among_cold@10": 1.0}


@pytest.mark.parametrize("queries", [1, MIN_COLD_QUERIES - 1])
def test_metrics_of_few_cold_queries_are_left_out(queries: int) -> None:
    assert shown_metrics(FEW | {"queries": 900, "queries_cold": queries}) == ["recall@10"]


def test_metrics_of_many_cold_queries_are_shown() -> None:
    assert shown_metrics(FEW | {"queries": 900, "queries_cold": MIN_COLD_QUERIES}) == list(FEW)


def test_metric_has_its_standard_error_and_a_sample_the_size_of_the_split() -> None:
    metrics = {"ndcg@10": 0.03781, "ndcg@10_se": 0.00042, "coverage@10": 0.5, "queries": 1990.0}
    assert shown_metrics(metrics) == ["ndcg@10", "coverage@10"]
    shown = [show_metric(metrics, name) for name in ("ndcg@10", "coverage@10", "ndcg@20")]
    assert shown == ["0.0378 ± 0.0004", "0.5000", "\u2013"]
    assert [count_queries(found) for found in (metrics, metrics | {"queries_in_split": 91234})] == [
        "1,990",
        "1,990 of 91,234",
    ]
