"""Judge a version: whether it is published, by its metric on the new events that were held out.

judgment = judge(report, metric, Guard.parse("ndcg@10 >= 0.98 * last"))
judgment.before, judgment.after, judgment.is_met
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from crossfade.trainer.runs.shown_metrics import error_of

_CONDITION = re.compile(r"\s*((?:recall|ndcg|map|mrr|hit_rate)@[1-9][0-9]*)\s*>=\s*([0-9]*\.?[0-9]+)\s*\*\s*last\s*")


class Guard(NamedTuple):
    """The condition under which a version is published: ``metric`` on valid is at least ``share`` of the last one's."""

    metric: str
    share: float

    @staticmethod
    def parse(text: str) -> Guard:
        """Parse text such as ``ndcg@10 >= 0.98 * last``.

        Raises:
            ValueError: it has another form.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise ValueError(
                "expected recall, ndcg, map, mrr, or hit_rate in a condition such as 'ndcg@10 >= 0.98 * last', but "
                f"found '{text:.100}'"
            )
        return Guard(found[1], float(found[2]))


class Judgment(NamedTuple):
    """The metric of a version.

    Attributes:
        before: of the model that it continues, before the first step; None if there is none, or no query was held out.
        after: its own; None if nothing was held out.
        is_met: whether it meets the condition. A version without ``before`` does.
    """

    before: float | None
    after: float | None
    is_met: bool


def judge(report: Mapping[str, Any], metric: str, guard: Guard | None) -> Judgment:
    """Judge the version whose training has left ``report``; without a ``guard``, every version meets the condition.

    It may fall short of the condition by a standard error, the larger one of both: the error of a metric that no query
    contributes to is 0.
    """
    start, valid = report["valid_at_start"] or {}, report["metrics"].get("valid", {})
    if report["popularity"] is not None and "valid" in report["metrics"]:
        valid = report["popularity"]["without"]  # as before the first step
    before = start.get(metric) if start.get("queries") else None  # no query: 0, and not a metric
    after = valid.get(metric)
    if guard is None or before is None:
        return Judgment(before, after, is_met=True)
    error = max(metrics.get(error_of(metric), 0.0) for metrics in (start, valid))
    reached = None if after is None else after + error
    return Judgment(before, after, is_met=reached is not None and reached >= guard.share * before)  # NaN is not
